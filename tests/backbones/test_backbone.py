"""Every family answers the same questions, or is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from stacker.backbones import backbone as backbones
from stacker.backbones.backbone import create
from stacker.backbones.checkpoint import load_checkpoint, save_checkpoint
from stacker.backbones.sources import trained_on
from stacker.backbones.zoo import timm
from stacker.config.training import BackboneConfig, WeightsConfig
from stacker.errors import BackboneError, ConfigError
from stacker.maps.cam import look
from stacker.training.optimizer import stages

RANDOM = BackboneConfig(weights="random")
SIZE = (64, 96)  # not square: rows and columns of the grid cannot be mistaken for each other


class Answer(NamedTuple):
    """What a family says: its grid's channels, rows and columns, its embedding, layout and layer."""

    grid: tuple[int, int, int]
    embedding: int
    stages: int
    layout: str = "NCHW"
    layer: str = "forward_features"
    prefix: int = 0


ANSWERS = {
    "densenet121": Answer((1024, 2, 3), 1024, 5),
    "resnet34": Answer((512, 2, 3), 512, 5),
    "resnet50": Answer((2048, 2, 3), 2048, 5),
    "vgg11": Answer((512, 4, 6), 4096, 5, layer="features.19"),
    "vgg11_bn": Answer((512, 4, 6), 4096, 5, layer="features.27"),
    "vgg16": Answer((512, 4, 6), 4096, 5, layer="features.29"),
    "vgg16_bn": Answer((512, 4, 6), 4096, 5, layer="features.42"),
    "convnextv2_atto": Answer((320, 2, 3), 320, 5),
    "convnextv2_nano": Answer((640, 2, 3), 640, 5),
    "convnextv2_tiny": Answer((768, 2, 3), 768, 5),
    "convnextv2_base": Answer((1024, 2, 3), 1024, 5),
    "efficientnet_b0": Answer((1280, 2, 3), 1280, 8),
    "tf_efficientnet_lite0": Answer((1280, 2, 3), 1280, 8),
    "tf_efficientnetv2_s": Answer((1280, 2, 3), 1280, 7),
    "mobilenetv3_large_100": Answer((960, 2, 3), 1280, 8),
    "mobilenetv3_small_050": Answer((288, 2, 3), 1024, 7),
    "vit_base_patch16_224": Answer((768, 4, 6), 768, 13, "NLC", "blocks.11.norm1", 1),
    "vit_base_patch16_gap_224": Answer((768, 4, 6), 768, 13, "NLC"),
    "vit_small_patch16_dinov3": Answer((384, 4, 6), 384, 13, "NLC", prefix=5),
    "beit_base_patch16_224": Answer((768, 4, 6), 768, 13, "NLC", prefix=1),
    "swin_tiny_patch4_window7_224": Answer((768, 2, 3), 768, 5, "NHWC"),
    "alexnet": Answer((256, 3, 5), 4096, 3, layer="features.11"),
    "test_resnet": Answer((96, 2, 3), 96, 5),
    "test_efficientnet": Answer((256, 2, 3), 256, 6),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_family_answers_the_same_questions(name: str) -> None:
    """Grid, embedding, layer, layout and stages are known; trunk and head are the model; so are maps."""
    base = create(name, 3, RANDOM, SIZE).freeze()
    answer = ANSWERS[name]
    images = base.normalise(torch.randint(256, (2, *SIZE, 3), dtype=torch.uint8))
    with torch.no_grad():
        features = base.trunk(images)
        embedding, logits = base.head(*features)
        torch.testing.assert_close(logits, base.model(images), rtol=1e-4, atol=1e-4)
    assert features.grid_BChw.shape == (2, *answer.grid)
    assert embedding.shape == (2, answer.embedding)
    facts = (base.cut.layout, base.target_layer, base.cut.prefix_tokens)
    assert facts == (answer.layout, answer.layer, answer.prefix)
    assert len(stages(base.model)) - 1 == answer.stages
    named = [name for stage in stages(base.model) for name in stage]
    assert sorted(named) == sorted(name for name, _ in base.model.named_parameters())
    maps = look(base, images, {"maps": ("gradcam", 0)}, torch.float32).maps["maps"]
    assert maps.shape == (2, 3, *answer.grid[1:])
    assert (maps.flatten(1).std(dim=1) > 0).all()


@pytest.mark.parametrize("name", ["test_resnet", "vit_base_patch16_224", "alexnet", "vgg11"])
def test_a_head_can_be_reset(name: str) -> None:
    """The cut follows a classifier of another number of classes."""
    base = create(name, 3, RANDOM, SIZE)
    base.model.reset_classifier(5)
    base.freeze()
    images = base.normalise(torch.randint(256, (1, *SIZE, 3), dtype=torch.uint8))
    with torch.no_grad():
        logits = base.head(*base.trunk(images))[1]
        torch.testing.assert_close(logits, base.model(images), rtol=1e-4, atol=1e-4)
    assert logits.shape == (1, 5)


def test_the_class_token_cut_leaves_no_hook_behind() -> None:
    """The replaced normalisation is replaced for one call."""
    base = create("test_vit", 2, RANDOM, (32, 32)).freeze()
    images = base.normalise(torch.randint(256, (1, 32, 32, 3), dtype=torch.uint8))
    with torch.no_grad():
        before = base.model(images)
        grid, rest = base.trunk(images)
        base.head(grid * 0, rest)
        assert torch.equal(base.model(images), before)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnetv2_18", "its classifier is a Conv2d"),
        ("levit_128", "its classifier is a tuple"),
        ("crossvit_9_240", "does not take images of 224x224, or has no last spatial grid"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused_before_training(name: str, reason: str) -> None:
    """The error says what is in the way."""
    with pytest.raises(BackboneError, match=f"backbones.{name}: {reason}"):
        create(name, 2, RANDOM)


def test_unknown_name_is_refused_with_the_nearest() -> None:
    """A typo in a backbone's name is an error of usage."""
    with pytest.raises(ConfigError, match="no timm model 'resnet5O'; did you mean 'resnet50'"):
        backbones.require_known(["resnet18", "resnet5O"])


def test_dropout_and_drop_path() -> None:
    """They reach the model; one that has no drop-path says so, with what to do."""
    base = create("test_resnet", 2, RANDOM, (32, 32), {"drop_rate": 0.4, "drop_path_rate": 0.2})
    assert base.model.drop_rate == 0.4
    assert any(type(module).__name__ == "DropPath" for module in base.model.modules())
    with pytest.raises(BackboneError, match=r"vgg11: has no drop_path.*vgg11.train.drop_path=null"):
        create("vgg11", 2, RANDOM, (32, 32), {"drop_path_rate": 0.2})


@pytest.mark.parametrize("name", ["test_resnet", "resnetblur18", "test_vit", "alexnet"])
def test_checkpoint_rebuilds_the_model_and_is_reproducible(name: str, tmp_path: Path) -> None:
    """The file alone rebuilds the model, constant buffers too; the same model is the same bytes."""
    base = create(name, 2, BackboneConfig(weights="random", mean=(0.1, 0.2, 0.3)), (64, 96))
    facts: dict[str, Any] = {"classes": ["benign", "malignant"], "identity": "abc", "fold": "fold0"}
    for file in ("one.safetensors", "two.safetensors"):
        save_checkpoint(tmp_path / file, base, facts)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    again, facts = load_checkpoint(tmp_path / "one.safetensors")
    assert facts["identity"] == "abc"
    assert again.mean == (0.1, 0.2, 0.3)
    assert again.size == (64, 96)
    pixels = torch.randint(256, (2, 64, 96, 3), dtype=torch.uint8)
    base.freeze()
    again.freeze()
    with torch.no_grad():
        one, two = (b.model(b.normalise(pixels)) for b in (base, again))
    assert torch.equal(one, two)
    assert set(load_file(tmp_path / "one.safetensors")) == set(base.model.state_dict())


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    """A safetensors file without our facts is not a base model."""
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match="not a base model"):
        load_checkpoint(tmp_path / "model.safetensors")


def test_numbers_are_written_where_there_is_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constant that a model computes on the CPU while it is built is computed when it is loaded."""
    base = create("test_resnet", 2, RANDOM, (32, 32))
    save_checkpoint(tmp_path / "one.safetensors", base, {"classes": ["benign", "malignant"]})
    built, constants = timm.create_model, []

    def build(name: str, **settings: Any) -> Any:
        constants.append(torch.full((1,), 2.0, device="cpu").mul_(3).item())
        return built(name, **settings)

    monkeypatch.setattr(timm, "create_model", build)
    load_checkpoint(tmp_path / "one.safetensors")
    assert constants == [6.0]


@pytest.mark.parametrize("stated", ['["a"]', "7", "{", '{"training_cases": 7}'])
def test_metadata_of_other_programs_names_no_cases(stated: str, tmp_path: Path) -> None:
    """Whatever stands there, it is not ours, and the file may still be started from."""
    path = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"stacker": stated})
    assert trained_on("test_resnet", WeightsConfig(weights=str(path))) == []
