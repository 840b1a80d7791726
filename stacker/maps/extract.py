"""Base models over images: one read of a batch feeds all of them, one pass each gives everything.

The trunk runs in bfloat16 where the hardware multiplies it natively, the head and its gradients always
in float32. Outputs stay on the device until the images are through: a copy per batch would wait for the
device each time.

Stage two and the prediction both go through `extract`. For a prediction the base models of a stack are
held together while images stream past; where they do not fit into the memory that they may have, they
take turns: a portion of images is seen by one group of them after the other, so that each is loaded once
for many images.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from stacker.backbones.backbone import Backbone
from stacker.backbones.checkpoint import load_checkpoint
from stacker.backbones.devices import Machine
from stacker.errors import BackboneError
from stacker.maps.cam import Output, Wanted, look
from stacker.run import BaseModel

log = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]
K = TypeVar("K", bound=Hashable)  # what a base model is called
PORTION_BYTES = 64_000_000  # pixels that are held while base models take turns


def extract(
    backbones: Mapping[K, Backbone],
    batches: Iterable[Tensor],
    wanted: Mapping[K, Wanted],
    precision: torch.dtype,
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[K, Arrays]:
    """Return `features` (N, D), `logits` (N, K) and the `wanted` maps (N, K, h, w) by base model.

    `batches` are pixels_BHWC, uint8, on the backbones' device; `on_batch` hears how many images times
    base models are done. Raise BackboneError when a batch does not fit into the device's memory.
    """
    outputs: dict[K, list[Output]] = {name: [] for name in backbones}
    for pixels_BHWC in batches:
        for name, backbone in backbones.items():
            try:
                images_BCHW = backbone.normalise(pixels_BHWC)
                outputs[name].append(look(backbone, images_BCHW, wanted[name], precision))
            except torch.OutOfMemoryError:
                raise BackboneError(
                    f"{backbone.name}: out of memory with {len(pixels_BHWC)} images at once",
                    "lower cam.batch_size, or cam.memory_gb, which bounds the base models held together",
                ) from None
        on_batch(len(pixels_BHWC) * len(backbones))
    return {name: _join(of_batches) for name, of_batches in outputs.items()}


def _join(outputs: list[Output]) -> Arrays:
    """Put the outputs for all batches together, in the memory of the CPU."""
    tensors = {
        "features": [output.embedding_BD for output in outputs],
        "logits": [output.logits_BK for output in outputs],
        **{name: [output.maps[name] for output in outputs] for name in outputs[0].maps},
    }
    return {name: torch.cat(values).cpu().numpy() for name, values in tensors.items()}


def classifier_bias(backbone: Backbone) -> tuple[float, ...]:
    """Return the bias of a head that averages the grid and is linear behind; nothing for other heads.

    There the sum of a Grad-CAM map over its grid is logit - bias, which can be checked in any cache.
    """
    device = next(backbone.model.parameters()).device
    with torch.no_grad():
        grid_BChw, rest = backbone.trunk(torch.zeros(1, 3, *backbone.size, device=device))
        grid_BChw = torch.linspace(0, 1, grid_BChw.numel(), device=device).reshape(grid_BChw.shape)
        embedding_BD, _ = backbone.head(grid_BChw, rest)
    mean_BC = grid_BChw.mean(dim=(2, 3))
    if embedding_BD.shape != mean_BC.shape or not torch.allclose(embedding_BD, mean_BC, atol=1e-5):
        return ()
    bias = backbone.model.get_classifier().bias
    return tuple(bias.tolist()) if bias is not None else ()


@dataclass
class Ensemble:
    """Base models by name: their files, the maps that are wanted of each, and how they are asked."""

    files: Mapping[BaseModel, Path]
    wanted: Mapping[BaseModel, Wanted]
    machine: Machine
    precision: torch.dtype
    batch_size: int
    memory_gb: float
    _held: dict[BaseModel, Backbone] = field(default_factory=dict)

    @cached_property
    def rounds(self) -> list[list[BaseModel]]:
        """The base models in groups of which each fits into the memory."""
        rounds: list[list[BaseModel]] = []
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
            "the base models do not all fit into cam.memory_gb=%g: %d images are processed "
            "at a time, by %d groups of models in turn",
            *(self.memory_gb, portion, len(self.rounds)),
        )
        return portion

    def ask(self, pixels: Sequence[np.ndarray]) -> dict[BaseModel, Arrays]:
        """Return what every base model says of some images."""
        arrays: dict[BaseModel, Arrays] = {}
        for names in self.rounds:
            batches = (
                torch.from_numpy(np.stack(pixels[start : start + self.batch_size])).to(
                    self.machine.device
                )
                for start in range(0, len(pixels), self.batch_size)
            )
            arrays |= extract(self._hold(names), batches, self.wanted, self.precision)
        return arrays

    def _hold(self, names: Sequence[BaseModel]) -> dict[BaseModel, Backbone]:
        """Return some base models on the device; others that are held give way."""
        if list(self._held) != list(names):
            self._held.clear()
            for name in names:
                self._held[name] = load_checkpoint(self.files[name])[0].freeze()
                self._held[name].model.to(self.machine.device)
        return self._held
