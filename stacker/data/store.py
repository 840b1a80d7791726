"""The pixels of a manifest's images by row, wherever they lie: in a packed store or in arrays.

Decoding a BreakHis PNG costs about 10 ms and every epoch of every fold of every backbone would pay it
again. Pictures are packed into one memory-mapped array below `.images`, row by row, keyed by what they
contain and by the resize settings: runs share it, whatever subset of the images they use, and a changed
file never meets a stale row. Arrays such as PatchCamelyon's are read where they lie. Scaling to a
backbone's mean and standard deviation happens later, on the device.

    <settings>-<content>.npy       (N, height, width, 3) uint8
    <settings>-<content>.json      the SHA-256 of every row's source, and why some could not be decoded
    <settings>-<content>.partial   a store in the making: as long as it is, so far has packing come
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from stacker.config.data import ImagesConfig
from stacker.data.images import MIN_SIDE, UnusableError, decode_bytes, open_array, resize
from stacker.data.manifest import Manifest, warn_left_out
from stacker.errors import DataError, UnreadableImages, Unusable, grouped, plural
from stacker.files import digest, held, read_json, require_space, write_json
from stacker.progress import bar

log = logging.getLogger(__name__)
BLOCK = 256  # rows that are decoded, written and synced together: what a kill can cost
BLOCK_BYTES = 100_000_000
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
            if hashlib.sha256(content).hexdigest() != manifest.images[row].sha256:
                where = f"{manifest.images[row].path}: row {self.row[row]}"
                raise DataError(
                    f"{where} has changed since it was listed",
                    "restore the file, or start a new run (--set run=NAME)",
                )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.row)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return the pixels of some rows, each file read in ascending order."""
        files, wanted = self.file[rows], self.row[rows]
        pixels = np.empty((len(wanted), *self.config.shape, 3), np.uint8)
        for place in np.lexsort((wanted, files)):
            pixels[place] = resize(self.arrays[files[place]][wanted[place]], self.config)
        return pixels


def bytes_to_pack(folder: Path, manifest: Manifest, config: ImagesConfig) -> int:
    """Return what packing the images will take on the disk; arrays and a finished store take nothing."""
    contents = {image.sha256 for image in manifest.images if image.index is None}
    done = not contents or _find(folder, _kind(config), contents) is not None
    return 0 if done else len(contents) * math.prod(config.shape) * 3


def _kind(config: ImagesConfig) -> str:
    """Stand for all that decides how a picture becomes pixels."""
    return digest([config.model_dump(), MIN_SIDE])


def open_store(folder: Path, manifest: Manifest, config: ImagesConfig) -> Pixels:
    """Return the pixels of all images in the manifest's order, decoding what was never decoded.

    Raise UnreadableImages with all that fail.
    """
    if manifest.images[0].index is not None:
        return InPlace(manifest, config)
    paths = {image.sha256: image.path for image in manifest.images}
    file, index = _find(folder, _kind(config), paths.keys()) or _pack(folder, paths, config)
    reasons = {
        row: Unusable(image.path, index["unreadable"][image.sha256])
        for row, image in enumerate(manifest.images)
        if image.sha256 in index["unreadable"]
    }
    if reasons:
        raise UnreadableImages(reasons, len(manifest.images))
    position = {sha256: row for row, sha256 in enumerate(index["rows"])}
    positions = np.array([position[image.sha256] for image in manifest.images])
    return Packed(np.load(file, mmap_mode="r"), positions)


def open_usable(
    folder: Path, manifest: Manifest, config: ImagesConfig, on_error: str
) -> tuple[Manifest, Pixels]:
    """Open the store; images that cannot be decoded raise UnreadableImages, or are left out."""
    try:
        return manifest, open_store(folder, manifest, config)
    except UnreadableImages as error:
        if on_error == "stop":
            raise
        warn_left_out(list(error.reasons.values()))
        rest = manifest.without(error.reasons)
        return rest, open_store(folder, rest, config)


def _find(folder: Path, kind: str, wanted: Collection[str]) -> tuple[Path, Any] | None:
    """Return a finished store that holds all wanted images, with its index."""
    for path in sorted(folder.glob(f"{kind}-*.json")):
        index = read_json(path)
        if path.with_suffix(".npy").exists() and set(wanted) <= set(index["rows"]):
            return path.with_suffix(".npy"), index
    return None


