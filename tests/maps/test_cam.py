"""Maps are what pytorch-grad-cam computes with a full backward pass: any method, any layout."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stacker.config.maps import name_maps
from stacker.maps.cam import look
from stacker.maps.extract import classifier_bias
from stacker.maps.formulas import BY_ACTIVATION, BY_CURVATURE, BY_GRADIENT, PERTURB
from tests.oracle import (
    BIAS,
    PACKAGE,
    RAW,
    THREE,
    assert_is_the_packages,
    base_of,
    images_of,
    maps_of,
    relative,
)

# Relative to the largest absolute value of a map, an embedding or the logits.
BATCH = {torch.float32: 1e-4, torch.bfloat16: 0.02}  # an image alone, or among others
CUDA = 1e-3  # another device, in float32
MEMORY = 4  # MiB more after 500 batches than after 100

ONE_PASS = [*BY_GRADIENT, *BY_CURVATURE, *BY_ACTIVATION]
MAIN = ("gradcam", "gradcam++", "hirescam", "layercam", "eigengradcam")
STEADY = ("gradcam", "hirescam", "layercam", "eigengradcam", "eigencam", "shapleycam")
LAYOUTS = {  # where a user of the package would hook each
    "densenet121": "features",
    "resnet50": "layer4",
    "vgg16": "features.29",
    "convnextv2_atto": "stages.3",
    "tf_efficientnet_lite0": "bn2",
    "mobilenetv3_small_050": "blocks",
    "swin_tiny_patch4_window7_224": "norm",
    "alexnet": "features.11",
    "test_vit": "blocks.5.norm1",  # pooled by its class token
    "test_vit2": "norm",  # averaged
    "test_vit3": "blocks.8.norm1",  # pooled by attention
    "vit_small_patch16_dinov3": "norm",  # with prefix tokens
    "beit_base_patch16_224": "norm",
}
AVERAGE_THEN_LINEAR = {
    "densenet121",
    "resnet50",
    "tf_efficientnet_lite0",
    "swin_tiny_patch4_window7_224",
    "vit_small_patch16_dinov3",
}
SMALL = {  # one of each layout, with the methods that are quick there
    "test_resnet": ONE_PASS,
    "mobilenetv3_small_050": ONE_PASS,
    "test_vit": [method for method in ONE_PASS if method != "gradcam++"],  # poles, as tokens are signed
}


def test_every_method_has_an_oracle() -> None:
    """No formula goes without a parity test."""
    assert set(PACKAGE) == {*ONE_PASS, *PERTURB}


@pytest.mark.parametrize("method", ONE_PASS)
@pytest.mark.parametrize("name", THREE)
def test_all_methods_on_the_three_backbones(name: str, method: str) -> None:
    """A gradient through the head alone gives the map that a full backward pass gives.

    The package's ShapleyCAM fails on a head that is linear: without curvature it is Grad-CAM.
    """
    base = base_of(name)
    images = images_of(base)
    maps = maps_of(base, images, method)[method, 0]
    linear = method == "shapleycam" and name in AVERAGE_THEN_LINEAR
    assert_is_the_packages(maps, base, LAYOUTS[name], "gradcam" if linear else method, images)


@pytest.mark.parametrize("method", MAIN)
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in THREE])
def test_the_main_methods_on_every_layout(name: str, method: str) -> None:
    """The layout of a family's own tensors does not matter."""
    base = base_of(name)
    images = images_of(base)
    maps = maps_of(base, images, method)[method, 0]
    assert_is_the_packages(maps, base, LAYOUTS[name], method, images)


@pytest.mark.parametrize("name", ["convnextv2_atto", "mobilenetv3_small_050"])
def test_shapleycam_where_heads_are_curved(name: str) -> None:
    """A head with a norm or a smooth activation has a second-order term, and it is the package's."""
    base = base_of(name)
    images = images_of(base)
    maps = maps_of(base, images, "shapleycam", "gradcam")
    assert_is_the_packages(maps["shapleycam", 0], base, LAYOUTS[name], "shapleycam", images)
    assert relative(maps["shapleycam", 0], maps["gradcam", 0]) > 10 * RAW


def test_shapleycam_through_attention() -> None:
    """Fused attention has no second derivative: another is taken, and finite differences agree."""
    base = base_of("test_vit")
    images = images_of(base)
    maps = maps_of(base, images, "shapleycam", "gradcam")
    with torch.no_grad():
        grid, rest = base.trunk(images)

    def gradient_at(scale: float) -> Tensor:
        leaf = (grid.double() * scale).float().requires_grad_()
        return torch.autograd.grad(base.head(leaf, rest)[1][:, 1].sum(), leaf)[0]

    curvature = (gradient_at(1.01) - gradient_at(0.99)) / 0.02
    weights = (gradient_at(1.0) - curvature / 2).mean(dim=(2, 3), keepdim=True)
    assert relative(maps["shapleycam", 0][:, 1], (weights * grid).sum(dim=1)) < 0.01
    assert relative(maps["shapleycam", 0], maps["gradcam", 0]) > 0.05


