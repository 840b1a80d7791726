"""Writing the cache: parts with what is to be known of them, and the index that makes them one.

A part is filled in memory and published by one rename: HDF5 itself crashes on a full disk. Maps become
float16, and what is lost by that, or was never there, is flagged map by map. Compression and chunks were
chosen by measurement (docs/cache.md).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stacker.caches.format import (
    AGAIN,
    CLIPPED,
    EMPTY,
    FLAGS,
    HALF,
    INDEX,
    INDEX_SHA256,
    NOT_A_NUMBER,
    ROWS,
    Provenance,
    Rows,
    content_sha256,
    halve,
    map_classes,
)
from stacker.caches.reader import (
    digest_of,
    index_sha256,
    opened,
    read_dataset,
    read_digest,
    read_provenance,
    read_rows,
)
from stacker.config.maps import name_maps
from stacker.errors import CacheError, first_few
from stacker.files import publish

log = logging.getLogger(__name__)
HDF5_1_10 = ("v110", "v110")  # virtual datasets, and attributes of more than 64 KiB
CHUNK_BYTES = 2**18
SAYS = {
    "features": "(image, unit): penultimate activations, before the classifier",
    "logits": "(image, class)",
    "label": "(image): position in the attribute classes",
    "image_id": "(image)",
    "case_id": "(image): its case, else its slide or its own id: what the intervals draw",
    "group_id": "(image): what the split keeps together",
    "fold": "(image): the fold that holds the image out; stack, or test",
}


def write_part(path: Path, arrays: Mapping[str, np.ndarray], rows: Rows, provenance: Provenance) -> None:
    """Publish one part; raise CacheError when a logit or an embedding is not a finite number.

    `arrays` are float32: `features`, `logits`, and the maps by name. A backbone that nobody trained has
    no logits worth keeping, and no maps.
    """
    kept = ("features", "logits") if provenance.methods else ("features",)
    stored = {name: arrays[name].astype(np.float32) for name in kept}
    for name, values in stored.items():
        _require_finite(path, name, values, rows)
    names = name_maps(provenance.methods, provenance.lower)
    halves = {name: _flagged(arrays[name]) for name in names}
    stored |= {name: values for name, (values, _) in halves.items()}
    if halves:
        stored["flags"] = np.stack([flags for _, flags in halves.values()], axis=1)
        _warn(path, stored["flags"], list(halves))
    stored |= {name: getattr(rows, name) for name in ROWS}
    with hdf5_image() as (file, image):
        for name, values in stored.items():
            chunks = chunks_of(values)
            dataset = file.create_dataset(name, data=values, chunks=chunks, fletcher32=True)
            dataset.attrs["sha256"] = content_sha256(name, values)
            _describe(dataset, name, provenance, list(halves))
        _write_attributes(file, provenance)
        file.attrs["digest"] = digest_of(file)
    with publish(path) as temporary:
        temporary.write_bytes(image[0])


def _require_finite(path: Path, name: str, values: np.ndarray, rows: Rows) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise CacheError(
            f"{path.parent}: {name} of {len(bad)} images are not finite "
            f"({first_few([i.decode() for i in rows.image_id[bad]])}): the base model has diverged",
            "delete its folder in models/ and train it again with a lower lr",
        )


def _flagged(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return maps as float16, and per image the flags of what that or the method did to them."""
    clipped = halve(maps)
    flat = maps.reshape(*maps.shape[:2], -1)
    flags = CLIPPED * (np.abs(flat) > HALF).any(axis=(1, 2))
    flags |= NOT_A_NUMBER * np.isnan(flat).any(axis=(1, 2))
    flags |= EMPTY * (clipped.reshape(flat.shape) == 0).all(axis=2).any(axis=1)
    return clipped, flags.astype(np.uint8)


def _warn(path: Path, flags: np.ndarray, names: Sequence[str]) -> None:
    """Say which maps of a part are not what a map should be."""
    for column, name in enumerate(names):
        for bit, meaning in FLAGS.items():
            count = int((flags[:, column] & bit > 0).sum())
            if count:
                log.warning("%s: %s of %d of %d images: %s", path, name, count, len(flags), meaning)


