"""Classify new images with the whole stack: base models, their maps, the meta-learner.

The one place where the torch half and the scikit-learn half meet in a process: the features of new
images go straight from the base models to the meta-learner, by the same functions that fill and read
the cache. Maps drawn over the image are those of the predicted class, averaged over the folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stacker.checkpoint import load_checkpoint
from stacker.errors import BackboneError, DataError, require_one_of
from stacker.extract import Arrays, extract
from stacker.features import assemble, probabilities
from stacker.figures import Picture, heatmap_sheet, save_figure
from stacker.finetune import How
from stacker.images import decode
from stacker.meta import META, load_meta
from stacker.progress import track
from stacker.run import FROZEN, Run, file_sha256
from stacker.settings import name_maps
from stacker.stack import default_meta, stack_facts


@dataclass(frozen=True)
class Prediction:
    """What the stack says of one image; `base` is each base model's own say."""

    path: str
    predicted: str
    probabilities: dict[str, float]
    base: dict[str, dict[str, float]]
    heatmaps: str


def predict(
    run: Run, paths: Sequence[Path], meta: str | None, out: Path
) -> tuple[list[Prediction], list[str]]:
    """Return one prediction per readable image and the reasons for the others; write the overlays."""
    meta = meta or default_meta(run)
    require_one_of("meta-learner", [meta], META)
    facts = stack_facts(run, meta)
    classes, settings = facts["classes"], run.config.images
    _require_checkpoints(run, facts["checkpoints"])
    readable, pixels, failures = [], [], []
    for path in paths:
        try:
            pixels.append(decode(path, settings))
            readable.append(path)
        except DataError as error:
            failures.append(str(error))
    if not readable:
        return [], failures
    model = load_meta(meta, run.stack_folder(meta))
    shares, by_fold = [], []
    frozen = _frozen(run, facts, pixels)
    for fold in track(facts["folds"], "predict", total=len(facts["folds"])):
        arrays = _extract(run, dict.fromkeys(facts["backbones"], fold), pixels, facts)
        by_fold.append(arrays)
        beside = {name: arrays.get(name, {}) | found for name, found in frozen.items()}
        values, _ = assemble({**arrays, **beside}, classes, facts["features"])
        shares.append(model.predict_proba(values))
    stacked = np.mean(shares, axis=0)
    names = _overlay_names(readable)
    predictions = []
    for i, path in enumerate(readable):
        k = int(stacked[i].argmax())
        base = {n: np.mean([probabilities(f[n]["logits"])[i] for f in by_fold], 0) for n in by_fold[0]}
        file = out / names[i]
        title = f"{path.name}\n{meta}: {classes[k]} {stacked[i, k]:.2f}"
        panels = {
            f"{name}\n{classes[k]} {base[name][k]:.2f}": [
                np.mean([f[name]["maps"][i, min(k, len(f[name]["maps"][i]) - 1)] for f in by_fold], 0)
            ]
            for name in base
        }
        save_figure(heatmap_sheet([Picture(title, pixels[i])], panels, signed=False), file)
        predictions.append(
            Prediction(
                path=str(path),
                predicted=classes[k],
                probabilities=_named(classes, stacked[i]),
                base={name: _named(classes, share) for name, share in base.items()},
                heatmaps=str(file),
            )
        )
    return predictions, failures


def _extract(
    run: Run, folds: Mapping[str, str], pixels: list[np.ndarray], facts: dict[str, Any]
) -> dict[str, Arrays]:
    """Return what base models, named with their folds, say of the images, read once for all of them."""
    how = How.of(run.config)
    backbones = {}
    for name, fold in folds.items():
        backbones[name] = load_checkpoint(run.model_file(name, fold))[0].freeze()
        backbones[name].model.to(how.device)
    size = run.config.cam.batch_size
    batches = (
        torch.from_numpy(np.stack(pixels[i : i + size])).to(how.device)
        for i in range(0, len(pixels), size)
    )
    maps = name_maps(facts["methods"], facts["lower"])
    wanted = {name: {} if fold == FROZEN else maps for name, fold in folds.items()}
    return extract(backbones, batches, wanted, getattr(torch, facts["precision"]))


def _frozen(run: Run, facts: dict[str, Any], pixels: list[np.ndarray]) -> dict[str, Arrays]:
    """Return the block `frozen` of the images, of every frozen backbone that the meta-learner knows."""
    keys = [key.split("/") for key in facts["checkpoints"]]
    names = {name: fold for name, fold in keys if fold == FROZEN}
    found = _extract(run, names, pixels, facts) if names else {}
    return {name: {"frozen": arrays["features"]} for name, arrays in found.items()}


def _require_checkpoints(run: Run, expected: dict[str, str]) -> None:
    """Raise BackboneError when a base model is not the one that the meta-learner was fitted on."""
    for key, sha256 in expected.items():
        path = run.model_file(*key.split("/"))
        if not path.exists():
            raise BackboneError(f"{path}: this base model is missing; run 'stacker run CONFIG' again")
        found = file_sha256(path)
        if found != sha256:
            raise BackboneError(
                f"{path} is not the base model that the meta-learner was fitted on (sha256 "
                f"{found[:12]}, expected {sha256[:12]}); run 'stacker run CONFIG' again"
            )


def _named(classes: Sequence[str], shares: np.ndarray) -> dict[str, float]:
    return {name: round(float(share), 6) for name, share in zip(classes, shares, strict=True)}


def _overlay_names(paths: Sequence[Path]) -> list[str]:
    """Return a file name per image; images of one name in several folders are numbered."""
    names: list[str] = []
    for path in paths:
        name, number = f"{path.stem}.png", 1
        while name in names:
            number += 1
            name = f"{path.stem}-{number}.png"
        names.append(name)
    return names
