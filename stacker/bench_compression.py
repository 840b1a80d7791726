"""Measured on a run's own caches: what each way of compressing them would save, and cost.

Maps and embeddings of all base models are written as a part is, to a file in memory, and read back.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from stacker.cache import Cache
from stacker.cache_writer import chunks_of

SHUFFLED = {"shuffle": True}
WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "none, with checksums (as the cache is)": {"fletcher32": True},
    "lzf": {"compression": "lzf", **SHUFFLED},
    "gzip 1": {"compression": "gzip", "compression_opts": 1, **SHUFFLED},
    "gzip 4": {"compression": "gzip", "compression_opts": 4, **SHUFFLED},
}


@dataclass(frozen=True)
class Compression:
    """What one way comes to: the share of the plain bytes, and megabytes of plain data per second."""

    way: str
    share_of_maps: float
    share_of_features: float
    kilobytes_per_image: float
    write_mb_per_second: float
    read_mb_per_second: float


def bench_compression(caches: Sequence[Cache], repeats: int) -> list[Compression]:
    """Write and read everything in every way that is installed, the median of the repeats."""
    arrays = {
        "maps": [cache.read(name) for cache in caches for name in cache.maps],
        "features": [cache.read("features") for cache in caches],
    }
    images = sum(len(cache.rows) for cache in caches)
    return [
        _measure(way, options, arrays, images, repeats) for way, options in (WAYS | _blosc2()).items()
    ]


def _blosc2() -> dict[str, dict[str, Any]]:
    """Return Blosc2's ways where its HDF5 plugin is installed."""
    try:
        import hdf5plugin
    except ImportError:
        return {}
    shuffle = hdf5plugin.Blosc2.BITSHUFFLE
    return {
        f"blosc2 {name}": dict(hdf5plugin.Blosc2(cname=name, clevel=5, filters=shuffle))
        for name in ("lz4", "zstd")
    }


def _measure(
    way: str,
    options: dict[str, Any],
    arrays: Mapping[str, Sequence[np.ndarray]],
    images: int,
    repeats: int,
) -> Compression:
    plain = {kind: sum(values.nbytes for values in found) for kind, found in arrays.items()}
    stored = dict.fromkeys(arrays, 0)
    writing, reading = [0.0] * repeats, [0.0] * repeats
    for kind, found in arrays.items():
        for values in found:
            for repeat in range(repeats):
                started = time.perf_counter()
                file = _write(values, options)
                written = time.perf_counter()
                _read(file)
                writing[repeat] += written - started
                reading[repeat] += time.perf_counter() - written
            stored[kind] += file.getbuffer().nbytes
    megabytes = sum(plain.values()) / 1e6
    return Compression(
        way,
        share_of_maps=round(stored["maps"] / max(1, plain["maps"]), 2),
        share_of_features=round(stored["features"] / plain["features"], 2),
        kilobytes_per_image=round(sum(stored.values()) / 1e3 / images, 2),
        write_mb_per_second=round(megabytes / statistics.median(writing)),
        read_mb_per_second=round(megabytes / statistics.median(reading)),
    )


def _write(values: np.ndarray, options: dict[str, Any]) -> io.BytesIO:
    file = io.BytesIO()
    with h5py.File(file, "w") as hdf5:
        hdf5.create_dataset("values", data=values, chunks=chunks_of(values), **options)
    return file


def _read(file: io.BytesIO) -> None:
    with h5py.File(file) as hdf5:
        hdf5["values"][:]
