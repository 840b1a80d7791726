"""Measured on this machine, in one run: what a part of the work costs, beside the usual way to do it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from stacker.config.data import ImagesConfig
from stacker.config.root import Config
from stacker.data.formats.registry import read_manifest
from stacker.data.images import decode_image
from stacker.data.manifest import Image, Manifest
from stacker.data.store import open_usable

LEAST_SECONDS = 0.5


@dataclass(frozen=True)
class Timing:
    """How fast one way is: images per second, the median of the repeats, and all of them."""

    way: str
    images_per_second: float
    repeats: tuple[float, ...]


def bench_images(config: Config, images: int, repeats: int) -> list[Timing]:
    """Time an epoch's loading: from the store, and by decoding every picture again.

    The peer is torch's DataLoader over the same files with a worker per core. All ways deliver shuffled
    batches of (B, height, width, 3) uint8; the files are in the page cache for all.
    """
    folder = config.artifacts / ".images"
    manifest = read_manifest(config.data)
    manifest, pixels = open_usable(folder, manifest, config.images, config.data.on_error)
    rng = np.random.default_rng(config.seed)
    chosen = rng.permutation(len(manifest.images))[:images]
    size = config.train.batch_size
    batches = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    loader = _loader(manifest, batches, config.images)
    ways: dict[str, Callable[[], Iterator[Any]]] = {
        "decode, one thread": lambda: _decode(manifest, batches, config.images, 1),
        f"decode, {os.cpu_count()} threads": lambda: _decode(
            manifest, batches, config.images, os.cpu_count()
        ),
        f"DataLoader, {os.cpu_count()} workers": lambda: iter(loader),
        "store": lambda: (pixels[rows] for rows in batches),
    }
    return [_time(way, start, len(chosen), repeats) for way, start in ways.items()]


def _time(way: str, start: Callable[[], Iterator[Any]], images: int, repeats: int) -> Timing:
    """Run an epoch to warm up, then `repeats` times as many epochs as half a second holds."""
    if (seen := sum(len(batch) for batch in start())) != images:
        raise AssertionError(f"{way} delivered {seen} of {images} images")
    rates = []
    for _ in range(repeats):
        started, seen = time.perf_counter(), 0
        while seen == 0 or time.perf_counter() - started < LEAST_SECONDS:
            seen += sum(len(batch) for batch in start())
        seconds = time.perf_counter() - started
        rates.append(round(seen / seconds, 1))
    return Timing(way, round(statistics.median(rates), 1), tuple(rates))


def _decode(
    manifest: Manifest, batches: list[np.ndarray], settings: ImagesConfig, threads: int | None
) -> Iterator[np.ndarray]:
    decode = partial(decode_image, config=settings)
    with ThreadPoolExecutor(threads) as pool:
        for rows in batches:
            yield np.stack(list(pool.map(decode, (manifest.images[row] for row in rows))))


class _Files:
    """A data set as torch's DataLoader wants it: decodes one picture when it is asked for."""

    def __init__(self, images: tuple[Image, ...], settings: ImagesConfig) -> None:
        self.images, self.settings = images, settings

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the pixels of one image."""
        return decode_image(self.images[row], self.settings)


def _loader(manifest: Manifest, batches: list[np.ndarray], settings: ImagesConfig) -> Any:
    """Return torch's DataLoader, whose workers live on from epoch to epoch."""
    from torch.utils.data import DataLoader

    return DataLoader(
        _Files(manifest.images, settings),  # type: ignore[arg-type]
        batch_sampler=[rows.tolist() for rows in batches],
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
    )
