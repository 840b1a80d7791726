"""The cache: what stage two writes and stage three reads, and how it proves where it came from.

One folder per base model (`cache/<backbone>/<fold>/`) holds parts of N rows and an index:

    part-00000.h5, part-00001.h5, ...   complete files, each published by one rename
    index.h5                            the parts as one, by HDF5 virtual datasets

    maps      (N, K, h, w) float16   signed, unscaled, one per class    label    (N,) int64
    features  (N, D) float32         penultimate activations            image_id (N,) fixed-length UTF-8
    logits    (N, K) float32                                            case_id  (N,) likewise
                                                                        fold     (N,) the row's part

The root attributes of every file say which checkpoint, manifest, split, layer, method and preprocessing
made it, and which cases trained the model. HDF5 fills a virtual dataset whose part is missing with zeros
without a word, so the reader here compares parts with the index before it reads, and every chunk carries
a Fletcher-32 checksum. Chunks are not compressed: float16 activations hardly shrink.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stacker.errors import CacheError
from stacker.run import publish

SCHEMA_VERSION = 1
ARRAYS = ("maps", "features", "logits")
ROWS = ("label", "image_id", "case_id", "fold")
HDF5_1_10 = ("v110", "v110")  # virtual datasets, and attributes of more than 64 KiB


@dataclass(frozen=True)
class Provenance:
    """The root attributes: what must be equal for two files to belong together."""

    backbone: str
    model_fold: str
    classes: tuple[str, ...]
    group: str
    checkpoint_sha256: str
    manifest_digest: str
    folds_digest: str
    training_cases: tuple[str, ...]
    target_layer: str
    method: str
    preprocessing: str
    precision: str
    schema_version: int = SCHEMA_VERSION
    versions: str = field(default="", compare=False)


@dataclass(frozen=True)
class Rows:
    """Who the rows of a cache are."""

    label: np.ndarray
    image_id: np.ndarray
    case_id: np.ndarray
    fold: np.ndarray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.label)

    def take(self, rows: Any) -> Rows:
        """Return some of the rows, by slice, mask or index."""
        return Rows(*(getattr(self, name)[rows] for name in ROWS))


@dataclass(frozen=True)
class Cache:
    """An opened cache folder: provenance and rows in memory, the arrays read on demand."""

    folder: Path
    provenance: Provenance
    rows: Rows

    def read(self, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Return `maps`, `features` or `logits`, of all rows or of a boolean mask of them."""
        index = self.folder / "index.h5"
        try:
            with h5py.File(index) as file:
                values: np.ndarray = file[name][:]
        except OSError as error:
            raise CacheError(
                f"{self.folder}: {name} cannot be read ({error}); delete the folder and run "
                "'stacker cache CONFIG' again"
            ) from None
        return values if rows is None else values[rows]


def part_file(folder: Path, number: int) -> Path:
    """Return the path of one part."""
    return folder / f"part-{number:05d}.h5"


def fixed_text(texts: Sequence[str]) -> np.ndarray:
    """Return texts as fixed-length UTF-8, the only kind of string that virtual datasets carry."""
    encoded = [text.encode() for text in texts]
    length = max((len(text) for text in encoded), default=1)
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))


@contextmanager
def _hdf5(path: Path) -> Iterator[h5py.File]:
    """Yield an HDF5 file to fill, in memory, and publish it; HDF5 itself crashes on a full disk."""
    with h5py.File(path.name, "w", driver="core", backing_store=False, libver=HDF5_1_10) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    with publish(path) as temporary:
        temporary.write_bytes(image)


def write_part(path: Path, arrays: Mapping[str, np.ndarray], rows: Rows, provenance: Provenance) -> None:
    """Publish one part; raise CacheError when a value is not finite in its stored type."""
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused below
        stored: dict[str, np.ndarray] = {
            "maps": arrays["maps"].astype(np.float16),
            "features": arrays["features"].astype(np.float32),
            "logits": arrays["logits"].astype(np.float32),
        }
    for name, values in stored.items():
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        if len(bad):
            image = rows.image_id[bad[0]].decode()
            raise CacheError(
                f"{path.parent}: {name} of {len(bad)} images are not finite as {values.dtype}, first "
                f"{image}: the base model has diverged; train it again with a lower lr"
            )
    with _hdf5(path) as file:
        for name, values in stored.items():
            file.create_dataset(name, data=values, chunks=_chunks(values), fletcher32=True)
        for name in ROWS:
            file.create_dataset(name, data=getattr(rows, name), chunks=True, fletcher32=True)
        _write_attributes(file, provenance)


