"""Which images a cache holds: those that its base model never saw, in the order of the manifest."""

from __future__ import annotations

import numpy as np

from stacker.caches.format import Provenance, Rows, fixed_text
from stacker.data.folds import Fold, Folds
from stacker.data.manifest import Manifest
from stacker.errors import LeakError


def unseen(manifest: Manifest, folds: Folds, fold: Fold | None) -> tuple[np.ndarray, Rows]:
    """Return the held-out images of a fold, or for None the test images, and who they are."""
    images = manifest.rows_of(folds.group, folds.test if fold is None else fold.held_out)
    name = "test" if fold is None else fold.name if folds.protocol == "crossfit" else "stack"
    names = ("test", "stack", *(each.name for each in folds.folds))
    ids, cases = [image.id for image in manifest.images], manifest.cases
    groups = manifest.groups(folds.group)
    return images, Rows(
        label=manifest.labels[images],
        image_id=fixed_text([ids[row] for row in images], beside=ids),
        case_id=fixed_text([cases[row] for row in images], beside=cases),
        group_id=fixed_text([groups[row] for row in images], beside=groups),
        fold=fixed_text([name] * len(images), beside=names),
    )


def rows_of_cache(manifest: Manifest, folds: Folds, fold: Fold | None) -> Rows:
    """Return all rows of the cache of a fold's base model, or for None of a frozen backbone."""
    parts = [fold] if fold is not None else list(folds.folds)
    return Rows.join(unseen(manifest, folds, part)[1] for part in (*parts, None))


def refuse_trained_images(rows: Rows, where: str, fold: Fold, manifest: Manifest, folds: Folds) -> None:
    """Raise LeakError when a row is an image that trained its model, by whatever unit the split goes."""
    trained = manifest.rows_of(folds.group, (*fold.train, *fold.validation))
    ids = {manifest.images[row].id for row in trained}
    leaked = sorted(ids & {image.decode() for image in rows.image_id})
    if leaked:
        raise LeakError(
            f"cache {where}: {len(leaked)} images trained the model that produced their rows, e.g. "
            f"{leaked[0]}; these rows cannot be stacked: run 'stacker cache CONFIG' again"
        )


def refuse_leaks(rows: Rows, provenance: Provenance, where: str) -> None:
    """Raise LeakError when a case of the rows trained the model that produced them.

    A split by slide or by image leaks across cases by its nature: it was asked for, and its
    label says so, hence it passes.
    """
    if provenance.group != "case":
        return
    trained = set(provenance.training_cases)
    leaked = sorted({case.decode() for case in rows.case_id} & trained)
    if leaked:
        raise LeakError(
            f"cache {where}: {len(leaked)} cases trained the model that produced their rows, e.g. case "
            f"{leaked[0]}; these rows cannot be stacked: run 'stacker cache CONFIG' again"
        )
