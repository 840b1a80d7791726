"""Maps are what pytorch-grad-cam computes, from a gradient through the head alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from stacker.backbone import Backbone, Features, create
from stacker.cam import METHODS, class_maps
from stacker.recipe import BackboneConfig

SIZE = 96
ORACLES = {"gradcam": GradCAM, "hirescam": HiResCAM, "layercam": LayerCAM}


def target_layer(base: Backbone) -> Any:
    """Return the module whose output a user of pytorch-grad-cam would name."""
    model: Any = base.model
    return {"densenet121": lambda: model.features, "resnet50": lambda: model.layer4[-1]}.get(
        base.name, lambda: model.features[29]
    )()


@pytest.fixture(scope="module", params=["densenet121", "resnet50", "vgg16"])
def base(request: pytest.FixtureRequest) -> Backbone:
    """Return one of the three backbones, randomly initialised, with logits that differ by class."""
    torch.manual_seed(0)
    return create(request.param, 2, BackboneConfig(weights="random")).freeze()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Return three images of smooth random colour."""
    rng = torch.Generator().manual_seed(1)
    small = torch.rand(3, 3, 8, 8, generator=rng)
    large = torch.nn.functional.interpolate(small, size=SIZE, mode="bilinear")
    return (large * 255).byte().permute(0, 2, 3, 1).contiguous()


def test_every_method_has_an_oracle() -> None:
    """No formula goes without a parity test."""
    assert set(METHODS) == set(ORACLES)


@pytest.mark.parametrize("method", ORACLES)
@pytest.mark.parametrize("label", [0, 1])
def test_parity_with_pytorch_grad_cam(
    base: Backbone, pixels: torch.Tensor, method: str, label: int
) -> None:
    """After its ReLU, scaling and upsampling our map is theirs, which took a full backward pass."""
    images = base.normalise(pixels)
    with torch.no_grad():
        features = base.trunk(images)
    _, _, maps = class_maps(base.head, features, method)
    ours = scale_cam_image(scale_cam_image(np.maximum(maps[:, label].numpy(), 0), (SIZE, SIZE)))
    with ORACLES[method](model=base.model, target_layers=[target_layer(base)]) as oracle:
        theirs = oracle(
            input_tensor=images.requires_grad_(), targets=[ClassifierOutputTarget(label)] * len(images)
        )
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert theirs.max() > 0 or maps[:, label].max() <= 0


def test_head_gradient_is_the_full_gradient(base: Backbone, pixels: torch.Tensor) -> None:
    """Cutting the graph at the activations changes no gradient there."""
    images = base.normalise(pixels)
    with torch.no_grad():
        features = base.trunk(images)
    _, logits, maps = class_maps(base.head, features, "hirescam")
    full, rest = base.trunk(images.requires_grad_())
    full.retain_grad()
    base.head(full, rest)[1][:, 1].sum().backward()
    assert full.grad is not None
    torch.testing.assert_close(maps[:, 1], (full.grad * full.detach()).sum(1), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(logits, base.model(images), rtol=1e-4, atol=1e-5)


def test_sum_of_a_map_is_logit_minus_bias(base: Backbone, pixels: torch.Tensor) -> None:
    """For average-pool-then-linear heads the evidence adds up to the verdict; VGG's head is not one."""
    with torch.no_grad():
        features = base.trunk(base.normalise(pixels))
    _, logits, maps = class_maps(base.head, features, "gradcam")
    model: Any = base.model
    gap = (logits - model.get_classifier().bias - maps.sum(dim=(2, 3))).abs().max()
    if base.name == "vgg16":
        assert gap > 1e-3
    else:
        assert gap < 1e-4


def test_maps_are_signed_and_do_not_depend_on_the_batch(base: Backbone, pixels: torch.Tensor) -> None:
    """Evidence against a class is kept, and an image's map is its own."""
    with torch.no_grad():
        features = base.trunk(base.normalise(pixels))
    together = class_maps(base.head, features, "gradcam")[2]
    alone = class_maps(base.head, Features(features.grid_BChw[1:2], None), "gradcam")[2]
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-6)
    assert together.min() < 0 < together.max()
    assert together.shape[:2] == (3, 2)
