"""Which columns a fitted stack relies on, where its meta-learner can tell: coefficients or gains.

By block, a share is that of the sum of absolute values, averaged over the fits of a stack; a block that
says nothing has about the share that it has of the columns.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
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
HEADER = ["fit", "column", "backbone", "block", "class", "value", "kind"]


@dataclass(frozen=True)
class BlockShare:
    """What the columns of one block of one backbone count together, and how many columns they are."""

    backbone: str
    block: str
    columns: int
    share: float
    of_columns: float


def write_importances(
    folder: Path, members: Mapping[str, Sequence[Member]], classes: Sequence[str]
) -> None:
    """Publish the importances of a fitted stack, or remove old ones where its meta-learner has none.

    A line per fit, column and class: the columns of another fold's embeddings, or of other principal
    components, are other features under the same name, so that no mean is taken over them.
    """
    path = folder / FILE
    fits = {f"{scope}-{n}": fit for scope, some in members.items() for n, fit in enumerate(some)}
    told = {name: fit.learner.importances() for name, fit in fits.items()}
    known = {name: one for name, one in told.items() if one is not None}
    if not known or len(known) < len(told):
        path.unlink(missing_ok=True)
        return
    with publish(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for fit, (kind, values) in known.items():
            by_class = np.atleast_2d(values)
            of_class = classes if len(by_class) == len(classes) else [""]
            for name, row in zip(of_class, by_class, strict=True):
                for column, value in zip(fits[fit].preparation.columns, row, strict=True):
                    backbone, block = column.split("/")[:2]
                    writer.writerow([fit, column, backbone, block, name, f"{value:.6g}", kind])


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
    """Return the share of every block of every backbone, the largest first: the mean over the fits.

    A fit that relies on no column has no shares, and is left out where another one has.
    """
    of_fit: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        of_fit.setdefault(row["fit"], []).append(row)
    telling = [some for some in of_fit.values() if any(row["value"] for row in some)]
    shares = [_shares(some) for some in telling or of_fit.values()]
    columns: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        columns.setdefault((row["backbone"], row["block"]), set()).add(row["column"])
    found = [
        BlockShare(*name, len(some), *np.mean([of_fit[name] for of_fit in shares], axis=0).tolist())
        for name, some in columns.items()
    ]
    return sorted(found, key=lambda share: -share.share)


def _shares(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the share of absolute values, and of columns, of every block of one fit."""
    total = sum(abs(row["value"]) for row in rows) or 1.0
    of_block: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        of_block.setdefault((row["backbone"], row["block"]), []).append(abs(row["value"]))
    return {name: (sum(some) / total, len(some) / len(rows)) for name, some in of_block.items()}
