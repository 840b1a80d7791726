"""One pass through a backbone: embedding, logits, and the maps of every class by any number of methods.

The trunk runs without a graph; its activations become a leaf, so autograd records the head alone and
each class costs one cheap head gradient, which all methods share. Where gradients at lower stages are
wanted, the graph begins at the lowest of them, and no earlier. The head and its gradients are float32;
further down a gradient has the trunk's precision.

    B images, K classes, C channels, h w the grid's rows and columns, D embedding width
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from stacker.backbones.backbone import Backbone
from stacker.backbones.cut import Features
from stacker.backbones.devices import autocast
from stacker.errors import BackboneError
from stacker.maps.formulas import BY_ACTIVATION, BY_CURVATURE, BY_GRADIENT, PERTURB

Wanted = Mapping[str, tuple[str, int]]  # maps by name: the method, and the level below the last grid


class Output(NamedTuple):
    """What a base model says of a batch, in float32.

    maps_BKhw go by name; they are (B, 1, h, w) where classes do not differ.
    """

    embedding_BD: Tensor  # noqa: N815  # shapes are part of names
    logits_BK: Tensor  # noqa: N815
    maps: dict[str, Tensor]


class _Level(NamedTuple):
    """A level's activations as the model has them, with a graph where one is needed, and as a grid."""

    values: Tensor
    grid_BChw: Tensor  # noqa: N815


def look(backbone: Backbone, images_BCHW: Tensor, wanted: Wanted, precision: torch.dtype) -> Output:
    """Return the output for a batch. The backbone must be frozen: then only heads are recorded."""
    with _attention(wanted):
        features, levels = _trunk(backbone, images_BCHW, wanted, precision)
        with torch.set_grad_enabled(features.grid_BChw.requires_grad):
            embedding_BD, logits_BK = backbone.head(*features)
    maps = {
        name: BY_ACTIVATION[method](levels[level].grid_BChw)[:, None]
        for name, (method, level) in wanted.items()
        if method in BY_ACTIVATION
    }
    if logits_BK.requires_grad:
        by_class = [_of_class(backbone, logits_BK, k, levels, wanted) for k in range(logits_BK.shape[1])]
        maps |= {name: torch.stack([of_k[name] for of_k in by_class], dim=1) for name in by_class[0]}
    rest = None if features.rest is None else features.rest.detach()
    plain = Features(levels[0].grid_BChw, rest)
    for name, (method, _) in wanted.items():
        if method in PERTURB:
            maps[name] = PERTURB[method](backbone, images_BCHW, plain, precision)
    return Output(embedding_BD.detach(), logits_BK.detach(), maps)


def _trunk(
    backbone: Backbone, images_BCHW: Tensor, wanted: Wanted, precision: torch.dtype
) -> tuple[Features, list[_Level]]:
    """Return the features in float32, and the levels that are wanted, from the last grid down.

    Activations down to the lowest level of a method with gradients require them, others do not.
    """
    lowest = _lowest(wanted, BY_ACTIVATION.keys() | BY_GRADIENT.keys() | BY_CURVATURE.keys())
    bottom = _lowest(wanted, BY_GRADIENT.keys() | BY_CURVATURE.keys())
    with (
        _recorded(backbone, max(lowest, 0), bottom) as below,
        torch.set_grad_enabled(bottom > 0),
        autocast(images_BCHW.device, precision),
    ):
        grid_BChw, rest = backbone.trunk(images_BCHW)
    with torch.set_grad_enabled(bottom > 0):
        grid_BChw, rest = grid_BChw.float(), None if rest is None else rest.float()
    if bottom <= 0:
        grid_BChw = grid_BChw.detach().requires_grad_(bottom == 0)
    levels = [_Level(grid_BChw, grid_BChw.detach())]
    levels += [_Level(values, _as_grid(backbone, values, 1, grid_BChw)) for values in reversed(below)]
    return Features(grid_BChw, rest), levels


def _lowest(wanted: Wanted, methods: Collection[str]) -> int:
    """Return the lowest level at which any of the methods is wanted, -1 where none is."""
    return max((level for method, level in wanted.values() if method in methods), default=-1)


def _of_class(
    backbone: Backbone, logits_BK: Tensor, k: int, levels: Sequence[_Level], wanted: Wanted
) -> dict[str, Tensor]:
    """Return the maps_Bhw of one class by name.

    In eval mode the images of a batch do not touch each other, so the gradient of the batch's summed
    logit is each image's own.
    """
    recorded = [level.values for level in levels if level.values.requires_grad]
    last = levels[0].values
    chosen_BK = torch.zeros_like(logits_BK)
    chosen_BK[:, k] = 1
    curved = any(method in BY_CURVATURE for method, _ in wanted.values())
    more = curved or k + 1 < logits_BK.shape[1]
    slopes = torch.autograd.grad(logits_BK, recorded, chosen_BK, retain_graph=more, create_graph=curved)
    gradients = [_as_grid(backbone, slope, level, last) for level, slope in enumerate(slopes)]
    maps = {}
    for name, (method, level) in wanted.items():
        if method in BY_GRADIENT:
            maps[name] = BY_GRADIENT[method](levels[level].grid_BChw, gradients[level])
        elif method in BY_CURVATURE:
            curvature = _curvature(backbone, slopes[level], recorded[level])
            bent_BChw = _as_grid(backbone, curvature, level, last)
            maps[name] = BY_CURVATURE[method](levels[level].grid_BChw, gradients[level], bent_BChw)
    return maps


def _as_grid(backbone: Backbone, values: Tensor, level: int, last_BChw: Tensor) -> Tensor:
    """Return a level's values as a grid in float32, without a graph; level 0 is one already."""
    values = values.detach().float()
    return backbone.spatial(values, last_BChw) if level else values


def _curvature(backbone: Backbone, gradients: Tensor, values: Tensor) -> Tensor:
    """Return the Hessian of a logit times the activations; zero where the logit is linear in them."""
    if not gradients.requires_grad:
        return torch.zeros_like(values)
    try:
        (product,) = torch.autograd.grad(
            gradients, values, grad_outputs=values.detach(), retain_graph=True, allow_unused=True
        )
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        raise BackboneError(
            f"backbones.{backbone.name}: shapleycam needs second derivatives, and {error}",
            "leave it out of cam.methods, or set cam.lower=0",
        ) from None
    return torch.zeros_like(values) if product is None else product


def _attention(wanted: Wanted) -> AbstractContextManager[None]:
    """Choose attention that can be differentiated twice where that is needed; fused kernels cannot."""
    curved = any(method in BY_CURVATURE for method, _ in wanted.values())
    return sdpa_kernel(SDPBackend.MATH) if curved else nullcontext()


@contextmanager
def _recorded(backbone: Backbone, count: int, bottom: int) -> Iterator[list[Tensor]]:
    """Collect the outputs of the `count` stages below the grid, from the lowest up.

    The one at level `bottom` becomes a leaf. Later layers get copies: some work in place.
    """
    taken: list[Tensor] = []

    def take(_: Any, __: Any, output: Tensor) -> Tensor:
        level = count - len(taken)
        values = output if output.requires_grad else output.detach().requires_grad_(level <= bottom)
        taken.append(values)
        return values.clone()

    handles = [module.register_forward_hook(take) for module in backbone.below(count)]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()
