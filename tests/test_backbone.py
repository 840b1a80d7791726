"""Every backbone answers the same questions, and weights never match in part without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from stacker import backbone as backbones
from stacker.backbone import choose_device, choose_precision, create, load_checkpoint, save_checkpoint
from stacker.config import BackboneConfig
from stacker.errors import BackboneError, ConfigError

RANDOM = BackboneConfig(weights="random")
GRIDS = {  # the last grid at 64 px, and the embedding's width
    "densenet121": ((1024, 2, 2), 1024),
    "resnet50": ((2048, 2, 2), 2048),
    "vgg16": ((512, 4, 4), 4096),
    "vgg11_bn": ((512, 4, 4), 4096),
    "tf_efficientnet_lite0": ((1280, 2, 2), 1280),
    "mobilenetv3_small_050": ((288, 2, 2), 1024),
    "test_resnet": ((96, 2, 2), 96),
    "test_convnext": ((64, 2, 2), 64),
    "test_efficientnet": ((256, 2, 2), 256),
    "test_byobnet": ((256, 2, 2), 256),
}


@pytest.mark.parametrize("name", GRIDS)
def test_trunk_and_head_are_the_model(name: str) -> None:
    """Trunk, then head, gives the model's own logits, over a grid and an embedding of known shape."""
    base = create(name, 3, RANDOM).freeze()
    images = base.normalise(torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8))
    grid, width = GRIDS[name]
    with torch.no_grad():
        activations = base.trunk(images)
        embedding, logits = base.head(activations)
        torch.testing.assert_close(logits, base.model(images), rtol=1e-5, atol=1e-5)
    assert activations.shape == (2, *grid)
    assert embedding.shape == (2, width)


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224", "mixer_s32_224"])
def test_a_model_without_a_grid_is_refused(name: str) -> None:
    """Transformers put out tokens or another layout: the error gives the shape."""
    with pytest.raises(BackboneError, match=f"{name}: its last features are of shape"):
        create(name, 2, RANDOM)


def test_a_classifier_that_is_no_linear_layer_is_refused_before_training() -> None:
    """A 1x1 convolution behind the pool cannot be fed with the embedding."""
    with pytest.raises(BackboneError, match="resnetv2_18"):
        create("resnetv2_18", 2, RANDOM)


def test_unknown_name_is_refused_with_the_nearest() -> None:
    """A typo in a backbone's name is an error of usage."""
    with pytest.raises(ConfigError, match="no timm model 'resnet5O'; did you mean 'resnet50'"):
        backbones.require_known(["resnet18", "resnet5O"])


def test_weights_from_a_file(tmp_path: Path) -> None:
    """The trunk is the file's, whatever the number of classes; the classifier is fresh."""
    source = timm.create_model("test_resnet", num_classes=7)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        model = create("test_resnet", 2, BackboneConfig(weights=str(tmp_path / name))).model
        state = model.state_dict()
        assert torch.equal(state["conv1.0.weight"], source.state_dict()["conv1.0.weight"])
        assert state["fc.weight"].shape == (2, 96)


def test_partial_weights_are_refused_unless_asked_for(tmp_path: Path) -> None:
    """VGG-16 without its fully connected layers is such a file: the missing tensors are named."""
    state = timm.create_model("test_vgg" if timm.is_model("test_vgg") else "vgg11").state_dict()
    convolutions = {k: v for k, v in state.items() if k.startswith("features.")}
    path = tmp_path / "convolutions.safetensors"
    save_file(convolutions, path)
    with pytest.raises(
        BackboneError, match=r"16 of the 20 trunk tensors.*pre_logits\.fc1\.bias.*partial=true"
    ):
        create("vgg11", 2, BackboneConfig(weights=str(path)))
    model = create("vgg11", 2, BackboneConfig(weights=str(path), partial=True)).model
    assert torch.equal(model.state_dict()["features.0.weight"], convolutions["features.0.weight"])


def test_unusable_weights_files_are_refused(tmp_path: Path) -> None:
    """A wrong path, garbage, and a pickle that would run code."""

    class Danger:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "executed"),)

    (tmp_path / "garbage.safetensors").write_bytes(b"garbage" * 10)
    (tmp_path / "garbage.pth").write_bytes(b"garbage" * 10)
    torch.save({"state_dict": Danger()}, tmp_path / "danger.pth")
    for name in ("nowhere.pth", "garbage.safetensors", "garbage.pth", "danger.pth"):
        with pytest.raises(BackboneError, match=name.split(".")[0]):
            create("test_resnet", 2, BackboneConfig(weights=str(tmp_path / name)))
    assert not (tmp_path / "executed").exists()


def test_no_hub_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without network the error names the two alternatives, and comes at once."""
    import huggingface_hub.utils

    class NoNetwork:
        def head(self, url: str, timeout: float) -> None:
            raise OSError(f"{url}: Name or service not known within {timeout} s")

    monkeypatch.setattr(huggingface_hub.utils, "get_session", NoNetwork)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(BackboneError, match=r"hub.*weights=PATH.*weights=random"):
        create("resnet50", 2, BackboneConfig(weights="hub"))


@pytest.mark.parametrize("name", ["test_resnet", "resnetblur18"])
def test_checkpoint_rebuilds_the_model_and_is_reproducible(name: str, tmp_path: Path) -> None:
    """The file alone rebuilds the model, constant buffers too; the same model is the same bytes."""
    base = create(name, 2, BackboneConfig(weights="random", mean=(0.1, 0.2, 0.3)))
    facts = {"classes": ["benign", "malignant"], "identity": "abc", "fold": "fold0"}
    for file in ("one.safetensors", "two.safetensors"):
        save_checkpoint(tmp_path / file, base, facts)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    again, found = load_checkpoint(tmp_path / "one.safetensors")
    assert found["identity"] == "abc"
    assert again.mean == (0.1, 0.2, 0.3)
    pixels = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
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


def test_device_and_precision() -> None:
    """A device that is not here is refused; a wanted precision is obeyed."""
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="0 CUDA devices found"):
            choose_device("cuda")
    assert choose_device("cpu").type == "cpu"
    assert choose_precision("fp32", torch.device("cpu")) == torch.float32
    assert choose_precision("bf16", torch.device("cpu")) == torch.bfloat16
