"""The overlay of a predicted image: which maps are drawn over it, and what is written above them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stacker.config.data import ImagesConfig
from stacker.data.images import UnusableError, own_size
from stacker.figures.evidence import unit_of
from stacker.figures.overlays import Overlays, Panel
from stacker.prediction.inputs import Input
from stacker.run import BaseModel
from stacker.stacking.saved import Stack

log = logging.getLogger(__name__)


def draw(
    overlays: Overlays,
    stack: Stack,
    image: Input,
    predicted: tuple[int, float],
    maps: Mapping[BaseModel, np.ndarray],
    shares: Mapping[BaseModel, np.ndarray],
    images: ImagesConfig,
) -> Path | None:
    """Draw the maps (K, h, w) of the predicted class, averaged over the folds; return the file.

    `shares` (K,) are the base models' probabilities. The image is read once more, in its own size: a
    batch of whole slides would fill the memory. None when it cannot be read any more.
    """
    try:
        pixels = own_size(image.path if image.picture is None else image.picture)
    except UnusableError as error:
        log.warning("%s: no overlay is drawn, it %s", image.path, error)
        return None
    k, confidence = predicted
    name, unit, panels = stack.classes[k], unit_of(stack.facts["methods"][0]), []
    for backbone in stack.backbones:
        bases = [BaseModel(backbone, fold) for fold in stack.folds]
        mean_Khw = np.mean([maps[base] for base in bases], axis=0)
        share = np.mean([shares[base][k] for base in bases])
        panels.append(
            Panel((backbone, f"{name} {share:.2f}"), unit, mean_Khw[min(k, len(mean_Khw) - 1)])
        )
    said = f"predicted: {name}, probability {confidence:.2f} ({stack.name})"
    of_class = f"evidence for {name}" if len(mean_Khw) > 1 else "the same for all classes"
    mean = f", mean of {len(stack.folds)} folds" if len(stack.folds) > 1 else ""
    title = (
        image.path.name,
        said + (f"; true class: {image.label}" if image.label in stack.classes else ""),
        f"maps: {of_class}{mean}",
    )
    return overlays.draw(image.path.stem, title, pixels, images, panels)
