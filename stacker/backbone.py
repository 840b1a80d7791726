"""A base model seen as two functions: a trunk that ends at the last spatial grid, and a head.

    features = trunk(images_BCHW)                         costs a forward pass
    embedding_BD, logits_BK = head(*features)             is cheap, and so are gradients through it

`features.grid_BChw` is what maps are made of, whatever the family's own layout is; `features.rest` is
what else the head needs, which is constant for a map. Where a family is cut:

    convolutions           behind forward_features                    NCHW
    VGG, AlexNet           before the last max-pool (a finer grid)    NCHW
    Swin                   behind forward_features                    NHWC
    tokens, averaged       behind forward_features                    NLC, prefix tokens in `rest`
    tokens, one of them    behind the norm1 of the last block         NLC, the residual in `rest`

A transformer that is pooled by its class token does not look at the last block's patches any more: no
gradient would reach them behind it. All of this is asked of timm's contract (`forward_features`,
`forward_head(pre_logits=True)`, `forward_intermediates`), tried on one image, and refused with the
reason where trunk and head are not the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import timm
import torch
from timm.models.vgg import VGG
from torch import Tensor, nn

from stacker.alexnet import AlexNet
from stacker.devices import constant
from stacker.errors import BackboneError, require_one_of
from stacker.recipe import BackboneConfig, Channels
from stacker.weights import Settings, build


class Features(NamedTuple):
    """What a trunk gives: the last spatial grid, and what the head needs beside it."""

    grid_BChw: Tensor  # noqa: N815  # shapes are part of names
    rest: Tensor | None


Trunk = Callable[[Tensor], Features]
Head = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Cut:
    """Where a family is cut, and in which layout its own tensors are there."""

    trunk: Trunk
    head: Head
    target_layer: str
    layout: str
    prefix_tokens: int = 0


@dataclass(frozen=True)
class Backbone:
    """A timm model, cut into trunk and head, with the size and the scaling of its input."""

    name: str
    model: Any
    cut: Cut
    size: tuple[int, int]
    mean: Channels
    std: Channels

    @property
    def target_layer(self) -> str:
        """The layer whose activations are the grid."""
        return self.cut.target_layer

    @property
    def trunk(self) -> Trunk:
        """From images to the last grid."""
        return self.cut.trunk

    @property
    def head(self) -> Head:
        """From the last grid to embedding and logits."""
        return self.cut.head

    def normalise(self, pixels_BHWC: Tensor) -> Tensor:
        """Turn uint8 pixels into the model's input; the permuted view is channels_last already."""
        return self.scale(pixels_BHWC.float() / 255)

    def scale(self, colours_BHWC: Tensor) -> Tensor:
        """Turn colours between 0 and 1 into the model's input."""
        mean, std = (constant(values, colours_BHWC.device) for values in (self.mean, self.std))
        return ((colours_BHWC - mean) / std).permute(0, 3, 1, 2)

    def freeze(self) -> Backbone:
        """Put the model in eval mode with frozen parameters, as stage two wants it."""
        self.model.eval().requires_grad_(False)
        return self


def require_known(names: Sequence[str]) -> None:
    """Raise ConfigError for a backbone that timm does not have, with the nearest name."""
    require_one_of("timm model", [n for n in names if not timm.is_model(n)], timm.list_models())


def create(
    name: str,
    classes: int,
    settings: BackboneConfig,
    size: tuple[int, int] = (224, 224),
    drop: Settings | None = None,
) -> Backbone:
    """Build a backbone with a fresh head of `classes` outputs, starting from the wanted weights.

    `drop` are settings of timm's models: drop_rate and drop_path_rate.
    """
    require_known([name])
    model = build(name, classes, settings, size, drop or {})
    cfg = model.pretrained_cfg
    backbone = attach(name, model, size, settings.mean or cfg["mean"], settings.std or cfg["std"])
    _require_same(backbone)
    return backbone


def attach(
    name: str, model: Any, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Backbone:
    """Cut a model into trunk and head; raise BackboneError where it has no grid to cut at."""
    model.to(memory_format=torch.channels_last)
    scaling = (_channels(mean), _channels(std))
    try:
        return Backbone(name, model, _cut(model, size), size, *scaling)
    except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError) as error:
        raise BackboneError(
            f"backbones.{name}: does not take images of {size[0]}x{size[1]}, or has no last spatial "
            f"grid ({error}); take a larger images.size or another backbone, e.g. resnet50"
        ) from None


def _channels(values: Sequence[float]) -> Channels:
    red, green, blue = values
    return red, green, blue


