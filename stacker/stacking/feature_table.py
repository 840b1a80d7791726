"""The table of stage three as plain arrays, for whatever a notebook wants to do with it.

Every row comes from base models that never saw its case, and columns are centred fold by fold where the
run's own meta-learners see them so. Cuts of its rows belong along `groups`: where several folds' models
made the rows, these are the folds, for the reason that `fitting` gives.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stacker.config.stacking import BLOCKS
from stacker.errors import StackerError, StackError, plural, require_one_of
from stacker.files import publish, write_arrays
from stacker.run import Run
from stacker.stacking.admission import open_caches
from stacker.stacking.blocks import resolve, sees_frozen
from stacker.stacking.learners.matrix import whole
from stacker.stacking.preparation import fit_centres
from stacker.stacking.tables import Table

Form = Literal["csv", "npz", "parquet"]


@dataclass(frozen=True, eq=False, repr=False)
class FeatureTable:
    """Out-of-fold rows: X (N, F) float32 with its `columns`, and y (N,), the place in `classes`.

    `images` and `cases` are ids, `folds` the fold whose base models made a row, `groups` what cuts of
    the rows may not take apart, as scikit-learn's `groups`.
    """

    X: np.ndarray
    y: np.ndarray
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    images: np.ndarray
    cases: np.ndarray
    folds: np.ndarray
    groups: np.ndarray

    def __repr__(self) -> str:
        """Say what is here."""
        counts = (f"{(self.y == k).sum()} {name}" for k, name in enumerate(self.classes))
        rows = f"{plural(len(self.y), 'image')} of {plural(len(np.unique(self.cases)), 'case')}"
        made_by = ", ".join(np.unique(self.folds))
        return (
            f"{rows} ({', '.join(counts)}) x {plural(len(self.columns), 'column')}, made by the base "
            f"models of {made_by}"
        )

    def who(self) -> dict[str, np.ndarray]:
        """Return who the rows are: image, case, fold, label and group, each (N,)."""
        labels = np.array(self.classes)[self.y]
        ids = {"image": self.images, "case": self.cases, "fold": self.folds}
        return {**ids, "label": labels, "group": self.groups}

    def save(self, path: Path, form: Form) -> None:
        """Publish the table as a file; raise StackerError where the package for it is missing."""
        if form == "npz":
            whole = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
            write_arrays(path, whole)
        elif form == "parquet":
            self._save_parquet(path)
        else:
            with publish(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow([*self.who(), *self.columns])
                for ids, values in zip(zip(*self.who().values(), strict=True), self.X, strict=True):
                    writer.writerow([*ids, *map(str, values)])

    def _save_parquet(self, path: Path) -> None:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError:
            raise StackerError(
                "a Parquet file needs pyarrow, which is not installed",
                "pip install pyarrow, or write --csv or --npz",
            ) from None
        values = dict(zip(self.columns, self.X.T, strict=True))
        with publish(path) as temporary:
            parquet.write_table(pa.table({**self.who(), **values}), temporary)

    def frame(self) -> Any:
        """Return a pandas DataFrame: image, case, fold, label, and then the columns by their names."""
        try:
            import pandas as pd
        except ImportError:
            raise StackerError(
                "a DataFrame needs pandas, which is not installed: pip install pandas, or take the "
                "arrays X, y and the names in columns as they are"
            ) from None
        who = {name: values for name, values in self.who().items() if name != "group"}
        values = pd.DataFrame(self.X, columns=list(self.columns))
        return pd.concat([pd.DataFrame(who), values], axis=1)


def table(
    run: Run,
    features: str | Sequence[str] = (),
    fold: str | None = None,
    centre: bool | None = None,
) -> FeatureTable:
    """Return the development rows of some feature blocks (default: `stack.features`), out of fold.

    With `fold`, only those that its base models made. `centre` takes off what the rows of each fold have
    in common, by default as `stack.centre` says; rules want probabilities as they are. Raise StackError
    for embeddings of several folds' models, CacheError for what is not cached, LeakError for a row that
    trained what made it.
    """
    config = run.config.stack
    names = ([features] if isinstance(features, str) else list(features)) or config.features
    unknown = [
        name for name in names if not name.startswith("maps")
    ]  # maps are looked for in the caches
    require_one_of("feature block", unknown, (*BLOCKS, "maps", *config.blocks))
    caches = open_caches(run, sees_frozen(resolve(names, config)))
    tables = caches.tables(names, config)
    rows = tables.development
    if fold is not None:
        require_one_of("fold", [fold], caches.folds)
    elif tables.mixed:
        raise StackError(
            f"{', '.join(names)}: fine-tuned embeddings of different folds lie in different bases, and "
            f"make no table together; take one fold's rows (fold={caches.folds[0]!r}), embeddings of a "
            "'frozen' backbone, or a run with folds.protocol=holdout"
        )
    if tables.crossed and (config.centre if centre is None else centre):
        rows = rows.centred(fit_centres(rows))
    kept = np.ones(len(rows.rows), bool) if fold is None else rows.made_by == fold
    several = len(np.unique(rows.made_by[kept])) > 1
    return _as_arrays(rows.take(kept), tables.groups[kept], several, config.memory_gb)


def _as_arrays(rows: Table, units: np.ndarray, several: bool, memory_gb: float) -> FeatureTable:
    """Return rows as arrays; groups are the folds of several, else the units of the split."""
    return FeatureTable(
        X=whole(rows, memory_gb, "stacker.table"),
        y=rows.rows.label,
        columns=rows.columns,
        classes=rows.classes,
        images=_text(rows.rows.image_id),
        cases=_text(rows.rows.case_id),
        folds=rows.made_by,
        groups=rows.made_by if several else units,
    )


def _text(names: np.ndarray) -> np.ndarray:
    return np.array([name.decode() for name in names])
