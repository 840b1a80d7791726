"""Maps by trying channels are pytorch-grad-cam's, and where that leaves its paper, the paper's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stacker.backbones.backbone import Backbone
from stacker.maps.cam import look
from tests.oracle import assert_is_the_packages, base_of, images_of, maps_of, relative

RECTIFIED = {"test_resnet": "layer4", "alexnet": "features.11"}  # grids behind a ReLU
SIGNED = ["test_vit", "test_vit2", "test_convnext", "swin_tiny_patch4_window7_224"]
BATCH = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # relative: logits that differ little are subtracted


@pytest.fixture(autouse=True)
def _no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence the package's progress bars."""
    monkeypatch.setattr("tqdm.tqdm", lambda found: found)


def logits_of_masked(base: Backbone, image: Tensor, channel: Tensor) -> Tensor:
    """Return the logits of an image behind one channel, as eq. 4 to 6 of the paper of ScoreCAM say."""
    mask = torch.nn.UpsamplingBilinear2d(size=base.size)(channel[None, None])[0, 0]
    mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-8)
    found: Tensor = base.model((image * mask)[None])[0]
    return found


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


@pytest.mark.parametrize("precision", BATCH)
@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
def test_an_image_does_not_depend_on_its_batch(method: str, precision: torch.dtype) -> None:
    """Alone or among others, an image's maps are its own, and trying changes no answer."""
    base = base_of("test_resnet")
    images = images_of(base, 3)
    wanted = {"maps": ("gradcam", 0), "tried": (method, 0)}
    together = look(base, images, wanted, precision)
    alone = look(base, images[[2]], wanted, precision)
    plain = look(base, images, {"maps": ("gradcam", 0)}, precision)
    assert relative(alone.maps["tried"], together.maps["tried"][[2]]) < BATCH[precision]
    assert torch.equal(together.logits_BK, plain.logits_BK)
    assert torch.equal(together.maps["maps"], plain.maps["maps"])
    assert not together.maps["tried"].requires_grad
