"""Class-activation maps: a method is one formula over activations and gradients.

Maps stay signed and unscaled: ReLU, normalisation and upsampling belong to the moment when a person
looks. Methods carry the names of the grad-cam package and give its maps, for a whole batch and on the
device. They differ in one thing: the sign of a principal component, which the package leaves to LAPACK,
is the sign of what was decomposed.

The last two have no formula: they mask or remove one channel after the other and see what becomes of the
logits. That costs hundreds to thousands of passes per image, which all classes share. ScoreCAM masks the
image and runs the whole model. AblationCAM sets a channel of the last grid to zero, as its paper does,
and runs the head alone; the grad-cam package departs from the paper where a grid has negative values.

    B images, K classes, C channels, N channels that are tried at once
    h w the grid's rows and columns, L its cells
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stacker.backbones.backbone import Backbone
from stacker.backbones.cut import Features
from stacker.backbones.devices import autocast

CHANNELS_AT_ONCE = 64  # that are tried


def gradcam(activations_BChw: Tensor, gradients_BChw: Tensor) -> Tensor:
    """Selvaraju et al. 2017, eq. 1 and 2 without the ReLU: channels weighted by mean gradient.

    For a head that is average-pool then linear, the sum of a map over its grid is logit - bias.
    """
    return _weighted(gradients_BChw.mean(dim=(2, 3)), activations_BChw)


def gradcam_plus_plus(activations_BChw: Tensor, gradients_BChw: Tensor) -> Tensor:
    """Chattopadhay et al. 2018, eq. 19 and 7: positive gradients, weighted by their higher powers."""
    square = gradients_BChw**2
    total = activations_BChw.sum(dim=(2, 3), keepdim=True)
    alpha = square / (2 * square + total * square * gradients_BChw + 1e-6)
    return _weighted((gradients_BChw.relu() * alpha).sum(dim=(2, 3)), activations_BChw)


def xgradcam(activations_BChw: Tensor, gradients_BChw: Tensor) -> Tensor:
    """Fu et al. 2020, eq. 8: gradients averaged with the activations as weights."""
    total = activations_BChw.sum(dim=(2, 3), keepdim=True)
    shares = gradients_BChw * activations_BChw / (total + 1e-7)
    return _weighted(shares.sum(dim=(2, 3)), activations_BChw)


def hirescam(activations_BChw: Tensor, gradients_BChw: Tensor) -> Tensor:
    """Draelos and Carin 2020, eq. 4: each element weighted by its own gradient."""
    return (gradients_BChw * activations_BChw).sum(dim=1)


def layercam(activations_BChw: Tensor, gradients_BChw: Tensor) -> Tensor:
    """Jiang et al. 2021, eq. 5 and 6: each element weighted by its positive gradient."""
    return (gradients_BChw.relu() * activations_BChw).sum(dim=1)


def gradcam_elementwise(activations_BChw: Tensor, gradients_BChw: Tensor) -> Tensor:
    """Sum of the positive elements of HiResCAM: evidence for the class alone."""
    return (gradients_BChw * activations_BChw).relu().sum(dim=1)


def eigengradcam(activations_BChw: Tensor, gradients_BChw: Tensor) -> Tensor:
    """First principal component of gradients times activations, signed like HiResCAM."""
    evidence_BChw = gradients_BChw * activations_BChw
    return _along(first_component(evidence_BChw), evidence_BChw)


def segeigencam(activations_BChw: Tensor, gradients_BChw: Tensor) -> Tensor:
    """Chung and Ying 2025, eq. 10 to 13: the same of absolute gradients, its larger side positive."""
    return _larger_side_up(first_component(gradients_BChw.abs() * activations_BChw))


def shapleycam(activations_BChw: Tensor, gradients_BChw: Tensor, curvature_BChw: Tensor) -> Tensor:
    """Cai 2025, eq. 15: Grad-CAM with a second-order term, the Hessian times the activations."""
    return _weighted((gradients_BChw - curvature_BChw / 2).mean(dim=(2, 3)), activations_BChw)


def eigencam(activations_BChw: Tensor) -> Tensor:
    """Muhammad and Yeasin 2020: the first principal component, positive where activations are high."""
    return _along(first_component(activations_BChw), activations_BChw)


def fem(activations_BChw: Tensor) -> Tensor:
    """Fuad et al. 2020: channels weighted by the share of cells that stand out by two deviations."""
    centred_BChw = activations_BChw - activations_BChw.mean(dim=(2, 3), keepdim=True)
    deviation_BC11 = (centred_BChw**2).mean(dim=(2, 3), keepdim=True).sqrt()
    standing_out = centred_BChw > 2 * deviation_BC11  # never of a constant, whose mean is rounded
    return _weighted(standing_out.float().mean(dim=(2, 3)), activations_BChw)


def kpcacam(activations_BChw: Tensor) -> Tensor:
    """Karmani et al. 2024: the first component of a PCA with a sigmoid kernel, its larger side positive.

    The kernel is of cells by cells, whatever the number of channels: lower stages are slow.
    """
    return _by_finite_image(_sigmoid_component, activations_BChw)


BY_GRADIENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "xgradcam": xgradcam,
    "hirescam": hirescam,
    "layercam": layercam,
    "gradcamelementwise": gradcam_elementwise,
    "eigengradcam": eigengradcam,
    "segeigencam": segeigencam,
}
BY_CURVATURE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"shapleycam": shapleycam}
BY_ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {  # the same for all classes
    "eigencam": eigencam,
    "fem": fem,
    "kpcacam": kpcacam,
}


def first_component(values_BChw: Tensor) -> Tensor:
    """Return where cells lie on the first principal axis of the channels, as maps_Bhw of either sign.

    Of the matrices of channels by channels and of cells by cells, which share their eigenvalues, the
    smaller one is decomposed. Eigenvectors of the latter are the component but for its length.
    """
    return _by_finite_image(_linear_component, values_BChw)


def _by_finite_image(component: Callable[[Tensor], Tensor], values_BChw: Tensor) -> Tensor:
    """Apply a component to centred_BCL; an image with a value that is not finite gets a map of NaN.

    LAPACK refuses a whole batch for one such image.
    """
    finite_B = values_BChw.flatten(1).isfinite().all(dim=1)
    values_BCL = torch.where(finite_B[:, None, None], values_BChw.flatten(2), 0).double()
    component_BL = component(values_BCL - values_BCL.mean(dim=2, keepdim=True))
    maps_BL = torch.where(finite_B[:, None], component_BL, torch.nan)
    return maps_BL.reshape(-1, *values_BChw.shape[2:]).float()


def _linear_component(centred_BCL: Tensor) -> Tensor:
    channels, cells = centred_BCL.shape[1:]
    if channels > cells:
        return _top_eigenvector(centred_BCL.mT @ centred_BCL)
    _, axes_BCC = torch.linalg.eigh(centred_BCL @ centred_BCL.mT)
    return torch.einsum("bc,bcl->bl", axes_BCC[..., -1], centred_BCL)


def _sigmoid_component(centred_BCL: Tensor) -> Tensor:
    channels = centred_BCL.shape[1]
    kernel_BLL = torch.tanh(centred_BCL.mT @ centred_BCL / channels + 1)
    kernel_BLL = kernel_BLL - kernel_BLL.mean(dim=1, keepdim=True)
    kernel_BLL = kernel_BLL - kernel_BLL.mean(dim=2, keepdim=True)
    return _larger_side_up(_top_eigenvector(kernel_BLL))


def _top_eigenvector(matrix_BLL: Tensor) -> Tensor:
    """Return the eigenvector of the largest eigenvalue, as long as that one's root."""
    powers_BL, vectors_BLL = torch.linalg.eigh(matrix_BLL)
    component_BL: Tensor = vectors_BLL[..., -1] * powers_BL[:, -1:].clamp(min=0).sqrt()
    return component_BL


