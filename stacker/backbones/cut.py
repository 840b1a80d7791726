"""Where each family of backbones is cut into trunk and head, and which of its stages lie below the cut.

    convolutions           behind forward_features                    NCHW
    VGG, AlexNet           before the last max-pool (a finer grid)    NCHW
    Swin                   behind forward_features                    NHWC
    tokens, averaged       behind forward_features                    NLC, prefix tokens in `rest`
    tokens, one of them    behind the norm1 of the last block         NLC, the residual in `rest`

A transformer that is pooled by its class token does not look at the last block's patches any more: no
gradient would reach them behind it. All of this is asked of timm's contract: `forward_features`,
`forward_head(pre_logits=True)`, `forward_intermediates`, `feature_info`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stacker.backbones.alexnet import AlexNet
from stacker.backbones.zoo import VGG


class Features(NamedTuple):
    """What a trunk gives: the last spatial grid, and what the head needs beside it."""

    grid_BChw: Tensor  # noqa: N815  # shapes are part of names
    rest: Tensor | None


Trunk = Callable[[Tensor], Features]
Head = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Cut:
    """Where a family is cut, in which layout its own tensors are there, and the stages below the cut."""

    trunk: Trunk
    head: Head
    target_layer: str
    layout: str
    prefix_tokens: int = 0
    below: tuple[str, ...] = ()


def cut_model(model: Any, size: tuple[int, int]) -> Cut:
    """Find the family's cut by the shape of its last features; raise ValueError where it has no grid."""
    if isinstance(model, VGG | AlexNet):
        return _cut_before_last_pool(model)
    with torch.no_grad(), _watched(model) as shapes:
        last = model.eval().forward_features(torch.zeros(1, 3, *size)).shape
    below = _below(shapes, last)
    if len(last) == 4:
        layout = getattr(model, "output_fmt", "NCHW")
        return _cut_behind_features(model, getattr(layout, "value", layout), 0, (0, 0), below)
    if len(last) != 3:
        raise ValueError(f"its last features are of shape {tuple(last)}")
    prefix = getattr(model, "num_prefix_tokens", 0) or 0
    grid = _grid(model, last[1] - prefix, size)
    if getattr(model, "global_pool", "avg") in ("token", "map"):
        return _cut_inside_last_block(model, prefix, grid, below)
    return _cut_behind_features(model, "NLC", prefix, grid, below)


@contextmanager
def _watched(model: Any) -> Iterator[dict[str, tuple[int, ...]]]:
    """Collect the shapes of what the stages that timm names give; () for all but a single tensor."""
    described = getattr(model, "feature_info", [])
    infos = described if isinstance(described, list) else described.get_dicts()
    modules = dict(model.named_modules())
    shapes: dict[str, tuple[int, ...]] = {info["module"]: () for info in infos}
    calls = Counter[str]()

    def watch(name: str, output: Any) -> None:
        calls[name] += 1
        shapes[name] = tuple(getattr(output, "shape", ())) if calls[name] == 1 else ()

    handles = [
        modules[name].register_forward_hook(lambda _, __, output, name=name: watch(name, output))
        for name in shapes
        if name in modules
    ]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def _below(shapes: Mapping[str, tuple[int, ...]], last: Sequence[int]) -> tuple[str, ...]:
    """Return the stages below the last that can be mapped, down to the first one that cannot.

    Grids may be of any size; tokens must be as many as the last ones, or nobody knows where they lie.
    """
    known: list[str] = []
    for name, shape in reversed(list(shapes.items())[:-1]):
        if len(shape) != len(last) or (len(shape) == 3 and shape[1] != last[1]):
            break
        known.insert(0, name)
    return tuple(known)


