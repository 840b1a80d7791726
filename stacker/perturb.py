"""Maps by trying: mask or remove one channel after the other, and see what becomes of the logits.

Each channel costs a pass, so these methods cost hundreds to thousands of passes per image; all classes
share them. ScoreCAM masks the image and runs the whole model. AblationCAM sets a channel of the last
grid to zero, as its paper does, and runs the head alone; the grad-cam package departs from the paper
where a grid has negative values.

    C channels, K classes, h w the grid's rows and columns, N channels that are tried at once
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stacker.backbone import Backbone
from stacker.cut import Features
from stacker.devices import autocast

CHANNELS_AT_ONCE = 64


@torch.no_grad()
def scorecam(
    backbone: Backbone, images_BCHW: Tensor, features: Features, precision: torch.dtype
) -> Tensor:
    """Wang et al. 2020, without the ReLU: channels weighted by the softmax of what they let through."""
    maps = []
    for image_3HW, grid_Chw in zip(images_BCHW, features.grid_BChw, strict=True):
        found = [
            _logits_of_masked(backbone, image_3HW, grid_Nhw, precision)
            for grid_Nhw in grid_Chw.split(CHANNELS_AT_ONCE)
        ]
        weights_CK = torch.cat(found).softmax(dim=0)
        maps.append(torch.einsum("ck,chw->khw", weights_CK, grid_Chw))
    return torch.stack(maps)


def _logits_of_masked(
    backbone: Backbone, image_3HW: Tensor, grid_Nhw: Tensor, precision: torch.dtype
) -> Tensor:
    """Return logits_NK of an image behind each of some channels, scaled to masks between 0 and 1."""
    size = image_3HW.shape[1:]
    masks_NHW = interpolate(grid_Nhw[None], size, mode="bilinear", align_corners=True)[0]
    lowest, highest = (edge(masks_NHW, dim=(1, 2), keepdim=True) for edge in (torch.amin, torch.amax))
    masks_NHW = (masks_NHW - lowest) / (highest - lowest + 1e-8)
    masked_N3HW = (image_3HW * masks_NHW[:, None]).contiguous(memory_format=torch.channels_last)
    with autocast(image_3HW.device, precision):
        grid_BChw, rest = backbone.trunk(masked_N3HW)
    return backbone.head(grid_BChw.float(), None if rest is None else rest.float())[1]


@torch.no_grad()
def ablationcam(
    backbone: Backbone, _images: Tensor, features: Features, _precision: torch.dtype
) -> Tensor:
    """Desai and Ramaswamy 2020, eq. 4: channels weighted by the share of the logit that they hold."""
    maps = []
    for i, grid_Chw in enumerate(features.grid_BChw):
        rest = None if features.rest is None else features.rest[i : i + 1]
        whole_1K = backbone.head(grid_Chw[None], rest)[1]
        found = [
            _logits_without(backbone, grid_Chw, rest, channels_N)
            for channels_N in torch.arange(len(grid_Chw), device=grid_Chw.device).split(CHANNELS_AT_ONCE)
        ]
        weights_CK = (whole_1K - torch.cat(found)) / whole_1K
        maps.append(torch.einsum("ck,chw->khw", weights_CK, grid_Chw))
    return torch.stack(maps)


def _logits_without(
    backbone: Backbone, grid_Chw: Tensor, rest: Tensor | None, channels_N: Tensor
) -> Tensor:
    """Return logits_NK of a grid that lacks one of some channels each time."""
    count = len(channels_N)
    grids_NChw = grid_Chw.repeat(count, 1, 1, 1)
    grids_NChw[torch.arange(count, device=channels_N.device), channels_N] = 0
    return backbone.head(grids_NChw, None if rest is None else rest.expand(count, *rest.shape[1:]))[1]


PERTURB: dict[str, Callable[[Backbone, Tensor, Features, torch.dtype], Tensor]] = {
    "scorecam": scorecam,
    "ablationcam": ablationcam,
}
