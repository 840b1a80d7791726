"""Rows of the store as batches on the device, in an order that is drawn anew for every epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from stacker.pixels import Pixels
from stacker.recipe import Balance

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Part:
    """Rows of the store; all images' class indices, and their cases where these count."""

    pixels: Pixels
    labels: np.ndarray
    rows: np.ndarray
    cases: np.ndarray = field(default_factory=lambda: np.empty(0, int))

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


def draw_order(part: Part, balance: Balance, rng: np.random.Generator) -> np.ndarray:
    """Return the rows of an epoch in random order, each class spread evenly, so every batch has its mix.

    What all images have in common then cancels in a batch's gradient from the first step on, which a
    network without normalisation layers (VGG) needs to leave its starting plateau. `sampling` takes as
    many rows as there are, but equally many of each class, some of a rare one again and again; `cases`
    also takes equally many of each case of a class: one of many images is not learnt by heart.
    """
    labels = part.labels[part.rows]
    present = np.unique(labels)
    drawn, places = [], []
    for label, share in zip(present, _cut_evenly(len(labels), len(present)), strict=True):
        members = np.flatnonzero(labels == label)
        if balance == "sampling":
            members = _draw(members, share, rng)
        elif balance == "cases":
            members = _draw_by_case(members, part.cases[part.rows], share, rng)
        drawn.append(rng.permutation(members))
        places.append((np.arange(len(members)) + rng.random(len(members))) / len(members))
    rows: np.ndarray = part.rows[np.concatenate(drawn)[np.argsort(np.concatenate(places))]]
    return rows


def _draw_by_case(
    members: np.ndarray, cases: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return so many of the members, equally many of each case."""
    names = rng.permutation(np.unique(cases[members]))
    shares = _cut_evenly(count, len(names))
    own = (members[cases[members] == name] for name in names)
    return np.concatenate([_draw(each, n, rng) for each, n in zip(own, shares, strict=True)])


def _draw(members: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return so many of the members, none twice before all have been taken."""
    rounds = [rng.permutation(members) for _ in range(-(-count // len(members)))]
    return np.concatenate(rounds)[:count] if rounds else members[:0]


def _cut_evenly(count: int, parts: int) -> list[int]:
    """Return whole shares of a number that differ by one at most."""
    return [count // parts + (i < count % parts) for i in range(parts)]
