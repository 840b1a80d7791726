"""Which images a cache holds: those that its base model never saw, in the order of the manifest."""

from __future__ import annotations

import numpy as np

from stacker.cache import Rows, fixed_text
from stacker.folds import Fold, Folds
from stacker.manifest import Manifest


def unseen(manifest: Manifest, folds: Folds, fold: Fold | None) -> tuple[np.ndarray, Rows]:
    """Return the held-out images of a fold, or for None the test images, and who they are."""
    images = manifest.rows_of(folds.group, folds.test if fold is None else fold.held_out)
    name = "test" if fold is None else fold.name if folds.protocol == "crossfit" else "stack"
    names = ("test", "stack", *(each.name for each in folds.folds))
    every_id, every_case = (image.id for image in manifest.images), manifest.clusters
    return images, Rows(
        label=manifest.labels[images],
        image_id=fixed_text([manifest.images[row].id for row in images], beside=every_id),
        case_id=fixed_text([manifest.clusters[row] for row in images], beside=every_case),
        fold=fixed_text([name] * len(images), beside=names),
    )


def rows_of_cache(manifest: Manifest, folds: Folds, fold: Fold | None) -> Rows:
    """Return all rows of the cache of a fold's base model, or for None of a frozen backbone."""
    parts = [fold] if fold is not None else list(folds.folds)
    return Rows.join(unseen(manifest, folds, part)[1] for part in (*parts, None))
