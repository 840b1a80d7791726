"""Maps without a run: what the cache holds, what the grad-cam package says, and a model left alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image as Picture
from torch import Tensor, nn

from stacker.backbones.checkpoint import load_checkpoint
from stacker.caches.reader import open_cache
from stacker.errors import BackboneError, ConfigError, DataError
from stacker.maps.in_memory import Cams, cam
from stacker.run import open_run
from tests.oracle import BIAS, assert_is_the_packages, base_of, images_of, maps_of, relative
from tests.pictures import tissue

LAYERS = {"test_resnet": "layer4", "mobilenetv3_small_050": "blocks", "test_vit": "blocks.5.norm1"}


@pytest.fixture
def model() -> Any:
    """Return a small model of timm's with three classes, in training mode."""
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=3)


def assert_equal(found: Cams, expected: Cams) -> None:
    """Compare all that is said of some images, in any batches."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_maps_are_those_of_the_cache(finished_artifacts: Path) -> None:
    """A base model, asked in memory, says what stage two wrote of the same images."""
    run = open_run(finished_artifacts / "small")
    cache = open_cache(run.cache_folder("test_resnet", "holdout"))
    backbone, _ = load_checkpoint(run.model_file("test_resnet", "holdout"))
    places = {image.id: n for n, image in enumerate(run.manifest.images)}
    rows = [places[image.decode()] for image in cache.rows.image_id]
    precision = {"float32": "fp32", "bfloat16": "bf16"}[cache.provenance.precision]
    scaling = {"mean": backbone.mean, "std": backbone.std, "size": backbone.size}
    found = cam(backbone.model, run.pixels()[np.array(rows)], precision=precision, **scaling)  # type: ignore[arg-type]
    for values, name in zip(found, ("maps", "logits", "features"), strict=True):
        assert values.dtype == np.float32
        stored = cache.read(name).astype(np.float32)
        assert relative(torch.from_numpy(values), torch.from_numpy(stored)) < 2e-3


@pytest.mark.parametrize("method", ["gradcam", "layercam", "eigencam"])
@pytest.mark.parametrize("name", LAYERS)
def test_maps_are_the_packages(name: str, method: str) -> None:
    """Convolutions and tokens, by gradients and without: what pytorch-grad-cam computes."""
    base = base_of(name)
    images = images_of(base)
    found = cam(base.model, images, method)
    assert found.maps.shape[1] == (1 if method == "eigencam" else 2)
    assert_is_the_packages(torch.from_numpy(found.maps), base, LAYERS[name], method, images)
    with torch.no_grad():
        assert relative(torch.from_numpy(found.logits), base.model(images)) < 1e-4


def test_a_map_sums_to_the_logit_less_its_bias() -> None:
    """Behind an average and one linear layer, logits are the embedding times the weights, too."""
    base = base_of("tf_efficientnet_lite0")
    found = cam(base.model, images_of(base))
    np.testing.assert_allclose(found.maps.sum(axis=(2, 3)), found.logits - np.array(BIAS), atol=1e-4)
    weight = base.model.get_classifier().weight.numpy()
    np.testing.assert_allclose(found.embeddings @ weight.T + BIAS, found.logits, atol=1e-4)


def test_lower_stages() -> None:
    """Maps of a stage below the last grid are those that stage two would cache, on its finer grid."""
    base = base_of("test_resnet")
    images = images_of(base)
    found = cam(base.model, images, lower=1)
    expected = maps_of(base, images, "gradcam", lower=1)["gradcam", 1]
    assert relative(torch.from_numpy(found.maps), expected) < 1e-5
    with pytest.raises(BackboneError, match="asks for more"):
        cam(base.model, images, lower=9)
    with pytest.raises(ConfigError, match="lower=-1, batch_size=32, expected lower >= 0"):
        cam(base.model, images, lower=-1)
    with pytest.raises(ConfigError, match="batch_size=0, expected lower >= 0 and batch_size >= 1"):
        cam(base.model, images, batch_size=0)
    with pytest.raises(ConfigError, match="the last grid only"):
        cam(base.model, images, "scorecam", lower=1)


def state_of(model: nn.Module) -> list[Any]:
    """Return all that a look at a model might change."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    hooks = [
        len(found)
        for module in model.modules()
        for name, found in vars(module).items()
        if name.endswith("_hooks")
    ]
    return [
        [module.training for module in model.modules()],
        [(n, t.requires_grad, t.device, t.dtype, t.stride(), t.data_ptr()) for n, t in tensors],
        [t.detach().clone().tolist() for _, t in tensors],
        [t.grad for _, t in tensors],
        hooks,
    ]


@pytest.mark.parametrize("method", ["gradcam", "shapleycam", "ablationcam"])
def test_the_model_is_left_as_it_was(model: Any, method: str) -> None:
    """Mode, flags, layout, values and hooks, also where an error ends the call."""
    model.train()
    model.layer4.eval()
    model.conv1.requires_grad_(requires_grad=False)
    model.layer1.register_forward_hook(lambda *_: None)
    before = state_of(model)
    cam(model, torch.rand(2, 3, 64, 64), method, lower=int(method == "gradcam"))
    with pytest.raises(DataError, match="follows images of"):
        cam(model, iter([torch.rand(2, 3, 64, 64), torch.rand(2, 3, 32, 32)]), method)
    assert state_of(model) == before


