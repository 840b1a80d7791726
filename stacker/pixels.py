"""The pixels of a manifest's images by row, wherever they lie: in a packed store or in arrays."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stacker.config import ImagesConfig
from stacker.errors import DataError
from stacker.images import fit
from stacker.manifest import Manifest
from stacker.pcam import open_array

SAMPLED = 64  # rows of arrays read in place whose content is compared with the manifest's


class Pixels(Protocol):
    """The images of a manifest: rows in, (B, height, width, 3) uint8 out."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return the pixels of some rows, by slice or by an array of positions."""


@dataclass(frozen=True)
class Packed:
    """Rows of a store that the manifest's images refer to."""

    store: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.positions)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return the pixels of some rows."""
        chosen: np.ndarray = self.store[self.positions[rows]]
        return chosen


class InPlace:
    """Rows of HDF5 arrays, read where they lie and resized on the way where the config asks for it."""

    def __init__(self, manifest: Manifest, config: ImagesConfig) -> None:
        paths = sorted({image.path for image in manifest.images})
        self.arrays = [open_array(Path(path), "x") for path in paths]
        number = {path: i for i, path in enumerate(paths)}
        self.file = np.array([number[image.path] for image in manifest.images])
        self.row = np.array([image.index for image in manifest.images], dtype=np.int64)
        self.config = config
        for row in np.linspace(0, len(self.row) - 1, SAMPLED).astype(int):
            content = np.asarray(self.arrays[self.file[row]][self.row[row]]).tobytes()
            found = hashlib.sha256(content).hexdigest()
            if found != manifest.images[row].sha256:
                where = f"{manifest.images[row].path}: row {self.row[row]}"
                raise DataError(f"{where} has changed since it was listed; start a new run")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.row)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return the pixels of some rows, each file read in ascending order."""
        files, wanted = self.file[rows], self.row[rows]
        pixels = np.empty((len(wanted), *self.config.shape, 3), np.uint8)
        for place in np.lexsort((wanted, files)):
            pixels[place] = fit(self.arrays[files[place]][wanted[place]], self.config)
        return pixels
