"""Class-activation maps: a method is one formula over activations and gradients.

The trunk has run already; its activations become a leaf, so autograd records the head alone and each
class costs one cheap head gradient. Maps stay signed and unscaled: ReLU, normalisation and upsampling
belong to the moment when a person looks.

    B images, K classes, C channels, h w the backbone's native grid, D embedding width
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stacker.backbone import Features, Head


def gradcam(activations_BChw: Tensor, gradients_BChw: Tensor) -> Tensor:
    """Selvaraju et al. 2017, eq. 1 and 2 without the ReLU: channels weighted by mean gradient.

    For a head that is average-pool then linear, the sum of a map over its grid is logit - bias.
    """
    weights_BC11 = gradients_BChw.mean(dim=(2, 3), keepdim=True)
    return (weights_BC11 * activations_BChw).sum(dim=1)


def hirescam(activations_BChw: Tensor, gradients_BChw: Tensor) -> Tensor:
    """Draelos and Carin 2020, eq. 4: each element weighted by its own gradient."""
    return (gradients_BChw * activations_BChw).sum(dim=1)


def layercam(activations_BChw: Tensor, gradients_BChw: Tensor) -> Tensor:
    """Jiang et al. 2021, eq. 5 and 6: each element weighted by its positive gradient."""
    return (gradients_BChw.relu() * activations_BChw).sum(dim=1)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": gradcam,
    "hirescam": hirescam,
    "layercam": layercam,
}


def class_maps(head: Head, features: Features, method: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return embedding_BD, logits_BK and maps_BKhw, all float32, from one pass through the head.

    In eval mode the images of a batch do not touch each other, so the gradient of the batch's summed
    logit is each image's own. The head's parameters should be frozen: then nothing else is recorded.
    """
    formula = METHODS[method]
    leaf_BChw = features.grid_BChw.detach().float().requires_grad_()
    rest = None if features.rest is None else features.rest.detach().float()
    with torch.enable_grad():
        embedding_BD, logits_BK = head(leaf_BChw, rest)
    classes = logits_BK.shape[1]
    maps = []
    for k in range(classes):
        (gradients_BChw,) = torch.autograd.grad(
            logits_BK[:, k].sum(), leaf_BChw, retain_graph=k < classes - 1
        )
        maps.append(formula(leaf_BChw.detach(), gradients_BChw))
    return embedding_BD.detach(), logits_BK.detach(), torch.stack(maps, dim=1)
