"""Which images a cache holds: those that its base model never saw, in the order of the manifest."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from stacker.caches.format import AGAIN, Provenance, Rows, fixed_text
from stacker.data.folds import Fold
from stacker.errors import LeakError, first_few
from stacker.run import Run


def unseen(run: Run, fold: Fold | None) -> tuple[np.ndarray, Rows]:
    """Return the held-out images of a fold, or for None the test images, and who they are."""
    manifest, folds = run.manifest, run.folds
    images = manifest.rows_of(folds.group, folds.test if fold is None else fold.held_out)
    name = "test" if fold is None else fold.name if folds.protocol == "crossfit" else "stack"
    ids = [image.id for image in manifest.images]

    def texts(of_all: list[str]) -> np.ndarray:
        return fixed_text([of_all[row] for row in images], beside=of_all)

    return images, Rows(
        label=manifest.labels[images],
        image_id=texts(ids),
        case_id=texts(manifest.cases),
        group_id=texts(manifest.groups(folds.group)),
        fold=fixed_text([name] * len(images), beside=("test", "stack", *(f.name for f in folds.folds))),
    )


def rows_of_cache(run: Run, fold: Fold | None) -> Rows:
    """Return all rows of the cache of a fold's base model, or for None of a frozen backbone."""
    parts = [fold] if fold is not None else list(run.folds.folds)
    return Rows.join(unseen(run, part)[1] for part in (*parts, None))


def refuse_trained_images(rows: Rows, run: Run, fold: Fold, where: str) -> None:
    """Raise LeakError when a row is an image that trained its model, by whatever unit the split goes."""
    trained = run.manifest.rows_of(run.folds.group, (*fold.train, *fold.validation))
    _refuse("images", rows.image_id, {run.manifest.images[row].id for row in trained}, where)


def refuse_leaks(rows: Rows, provenance: Provenance, where: str) -> None:
    """Raise LeakError when a case of the rows trained the model that produced them.

    A split by slide or by image leaks across cases by its nature: it was asked for, and its
    label says so, hence it passes.
    """
    if provenance.group == "case":
        _refuse("cases", rows.case_id, set(provenance.training_cases), where)


def _refuse(what: str, encoded: Iterable[bytes], trained: set[str], where: str) -> None:
    leaked = sorted(trained & {name.decode() for name in encoded})
    if leaked:
        raise LeakError(
            f"cache {where} leaks: {len(leaked)} of its {what} trained the base model behind it "
            f"({first_few(leaked)})",
            AGAIN,
        )
