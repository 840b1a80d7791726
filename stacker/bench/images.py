"""What loading an epoch's images costs: from the packed store, and by decoding every picture again.

The peer is torch's DataLoader over the same files with a worker per core. All ways deliver shuffled
batches of (B, height, width, 3) uint8; the files are in the page cache for all.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from stacker.bench.costs import describe_work
from stacker.bench.timing import MINUTES, REPEATS, Budget, Plan, Timing, plan, ratio, time_rates
from stacker.config.data import ImagesConfig
from stacker.config.root import Config
from stacker.data.formats.registry import read_manifest
from stacker.data.images import decode_image
from stacker.data.manifest import Image, Manifest
from stacker.data.store import Pixels, open_usable
from stacker.errors import plural
from stacker.progress import track

STORE = "packed store"
IMAGES = (512, 256, 128)  # best first
WARM_UP = 8  # images
FEW = 256  # images, below which the store may be read from the processor's cache
LEAST_SECONDS = 0.5


def shuffled_images(config: Config) -> tuple[Manifest, Pixels, np.ndarray]:
    """Return a config's usable images, their pixels, and all rows in an order drawn from the seed."""
    manifest, pixels = open_usable(
        config.artifacts / ".images", read_manifest(config.data), config.images, config.data.on_error
    )
    return manifest, pixels, np.random.default_rng(config.seed).permutation(len(manifest.images))


def bench_images(
    config: Config,
    images: int | None = None,
    repeats: int | None = None,
    minutes: float = MINUTES,
) -> dict[str, Any]:
    """Time epochs of so many images, all ways in turn; return what was timed, the rates and a verdict.

    Without `images` and `repeats`, as many as fit into the minutes.
    """
    budget, cores = Budget.of("images", minutes), os.cpu_count() or 1
    manifest, pixels, order = shuffled_images(config)
    there = len(order)
    chosen = _plan(manifest, order, config.images, cores, budget, images, repeats)
    rows, size = order[: min(chosen.images, there)], config.train.batch_size
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    files = [[manifest.images[row] for row in rows] for rows in batches]
    loader = _loader(manifest, batches, config.images, cores)
    ways: dict[str, Callable[[], Iterable[Any]]] = {
        "decode, one thread": partial(_decode, files, config.images, 1),
        f"decode, {plural(cores, 'thread')}": partial(_decode, files, config.images, cores),
        f"DataLoader, {plural(cores, 'worker')}": lambda: loader,
        STORE: lambda: (pixels[rows] for rows in batches),  # an array of rows: a copy, not a view
    }
    for way, epoch in track(ways.items(), "warm-up", len(ways)):
        rate_of(way, epoch, len(rows))
    rates = {way: partial(rate_of, way, epoch, len(rows)) for way, epoch in ways.items()}
    limit = math.inf if repeats else budget.left
    timings = time_rates(rates, len(rows), chosen.repeats, limit, LEAST_SECONDS)
    if len(rows) < FEW:
        timings = [replace(timing, rough=True) for timing in timings]
    return {
        "size": config.images.shape,
        "images": len(rows),
        "repeats": len(timings[0].repeats),
        "timings": timings,
        "verdict": f"{verdict(timings)}; {describe_work(len(rows), len(timings[0].repeats))}",
    }


def _plan(
    manifest: Manifest,
    order: np.ndarray,
    settings: ImagesConfig,
    cores: int,
    budget: Budget,
    images: int | None,
    repeats: int | None,
) -> Plan:
    """Choose how many images and repeats fit into the time, by decoding a few."""
    some = [manifest.images[row] for row in order[:WARM_UP]]
    started = time.perf_counter()
    for _ in _decode([some], settings, 1):
        pass
    each = (time.perf_counter() - started) / len(some)
    wanted = [min(number, len(order)) for number in ([images] if images else IMAGES)]

    def cost(number: int, times: int) -> float:
        """Every way runs once more, to warm up."""
        shares = (1.0, 1 / cores, 1 / cores, 0.0)
        return (times + 1) * sum(max(LEAST_SECONDS, number * each * share) for share in shares)

    return plan(cost, budget, list(dict.fromkeys(wanted)), [repeats] if repeats else REPEATS)


def verdict(timings: Sequence[Timing]) -> str:
    """Say how many times faster the store is than torch's DataLoader."""
    *_, loader, store = timings
    gain = ratio(store.repeats, loader.repeats, store.rough or loader.rough)
    said = f"the {STORE} is {gain.times(f'as fast as the {loader.way}')}"
    if store.images < FEW:
        said += f"; {plural(store.images, 'image')} may fit into the processor's cache, more would not"
    return said


def rate_of(way: str, epoch: Callable[[], Iterable[Any]], images: int) -> float:
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