def write_index(folder: Path, parts: Sequence[Path]) -> None:
    """Publish the index, in which the parts are one, and its SHA-256."""
    with ExitStack() as stack:
        image = _index_image([stack.enter_context(opened(part)) for part in parts])
    with publish(folder / INDEX) as temporary:
        temporary.write_bytes(image)
    with publish(folder / INDEX_SHA256) as temporary:
        temporary.write_text(f"{index_sha256(folder)}  {INDEX}\n", encoding="utf-8")


def _index_image(parts: Sequence[h5py.File]) -> bytes:
    """Return the bytes of the index of some parts."""
    names = [Path(file.filename).name for file in parts]
    ends = np.cumsum([len(file["label"]) for file in parts])
    with hdf5_image() as (index, image):
        for name, first in parts[0].items():
            if len({file[name].dtype for file in parts}) > 1:
                raise AssertionError(f"{names}: parts differ in the type of {name}")
            layout = h5py.VirtualLayout((int(ends[-1]), *first.shape[1:]), first.dtype)
            layout.dcpl.set_obj_track_times(False)  # equal content, equal bytes
            for part, file, end in zip(names, parts, ends, strict=True):
                source = h5py.VirtualSource(part, name, file[name].shape, first.dtype)
                layout[end - len(file["label"]) : end] = source
            dataset = index.create_virtual_dataset(name, layout)
            for key, value in first.attrs.items():
                if key != "sha256":
                    dataset.attrs[key] = value
        _write_attributes(index, read_provenance(parts[0]))
        index.attrs["parts"] = names
        index.attrs["part_ends"] = ends
        index.attrs["part_digests"] = [str(file.attrs["digest"]) for file in parts]
    return image[0]


def examine_part(path: Path, rows: Rows, provenance: Provenance) -> None:
    """Raise CacheError unless a part of just these rows and this origin is there, as it was written."""
    with opened(path) as file:
        read_digest(file)
        origin = read_provenance(file)
        for field in fields(provenance):
            was, now = (getattr(values, field.name) for values in (origin, provenance))
            if field.compare and was != now:
                raise CacheError(
                    f"{path} was made with {field.name} {_short(was)}, expected {_short(now)}", AGAIN
                )
        if not read_rows(file).equals(rows):
            raise CacheError(f"{path} holds other images than expected", AGAIN)
        for name in sorted(file.keys() - set(ROWS)):
            read_dataset(file, name)


def _short(value: object) -> str:
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextmanager
def hdf5_image() -> Iterator[tuple[h5py.File, list[bytes]]]:
    """Yield an HDF5 file to fill, in memory, and a list that has its bytes afterwards."""
    image: list[bytes] = []
    with h5py.File("memory", "w", driver="core", backing_store=False, libver=HDF5_1_10) as file:
        yield file, image
        file.flush()
        image.append(file.id.get_file_image())


def chunks_of(values: np.ndarray) -> tuple[int, ...]:
    """Return chunks of whole rows, at most a quarter of a megabyte, and the last about as full."""
    number = max(1, -(-values.nbytes // CHUNK_BYTES))
    return (max(1, -(-len(values) // number)), *values.shape[1:])


def _describe(dataset: Any, name: str, provenance: Provenance, maps: Sequence[str]) -> None:
    """Write into a dataset's attributes what it is."""
    if name == "flags":
        dataset.attrs["says"] = "(image, kind of map): a sum of bits"
        dataset.attrs["maps"] = list(maps)
        dataset.attrs["bits"] = [f"{bit}: {meaning}" for bit, meaning in FLAGS.items()]
    elif name in maps:
        method, level = name_maps(provenance.methods, provenance.lower)[name]
        layers = (provenance.target_layer, *provenance.lower_layers)
        dataset.attrs["says"] = "(image, class, row, column): signed, unscaled, on the layer's own grid"
        dataset.attrs["method"] = method
        dataset.attrs["layer"] = layers[level]
        dataset.attrs["classes"] = list(map_classes(provenance.classes, dataset.shape[1]))
    else:
        dataset.attrs["says"] = SAYS[name]


def _write_attributes(file: h5py.File, provenance: Provenance) -> None:
    for name, value in asdict(provenance).items():
        if isinstance(value, tuple):
            numbers = name == "classifier_bias"
            file.attrs[name] = np.array(value, float if numbers else h5py.string_dtype())
        else:
            file.attrs[name] = value
