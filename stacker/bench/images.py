"""What loading an epoch's images costs: from the packed store, and by decoding every picture again.

The peer is torch's DataLoader over the same files with a worker per core. All ways deliver shuffled
batches of (B, height, width, 3) uint8; the files are in the page cache for all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from stacker.bench.timing import Timing, time_rates
from stacker.config.data import ImagesConfig
from stacker.config.root import Config
from stacker.data.formats.registry import read_manifest
from stacker.data.images import decode_image
from stacker.data.manifest import Image, Manifest
from stacker.data.store import Pixels, open_usable

LEAST_SECONDS = 0.5


def shuffled_images(config: Config) -> tuple[Manifest, Pixels, np.ndarray]:
    """Return a config's usable images, their pixels, and all rows in an order drawn from the seed."""
    manifest, pixels = open_usable(
        config.artifacts / ".images", read_manifest(config.data), config.images, config.data.on_error
    )
    return manifest, pixels, np.random.default_rng(config.seed).permutation(len(manifest.images))


def bench_images(config: Config, images: int, repeats: int) -> list[Timing]:
    """Time epochs of so many images, all ways in turn."""
    manifest, pixels, order = shuffled_images(config)
    chosen, size, cores = order[:images], config.train.batch_size, os.cpu_count() or 1
    batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    files = [[manifest.images[row] for row in rows] for rows in batches]
    loader = _loader(manifest, batches, config.images, cores)
    ways: dict[str, Callable[[], Iterable[Any]]] = {
        "decode, one thread": partial(_decode, files, config.images, 1),
        f"decode, {cores} threads": partial(_decode, files, config.images, cores),
        f"DataLoader, {cores} workers": lambda: loader,
        "store": lambda: (pixels[rows] for rows in batches),
    }
    rates = {way: partial(_rate, way, epoch, len(chosen)) for way, epoch in ways.items()}
    return time_rates(rates, repeats)


def _rate(way: str, epoch: Callable[[], Iterable[Any]], images: int) -> float:
    """Load as many epochs as half a second holds; return images per second."""
    started, epochs = time.perf_counter(), 0
    while epochs == 0 or time.perf_counter() - started < LEAST_SECONDS:
        if (delivered := sum(len(batch) for batch in epoch())) != images:
            raise AssertionError(f"{way} delivered {delivered} of {images} images")
        epochs += 1
    return epochs * images / (time.perf_counter() - started)


def _decode(
    batches: Sequence[Sequence[Image]], settings: ImagesConfig, threads: int
) -> Iterator[np.ndarray]:
    with ThreadPoolExecutor(threads) as pool:
        for images in batches:
            yield np.stack(list(pool.map(partial(decode_image, config=settings), images)))


def _loader(manifest: Manifest, batches: list[np.ndarray], settings: ImagesConfig, cores: int) -> Any:
    """Return torch's DataLoader, whose workers decode, and live on from epoch to epoch."""
    from torch.utils.data import DataLoader

    return DataLoader(
        manifest.images,  # type: ignore[arg-type]  # a tuple is all that it needs
        batch_sampler=[rows.tolist() for rows in batches],
        num_workers=cores,
        collate_fn=partial(_collate, settings),
        persistent_workers=True,
    )


def _collate(settings: ImagesConfig, images: Sequence[Image]) -> Any:
    from torch.utils.data import default_collate

    return default_collate([decode_image(image, settings) for image in images])
