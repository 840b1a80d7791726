"""What stage two is timed on: images with their rows, base models, and what made these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stacker.backbones.backbone import Backbone, create
from stacker.backbones.checkpoint import load_checkpoint
from stacker.backbones.devices import Machine, Subset
from stacker.bench.images import shuffled_images
from stacker.caches.format import Provenance, Rows, describe_preprocessing, fixed_text
from stacker.config.maps import CamConfig
from stacker.config.root import Config
from stacker.config.training import WeightsConfig
from stacker.data.manifest import Manifest
from stacker.errors import ConfigError, RunError
from stacker.files import file_sha256
from stacker.maps.extract import classifier_bias
from stacker.run import Run

UNTRAINED = "not trained"
CLASSES = ("benign", "malignant")


@dataclass(frozen=True)
class Work:
    """What all ways share: the images and who they are, the base models and what made them."""

    cam: CamConfig
    machine: Machine
    part: Subset
    rows: Rows
    backbones: dict[str, Backbone]
    origins: dict[str, Provenance]
    folder: Path  # where the parts are written for the while

    def first(self, images: int) -> Work:
        """Return the same work on fewer images."""
        part = replace(self.part, rows=self.part.rows[:images])
        return replace(self, part=part, rows=self.rows.take(slice(0, images)))


def prepare(config: Config, images: int | None, most: int) -> Work:
    """Draw the images, `most` unless told, and put a run's base models on the device.

    Raise ConfigError for more images than there are.
    """
    machine = Machine.of(config).set_up()
    manifest, pixels, order = shuffled_images(config)
    if images is not None and images > (there := len(order)):
        raise ConfigError(f"--images {images}: there are {there} images; ask for {there} at most")
    chosen = order[: images or most]
    models = {name: _base_model(config, name, manifest, machine) for name in config.backbones}
    ids = [manifest.images[row].id for row in chosen]
    cases = [manifest.cases[row] for row in chosen]
    part = Subset(pixels, manifest.labels, chosen)
    return make_work(config.cam, machine, part, ids, cases, models, config.artifacts)


def make_work(
    cam: CamConfig,
    machine: Machine,
    part: Subset,
    ids: Sequence[str],
    cases: Sequence[str],
    models: Mapping[str, tuple[Backbone, Provenance]],
    folder: Path,
) -> Work:
    """Return the work on some images by base models that lie on the device."""
    named = fixed_text(list(cases))
    rows = Rows(
        label=part.labels[part.rows],
        image_id=fixed_text(list(ids)),
        case_id=named,
        group_id=named,
        fold=fixed_text(["bench"] * len(named)),
    )
    backbones = {name: backbone for name, (backbone, _) in models.items()}
    origins = {name: origin for name, (_, origin) in models.items()}
    return Work(cam, machine, part, rows, backbones, origins, folder)


def generated_work(
    names: Sequence[str], part: Subset, batch_size: int, machine: Machine, folder: Path
) -> Work:
    """Return the work on generated images by backbones with random weights."""
    cam, height, width = CamConfig(batch_size=batch_size), *part.pixels[part.rows[:1]].shape[1:3]
    models = {}
    for name in names:
        backbone = create(name, len(CLASSES), WeightsConfig(weights="random"), (height, width)).freeze()
        backbone.model.to(machine.device)
        origin = Provenance(
            *(name, "bench", CLASSES, "case", UNTRAINED, "generated", "no split", ()),
            *(backbone.target_layer, tuple(cam.methods), cam.lower, "", machine.arithmetic),
        )
        models[name] = backbone, origin
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"image-{row:06d}" for row in part.rows]
    return make_work(cam, machine, part, ids, ids, models, folder)


def _base_model(
    config: Config, name: str, manifest: Manifest, machine: Machine
) -> tuple[Backbone, Provenance]:
    """Return the run's first base model of a backbone, or what it would start from, and its origin."""
    fold = "fold0" if config.folds.protocol == "crossfit" else "holdout"
    path, images, cam = Run(config.run_path, config).model_file(name, fold), config.images, config.cam
    sha256, cases = UNTRAINED, []
    if path.exists():
        backbone, facts = load_checkpoint(path)
        if backbone.size != images.shape or tuple(facts["classes"]) != manifest.classes:
            raise RunError(
                f"{path} was trained on other classes or at another size ({backbone.size}) than this "
                "config's; give this config another 'run' name (--set run=NAME)"
            )
        sha256, cases = file_sha256(path), facts["training_cases"]
    else:
        torch.manual_seed(config.seed)
        backbone = create(name, len(manifest.classes), config.backbones[name], images.shape)
    backbone.freeze().model.to(machine.device)
    preprocessing = describe_preprocessing(images.size, images.resize, backbone.mean, backbone.std)
    origin = Provenance(
        *(name, fold, manifest.classes, config.folds.group, sha256, manifest.digest, "no split"),
        *(tuple(cases), backbone.target_layer, tuple(cam.methods), cam.lower, preprocessing),
        precision=machine.arithmetic,
        lower_layers=tuple(backbone.layers_below(cam.lower)[::-1]),
        classifier_bias=classifier_bias(backbone),
    )
    return backbone, origin
