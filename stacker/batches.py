"""Rows of the store as batches on the device, in an order that is drawn anew for every epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from stacker.pixels import Pixels

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Part:
    """Rows of the store with their class indices."""

    pixels: Pixels
    labels: np.ndarray
    rows: np.ndarray

    def batches(self, order: np.ndarray, size: int, device: torch.device) -> Iterator[Batch]:
        """Yield (pixels_BHWC uint8, labels_B) on the device, in the given order of rows.

        The next batches are read, and pinned for a GPU, in a thread while one is worked on.
        """
        pieces = (order[start : start + size] for start in range(0, len(order), size))
        for pixels, labels in _ahead(self._read(chosen, device) for chosen in pieces):
            yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    def _read(self, chosen: np.ndarray, device: torch.device) -> Batch:
        pixels, labels = torch.from_numpy(self.pixels[chosen]), torch.from_numpy(self.labels[chosen])
        return (pixels.pin_memory(), labels.pin_memory()) if device.type == "cuda" else (pixels, labels)


def _ahead(items: Iterable[T], depth: int = 3) -> Iterator[T]:
    """Yield the items while a thread makes the next few."""
    source = iter(items)
    with ThreadPoolExecutor(1) as thread:
        pending = deque(thread.submit(list, islice(source, 1)) for _ in range(depth))
        while made := pending.popleft().result():
            pending.append(thread.submit(list, islice(source, 1)))
            yield made[0]


def draw_order(part: Part, balanced: bool, rng: np.random.Generator) -> np.ndarray:
    """Return the rows of an epoch in random order, each class spread evenly, so every batch has its mix.

    What all images have in common then cancels in a batch's gradient from the first step on, which a
    network without normalisation layers (VGG) needs to leave its starting plateau. `balanced` takes as
    many rows as there are, but equally many of each class: some of a rare class again and again.
    """
    labels = part.labels[part.rows]
    present = np.unique(labels)
    drawn, places = [], []
    for number, label in enumerate(present):
        members = np.flatnonzero(labels == label)
        count = len(members)
        if balanced:
            count = len(labels) // len(present) + (number < len(labels) % len(present))
        rounds = [rng.permutation(members) for _ in range(-(-count // len(members)))]
        drawn.append(np.concatenate(rounds)[:count])
        places.append((np.arange(count) + rng.random(count)) / count)
    rows: np.ndarray = part.rows[np.concatenate(drawn)[np.argsort(np.concatenate(places))]]
    return rows
