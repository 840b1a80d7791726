"""Formulas are those of pytorch-grad-cam on grids of all kinds, and survive degenerate ones.

Maps by trying channels are the package's, too, and where that leaves its paper, the paper's.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from torch import Tensor

from stacker.backbones.backbone import Backbone
from stacker.config.maps import PERTURBING, MethodName
from stacker.maps.cam import look
from stacker.maps.formulas import BY_ACTIVATION, BY_CURVATURE, BY_GRADIENT, PERTURB, first_component
from tests.oracle import (
    EITHER_SIGN,
    PACKAGE,
    assert_is_the_packages,
    base_of,
    images_of,
    maps_of,
    relative,
)

FORMULAS = {k: v for k, v in PACKAGE.items() if k not in {*BY_CURVATURE, *PERTURB}}
PARITY = 1e-4  # relative to the largest absolute value of a map: float32 sums of some hundred channels
RECTIFIED = {"test_resnet": "layer4", "alexnet": "features.11"}  # grids behind a ReLU
SIGNED = ["test_vit", "test_vit2", "test_convnext", "swin_tiny_patch4_window7_224"]
ALONE = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # relative: logits that differ little are subtracted
GRIDS = {"more channels than cells": (70, 5, 4), "fewer channels than cells": (6, 7, 8)}


def grids(kind: str, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Return activations and gradients of three images."""
    rng = torch.Generator().manual_seed(len(kind))
    activations = torch.randn(3, *GRIDS[kind], generator=rng)
    gradients = torch.randn(3, *GRIDS[kind], generator=rng) / 50
    return activations if signed else activations.relu(), gradients


def ours_of(method: str, activations: Tensor, gradients: Tensor) -> Tensor:
    """Return our maps by gradient or activation."""
    if method in BY_ACTIVATION:
        return BY_ACTIVATION[method](activations)
    return BY_GRADIENT[method](activations, gradients)


def theirs_of(method: str, activations: Tensor, gradients: Tensor) -> Tensor:
    """Return the package's maps before it rectifies and scales them."""
    oracle: Any = getattr(pytorch_grad_cam, FORMULAS[method])(torch.nn.Linear(1, 1), [])
    arrays = (activations.numpy(), gradients.numpy())
    return torch.from_numpy(np.float32(oracle.get_cam_image(None, None, None, *arrays, False)))


def gap(maps: Tensor, expected: Tensor) -> float:
    """Return the largest difference of a map, relative to that map's largest absolute value."""
    return float(((maps - expected).abs().amax(dim=(1, 2)) / expected.abs().amax(dim=(1, 2))).max())


def test_every_method_of_a_config_has_one_formula() -> None:
    """What a config may ask for is what can be computed, and what costs a pass per channel is known."""
    known = [*BY_GRADIENT, *BY_CURVATURE, *BY_ACTIVATION, *PERTURB]
    assert sorted(known) == sorted(get_args(MethodName))
    assert set(PERTURBING) == set(PERTURB)
    assert set(FORMULAS) == set(BY_GRADIENT) | set(BY_ACTIVATION)  # the oracle lists its own


@pytest.mark.parametrize("signed", [False, True], ids=["behind a ReLU", "signed"])
@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("method", FORMULAS)
def test_a_formula_is_the_packages(method: str, kind: str, signed: bool) -> None:
    """Unscaled maps are equal; a principal component may have the other sign."""
    activations, gradients = grids(kind, signed=signed)
    ours = ours_of(method, activations, gradients)
    theirs = theirs_of(method, activations, gradients)
    assert ours.dtype == torch.float32
    if method in EITHER_SIGN:
        along = (ours * theirs).sum(dim=(1, 2), keepdim=True).sign()
        theirs = theirs * along
    assert gap(ours, theirs) < PARITY


@pytest.mark.parametrize("kind", GRIDS)
def test_a_component_points_to_where_values_are_high(kind: str) -> None:
    """The package leaves the sign to chance; ours is that of the sum over channels."""
    activations, gradients = grids(kind, signed=False)
    eigen = BY_ACTIVATION["eigencam"](activations)
    assert ((eigen * activations.sum(dim=1)).sum(dim=(1, 2)) > 0).all()
    evidence = BY_GRADIENT["eigengradcam"](activations, gradients)
    assert ((evidence * (activations * gradients).sum(dim=1)).sum(dim=(1, 2)) > 0).all()
    torch.testing.assert_close(BY_GRADIENT["eigengradcam"](activations, -gradients), -evidence)


