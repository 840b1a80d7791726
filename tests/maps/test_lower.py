"""Maps of stages below the last grid: the same oracle, and nothing else changes by taking them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stacker.backbones.backbone import Backbone, create
from stacker.config.training import WeightsConfig
from stacker.errors import BackboneError
from stacker.maps.cam import look
from stacker.maps.formulas import BY_ACTIVATION, BY_CURVATURE, BY_GRADIENT
from tests.oracle import assert_is_the_packages, base_of, images_of, maps_of, relative

BELOW = {  # the lowest and the nearest stage, and how many there are
    "densenet121": ("features.norm0", "features.denseblock3", 4),
    "vgg16": ("features.3", "features.22", 4),
    "resnet50": ("act1", "layer3", 4),
    "convnextv2_atto": ("stages.0", "stages.2", 3),
    "tf_efficientnet_lite0": ("blocks.0", "blocks.4", 4),
    "swin_tiny_patch4_window7_224": ("layers.0", "layers.2", 3),
    "alexnet": ("features.1", "features.4", 2),
    "test_vit": ("blocks.0", "blocks.3", 4),
    "test_vit2": ("blocks.0", "blocks.6", 7),
    "vit_small_patch16_dinov3": ("blocks.0", "blocks.10", 11),
}
QUICK = ("gradcam", "layercam", "eigencam")
BF16 = 0.1  # lower maps, whose gradients are bfloat16, relative to the largest absolute value


def hooks_of(base: Backbone) -> int:
    """Count the hooks on a model's modules."""
    return sum(len(module._forward_hooks) for module in base.model.modules())  # noqa: SLF001


@pytest.mark.parametrize("name", BELOW)
def test_stages_are_known_from_the_lowest_up(name: str) -> None:
    """Their names are those of the model's modules, and asking for too many is an error of usage."""
    base = base_of(name)
    lowest, nearest, count = BELOW[name]
    layers = base.layers_below(count)
    assert (layers[0], layers[-1], len(layers)) == (lowest, nearest, count)
    assert base.layers_below(0) == []
    assert base.layers_below(1) == [nearest]
    with pytest.raises(BackboneError, match=rf"{name}: has maps of {count} .*cam.lower={count + 1}"):
        base.layers_below(count + 1)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "hrnet_w18_small", "mvitv2_tiny"])
def test_stages_that_are_no_grids_are_not_offered(name: str) -> None:
    """Tokens of another number, lists and names without a module are nothing to map."""
    with pytest.raises(BackboneError, match="maps of 0 stages below its last grid"):
        base_of(name, (224, 224)).below(1)


@pytest.mark.parametrize("name", BELOW)
def test_lower_maps_are_the_packages(name: str) -> None:
    """The lowest and the nearest stage's maps are those of the package with that target layer."""
    base = base_of(name)
    images = images_of(base)
    lowest, nearest, count = BELOW[name]
    maps = maps_of(base, images, *QUICK, lower=count)
    for layer, level in ((lowest, count), (nearest, 1)):
        for method in QUICK[: 2 if layer == lowest else 3]:
            assert_is_the_packages(maps[method, level], base, layer, method, images)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_all_methods_of_a_lower_stage(name: str) -> None:
    """A stage below is behind the same formulas."""
    base = base_of(name)
    images = images_of(base)
    methods = (*BY_GRADIENT, *BY_CURVATURE, *BY_ACTIVATION)
    maps = maps_of(base, images, *methods, lower=1)
    (layer,) = base.layers_below(1)
    for method in methods:
        assert_is_the_packages(maps[method, 1], base, layer, method, images)


def test_shapleycam_where_torch_has_no_second_derivative() -> None:
    """The error names the operation and what to leave out."""
    base = base_of("mobilenetv3_small_050")
    assert maps_of(base, images_of(base), "shapleycam")["shapleycam", 0].isfinite().all()
    with pytest.raises(BackboneError, match=r"mobilenetv3.*hardsigmoid.*leave it out of cam.methods"):
        maps_of(base, images_of(base), "shapleycam", lower=1)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["densenet121", "vgg16", "test_resnet", "test_vit", "alexnet"])