def _cut(model: Any, size: tuple[int, int]) -> Cut:
    """Find the family's cut by the shape of its last features."""
    if isinstance(model, VGG | AlexNet):
        return _cut_before_last_pool(model)
    with torch.no_grad():
        found = model.eval().forward_features(torch.zeros(1, 3, *size)).shape
    if len(found) == 4:
        layout = getattr(model, "output_fmt", "NCHW")
        return _cut_behind_features(model, getattr(layout, "value", layout), 0, (0, 0))
    if len(found) != 3:
        raise ValueError(f"its last features are of shape {tuple(found)}")
    prefix = getattr(model, "num_prefix_tokens", 0) or 0
    grid = _grid(model, found[1] - prefix, size)
    if getattr(model, "global_pool", "avg") in ("token", "map"):
        return _cut_inside_last_block(model, prefix, grid)
    return _cut_behind_features(model, "NLC", prefix, grid)


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

    layer = f"features.{len(model.features) - 2}"
    return Cut(lambda images_BCHW: Features(convolutions(images_BCHW), None), head, layer, "NCHW")


def _cut_behind_features(model: Any, layout: str, prefix: int, grid: tuple[int, int]) -> Cut:
    def trunk(images_BCHW: Tensor) -> Features:
        last = model.forward_features(images_BCHW)
        if layout == "NLC":
            return Features(_spatial(last[:, prefix:], grid), last[:, :prefix])
        return Features(last.permute(0, 3, 1, 2) if layout == "NHWC" else last, None)

    def head(grid_BChw: Tensor, rest: Tensor | None) -> tuple[Tensor, Tensor]:
        last = grid_BChw.permute(0, 2, 3, 1) if layout == "NHWC" else grid_BChw
        if rest is not None:
            last = torch.cat([rest, _tokens(grid_BChw)], dim=1)
        embedding_BD = model.forward_head(last, pre_logits=True)
        return embedding_BD, model.get_classifier()(embedding_BD)

    return Cut(trunk, head, "forward_features", layout, prefix)


def _cut_inside_last_block(model: Any, prefix: int, grid: tuple[int, int]) -> Cut:
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
        return Features(_spatial(block.norm1(residual_BNC)[:, prefix:], grid), residual_BNC)

    def head(grid_BChw: Tensor, rest: Tensor | None) -> tuple[Tensor, Tensor]:
        def put_in(_: nn.Module, __: Any, found_BNC: Tensor) -> Tensor:
            return torch.cat([found_BNC[:, :prefix], _tokens(grid_BChw).to(found_BNC.dtype)], dim=1)

        handle = block.norm1.register_forward_hook(put_in)
        try:
            tokens_BNC = model.norm(block(rest))
        finally:
            handle.remove()
        embedding_BD = model.forward_head(tokens_BNC, pre_logits=True)
        return embedding_BD, model.get_classifier()(embedding_BD)

    return Cut(trunk, head, f"blocks.{last}.norm1", "NLC", prefix)


def _spatial(tokens_BLC: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return tokens as a grid_BChw."""
    grid_BChw: Tensor = tokens_BLC.transpose(1, 2).unflatten(2, grid)
    return grid_BChw


def _tokens(grid_BChw: Tensor) -> Tensor:
    """Return a grid as tokens_BLC."""
    return grid_BChw.flatten(2).transpose(1, 2)


def require_linear(name: str, model: Any) -> None:
    """Raise BackboneError for a classifier that is anything but one linear layer."""
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise BackboneError(
            f"backbones.{name}: its classifier is a {type(classifier).__name__}, one linear "
            "layer is expected; choose another backbone, e.g. resnet50"
        )


def _require_same(backbone: Backbone) -> None:
    """Try trunk and head on one image; raise BackboneError unless they are the model, over a grid."""
    name, model = backbone.name, backbone.model.eval()
    require_linear(name, model)
    image = torch.linspace(-1, 1, 3 * math.prod(backbone.size)).reshape(1, 3, *backbone.size)
    try:
        with torch.no_grad():
            features = backbone.trunk(image)
            shape = tuple(features.grid_BChw.shape)
            _, logits = backbone.head(*features)
            whole = model(image)
            same = logits.shape == whole.shape and torch.allclose(logits, whole, atol=1e-3)
    except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError) as error:
        raise BackboneError(
            f"backbones.{name}: cannot be cut into trunk and head at images.size="
            f"{backbone.size} ({error})"
        ) from None
    if not same:
        raise BackboneError(
            f"backbones.{name}: its last features, of shape {shape}, with a linear classifier behind "
            "them are not the whole model; choose another backbone, e.g. resnet50"
        )
