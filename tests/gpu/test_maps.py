"""Maps, logits and embeddings on a GPU are those of the CPU; caching twice gives the same bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stacker.backbones.backbone import Backbone, create
from stacker.backbones.devices import Machine
from stacker.bench.costs import deviation
from stacker.bench.loops import generate
from stacker.config.root import Config
from stacker.config.training import WeightsConfig
from stacker.errors import BackboneError
from stacker.files import file_sha256
from stacker.maps.extract import Arrays, extract
from stacker.maps.fill import fill
from stacker.training.begin import begin
from tests.gpu.conftest import GPU, ask_too_much

CPU = torch.device("cpu")
TINY = [pytest.param("cpu", name, 32) for name in ("test_resnet", "test_efficientnet")]
REAL = [
    pytest.param(*GPU.values, name, size, marks=GPU.marks)
    for name, size in (
        *(("densenet121", 224), ("resnet50", 224), ("vgg16", 224), ("efficientnet_b0", 224)),
        *(("vit_small_patch16_224", 224), ("swin_tiny_patch4_window7_224", 224)),
    )
]
WANTED = {"maps": ("gradcam", 0), "maps_layercam": ("layercam", 0), "maps_eigencam": ("eigencam", 0)}


def fresh(name: str, size: int) -> Backbone:
    """Return a frozen backbone of known weights."""
    torch.manual_seed(0)
    return create(name, 2, WeightsConfig(weights="random"), (size, size)).freeze()


def answers(
    name: str, size: int, device: torch.device, precision: torch.dtype, wanted: Any = WANTED
) -> Arrays:
    """Return what a backbone says of eight images on a device."""
    Machine(device, precision, deterministic=True).set_up()
    backbone, part = fresh(name, size), generate(8, size)
    backbone.model.to(device)
    batches = (pixels for pixels, _ in part.batches(part.rows, 4, device))
    return extract({name: backbone}, batches, {name: wanted}, precision)[name]


@pytest.mark.parametrize(("where", "name", "size"), [*TINY, *REAL])
def test_float32_is_float32(where: str, name: str, size: int) -> None:
    """Convolutions do not fall back to the ten bits of TF32: the CPU's numbers come back.

    The first principal component is left out, which may be any of two that are nearly equal.
    """
    wanted = {key: how for key, how in WANTED.items() if key != "maps_eigencam"}
    one = answers(name, size, CPU, torch.float32, wanted)
    other = answers(name, size, torch.device(where), torch.float32, wanted)
    gaps = deviation(name, other, one)
    scale = float(np.abs(one["logits"]).max())
    assert gaps["logits"]["maximum"] <= 1e-3 * scale
    for gap in (gaps["embeddings"], *gaps["maps"].values()):
        assert gap["maximum"] <= 2e-3


@pytest.mark.parametrize(("where", "name", "size"), [*TINY, *REAL])
def test_bfloat16_is_near(where: str, name: str, size: int) -> None:
    """The trunk may round, by a few hundredths of the largest value on average."""
    wanted = {"maps": ("gradcam", 0)}
    one = answers(name, size, CPU, torch.float32, wanted)
    other = answers(name, size, torch.device(where), torch.bfloat16, wanted)
    gaps = deviation(name, other, one)
    scale = float(np.abs(one["logits"]).max())
    assert 0 < gaps["logits"]["mean"] <= 0.05 * scale
    for gap in (gaps["embeddings"], *gaps["maps"].values()):
        assert 0 < gap["mean"] <= 0.03


@pytest.mark.parametrize(("where", "name", "size"), [*TINY, *REAL[:3]])
def test_the_same_images_give_the_same_bytes(where: str, name: str, size: int) -> None:
    """With `deterministic: true`, in either precision."""
    for precision in (torch.float32, torch.bfloat16):
        one, two = (answers(name, size, torch.device(where), precision) for _ in (1, 2))
        for key, values in one.items():
            assert values.tobytes() == two[key].tobytes(), f"{key} in {precision}"


def contents(config: Config) -> dict[str, str]:
    """Return the digests of a run's caches, by name."""
    files = sorted(config.run_path.glob("cache/*/*/*.h5"))
    return {str(path.relative_to(config.run_path)): file_sha256(path) for path in files}


def test_a_cache_that_is_filled_again_is_the_same(finished: Config, device: torch.device) -> None:
    """Parts that were lost come back byte for byte."""
    config = finished.model_copy(update={"device": str(device), "deterministic": True})
    for path in config.run_path.glob("cache/*/*/*.h5"):
        path.unlink()
    run = begin(config)
    fill(run)
    before = contents(config)
    next(config.run_path.glob("cache/test_resnet/*/part-00001.h5")).unlink()
    fill(run)
    assert contents(config) == before


def test_too_large_a_batch_is_an_error_that_says_so(device: torch.device) -> None:
    """Stage two names the batch, and the settings that make it smaller."""
    backbone, part = fresh("test_resnet", 32), generate(4, 32)
    backbone.model.to(device)
    greedy = replace(backbone, cut=replace(backbone.cut, trunk=lambda _: ask_too_much(device)))
    batches = (pixels for pixels, _ in part.batches(part.rows, 4, device))
    with pytest.raises(BackboneError, match=r"out of memory with 4 images at once; .*cam\.batch_size"):
        extract({"a": greedy}, batches, {"a": {"maps": ("gradcam", 0)}}, torch.float32)