def test_the_last_grid_does_not_notice(name: str, precision: torch.dtype) -> None:
    """With layers that work in place, too, recording lower stages changes no answer and no last map."""
    base = base_of(name)
    images = images_of(base)
    count = BELOW[name][2] if name in BELOW else 4
    plain = look(base, images, {"maps": ("gradcam", 0), "eigen": ("eigencam", 0)}, precision)
    wanted = {"maps": ("gradcam", 0), "eigen": ("eigencam", 0), "low": ("gradcam", count)}
    deep = look(base, images, wanted, precision)
    assert relative(deep.embedding_BD, plain.embedding_BD) < 1e-5
    assert relative(deep.logits_BK, plain.logits_BK) < 1e-5
    for method, maps in plain.maps.items():
        assert relative(deep.maps[method], maps) < 1e-5
    with torch.no_grad():
        assert torch.equal(look(base, images, wanted, precision).logits_BK, deep.logits_BK)


@pytest.mark.parametrize("level", [1, 2])
def test_a_layer_that_works_in_place_does_not_reach_the_stage_below_it(level: int) -> None:
    """What such a layer overwrites is a copy, so it gives what an ordinary one gives."""
    both = []
    for inplace in (False, True):
        torch.manual_seed(0)
        base = create("test_resnet", 2, WeightsConfig(weights="random"), (64, 96)).freeze()
        name = base.layers_below(level)[1] if level > 1 else "layer4"
        threshold = torch.nn.Threshold(0.01, -0.5, inplace=inplace)
        setattr(base.model, name, torch.nn.Sequential(threshold, base.model.get_submodule(name)))
        both.append(maps_of(base, images_of(base), "gradcam", "eigencam", lower=level))
    for key, maps in both[0].items():
        assert relative(both[1][key], maps) < 1e-6


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_lower_maps_in_bfloat16(name: str) -> None:
    """They are float32 outside, finite, and near those in float32."""
    base = base_of(name)
    images = images_of(base)
    exact = maps_of(base, images, "gradcam", lower=2)
    rough = maps_of(base, images, "gradcam", lower=2, precision=torch.bfloat16)
    for key, maps in rough.items():
        assert maps.dtype == torch.float32
        assert relative(maps, exact[key]) < BF16


@pytest.mark.parametrize("wanted", [("eigencam", 2), ("gradcam", 2)])
def test_a_graph_is_recorded_only_for_gradients(
    wanted: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations of lower stages alone cost a forward pass without a graph."""
    base = base_of("test_resnet")
    recorded = []
    trunk = base.trunk

    def watch(images: torch.Tensor) -> Any:
        features = trunk(images)
        recorded.append(features.grid_BChw.requires_grad)
        return features

    monkeypatch.setattr(type(base), "trunk", property(lambda _: watch))
    maps = look(base, images_of(base), {"low": wanted, "maps": ("hirescam", 0)}, torch.float32).maps
    assert recorded == [wanted[0] == "gradcam"]
    assert set(maps) == {"low", "maps"}


def test_hooks_are_removed_whatever_happens() -> None:
    """After answers, after an error within the trunk, and after asking for too much."""
    base = base_of("test_resnet")
    images = images_of(base)
    before = hooks_of(base)
    maps_of(base, images, "gradcam", lower=4)
    assert hooks_of(base) == before
    with pytest.raises(RuntimeError, match="channels"):
        maps_of(base, images[:, :2], "gradcam", lower=2)
    assert hooks_of(base) == before
    with pytest.raises(BackboneError, match="set it to 4 or less"):
        maps_of(base, images, "gradcam", lower=5)
    assert hooks_of(base) == before
