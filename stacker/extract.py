"""Base models over images: one read of a batch feeds all of them, one pass each gives everything.

The trunk runs in bfloat16 where the hardware multiplies it natively, the head and its gradients always
in float32. What is found stays on the device until the images are through: a copy per batch would wait
for the device each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from stacker.backbone import Backbone
from stacker.cam import Answers, Wanted, look

Arrays = dict[str, np.ndarray]


def extract(
    backbones: Mapping[str, Backbone],
    batches: Iterable[Tensor],
    wanted: Mapping[str, Wanted],
    precision: torch.dtype,
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[str, Arrays]:
    """Return `features` (N, D), `logits` (N, K) and the `wanted` maps (N, K, h, w) by base model.

    `batches` are pixels_BHWC, uint8, on the backbones' device; `on_batch` hears how many images times
    base models are done.
    """
    found: dict[str, list[Answers]] = {name: [] for name in backbones}
    for pixels_BHWC in batches:
        for name, backbone in backbones.items():
            images_BCHW = backbone.normalise(pixels_BHWC)
            found[name].append(look(backbone, images_BCHW, wanted[name], precision))
        on_batch(len(pixels_BHWC) * len(backbones))
    return {name: _join(answers) for name, answers in found.items()}


def _join(answers: list[Answers]) -> Arrays:
    """Put the answers to all batches together, in the memory of the CPU."""
    pieces = {
        "features": [a.embedding_BD for a in answers],
        "logits": [a.logits_BK for a in answers],
        **{name: [a.maps[name] for a in answers] for name in answers[0].maps},
    }
    return {name: torch.cat(values).cpu().numpy() for name, values in pieces.items()}


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
    return tuple(float(value) for value in (bias if bias is not None else []))
