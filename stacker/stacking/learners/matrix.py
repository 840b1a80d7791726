"""Tables that need not fit in memory: rows are read when they are wanted.

A meta-learner takes a numpy array as any scikit-learn estimator does, or anything with the three methods
of `Matrix`. Those that learn from one batch after the other go through it in `chunks`; those that need
everything at once call `whole`, which refuses what is larger than the memory that it may have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from stacker.errors import StackError

CHUNK_BYTES = 64_000_000


class Matrix(Protocol):
    """Rows (N, F) of float32 that may lie in files."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to `stop`, (n, F) float32."""

    def take(self, rows: np.ndarray) -> Matrix:
        """Return some of the rows, by mask or by rising index."""


Rows2D: TypeAlias = "np.ndarray | Matrix"


@dataclass(frozen=True)
class InMemory:
    """An array, or some rows of it, as a matrix: what is taken of it is copied when it is read."""

    values: np.ndarray
    rows: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.values if self.rows is None else self.rows), self.values.shape[1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return some rows."""
        chosen = slice(start, stop) if self.rows is None else self.rows[start:stop]
        return np.ascontiguousarray(self.values[chosen], dtype=np.float32)

    def take(self, rows: np.ndarray) -> InMemory:
        """Return some of the rows."""
        kept = np.arange(len(self.values)) if self.rows is None else self.rows
        return InMemory(self.values, kept[rows])


@dataclass(frozen=True)
class Changed:
    """A matrix of which every row goes through a function, (n, F) to (n, G), when it is read."""

    source: Matrix
    change: Callable[[np.ndarray], np.ndarray]
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.source.shape[0], self.columns

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return some rows, changed."""
        return self.change(self.source.read(start, stop))

    def take(self, rows: np.ndarray) -> Changed:
        """Return some of the rows."""
        return Changed(self.source.take(rows), self.change, self.columns)


def as_matrix(X: Rows2D) -> Matrix:
    """Return an array, or what is a matrix already, as a matrix."""
    return InMemory(X) if isinstance(X, np.ndarray) else X


def size_gb(X: Rows2D) -> float:
    """Return how much memory all of it takes as float32."""
    return float(X.shape[0] * X.shape[1] * 4 / 1e9)


def spans(X: Rows2D, rows: int | None = None) -> list[tuple[int, int]]:
    """Cut the rows into pieces of so many, or of some 64 MB: (start, stop) of each."""
    step = rows or max(1, CHUNK_BYTES // (4 * X.shape[1]))
    return [(start, min(start + step, X.shape[0])) for start in range(0, X.shape[0], step)]


def chunks(X: Rows2D, rows: int | None = None) -> Iterator[np.ndarray]:
    """Yield all rows in order, piece by piece."""
    matrix = as_matrix(X)
    for start, stop in spans(X, rows):
        yield matrix.read(start, stop)


def whole(X: Rows2D, limit_gb: float, who: str) -> np.ndarray:
    """Return all rows at once; raise StackError when they take more memory than allowed."""
    if isinstance(X, np.ndarray):
        return X
    if size_gb(X) > limit_gb:
        raise StackError(
            f"{who} needs its whole table in memory: {X.shape[0]} rows x {X.shape[1]} columns are "
            f"{size_gb(X):.3g} GB, stack.memory_gb is {limit_gb:g}; allow more, use fewer columns "
            "(stack.features, a block with pca or grid), or a meta-learner that reads in pieces "
            "(mlp, convnet, xgboost)"
        )
    values = np.empty(X.shape, dtype=np.float32)
    for start, stop in spans(X):
        values[start:stop] = X.read(start, stop)
    return values


def predict_in_pieces(predict: Callable[[np.ndarray], Any], X: Rows2D) -> np.ndarray:
    """Return what a function says of every row, (N, K), going through the table piece by piece."""
    return np.concatenate([np.asarray(predict(piece)) for piece in chunks(X)])
