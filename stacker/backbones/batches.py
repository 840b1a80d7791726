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

from stacker.data.store import Pixels

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Subset:
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
