"""Which columns a fitted stack relies on, where its meta-learner can tell: coefficients or gains.

Numbers are averaged over the members of a stack, folds and seeds. By block, a share is that of the sum
of absolute values; a block that says nothing has about the share that it has of the columns.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stacker.errors import StackError
from stacker.files import publish
from stacker.run import Run

if TYPE_CHECKING:
    from stacker.stacking.fitting import Member

FILE = "importances.csv"
HEADER = ["column", "backbone", "block", "class", "value", "kind"]


@dataclass(frozen=True)
class BlockShare:
    """What the columns of one block of one backbone count together, and how many columns they are."""

    backbone: str
    block: str
    columns: int
    share: float
    of_columns: float


def mean_importances(members: Iterable[Member]) -> tuple[str, tuple[str, ...], np.ndarray] | None:
    """Return what the numbers are, the columns, and values (K or 1, F), averaged over members.

    None where the meta-learner tells nothing.
    """
    fitted = list(members)
    told = [member.learner.importances() for member in fitted]
    known = [np.atleast_2d(one[1]) for one in told if one is not None]
    if not told or told[0] is None or len(known) < len(told):
        return None
    return told[0][0], fitted[0].preparation.columns, np.mean(known, axis=0)


def write_importances(folder: Path, members: Iterable[Member], classes: Sequence[str]) -> None:
    """Publish the importances of a fitted stack, a line per column and class, or remove old ones."""
    path, known = folder / FILE, mean_importances(members)
    if known is None:
        path.unlink(missing_ok=True)
        return
    kind, columns, values = known
    of_class = classes if len(values) == len(classes) else [""]
    with publish(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for name, row in zip(of_class, values, strict=True):
            for column, value in zip(columns, row, strict=True):
                backbone, block = column.split("/")[:2]
                writer.writerow([column, backbone, block, name, f"{value:.6g}", kind])


def read_importances(run: Run, meta: str) -> list[dict[str, Any]]:
    """Return the importances that lie beside a stack; raise StackError where there are none."""
    folder = run.stack_folder(meta)
    path = folder / FILE
    if not path.exists():
        fitted = (folder / "stack.json").exists()
        raise StackError(
            f"{meta} of {run.path} has no importances by column",
            "coefficients and gains are available for logistic, xgboost, random_forest, svm with a "
            "linear kernel, and custom classes with coef_ or feature_importances_"
            if fitted
            else f"run 'stacker stack CONFIG --meta {meta}' first",
        )
    with path.open(newline="", encoding="utf-8") as file:
        return [{**row, "value": float(row["value"])} for row in csv.DictReader(file)]


def by_block(rows: Sequence[dict[str, Any]]) -> list[BlockShare]:
    """Return the share of every block of every backbone, the largest first."""
    total = sum(abs(row["value"]) for row in rows) or 1.0
    of_block: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        of_block.setdefault((row["backbone"], row["block"]), []).append(abs(row["value"]))
    classes = len({row["class"] for row in rows})
    shares = [
        BlockShare(*name, len(some) // classes, sum(some) / total, len(some) / len(rows))
        for name, some in of_block.items()
    ]
    return sorted(shares, key=lambda share: -share.share)
