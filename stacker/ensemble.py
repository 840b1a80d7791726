"""The base models of a stack, held in memory together while images stream past.

Where they do not fit into the memory that they may have, they take turns: a portion of images is seen by
one group of them after the other, so that each is loaded once for many images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from stacker.backbone import Backbone
from stacker.cam import Wanted
from stacker.checkpoint import load_checkpoint
from stacker.extract import Arrays, extract
from stacker.finetune import How

log = logging.getLogger(__name__)

PORTION_BYTES = 64_000_000  # pixels that are held while base models take turns


@dataclass
class Ensemble:
    """Base models by name: their files, the maps that are wanted of each, and how they are asked."""

    files: Mapping[str, Path]
    wanted: Mapping[str, Wanted]
    how: How
    precision: torch.dtype
    batch_size: int
    memory_gb: float
    _held: dict[str, Backbone] = field(default_factory=dict)

    @cached_property
    def rounds(self) -> list[list[str]]:
        """The base models in groups of which each fits into the memory."""
        rounds: list[list[str]] = []
        taken = 0.0
        for name, path in self.files.items():
            size = path.stat().st_size / 1e9
            if not rounds or taken + size > self.memory_gb:
                rounds.append([])
                taken = 0.0
            rounds[-1].append(name)
            taken += size
        return rounds

    def portion(self, shape: tuple[int, int]) -> int:
        """Return how many images of a shape are read before all base models have seen them."""
        if len(self.rounds) == 1:
            return self.batch_size
        height, width = shape
        portion = max(1, PORTION_BYTES // (3 * height * width * self.batch_size)) * self.batch_size
        log.info(
            "the base models do not fit into cam.memory_gb=%g together: %d images at a time are seen by "
            "%d groups of them in turn, before their rows are there",
            *(self.memory_gb, portion, len(self.rounds)),
        )
        return portion

    def ask(self, pixels: Sequence[np.ndarray]) -> dict[str, Arrays]:
        """Return what every base model says of some images."""
        found: dict[str, Arrays] = {}
        for names in self.rounds:
            batches = (
                torch.from_numpy(np.stack(pixels[start : start + self.batch_size])).to(self.how.device)
                for start in range(0, len(pixels), self.batch_size)
            )
            found |= extract(self._hold(names), batches, self.wanted, self.precision)
        return found

    def _hold(self, names: Sequence[str]) -> dict[str, Backbone]:
        """Return some base models on the device; others that are held give way."""
        if list(self._held) != list(names):
            self._held.clear()
            for name in names:
                self._held[name] = load_checkpoint(self.files[name])[0].freeze()
                self._held[name].model.to(self.how.device)
        return self._held
