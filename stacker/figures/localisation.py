"""Heatmaps against the masks of the lesions, in numbers: do those of the true class point at them?"""

from __future__ import annotations

from typing import Any

import numpy as np

from stacker.caches.reader import open_cache
from stacker.data.images import read_mask
from stacker.figures.evidence import upsample
from stacker.run import Run


def pointing_and_mass(map_hw: np.ndarray, mask: np.ndarray) -> tuple[bool, float]:
    """Say whether the map's peak lies inside the mask, and which share of its positive mass does.

    A map without any positive value points nowhere: a miss, with no mass inside.
    """
    heat = upsample(map_hw, mask.shape).clip(min=0)
    if heat.max() <= 0:
        return False, 0.0
    return bool(mask.flat[heat.argmax()]), float(heat[mask].sum() / heat.sum())


def localise(run: Run) -> dict[str, Any]:
    """Score each backbone's maps of the true class on the test images that have a mask.

    `mask_area` is what a map that knows nothing would reach. Labels are used to look, never to stack.
    """
    tests = [run.manifest.images[row] for row in run.manifest.rows_of(run.folds.group, run.folds.test)]
    masks = {image.id: read_mask(image, run.config) for image in tests}
    known = {name: mask for name, mask in masks.items() if mask is not None and mask.any()}
    result: dict[str, Any] = {}
    for backbone in run.config.backbones:
        scores = []
        for fold in run.folds.folds:
            cache = open_cache(run.cache_folder(backbone, fold.name))
            wanted = np.array([i.decode() in known for i in cache.rows.image_id])
            wanted &= cache.rows.fold == b"test"
            rows = cache.rows.take(wanted)
            for maps, label, image_id in zip(
                cache.read("maps", wanted), rows.label, rows.image_id, strict=True
            ):
                mask = known[image_id.decode()]
                of_class = maps[min(label, len(maps) - 1)]  # one for all where classes do not differ
                scores.append((*pointing_and_mass(of_class, mask), mask.mean()))
        if scores:
            hits, inside, areas = (
                round(float(np.mean(column)), 4) for column in zip(*scores, strict=True)
            )
            result[backbone] = {
                "pointing_game": hits,
                "mass_inside": inside,
                "mask_area": areas,
                "maps": len(scores),
            }
    return result
