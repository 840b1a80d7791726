"""What happens to a map when somebody looks: a native-grid map becomes a heatmap over the pixels.

The cache holds maps signed, unscaled and small. Here they are upsampled for a person, and scored against
masks of the lesion where the data set has some: does the map's peak fall inside (pointing game, Zhang et
al. 2016), and how much of its positive mass does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture

from stacker.cache import open_cache
from stacker.config import Config
from stacker.folds import Folds
from stacker.images import decode
from stacker.manifest import Image, Manifest
from stacker.run import Run


def upsample(map_hw: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return a map as float32 of (height, width), bilinearly interpolated."""
    small = Picture.fromarray(np.ascontiguousarray(map_hw, dtype=np.float32))
    height, width = size
    return np.asarray(small.resize((width, height), Picture.Resampling.BILINEAR))


def read_mask(image: Image, config: Config) -> np.ndarray | None:
    """Return an image's lesion mask as (height, width) bool, or None when it has none."""
    if config.data.masks is None:
        return None
    path = config.data.masks / Path(image.path).name
    return decode(path, config.images, "black")[..., 0] > 127 if path.exists() else None


def pointing_and_mass(map_hw: np.ndarray, mask: np.ndarray) -> tuple[bool, float]:
    """Say whether the map's peak lies inside the mask, and which share of its positive mass does.

    A map without any positive value points nowhere: a miss, with no mass inside.
    """
    heat = upsample(map_hw, mask.shape).clip(min=0)
    if heat.max() <= 0:
        return False, 0.0
    return bool(mask.flat[heat.argmax()]), float(heat[mask].sum() / heat.sum())


def localise(run: Run, manifest: Manifest, folds: Folds) -> dict[str, Any]:
    """Score each backbone's maps of the true class on the test images that have a mask.

    `mask_area` is what a map that knows nothing would reach. Labels are used to look, never to stack.
    """
    tests = [manifest.images[row] for row in manifest.rows_of(folds.group, folds.test)]
    masks = {image.id: read_mask(image, run.config) for image in tests}
    known = {name: mask for name, mask in masks.items() if mask is not None and mask.any()}
    result: dict[str, Any] = {}
    for backbone in run.config.backbones:
        hits, inside, areas = [], [], []
        for fold in folds.folds:
            cache = open_cache(run.cache_folder(backbone, fold.name))
            wanted = np.array([i.decode() in known for i in cache.rows.image_id])
            wanted &= cache.rows.fold == b"test"
            rows = cache.rows.take(wanted)
            found = cache.read("maps", wanted)
            for maps, label, image_id in zip(found, rows.label, rows.image_id, strict=True):
                mask = known[image_id.decode()]
                hit, mass = pointing_and_mass(maps[label], mask)
                hits.append(hit)
                inside.append(mass)
                areas.append(mask.mean())
        if hits:
            result[backbone] = {
                "pointing_game": round(float(np.mean(hits)), 4),
                "mass_inside": round(float(np.mean(inside)), 4),
                "mask_area": round(float(np.mean(areas)), 4),
                "maps": len(hits),
            }
    return result