@pytest.mark.parametrize("method", ["eigencam", "segeigencam", "kpcacam"])
def test_the_larger_side_is_positive_where_nothing_else_decides(method: str) -> None:
    """Behind a layer norm channels sum to nothing but rounding, which must not choose a sign."""
    activations, gradients = grids("more channels than cells", signed=True)
    normed = activations - activations.mean(dim=1, keepdim=True)
    maps = ours_of(method, normed, gradients)
    assert (maps.amax(dim=(1, 2)) > -maps.amin(dim=(1, 2))).all()
    shaken = ours_of(method, normed + 1e-6, gradients)
    torch.testing.assert_close(shaken, maps, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", GRIDS)
def test_a_component_is_as_long_as_its_singular_value(kind: str) -> None:
    """Either small matrix gives what the singular value decomposition of the cells gives."""
    activations, _ = grids(kind, signed=True)
    cells = activations.flatten(2).transpose(1, 2).double()
    vectors, lengths, _ = torch.linalg.svd(cells - cells.mean(dim=1, keepdim=True), full_matrices=False)
    expected = (vectors[..., 0] * lengths[:, :1]).abs().float()
    torch.testing.assert_close(first_component(activations).flatten(1).abs(), expected)


@pytest.mark.parametrize("method", FORMULAS)
def test_a_grid_of_zeros_has_a_map_of_zeros(method: str) -> None:
    """Nothing is divided by nothing, and no decomposition fails."""
    zeros = torch.zeros(2, 6, 3, 4)
    for gradients in (zeros, torch.ones_like(zeros)):
        torch.testing.assert_close(ours_of(method, zeros, gradients), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("method", FORMULAS)
def test_a_constant_grid_has_no_parts_that_stand_out(method: str) -> None:
    """Cells that are equal get values that are equal, which are zero where the mean is taken off."""
    grid = torch.full((1, 6, 3, 3), 0.1)
    maps = ours_of(method, grid, torch.full_like(grid, 0.3))
    torch.testing.assert_close(maps, maps[:, :1, :1].expand_as(maps), rtol=1e-5, atol=1e-6)
    if method in {*EITHER_SIGN, "segeigencam", "kpcacam", "fem"}:
        torch.testing.assert_close(maps, torch.zeros_like(maps), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", FORMULAS)
def test_a_broken_image_does_not_break_its_batch(method: str) -> None:
    """NaN stays in its image's map, where the cache finds it, and out of the others."""
    activations, gradients = grids("more channels than cells", signed=True)
    whole = ours_of(method, activations, gradients)
    activations[1, 2, 3, 1] = torch.nan
    maps = ours_of(method, activations, gradients)
    assert maps[1].isnan().any()
    torch.testing.assert_close(maps[::2], whole[::2], rtol=1e-5, atol=1e-6)
    if method in {*EITHER_SIGN, "segeigencam", "kpcacam"}:
        assert maps[1].isnan().all()


def test_shapleycam_is_gradcam_of_half_the_curvature_less() -> None:
    """It is Grad-CAM where a logit is linear, and linear in the curvature elsewhere."""
    activations, gradients = grids("more channels than cells", signed=True)
    shapley, grad = BY_CURVATURE["shapleycam"], BY_GRADIENT["gradcam"]
    curvature = torch.randn(gradients.shape, generator=torch.Generator().manual_seed(5))
    assert torch.equal(
        shapley(activations, gradients, torch.zeros_like(gradients)), grad(activations, gradients)
    )
    torch.testing.assert_close(
        shapley(activations, gradients, curvature),
        grad(activations, gradients) - grad(activations, curvature) / 2,
    )


@pytest.fixture
def _no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence the package's progress bars."""
    monkeypatch.setattr("tqdm.tqdm", lambda items: items)


def logits_of_masked(base: Backbone, image: Tensor, channel: Tensor) -> Tensor:
    """Return the logits of an image behind one channel, as eq. 4 to 6 of the paper of ScoreCAM say."""
    mask = torch.nn.UpsamplingBilinear2d(size=base.size)(channel[None, None])[0, 0]
    mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-8)
    logits: Tensor = base.model((image * mask)[None])[0]
    return logits


@pytest.mark.usefixtures("_no_bars")
@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
@pytest.mark.parametrize("name", RECTIFIED)
def test_parity_behind_a_relu(name: str, method: str) -> None:
    """Masked images and ablated channels weigh the channels as they do in the package."""
    base = base_of(name)
    images = images_of(base)
    maps = maps_of(base, images, method)[method, 0]
    assert maps.shape[:2] == (2, 2)
    assert_is_the_packages(maps, base, RECTIFIED[name], method, images)


@pytest.mark.parametrize("name", SIGNED[:3])
def test_scorecam_is_the_papers_on_other_layouts(name: str) -> None:
    """Tokens and signed grids mask the image as any channel does."""
    base = base_of(name)
    images = images_of(base)
    maps = maps_of(base, images, "scorecam")["scorecam", 0]
    with torch.no_grad():
        grid = base.trunk(images)[0]
        logits = torch.stack([logits_of_masked(base, images[1], channel) for channel in grid[1]])
    expected = (logits.softmax(dim=0)[:, :, None, None] * grid[1][:, None]).sum(dim=0)
    assert relative(maps[1], expected) < 1e-3


@pytest.mark.parametrize("name", SIGNED)
def test_ablationcam_is_the_papers_where_the_package_is_not(name: str) -> None:
    """A channel is set to zero; the package takes ten million off a grid that has negative values."""
    base = base_of(name)
    images = images_of(base)
    maps = maps_of(base, images, "ablationcam")["ablationcam", 0]
    with torch.no_grad():
        grid, rest = base.trunk(images)
        assert grid.min() < 0
        whole = base.head(grid, rest)[1]
        expected = torch.zeros_like(maps)
        for channel in range(grid.shape[1]):
            kept = torch.arange(grid.shape[1]) != channel
            less = base.head(grid * kept[:, None, None], rest)[1]
            share = (whole - less) / whole
            expected += share[:, :, None, None] * grid[:, channel, None]
    assert relative(maps, expected) < 1e-2


@pytest.mark.parametrize("precision", ALONE)
@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
def test_a_tried_image_does_not_depend_on_its_batch(method: str, precision: torch.dtype) -> None:
    """Alone or among others, an image's maps are its own, and trying changes no answer."""
    base = base_of("test_resnet")
    images = images_of(base, 3)
    wanted = {"maps": ("gradcam", 0), "tried": (method, 0)}
    together = look(base, images, wanted, precision)
    alone = look(base, images[[2]], wanted, precision)
    plain = look(base, images, {"maps": ("gradcam", 0)}, precision)
    assert relative(alone.maps["tried"], together.maps["tried"][[2]]) < ALONE[precision]
    assert torch.equal(together.logits_BK, plain.logits_BK)
    assert torch.equal(together.maps["maps"], plain.maps["maps"])
    assert not together.maps["tried"].requires_grad
