"""A new classifier starts small in every family, so that a training starts from guessing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from stacker.backbones.backbone import create
from stacker.config.training import BackboneConfig

RANDOM = BackboneConfig(weights="random")
FAMILIES = [  # a small one of each
    "alexnet",
    "convnextv2_atto",
    "densenet121",
    "efficientnet_b0",
    "fbnetc_100",
    "ghostnet_100",
    "inception_v3",
    "mnasnet_100",
    "mobilenetv2_100",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "regnety_002",
    "resnet18",
    "rexnet_100",
    "swin_tiny_patch4_window7_224",
    "test_efficientnet",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "tf_efficientnet_lite0",
    "tf_efficientnetv2_b0",
    "vgg11_bn",
    "vit_tiny_patch16_224",
]
DRAWN_LARGE = {  # by timm, with weights for few classes 8 to 30 times as large as torch's
    "efficientnet_b0",
    "fbnetc_100",
    "inception_v3",
    "mnasnet_100",
    "mobilenetv2_100",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "rexnet_100",
    "test_efficientnet",
    "tf_efficientnet_lite0",
    "tf_efficientnetv2_b0",
}
Make = Callable[[str, Path, pytest.MonkeyPatch], Any]


def spread(classifier: Any) -> float:
    """Return the standard deviation of a classifier's weights, in that of torch's own draw."""
    weights: Tensor = classifier.weight.detach()
    return float(weights.std()) * math.sqrt(3 * weights.shape[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_an_untrained_classifier_guesses(name: str) -> None:
    """The first loss of a training is near ln 2, and the weights are no larger than torch's own."""
    torch.manual_seed(0)
    base = create(name, 2, RANDOM, (96, 96))
    assert spread(base.model.get_classifier()) < 1.3
    images = base.normalise(torch.randint(256, (16, 96, 96, 3), dtype=torch.uint8))
    with torch.no_grad():
        logits = base.model.train()(images)
    assert float(cross_entropy(logits, torch.arange(16) % 2)) == pytest.approx(math.log(2), abs=0.3)


@pytest.mark.parametrize("name", sorted(DRAWN_LARGE))
def test_no_number_of_classes_is_drawn_large(name: str) -> None:
    """These scale with the number of classes in timm."""
    model = create(name, 8, RANDOM, (96, 96)).model
    assert spread(model.get_classifier()) < 1.3


@pytest.mark.parametrize("name", sorted({*FAMILIES} - DRAWN_LARGE - {"swin_tiny_patch4_window7_224"}))
def test_what_timm_draws_small_is_left_as_it_is(name: str) -> None:
    """To the bit: results of these families do not change."""
    torch.manual_seed(0)
    ours = create(name, 2, RANDOM, (96, 96)).model
    torch.manual_seed(0)
    sized = {"img_size": (96, 96)} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    theirs = timm.create_model(name, num_classes=2, **sized)
    assert torch.equal(ours.get_classifier().weight, theirs.get_classifier().weight)


def test_every_build_draws_the_same_classifier() -> None:
    """From the seed: a job that is started again starts from the same weights."""
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(create("mobilenetv2_100", 2, RANDOM, (64, 64)).model.state_dict())
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


def from_file(name: str, folder: Path, _: pytest.MonkeyPatch) -> Any:
    """Build a model from a file of 1000 classes, whose classifier is not taken."""
    save_file(timm.create_model(name).state_dict(), folder / f"{name}.safetensors")
    return create(name, 2, BackboneConfig(weights=str(folder)), (64, 64)).model


def from_hub(name: str, _: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Build a model from the hub's weights, which are put where timm would load them."""
    state = timm.create_model(name).state_dict()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "cached")
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(state))
    model = create(name, 2, BackboneConfig(weights="hub"), (64, 64)).model
    assert torch.equal(model.state_dict()["conv_stem.weight"], state["conv_stem.weight"])
    return model


def frozen(name: str, _: Path, __: pytest.MonkeyPatch) -> Any:
    """Build a model as a frozen backbone."""
    return create(name, 2, RANDOM, (64, 64)).freeze().model


def with_one_logit(name: str, _: Path, __: pytest.MonkeyPatch) -> Any:
    """Build a model and reset its classifier, as binary cross-entropy does."""
    model = create(name, 2, RANDOM, (64, 64)).model
    model.reset_classifier(1)
    return model


@pytest.mark.parametrize("make", [from_file, from_hub, frozen, with_one_logit])
def test_it_is_small_wherever_the_trunk_comes_from(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, the hub, a frozen backbone, a single logit."""
    torch.manual_seed(0)
    assert spread(make("mobilenetv2_100", tmp_path, monkeypatch).get_classifier()) < 1.3