def _grid(model: Any, tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the patches, which the tokens have lost."""
    patches = getattr(model, "patch_embed", getattr(model, "stem", None))
    height, width = getattr(patches, "grid_size", None) or (0, 0)
    if height * width != tokens:
        height = round(math.sqrt(tokens * size[0] / size[1]))
        width = tokens // max(1, height)
    if height * width != tokens:
        raise ValueError(f"its {tokens} tokens are no grid")
    return height, width


def _cut_before_last_pool(model: Any) -> Cut:
    convolutions, last_pool = model.features[:-1], model.features[-1]

    def head(grid_BChw: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
        embedding_BD = model.forward_head(last_pool(grid_BChw), pre_logits=True)
        return embedding_BD, model.get_classifier()(embedding_BD)

    def trunk(images_BCHW: Tensor) -> Features:
        return Features(convolutions(images_BCHW), None)

    pools = [i for i, layer in enumerate(model.features) if isinstance(layer, nn.MaxPool2d)]
    *below, layer = (f"features.{i - 1}" for i in pools)
    return Cut(trunk, head, layer, "NCHW", below=tuple(below))


def _cut_behind_features(
    model: Any, layout: str, prefix: int, grid: tuple[int, int], below: tuple[str, ...]
) -> Cut:
    def trunk(images_BCHW: Tensor) -> Features:
        last = model.forward_features(images_BCHW)
        if layout == "NLC":
            return Features(as_grid(last[:, prefix:], grid), last[:, :prefix])
        return Features(last.permute(0, 3, 1, 2) if layout == "NHWC" else last, None)

    def head(grid_BChw: Tensor, rest: Tensor | None) -> tuple[Tensor, Tensor]:
        last = grid_BChw.permute(0, 2, 3, 1) if layout == "NHWC" else grid_BChw
        if rest is not None:
            last = torch.cat([rest, _tokens(grid_BChw)], dim=1)
        embedding_BD = model.forward_head(last, pre_logits=True)
        return embedding_BD, model.get_classifier()(embedding_BD)

    return Cut(trunk, head, "forward_features", layout, prefix, below)


def _cut_inside_last_block(
    model: Any, prefix: int, grid: tuple[int, int], below: tuple[str, ...]
) -> Cut:
    """Cut behind the first normalisation of the last block, where patches still speak.

    The head runs that block on the residual, with the normalisation's output for the patches replaced:
    by a hook that is registered for this one call, as every family writes its blocks its own way.
    """
    last = len(model.blocks) - 1
    if last < 1:
        raise ValueError("it has a single block")
    block = model.blocks[-1]

    def trunk(images_BCHW: Tensor) -> Features:
        ((tokens_BNC, prefix_BNC),) = model.forward_intermediates(
            images_BCHW,
            indices=[last - 1],
            return_prefix_tokens=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        residual_BNC = torch.cat([prefix_BNC, tokens_BNC], dim=1)
        return Features(as_grid(block.norm1(residual_BNC)[:, prefix:], grid), residual_BNC)

    def head(grid_BChw: Tensor, rest: Tensor | None) -> tuple[Tensor, Tensor]:
        def put_in(_: nn.Module, __: Any, normed_BNC: Tensor) -> Tensor:
            return torch.cat([normed_BNC[:, :prefix], _tokens(grid_BChw).to(normed_BNC.dtype)], dim=1)

        handle = block.norm1.register_forward_hook(put_in)
        try:
            tokens_BNC = model.norm(block(rest))
        finally:
            handle.remove()
        embedding_BD = model.forward_head(tokens_BNC, pre_logits=True)
        return embedding_BD, model.get_classifier()(embedding_BD)

    return Cut(trunk, head, f"blocks.{last}.norm1", "NLC", prefix, below[:-1])


def as_grid(tokens_BLC: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return tokens as a grid_BChw."""
    grid_BChw: Tensor = tokens_BLC.transpose(1, 2).unflatten(2, grid)
    return grid_BChw


def _tokens(grid_BChw: Tensor) -> Tensor:
    """Return a grid as tokens_BLC."""
    return grid_BChw.flatten(2).transpose(1, 2)
