"""A base model seen as two functions: a trunk that ends at the last spatial grid, and a head.

    features = trunk(images_BCHW)                         costs a forward pass
    embedding_BD, logits_BK = head(*features)             is cheap, and so are gradients through it

`features.grid_BChw` is what maps are made of, whatever the family's own layout is (`cut` says where each
family is cut); `features.rest` is what else the head needs, which is constant for a map. Trunk and head
are tried on one image, and refused with the reason where they are not the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stacker.backbones.cut import Cut, Head, Trunk, as_grid, cut_model
from stacker.backbones.devices import constant
from stacker.backbones.weights import Settings, build
from stacker.backbones.zoo import timm
from stacker.config.training import WeightsConfig
from stacker.errors import BackboneError, require_one_of

# what the families raise when an image or a cut does not suit them
UNFIT = (RuntimeError, AssertionError, AttributeError, TypeError, ValueError)


@dataclass(frozen=True)
class Backbone:
    """A timm model, cut into trunk and head, with the size and the scaling of its input."""

    name: str
    model: Any
    cut: Cut
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

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

    def layers_below(self, count: int) -> list[str]:
        """Return the names of so many stages below the grid, the lowest first."""
        if count > len(self.cut.below):
            raise BackboneError(
                f"backbones.{self.name}: has maps of {len(self.cut.below)} stages below its last grid, "
                f"cam.lower={count} asks for more; set it to {len(self.cut.below)} or less"
            )
        return list(self.cut.below[len(self.cut.below) - count :])

    def below(self, count: int) -> list[nn.Module]:
        """Return so many stages below the grid, the lowest first."""
        return [self.model.get_submodule(name) for name in self.layers_below(count)]

    def spatial(self, values: Tensor, grid_BChw: Tensor) -> Tensor:
        """Return values in the family's own layout as a grid; tokens lie as they do in `grid_BChw`."""
        if values.ndim == 3:
            _, _, height, width = grid_BChw.shape
            return as_grid(values[:, self.cut.prefix_tokens :], (height, width))
        return values.permute(0, 3, 1, 2) if self.cut.layout == "NHWC" else values

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
    settings: WeightsConfig,
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
    require_same(backbone)
    return backbone


def attach(
    name: str, model: Any, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Backbone:
    """Cut a model into trunk and head; raise BackboneError where it has no grid to cut at."""
    model.to(memory_format=torch.channels_last)
    try:
        return Backbone(name, model, cut_model(model, size), size, tuple(mean), tuple(std))
    except UNFIT as error:
        raise BackboneError(
            f"backbones.{name}: does not take images of {size[0]}x{size[1]}, or has no last spatial "
            f"grid ({error}); take a larger images.size or another backbone, e.g. resnet50"
        ) from None


def require_linear(name: str, model: Any) -> None:
    """Raise BackboneError for a classifier that is anything but one linear layer."""
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise BackboneError(
            f"backbones.{name}: its classifier is a {type(classifier).__name__}, one linear "
            "layer is expected; choose another backbone, e.g. resnet50"
        )


def require_same(backbone: Backbone) -> None:
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
    except UNFIT as error:
        raise BackboneError(
            f"backbones.{name}: cannot be cut into trunk and head at images.size="
            f"{backbone.size} ({error})"
        ) from None
    if not same:
        raise BackboneError(
            f"backbones.{name}: cannot be cut into trunk and head: its last features, of shape {shape}, "
            "and the layers behind them do not give the model's own logits; choose another backbone, "
            "e.g. resnet50"
        )