def write_index(folder: Path, parts: Sequence[Path]) -> None:
    """Publish `index.h5`, in which the parts are one."""
    opened = [h5py.File(part) for part in parts]
    try:
        ends = np.cumsum([len(file["label"]) for file in opened])
        with _hdf5(folder / "index.h5") as index:
            for name in (*ARRAYS, *ROWS):
                first = opened[0][name]
                layout = h5py.VirtualLayout((int(ends[-1]), *first.shape[1:]), first.dtype)
                layout.dcpl.set_obj_track_times(False)  # equal content, equal bytes
                for part, file, end in zip(parts, opened, ends, strict=True):
                    source = h5py.VirtualSource(part.name, name, file[name].shape, first.dtype)
                    layout[end - len(file["label"]) : end] = source
                index.create_virtual_dataset(name, layout)
            _write_attributes(index, _read_provenance(opened[0]))
            index.attrs["parts"] = [part.name for part in parts]
            index.attrs["part_ends"] = ends
    finally:
        for file in opened:
            file.close()


def part_is_done(path: Path, rows: Rows, provenance: Provenance) -> bool:
    """Say whether a part of exactly these rows and this origin is there, and readable to the end."""
    if not path.exists():
        return False
    try:
        with h5py.File(path) as file:
            same_rows = all(np.array_equal(file[n][:], getattr(rows, n)) for n in ROWS)
            whole = all(len(file[name][:]) == len(rows) for name in ARRAYS)
            return same_rows and whole and _read_provenance(file) == provenance
    except (OSError, KeyError, CacheError):
        return False


def open_cache(folder: Path) -> Cache:
    """Open a cache; raise CacheError when a file of it is missing, broken or of another origin."""
    again = "run 'stacker cache CONFIG' again"
    if not (folder / "index.h5").exists():
        raise CacheError(f"{folder}: there is no complete cache here; {again}")
    try:
        with h5py.File(folder / "index.h5") as index:
            provenance = _read_provenance(index)
            start = 0
            for name, end in zip(index.attrs["parts"], index.attrs["part_ends"], strict=True):
                with h5py.File(folder / name) as part:
                    if _read_provenance(part) != provenance or len(part["label"]) != end - start:
                        raise CacheError(f"{folder / name} is not the part that index.h5 lists; {again}")
                start = end
            rows = Rows(*(index[name][:] for name in ROWS))
    except (OSError, KeyError) as error:
        raise CacheError(f"{folder}: {' '.join(str(error).split())}; {again}") from None
    return Cache(folder, provenance, rows)


def _chunks(values: np.ndarray) -> tuple[int, ...]:
    """Return chunks of whole rows, of about a quarter of a megabyte."""
    row_bytes = max(1, values[:1].nbytes)
    return (max(1, min(len(values), 2**18 // row_bytes)), *values.shape[1:])


def _write_attributes(file: h5py.File, provenance: Provenance) -> None:
    for name, value in asdict(provenance).items():
        file.attrs[name] = list(value) if isinstance(value, tuple) else value


def _read_provenance(file: h5py.File) -> Provenance:
    version = int(file.attrs.get("schema_version", 0))
    if version != SCHEMA_VERSION:
        raise CacheError(
            f"{file.filename}: written in schema {version}, this program reads {SCHEMA_VERSION}; "
            "delete the folder and run 'stacker cache CONFIG' again"
        )
    values = {f.name: file.attrs[f.name] for f in fields(Provenance)}
    values["schema_version"] = version
    for name in ("classes", "training_cases"):
        values[name] = tuple(str(item) for item in values[name])
    return Provenance(**values)


def describe_preprocessing(
    size: int | tuple[int, int], resize: str, mean: Sequence[float], std: Sequence[float]
) -> str:
    """Return the preprocessing as JSON, the form in which it is stored and compared."""
    return json.dumps({"size": size, "resize": resize, "mean": list(mean), "std": list(std)})
