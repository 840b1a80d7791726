"""A table in files for the bench of stage three: what a cache holds, without the images behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

FILES = ("densenet121", "resnet50", "vgg16")
BLOCK = 64  # rows of a chunk in a file, as the cache has them


@dataclass(frozen=True)
class Files:
    """A matrix over HDF5 files whose columns lie side by side."""

    data: tuple[h5py.Dataset, ...]
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), sum(each.shape[1] for each in self.data)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return some rows, (n, F) float32."""
        rows = self.rows[start:stop]
        if len(rows) == 0:
            return np.empty((0, self.shape[1]), np.float32)
        first, last = int(rows[0]), int(rows[-1]) + 1
        found = np.empty((len(rows), self.shape[1]), np.float32)
        column = 0
        for each in self.data:
            found[:, column : column + each.shape[1]] = each[first:last][rows - first]
            column += each.shape[1]
        return found

    def take(self, rows: np.ndarray) -> Files:
        """Return some of the rows."""
        return Files(self.data, self.rows[rows])


def write_table(folder: Path, rows: int, columns: int, seed: int = 0) -> None:
    """Write a table of float16 in chunks of rows, a tenth of whose columns tell the label a little."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=rows)
    step = max(BLOCK, 16_000_000 // (4 * columns) // BLOCK * BLOCK)
    for number, name in enumerate(FILES):
        width = columns // len(FILES) + (number < columns % len(FILES))
        strength = np.where(np.arange(width) % 10 == 0, 2 / np.sqrt(columns), 0).astype(np.float32)
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["label"] = labels
            chunks = (min(BLOCK, rows), width)
            data = file.create_dataset("maps", (rows, width), np.float16, chunks=chunks)
            for start in range(0, rows, step):
                some = labels[start : start + step, None] - np.float32(0.5)
                noise = rng.standard_normal((len(some), width), dtype=np.float32)
                data[start : start + step] = noise + some * strength


def open_table(folder: Path) -> tuple[Files, np.ndarray]:
    """Return the table that `write_table` wrote, and the labels of its rows."""
    files = [h5py.File(folder / f"{name}.h5", "r") for name in FILES]
    labels: np.ndarray = files[0]["label"][:]
    return Files(tuple(file["maps"] for file in files), np.arange(len(labels))), labels