@pytest.mark.parametrize("name", LAYOUTS)
def test_head_gradient_is_the_full_gradient(name: str) -> None:
    """Cutting the graph at the activations changes no gradient there, and no answer."""
    base = base_of(name)
    images = images_of(base)
    embedding, logits, maps = look(base, images, {"maps": ("hirescam", 0)}, torch.float32)
    full, rest = base.trunk(images.clone().requires_grad_())
    logits_of_full = base.head(full, rest)[1]
    for label in (0, 1):
        (gradient,) = torch.autograd.grad(logits_of_full[:, label].sum(), full, retain_graph=True)
        assert relative(maps["maps"][:, label], (gradient * full.detach()).sum(dim=1)) < 1e-4
    with torch.no_grad():
        assert relative(logits, base.model(images)) < 1e-4
        assert (
            relative(
                embedding, base.model.forward_head(base.model.forward_features(images), pre_logits=True)
            )
            < 1e-4
        )


@pytest.mark.parametrize("name", LAYOUTS)
def test_sum_of_a_map_is_logit_minus_bias(name: str) -> None:
    """Behind an average and one linear layer evidence adds up to the verdict; we know who has these."""
    base = base_of(name)
    linear = name in AVERAGE_THEN_LINEAR
    assert classifier_bias(base) == (pytest.approx(BIAS) if linear else ())
    _, logits, maps = look(base, images_of(base), {"maps": ("gradcam", 0)}, torch.float32)
    gap = relative(maps["maps"].sum(dim=(2, 3)), logits - torch.tensor(BIAS))
    assert gap < 1e-4 if linear else gap > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_methods_together_give_what_each_gives_alone(name: str) -> None:
    """Methods share a pass and its gradients; what does not depend on the class is there once."""
    base = base_of(name)
    images = images_of(base, 3)
    together = maps_of(base, images, *SMALL[name])
    for method in SMALL[name]:
        alone = maps_of(base, images, method)[method, 0]
        assert alone.shape[:2] == (3, 1 if method in BY_ACTIVATION else 2)
        assert alone.dtype == torch.float32
        assert not alone.requires_grad
        assert relative(together[method, 0], alone) < 1e-4


def test_maps_are_signed() -> None:
    """Evidence against a class is kept."""
    base = base_of("test_resnet")
    maps = maps_of(base, images_of(base), "gradcam")["gradcam", 0]
    assert (maps.amin(dim=(1, 2, 3)) < 0).all()
    assert (maps.amax(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("precision", BATCH)
@pytest.mark.parametrize("name", SMALL)
def test_an_image_does_not_depend_on_its_batch(name: str, precision: torch.dtype) -> None:
    """Alone, among others or in another order, an image's answers are its own."""
    base = base_of(name)
    images = images_of(base, 5)
    wanted = {method: (method, 0) for method in SMALL[name]}
    embedding, logits, maps = look(base, images, wanted, precision)
    for rows in ([2], [4, 2], [3, 1, 2, 0]):
        again = look(base, images[rows], wanted, precision)
        assert relative(again.embedding_BD, embedding[rows]) < BATCH[precision]
        assert relative(again.logits_BK, logits[rows]) < BATCH[precision]
        for method, values in again.maps.items():
            assert relative(values, maps[method][rows]) < BATCH[precision], method


@pytest.mark.parametrize(("methods", "lower"), [(("gradcam",), 0), (("gradcam++", "shapleycam"), 1)])
def test_memory_is_flat(methods: tuple[str, ...], lower: int) -> None:
    """No graph, hook or activation of a batch outlives it."""
    base = base_of("test_resnet", (32, 32))
    images = images_of(base, 4)
    wanted = name_maps(methods, lower)
    resident = []
    for number in range(1, 501):
        look(base, images, wanted, torch.float32)
        if number in {100, 500}:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            resident.append(pages * resource.getpagesize() / 2**20)
    assert resident[1] - resident[0] < MEMORY


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", SMALL)
def test_cuda_agrees_with_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 another device gives the same answers."""
    base = base_of(name)
    images = images_of(base, 3)
    wanted = name_maps(STEADY, 0 if name == "mobilenetv3_small_050" else 1)  # no second derivative there
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    expected = look(base, images, wanted, torch.float32)
    base.model.to("cuda")
    try:
        on_cuda = look(base, images.to("cuda"), wanted, torch.float32)
    finally:
        base.model.to("cpu")
    assert relative(on_cuda.embedding_BD.cpu(), expected.embedding_BD) < CUDA
    assert relative(on_cuda.logits_BK.cpu(), expected.logits_BK) < CUDA
    for method, maps in on_cuda.maps.items():
        assert relative(maps.cpu(), expected.maps[method]) < CUDA, method
