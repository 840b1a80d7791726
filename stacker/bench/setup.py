"""What the benches of stage two start from: drawn images, and base models with what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stacker.backbones.backbone import Backbone, create
from stacker.backbones.checkpoint import load_checkpoint
from stacker.backbones.devices import Machine, Subset
from stacker.caches.format import Provenance, Rows, describe_preprocessing, fixed_text
from stacker.config.root import Config
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import Manifest
from stacker.data.store import open_usable
from stacker.errors import ConfigError, RunError
from stacker.files import file_sha256
from stacker.maps.extract import classifier_bias
from stacker.run import Run


@dataclass(frozen=True)
class Base:
    """A base model, where it comes from, and what its parts say of their origin."""

    backbone: Backbone
    start: str
    provenance: Provenance


@dataclass(frozen=True)
class Setup:
    """What all ways share."""

    config: Config
    machine: Machine
    part: Subset
    classes: tuple[str, ...]
    rows: Rows
    bases: Mapping[str, Base]


def set_up(config: Config, images: int) -> Setup:
    """Draw the images and put the base models on the device; raise ConfigError for too many images."""
    machine = Machine.of(config).set_up()
    manifest, pixels = open_usable(
        config.artifacts / ".images", read_manifest(config.data), config.images, config.data.on_error
    )
    if images > (found := len(manifest.images)):
        raise ConfigError(f"--images {images}: there are {found} images; ask for {found} at most")
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(manifest.images))[:images])
    rows = Rows(
        label=manifest.labels[chosen],
        image_id=fixed_text([manifest.images[row].id for row in chosen]),
        case_id=fixed_text([manifest.cases[row] for row in chosen]),
        group_id=fixed_text([manifest.cases[row] for row in chosen]),
        fold=fixed_text(["bench"] * images),
    )
    bases = {name: _base(config, name, manifest, machine) for name in config.backbones}
    part = Subset(pixels, manifest.labels, chosen)
    return Setup(config, machine, part, manifest.classes, rows, bases)


def _base(config: Config, name: str, manifest: Manifest, machine: Machine) -> Base:
    """Return the run's first base model of a backbone, or what it would start from."""
    fold = "fold0" if config.folds.protocol == "crossfit" else "holdout"
    path, images, cam = Run(config.run_path, config).model_file(name, fold), config.images, config.cam
    sha256, cases, start = "not trained", [], "as they start"
    if path.exists():
        backbone, facts = load_checkpoint(path)
        if backbone.size != images.shape or tuple(facts["classes"]) != manifest.classes:
            raise RunError(
                f"{path} was trained on other classes or at another size ({backbone.size}) than this "
                "config's; give this config another 'run' name (--set run=NAME)"
            )
        sha256, cases, start = file_sha256(path), facts["training_cases"], "trained"
    else:
        torch.manual_seed(config.seed)
        backbone = create(name, len(manifest.classes), config.backbones[name], images.shape)
    backbone.freeze().model.to(machine.device)
    provenance = Provenance(
        backbone=name,
        model_fold=fold,
        classes=manifest.classes,
        group=config.folds.group,
        checkpoint_sha256=sha256,
        manifest_digest=manifest.digest,
        folds_digest="no split",
        training_cases=tuple(cases),
        target_layer=backbone.target_layer,
        methods=tuple(cam.methods),
        lower=cam.lower,
        preprocessing=describe_preprocessing(images.size, images.resize, backbone.mean, backbone.std),
        precision=str(machine.precision).removeprefix("torch."),
        lower_layers=tuple(backbone.layers_below(cam.lower)[::-1]),
        classifier_bias=classifier_bias(backbone),
    )
    return Base(backbone, start, provenance)


def normalised(setup: Setup) -> dict[str, Tensor]:
    """Return the images as each base model wants them, on the device; equal scalings share them."""
    part, device = setup.part, setup.machine.device
    found: dict[object, Tensor] = {}
    for base in setup.bases.values():
        key = (base.backbone.mean, base.backbone.std)
        if key not in found:
            batches = part.batches(part.rows, setup.config.cam.batch_size, device)
            found[key] = torch.cat([base.backbone.normalise(pixels) for pixels, _ in batches])
    return {name: found[(b.backbone.mean, b.backbone.std)] for name, b in setup.bases.items()}
