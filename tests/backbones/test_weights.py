"""Weights come from where the config says, and never match in part without a word."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from stacker.backbones.backbone import create
from stacker.config.training import BackboneConfig
from stacker.errors import BackboneError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of weights, one file in each of two formats."""
    source = timm.create_model("test_resnet", num_classes=7)
    save_file(source.state_dict(), tmp_path / "test_resnet.safetensors")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "other.pth")
    return tmp_path


@pytest.mark.parametrize("file", ["test_resnet.safetensors", "other.pth", "."])
def test_weights_from_a_file_or_a_folder(folder: Path, file: str) -> None:
    """The trunk is the file's, whatever the number of classes; the classifier is fresh."""
    source = torch.load(folder / "other.pth", weights_only=True)["state_dict"]
    model = create("test_resnet", 2, BackboneConfig(weights=str(folder / file)), (32, 32)).model
    assert torch.equal(model.state_dict()["conv1.0.weight"], source["conv1.0.weight"])
    assert model.state_dict()["fc.weight"].shape == (2, 96)


def test_a_folder_without_the_backbone_is_refused(folder: Path) -> None:
    """The message names the file that was looked for."""
    with pytest.raises(BackboneError, match=r"has no test_vit.safetensors or test_vit.pth"):
        create("test_vit", 2, BackboneConfig(weights=str(folder)), (32, 32))


def test_partial_weights_are_refused_unless_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VGG without its fully connected layers is such a file: what is missing is counted and named."""
    state = timm.create_model("vgg11").state_dict()
    convolutions = {k: v for k, v in state.items() if k.startswith("features.")}
    path = tmp_path / "convolutions.safetensors"
    save_file({**convolutions, "extra.weight": torch.zeros(1)}, path)
    with pytest.raises(
        BackboneError, match=r"16 of the 20 trunk tensors.*pre_logits\.fc1\..*partial=true"
    ):
        create("vgg11", 2, BackboneConfig(weights=str(path)), (32, 32))
    monkeypatch.setattr(logging.getLogger("stacker"), "propagate", True)
    with caplog.at_level(logging.INFO, "stacker"):
        model = create("vgg11", 2, BackboneConfig(weights=str(path), partial=True), (32, 32)).model
    assert torch.equal(model.state_dict()["features.0.weight"], convolutions["features.0.weight"])
    assert "16 of 20 trunk tensors matched; 4 missing" in caplog.text
    assert "1 unexpected, ignored (extra.weight)" in caplog.text


def test_tensors_of_another_shape_are_not_matched(tmp_path: Path) -> None:
    """A file of another model of the same family is refused, and says which tensors do not fit."""
    state = timm.create_model("test_resnet").state_dict()
    state["conv1.0.weight"] = torch.zeros(5, 3, 3, 3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=r"of another shape: conv1\.0\.weight"):
        create("test_resnet", 2, BackboneConfig(weights=str(tmp_path / "w.safetensors")), (32, 32))


def test_position_embeddings_are_resampled_to_the_image(tmp_path: Path) -> None:
    """A vision transformer's file of one size of image starts a model of another."""
    source: Any = timm.create_model("test_vit", img_size=64)
    save_file(source.state_dict(), tmp_path / "test_vit.safetensors")
    base = create("test_vit", 2, BackboneConfig(weights=str(tmp_path)), (32, 96))
    assert base.model.pos_embed.shape[1] == 1 + 2 * 6
    assert torch.equal(base.model.blocks[0].norm1.weight, source.blocks[0].norm1.weight)
    assert torch.allclose(base.model.pos_embed[:, 0], source.pos_embed[:, 0])


def test_unusable_weights_files_are_refused(tmp_path: Path) -> None:
    """A wrong path, garbage, and a pickle that would run code."""

    class Danger:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "executed"),)

    (tmp_path / "garbage.safetensors").write_bytes(b"garbage" * 10)
    (tmp_path / "garbage.pth").write_bytes(b"garbage" * 10)
    torch.save({"state_dict": Danger()}, tmp_path / "danger.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    torch.save({"model": torch.zeros(3)}, tmp_path / "inner.pth")
    for name in ("tensor", "inner"):
        with pytest.raises(BackboneError, match=rf"{name}.pth holds a Tensor, expected a state dict"):
            create("test_resnet", 2, BackboneConfig(weights=str(tmp_path / f"{name}.pth")))
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


def test_weights_that_nobody_published_are_not_looked_for() -> None:
    """Some of timm's names have no weights: that is said, not tried."""
    with pytest.raises(BackboneError, match="timm has no published weights for it"):
        create("vit_giant_patch14_224", 2, BackboneConfig(weights="hub"))