def _pack(folder: Path, paths: dict[str, str], config: ImagesConfig) -> tuple[Path, Any]:
    """Decode every content into a new store, going on where a killed process stopped.

    Another process that packs the same images is waited for. Return the store and its index.
    """
    kind, rows = _kind(config), list(paths)
    file = folder / f"{kind}-{digest(rows)}.npy"
    index, partial = file.with_suffix(".json"), file.with_suffix(".partial")
    waiting = "another process is packing the same images: waiting for it"
    with held(partial, wait=True, on_wait=lambda: log.info(waiting)):
        if file.exists() and index.exists():  # made by the process waited for
            partial.unlink(missing_ok=True)
        else:
            with partial.open("a+b") as stream:
                unreadable = _append(stream, paths, config, _at_hand(folder, kind))
            write_json(index, {"rows": rows, "unreadable": unreadable})
            partial.replace(file)
    return file, read_json(index)


def _at_hand(folder: Path, kind: str) -> Callable[[str], np.ndarray | UnusableError | None]:
    """Return a function that finds what finished stores have of a content: pixels or a reason."""
    places: dict[str, tuple[np.ndarray, int]] = {}
    reasons: dict[str, str] = {}
    for path in sorted(folder.glob(f"{kind}-*.json")):
        if path.with_suffix(".npy").exists():
            index, pixels = read_json(path), np.load(path.with_suffix(".npy"), mmap_mode="r")
            places |= {sha256: (pixels, row) for row, sha256 in enumerate(index["rows"])}
            reasons |= index["unreadable"]

    def find(sha256: str) -> np.ndarray | UnusableError | None:
        if sha256 in reasons:
            return UnusableError(reasons[sha256])
        pixels, row = places.get(sha256, (None, 0))
        return None if pixels is None else pixels[row]

    return find


def _append(
    partial: BinaryIO,
    paths: dict[str, str],
    config: ImagesConfig,
    at_hand: Callable[[str], np.ndarray | UnusableError | None],
) -> dict[str, str]:
    """Append the rows that are missing, in blocks that are synced; return the unreadable ones.

    Raise DataError when files have changed or gone since they were listed.
    """
    sources = list(paths.items())
    header = _npy_header((len(sources), *config.shape, 3))
    size = math.prod(config.shape) * 3
    done = max(0, (partial.seek(0, os.SEEK_END) - len(header)) // size)
    require_space(Path(partial.name).parent, (len(sources) - done) * size)
    if done == 0:
        partial.truncate(0)
        partial.write(header)
    partial.truncate(len(header) + done * size)  # the row that a kill cut through
    unreadable = _reasons_of_blank_rows(Path(partial.name), sources[:done], len(header), config)

    def obtain(source: tuple[str, str]) -> np.ndarray | UnusableError | DataError:
        known = at_hand(source[0])
        return _decode_source(source, config) if known is None else known

    with bar("decode images", len(sources)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        advance(done)
        step = max(1, min(BLOCK, BLOCK_BYTES // size))
        for start in range(done, len(sources), step):
            block = sources[start : start + step]
            decoded = list(pool.map(obtain, block))  # Pillow frees the GIL
            _refuse_changed(
                Unusable(path, row.what)
                for (_, path), row in zip(block, decoded, strict=True)
                if isinstance(row, DataError)
            )
            for (sha256, _), row in zip(block, decoded, strict=True):
                if isinstance(row, UnusableError):
                    unreadable[sha256] = str(row)
            blank = bytes(size)
            partial.writelines(r.tobytes() if isinstance(r, np.ndarray) else blank for r in decoded)
            partial.flush()
            os.fsync(partial.fileno())
            advance(len(block))
    return unreadable


def _refuse_changed(images: Iterable[Unusable]) -> None:
    """Raise DataError for files that are no longer what was listed."""
    gone = list(images)
    if gone:
        listed = "\n  ".join([f"{plural(len(gone), 'image')} cannot be packed:", *grouped(gone)])
        raise DataError(listed, "restore the files, or start a new run (--set run=NAME)")


def _npy_header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def _decode_source(
    source: tuple[str, str], config: ImagesConfig
) -> np.ndarray | UnusableError | DataError:
    """Return the pixels, why the content has none, or that the file is not what was listed."""
    sha256, path = source
    try:
        content = Path(path).read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            return DataError("has changed since it was listed")
        return decode_bytes(content, config)
    except OSError as error:
        return DataError(f"cannot be read: {error.strerror}")
    except UnusableError as error:
        return error


def _reasons_of_blank_rows(
    partial: Path, sources: list[tuple[str, str]], offset: int, config: ImagesConfig
) -> dict[str, str]:
    """Say again why rows of an interrupted store are blank; black pictures have no reason."""
    reasons = {}
    shape = (len(sources), math.prod(config.shape) * 3)
    if sources:
        rows = np.memmap(partial, np.uint8, "r", offset, shape)
        for row in np.flatnonzero([not row.any() for row in rows]):
            decoded = _decode_source(sources[row], config)
            if isinstance(decoded, DataError):
                _refuse_changed([Unusable(sources[row][1], decoded.what)])
            if isinstance(decoded, UnusableError):
                reasons[sources[row][0]] = str(decoded)
    return reasons
