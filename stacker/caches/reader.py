"""Reading a cache: nothing is taken whose SHA-256 is not the one that was written (`format`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stacker.caches.format import (
    AGAIN,
    INDEX,
    INDEX_SHA256,
    ROWS,
    SCHEMA_VERSION,
    Provenance,
    Rows,
    content_sha256,
)
from stacker.config.maps import name_maps
from stacker.errors import CacheError, plural
from stacker.files import digest


@dataclass(frozen=True)
class Cache:
    """An opened cache folder: provenance and rows in memory, the arrays read on demand.

    `sizes` are the numbers of rows of its parts, `shapes` the shape of one row of every array.
    """

    folder: Path
    provenance: Provenance
    rows: Rows
    parts: tuple[Path, ...]
    sizes: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]

    def __repr__(self) -> str:
        """Say where it lies and what it holds."""
        arrays = ", ".join(f"{name} {shape}" for name, shape in self.shapes.items())
        return f"Cache {self.folder}: {plural(len(self.rows), 'image')} of {arrays}"

    @property
    def maps(self) -> list[str]:
        """The names of the datasets of maps, in the order of the columns of `flags`."""
        return list(name_maps(self.provenance.methods, self.provenance.lower))

    def read(self, name: str, places: np.ndarray | None = None) -> np.ndarray:
        """Return an array, of all rows or of some, by mask or by rising place."""
        if name not in self.shapes:
            raise CacheError(
                f"{self.folder}: no dataset '{name}', found {', '.join(self.shapes)}",
                "add it with cam.methods or cam.lower and run 'stacker cache CONFIG'",
            )
        if places is None:
            places = np.arange(len(self.rows))
        elif places.dtype == bool:
            places = np.flatnonzero(places)
        pieces = []
        ends = np.cumsum(self.sizes)
        for number, wanted in enumerate(np.split(places, np.searchsorted(places, ends[:-1]))):
            if len(wanted) or not len(places):
                start = ends[number] - self.sizes[number]
                pieces.append(_read_some(self.parts[number], name, wanted - start))
        return np.concatenate(pieces)

    def of(self, image: str, name: str = "maps") -> np.ndarray:
        """Return what an array holds of one image, by its id; raise CacheError where it is not."""
        places = np.flatnonzero(self.rows.image_id == image.encode())
        if not len(places):
            raise CacheError(
                f"{self.folder}: no image {image} among the {len(self.rows)} images that its base model "
                "was not trained on (rows.image_id)",
                "open the cache of the fold that holds this image out",
            )
        values: np.ndarray = self.read(name, places)[0]
        return values


_compared: set[tuple[Path, str, int]] = set()  # with their SHA-256, by this process


def _read_some(path: Path, name: str, places: np.ndarray) -> np.ndarray:
    """Return some rows of a part; the first time, the whole of it is compared with its SHA-256."""
    key = (path, name, path.stat().st_mtime_ns if path.exists() else 0)
    some: np.ndarray
    with opened(path) as file:
        if key not in _compared:
            some = read_dataset(file, name)[places]
            _compared.add(key)
        elif not len(places):
            some = np.empty((0, *file[name].shape[1:]), file[name].dtype)
        else:
            first = int(places[0])
            some = file[name][first : int(places[-1]) + 1][places - first]
    return some


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Yield an HDF5 file; raise CacheError, with its name, when it is none or cannot be read."""
    try:
        with h5py.File(path) as file:
            yield file
    except FileNotFoundError:
        raise CacheError(f"{path} is missing", AGAIN) from None
    except OSError as error:
        raise CacheError(f"{path} is damaged ({' '.join(str(error).split())})", AGAIN) from None


@contextmanager
def _sound(file: h5py.File) -> Iterator[None]:
    """Raise CacheError where something of a file is missing, or of another type than was written."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CacheError(f"{file.filename} is damaged ({' '.join(str(error).split())})", AGAIN) from None


def read_dataset(file: h5py.File, name: str) -> np.ndarray:
    """Return a dataset of a part; raise CacheError when it is not what was written."""
    with _sound(file):
        values: np.ndarray = file[name][:]
        written = file[name].attrs["sha256"]
    if content_sha256(name, values) != written:
        raise CacheError(f"{file.filename} is damaged: the SHA-256 of {name} is wrong", AGAIN)
    return values


def digest_of(file: h5py.File) -> str:
    """Return what stands for a whole part: all that its attributes, and those of its datasets, say.

    These have the SHA-256 of every content.
    """
    with _sound(file):
        datasets = {name: {k: _plain(v) for k, v in file[name].attrs.items()} for name in sorted(file)}
    return digest({**asdict(read_provenance(file)), "versions": None, "datasets": datasets})


def _plain(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, np.ndarray) else str(value)


def read_digest(file: h5py.File) -> str:
    """Return a part's digest, made again; raise CacheError when it is not the one that was written."""
    computed = digest_of(file)
    with _sound(file):
        written = file.attrs["digest"]
    if computed != written:
        raise CacheError(f"{file.filename} is damaged: the digest of its attributes is wrong", AGAIN)
    return computed


def read_rows(file: h5py.File) -> Rows:
    """Return who the rows of a part are."""
    return Rows(*(read_dataset(file, name) for name in ROWS))


def read_provenance(file: h5py.File) -> Provenance:
    """Return the origin of a part or an index; raise CacheError for another schema."""
    with _sound(file):
        version = int(file.attrs.get("schema_version", 0))
    if version != SCHEMA_VERSION:
        raise CacheError(
            f"{file.filename} has schema version {version}, this stacker reads {SCHEMA_VERSION} (see "
            "the CHANGELOG)",
            AGAIN,
        )
    with _sound(file):
        values: dict[str, Any] = {f.name: str(file.attrs[f.name]) for f in fields(Provenance)}
        values["schema_version"], values["lower"] = version, int(file.attrs["lower"])
        for name in ("classes", "training_cases", "lower_layers", "methods"):
            values[name] = tuple(str(item) for item in file.attrs[name])
        values["classifier_bias"] = tuple(float(item) for item in file.attrs["classifier_bias"])
    return Provenance(**values)


def open_cache(folder: Path) -> Cache:
    """Open a cache; raise CacheError when a file of it is missing, broken or of another origin."""
    if not ((folder / INDEX).exists() and (folder / INDEX_SHA256).exists()):
        raise CacheError(f"{folder}: no complete cache", "run 'stacker cache CONFIG'")
    written = (folder / INDEX_SHA256).read_text(encoding="utf-8").split(" ")[0]
    if index_sha256(folder) != written:
        raise CacheError(f"{folder / INDEX} is damaged: its SHA-256 is wrong", AGAIN)
    with opened(folder / INDEX) as index, _sound(index):
        provenance = read_provenance(index)
        names, digests = ([str(n) for n in index.attrs[a]] for a in ("parts", "part_digests"))
        shapes = {name: index[name].shape[1:] for name in index if name not in ROWS}
    paths = [folder / name for name in names]
    rows = []
    for path, expected in zip(paths, digests, strict=True):
        with opened(path) as part:
            if read_digest(part) != expected or read_provenance(part) != provenance:
                raise CacheError(f"{path} is not the part that {INDEX} lists", AGAIN)
            rows.append(read_rows(part))
    sizes = tuple(len(piece) for piece in rows)
    return Cache(folder, provenance, Rows.join(rows), tuple(paths), sizes, shapes)


def index_sha256(folder: Path) -> str:
    """Return the SHA-256 of an index: looked at first, for HDF5 itself may crash on a damaged one."""
    return hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()