def test_a_model_in_training_mode_answers_as_in_evaluation(model: Any) -> None:
    """Dropout and batch statistics have no say, and neither has the caller's gradient mode."""
    images = torch.rand(3, 3, 64, 64)
    expected = cam(model.eval(), images)
    assert_equal(cam(model.train(), images), expected)
    with torch.inference_mode():
        assert_equal(cam(model, images.clone()), expected)
    with torch.no_grad():
        assert_equal(cam(model.half(), images), cam(model.float(), images))


def test_however_images_are_given(model: Any, tmp_path: Path) -> None:
    """Paths, PIL images, arrays and tensors that are scaled already are the same images."""
    pictures = [tissue(seed, 80) for seed in range(5)]
    paths = [tmp_path / f"{n}.png" for n in range(5)]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    arrays = [np.asarray(picture) for picture in pictures]
    expected = cam(model, paths)
    assert expected.maps.shape == (5, 3, 5, 5)  # at the model's own size, 160
    size = model.pretrained_cfg["input_size"][1:]
    resized = [np.asarray(p.resize(size, Picture.Resampling.BICUBIC)) for p in pictures]
    mean, std = (np.array(model.pretrained_cfg[name]) for name in ("mean", "std"))
    scaled = ((np.stack(resized) / 255 - mean) / std).astype(np.float32)
    for images in (
        arrays,
        pictures,
        iter(map(str, paths)),
        torch.from_numpy(scaled).permute(0, 3, 1, 2),
    ):
        assert_equal(cam(model, images, batch_size=2), expected)
    assert_equal(cam(model, np.stack(arrays)), expected)
    assert cam(model, paths[0]).logits.shape == cam(model, arrays[0]).logits.shape == (1, 3)
    assert cam(model, paths[0], size=(64, 96)).maps.shape == (1, 3, 2, 3)
    assert cam(model, paths[0], size=64, mean=np.full(3, 0.5)).maps.shape == (1, 3, 2, 2)


def test_a_loader_is_read_batch_by_batch(model: Any) -> None:
    """With labels or without; a batch is read when the one before it has been answered for."""
    images = torch.rand(6, 3, 64, 64)
    expected = cam(model, images)
    events: list[str] = []

    def loader() -> Iterator[list[Tensor]]:
        for batch in images.split(2):
            events.append("read")
            yield [batch, torch.zeros(2)]

    def hear(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) == 2:  # the model is tried on single images before
            events.append("answered")

    model.layer4.register_forward_pre_hook(hear)
    assert_equal(cam(model, loader()), expected)
    assert events == ["read", "answered"] * 3
    assert_equal(cam(model, list(images.split(4))), expected)


@pytest.mark.parametrize(
    ("images", "settings", "problem"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), {}, "expected a normalised float tensor"),
        (torch.zeros(3, 64, 64), {}, "expected a normalised float tensor"),
        (np.zeros((64, 64, 3)), {}, "expected uint8 of shape"),
        (np.zeros((4, 64, 3), np.uint8), {}, "too small"),
        ([], {}, "no image"),
        ("missing.png", {}, "missing.png"),
        (torch.zeros(1, 3, 64, 64), {"method": "gradcamm"}, "did you mean 'gradcam'"),
        (torch.zeros(1, 3, 64, 64), {"precision": "half"}, "no precision 'half'"),
    ],
)
def test_what_is_no_image_is_said(model: Any, images: Any, settings: Any, problem: str) -> None:
    """Each with what was found and what is expected."""
    with pytest.raises((DataError, ConfigError), match=problem):
        cam(model, images, **settings)


def test_a_model_of_another_kind_is_refused(model: Any) -> None:
    """One without timm's contract, without a linear classifier, or without a word on its scaling."""
    images = torch.zeros(1, 3, 64, 64)
    with pytest.raises(BackboneError, match="Sequential has no forward_features"):
        cam(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)), images)
    with pytest.raises(BackboneError, match="has no forward_features"):
        cam("resnet50", images)  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match="one linear layer is expected"):
        cam(timm.create_model("test_resnet", num_classes=0), images)
    model.pretrained_cfg = {}
    assert cam(model, images).maps.shape == (1, 3, 2, 2)
    with pytest.raises(BackboneError, match="pass mean and std"):
        cam(model, np.zeros((64, 64, 3), np.uint8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_is_asked_there(model: Any) -> None:
    """The images follow the model, and what it says comes back as arrays."""
    images = torch.rand(2, 3, 64, 64)
    expected = cam(model, images)
    model.cuda()
    before = state_of(model)
    for values, others in zip(cam(model, images), expected, strict=True):
        assert relative(torch.from_numpy(values), torch.from_numpy(others)) < 1e-3
    assert state_of(model) == before