def _along(maps_Bhw: Tensor, values_BChw: Tensor) -> Tensor:
    """Turn maps to the side of the values' sum over channels.

    Tokens behind a layer norm may sum to nothing but rounding; there the larger side is positive.
    """
    agreed_B = (maps_Bhw.double() * values_BChw.sum(dim=1)).sum(dim=(1, 2))
    possible_B = (maps_Bhw.double().abs() * values_BChw.abs().sum(dim=1)).sum(dim=(1, 2))
    decided_B = agreed_B.abs() > 1e-3 * possible_B
    turned_Bhw = torch.where((agreed_B < 0)[:, None, None], -maps_Bhw, maps_Bhw)
    return torch.where(decided_B[:, None, None], turned_Bhw, _larger_side_up(maps_Bhw))


def _larger_side_up(maps: Tensor) -> Tensor:
    """Turn maps, of any layout behind the batch, so that their largest absolute value is positive."""
    flat_BL = maps.flatten(1)
    turned_BL = torch.where((-flat_BL.amin(dim=1) > flat_BL.amax(dim=1))[:, None], -flat_BL, flat_BL)
    return turned_BL.reshape(maps.shape)


def _weighted(weights_BC: Tensor, activations_BChw: Tensor) -> Tensor:
    return (weights_BC[:, :, None, None] * activations_BChw).sum(dim=1)


@torch.no_grad()
def scorecam(
    backbone: Backbone, images_BCHW: Tensor, features: Features, precision: torch.dtype
) -> Tensor:
    """Wang et al. 2020, without the ReLU: channels weighted by the softmax of what they let through."""
    maps = []
    for image_3HW, grid_Chw in zip(images_BCHW, features.grid_BChw, strict=True):
        logits = [
            _logits_of_masked(backbone, image_3HW, grid_Nhw, precision)
            for grid_Nhw in grid_Chw.split(CHANNELS_AT_ONCE)
        ]
        weights_CK = torch.cat(logits).softmax(dim=0)
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
        channels_C = torch.arange(len(grid_Chw), device=grid_Chw.device)
        logits = [
            _logits_without(backbone, grid_Chw, rest, channels_N)
            for channels_N in channels_C.split(CHANNELS_AT_ONCE)
        ]
        weights_CK = (whole_1K - torch.cat(logits)) / whole_1K
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
