"""What is learnt of the columns before a meta-learner sees them: centres, components and scales.

The models of two folds differ by offsets that say nothing of the class: each fold's columns are centred
by its own rows, without a look at their labels, and on new images by the same constants. Components and
scales are fitted on the rows that the meta-learner is fitted on, and on no others, and are stored beside
it. Components replace the columns of one block of one backbone; scales bring every column that is left
to mean 0 and deviation 1.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from stacker.errors import StackError
from stacker.files import write_arrays
from stacker.run import FROZEN
from stacker.stacking.blocks import array_of
from stacker.stacking.learners.matrix import Changed, Matrix, chunks, spans
from stacker.stacking.tables import Table

MOST_ROWS = 20_000  # what components are fitted on; more rows would hardly turn them
LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class Components:
    """Principal components (P, F) of the columns `start` to `start + F`, and what is taken off first."""

    start: int
    mean: np.ndarray
    axes: np.ndarray

    def change(self, values: np.ndarray) -> np.ndarray:
        """Return rows (n, F) as their components (n, P)."""
        along: np.ndarray = (values - self.mean) @ self.axes.T
        return along


@dataclass(frozen=True)
class Preparation:
    """What turns the columns of a table, `given`, into those that a meta-learner sees, `columns`."""

    given: tuple[str, ...]
    columns: tuple[str, ...]
    components: tuple[Components, ...]
    mean: np.ndarray | None
    scale: np.ndarray | None

    def of(self, table: Matrix) -> Matrix:
        """Return a table as the meta-learner sees it, rows being read when they are wanted."""
        if table.shape[1] != len(self.given):
            raise StackError(
                f"the meta-learner was fitted on {len(self.given)} columns, found {table.shape[1]}",
                "run 'stacker stack CONFIG' again",
            )
        return Changed(table, self.change, len(self.columns))

    def change(self, values: np.ndarray) -> np.ndarray:
        """Return rows (n, F) as the meta-learner sees them, float32."""
        values = project(values, self.components)
        if self.mean is not None:
            values = (values - self.mean) / self.scale
        return values.astype(np.float32, copy=False)

    def save(self, path: Path) -> None:
        """Publish the arrays and names as .npz, without pickle."""
        arrays = {"given": np.array(self.given), "columns": np.array(self.columns)}
        for number, block in enumerate(self.components):
            arrays[f"start{number}"] = np.array(block.start)
            arrays[f"mean{number}"], arrays[f"axes{number}"] = block.mean, block.axes
        if self.mean is not None and self.scale is not None:
            arrays |= {"mean": self.mean, "scale": self.scale}
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Preparation:
        """Read what `save` wrote; raise StackError when it is missing or damaged."""
        stored = read_arrays(path)
        components = tuple(
            Components(int(stored[f"start{n}"]), stored[f"mean{n}"], stored[f"axes{n}"])
            for n in range(sum(name.startswith("axes") for name in stored))
        )
        given, columns = (tuple(str(name) for name in stored[key]) for key in ("given", "columns"))
        return cls(given, columns, components, stored.get("mean"), stored.get("scale"))


def fit_preparation(
    table: Matrix, columns: Sequence[str], pca: Mapping[str, int], scaled: bool, seed: int
) -> Preparation:
    """Learn components of the blocks named in `pca` (with how many), and then scales, from a table."""
    components, names = _fit_components(table, columns, pca, seed)
    mean, scale = None, None
    if scaled:
        mean, scale = _moments(Changed(table, lambda values: project(values, components), len(names)))
    return Preparation(tuple(columns), names, components, mean, scale)


def fit_centres(table: Table) -> np.ndarray:
    """Return the mean of each column (S, F) over the rows of each source, all cases weighing the same.

    Labels are not looked at, so that a fold may be centred by the rows that are predicted. What nobody
    trained, and hence has no offset, keeps a centre of nought.
    """
    sums = np.zeros((len(table.sources), table.shape[1]))
    _, case, images = np.unique(
        np.stack([table.source, np.unique(table.rows.case_id, return_inverse=True)[1]]),
        axis=1,
        return_inverse=True,
        return_counts=True,
    )
    weight = 1 / images[case.ravel()]
    for start, stop in spans(table):
        rows = slice(start, stop)
        source, piece = table.source[rows], table.read(start, stop)
        for number in np.unique(source):
            of_source = source == number
            sums[number] += weight[rows][of_source] @ piece[of_source]
    totals = np.bincount(table.source, weight, len(sums))
    centres: np.ndarray = sums / np.where(totals > 0, totals, 1)[:, None]
    blocks = [name.split("/")[1] for name in table.columns]
    centres[:, [array_of(block, table.blocks.get(block)) == FROZEN for block in blocks]] = 0
    return centres.astype(np.float32)


def project(values: np.ndarray, components: Sequence[Components]) -> np.ndarray:
    """Return rows with the columns of each block replaced by its components."""
    if not components:
        return values
    pieces, done = [], 0
    for block in components:
        end = block.start + len(block.mean)
        pieces += [values[:, done : block.start], block.change(values[:, block.start : end])]
        done = end
    return np.concatenate([*pieces, values[:, done:]], axis=1)


def _fit_components(
    table: Matrix, columns: Sequence[str], pca: Mapping[str, int], seed: int
) -> tuple[tuple[Components, ...], tuple[str, ...]]:
    """Return the components of every backbone's block, and the names of the columns after them."""
    if not pca:  # names may then be anybody's
        return (), tuple(columns)
    names: list[str] = []
    components: list[Components] = []
    sample: np.ndarray | None = None
    position = 0
    for stem, block in groupby(columns, lambda name: name.split("/")[:2]):
        of_block = list(block)
        end = position + len(of_block)
        if stem[1] in pca:
            sample = _sample(table) if sample is None else sample
            fitted = _components(sample[:, position:end], pca[stem[1]], position, seed)
            components.append(fitted)
            names += [f"{'/'.join(stem)}/pc{number:03d}" for number in range(len(fitted.axes))]
        else:
            names += of_block
        position = end
    return tuple(components), tuple(names)


