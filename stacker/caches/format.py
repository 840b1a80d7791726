"""The cache: what stage two writes and stage three reads, and how it proves where it came from.

One folder per base model (`cache/<backbone>/<fold>/`) holds parts of N rows and an index:

    part-00000.h5, part-00001.h5, ...   complete files, each published by one rename
    index.h5                            the parts as one, by HDF5 virtual datasets
    index.sha256                        its SHA-256, in the form of sha256sum

    maps      (N, K, h, w) float16   signed, unscaled, one per class    label    (N,) int64
    maps_...                         of other methods and layers        image_id (N,) fixed-length UTF-8
    features  (N, D) float32         penultimate activations            case_id  (N,) likewise
    logits    (N, K) float32                                            group_id (N,) likewise
    flags     (N, M) uint8           what is wrong with each map        fold     (N,) the row's part

`case_id` is what the image's name says, or its slide or own id where cases are not known; `group_id` is
what the split keeps together. The root attributes of every file say which checkpoint, manifest, split,
layers, methods and preprocessing made it, and which cases trained the model. Every dataset carries the
SHA-256 of its content, every part one digest of these and of its attributes, and the index lists the
digests of its parts. HDF5 reads zeros where the file behind a virtual dataset is missing, without a
word: the reader goes to the parts, and takes nothing whose digest is not the one that was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SCHEMA_VERSION = 3
ROWS = ("label", "image_id", "case_id", "group_id", "fold")
INDEX, INDEX_SHA256 = "index.h5", "index.sha256"
HALF = float(np.finfo(np.float16).max)
CLIPPED, NOT_A_NUMBER, EMPTY = 1, 2, 4  # bits
FLAGS = {
    CLIPPED: "clipped to the range of float16",
    NOT_A_NUMBER: "not a number",
    EMPTY: "zero everywhere for some class",
}
AGAIN = "run 'stacker cache CONFIG' again, which rebuilds only what is wrong"


@dataclass(frozen=True)
class Provenance:
    """The root attributes: what must be equal for two files to belong together.

    `lower` is the number of layers below the last grid that have maps, `lower_layers` their names, the
    nearest first. `classifier_bias` is there where a Grad-CAM map sums to logit - bias.
    """

    backbone: str
    model_fold: str
    classes: tuple[str, ...]
    group: str
    checkpoint_sha256: str
    manifest_digest: str
    folds_digest: str
    training_cases: tuple[str, ...]
    target_layer: str
    methods: tuple[str, ...]
    lower: int
    preprocessing: str
    precision: str
    schema_version: int = SCHEMA_VERSION
    lower_layers: tuple[str, ...] = field(default=(), compare=False)
    classifier_bias: tuple[float, ...] = field(default=(), compare=False)
    versions: str = field(default="", compare=False)


@dataclass(frozen=True)
class Rows:
    """Who the rows of a cache are."""

    label: np.ndarray
    image_id: np.ndarray
    case_id: np.ndarray
    group_id: np.ndarray
    fold: np.ndarray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.label)

    @property
    def truth(self) -> tuple[np.ndarray, np.ndarray]:
        """What a prediction is judged by: the labels and the cases."""
        return self.label, self.case_id

    def take(self, rows: Any) -> Rows:
        """Return some of the rows, by slice, mask or index."""
        return Rows(*(getattr(self, name)[rows] for name in ROWS))

    @classmethod
    def join(cls, pieces: Iterable[Rows]) -> Rows:
        """Return the rows of several pieces, one after the other."""
        pieces = list(pieces)
        return cls(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in ROWS))

    def equals(self, other: Rows) -> bool:
        """Say whether these are the same rows in the same order."""
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in ROWS)


def part_file(folder: Path, number: int) -> Path:
    """Return the path of one part."""
    return folder / f"part-{number:05d}.h5"


def fixed_text(texts: Sequence[str], beside: Iterable[str] = ()) -> np.ndarray:
    """Return texts as fixed-length UTF-8, the only kind of string that virtual datasets carry.

    The length fits those that lie `beside` them in other parts, too: one index is for all.
    """
    encoded = [text.encode() for text in texts]
    length = max((len(text) for text in (*encoded, *(text.encode() for text in beside))), default=1)
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))


def map_classes(classes: Sequence[str], count: int) -> tuple[str, ...]:
    """Return what the maps of an array, so many a row, are for: every class, or all at once."""
    return tuple(classes) if count == len(classes) else ("all",)


def halve(maps: np.ndarray) -> np.ndarray:
    """Return maps as the cache keeps them: float16, what does not fit cut off at its range."""
    small: np.ndarray = np.clip(maps, -HALF, HALF).astype(np.float16)
    return small


def content_sha256(name: str, values: np.ndarray) -> str:
    """Return what stands for the content of a dataset, however HDF5 lays it out."""
    content = hashlib.sha256(f"{name} {values.dtype.str} {values.shape} ".encode())
    content.update(np.ascontiguousarray(values).data)
    return content.hexdigest()


def describe_preprocessing(
    size: int | tuple[int, int], resize: str, mean: Sequence[float], std: Sequence[float]
) -> str:
    """Return the preprocessing as JSON, the form in which it is stored and compared."""
    return json.dumps({"size": size, "resize": resize, "mean": list(mean), "std": list(std)})


def resample(maps: np.ndarray, grid: int) -> np.ndarray:
    """Bring maps (N, M, h, w) to another grid by the mean over the area of each new cell."""
    rows, columns = (areas(side, grid) for side in maps.shape[2:])
    resampled: np.ndarray = rows @ maps @ columns.T
    return resampled


def areas(old: int, new: int) -> np.ndarray:
    """Return which share of each new cell (new, old) lies on each old one."""
    edges_old, edges_new = np.arange(old + 1) / old, np.arange(new + 1) / new
    low = np.maximum(edges_new[:-1, None], edges_old[None, :-1])
    high = np.minimum(edges_new[1:, None], edges_old[None, 1:])
    return ((high - low).clip(min=0) * new).astype(np.float32)


def column_names(array: str, shape: tuple[int, ...], classes: Sequence[str]) -> list[str]:
    """Return the names of the columns of an array as it is cached, whose rows have this shape."""
    if array.startswith("maps"):
        names = cell_names(map_classes(classes, shape[0]), *shape[1:])
    else:
        names = list(classes) if array == "logits" else unit_names(shape[0])
    return [f"{array}/{name}" for name in names]


def cell_names(names: Sequence[str], height: int, width: int) -> list[str]:
    """Return what the cells of maps are called: whose map, and which row and column of its grid."""
    return [
        f"{name}/r{row}c{column}" for name in names for row in range(height) for column in range(width)
    ]


def unit_names(count: int) -> list[str]:
    """Return what the numbers of an embedding are called."""
    return [f"{unit:04d}" for unit in range(count)]