def _components(values: np.ndarray, wanted: int, start: int, seed: int) -> Components:
    """Fit components; there are no more of them than rows less one, or columns."""
    from sklearn.decomposition import PCA

    most = max(1, min(wanted, len(values) - 1, values.shape[1]))
    fitted = PCA(most, random_state=seed).fit(values)
    return Components(start, fitted.mean_.astype(np.float32), fitted.components_.astype(np.float32))


def _sample(table: Matrix) -> np.ndarray:
    """Return all rows, or 20,000 spread evenly over the table."""
    rows = table.shape[0]
    if rows > MOST_ROWS:
        table = table.take(np.linspace(0, rows - 1, MOST_ROWS).astype(np.int64))
    return np.concatenate(list(chunks(table)))


def _moments(table: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of every column, piece by piece (Chan et al. 1983, eq. 2.1)."""
    count, mean, squares = 0, np.zeros(table.shape[1]), np.zeros(table.shape[1])
    for piece in chunks(table):
        new_mean = piece.mean(axis=0, dtype=np.float64)
        apart = new_mean - mean
        total = count + len(piece)
        squares += ((piece - new_mean) ** 2).sum(axis=0) + apart**2 * count * len(piece) / total
        mean += apart * len(piece) / total
        count = total
    scale = np.sqrt(squares / max(1, count))
    scale[scale < LEAST_SCALE] = 1  # a column that says nothing stays at 0
    return mean.astype(np.float32), scale.astype(np.float32)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an .npz of stage three; raise StackError when they are missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StackError(
            f"{path} is missing or damaged ({error})",
            f"delete {path.parent} and run 'stacker stack CONFIG' again",
        ) from None
