"""The loop learns, keeps the best epoch, repeats itself, and says when it diverges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stacker.backbone import create
from stacker.config import BackboneConfig, TrainConfig
from stacker.errors import BackboneError
from stacker.finetune import Epoch, Part, finetune

CPU = torch.device("cpu")
RECIPE = TrainConfig(epochs=4, batch_size=8, lr=3e-3)


def parts(flip_validation: bool = False) -> tuple[Part, Part]:
    """Return 48 fit and 16 validation images: class 1 carries dark blots, both have the same mean."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(120, 137, (64, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(64) % 2
    for row in np.flatnonzero(labels):
        x, y = rng.integers(0, 20, 2)
        pixels[row, x : x + 12, y : y + 12] -= 70
        pixels[row] += np.uint8(128 - pixels[row].mean())
    seen = 1 - labels if flip_validation else labels
    validation_labels = np.where(np.arange(64) < 48, labels, seen)
    return Part(pixels, labels, np.arange(48)), Part(pixels, validation_labels, np.arange(48, 64))


def train(recipe: TrainConfig = RECIPE, seed: int = 0, **kwargs: Any) -> tuple[Epoch, list[Epoch], Any]:
    """Train one small model; return its best epoch, all epochs and the model's weights."""
    torch.manual_seed(seed)
    base = create("test_resnet", 2, BackboneConfig(weights="random"))
    epochs: list[Epoch] = []
    best = finetune(base, *parts(**kwargs), recipe, seed, CPU, torch.float32, epochs.append)
    return best, epochs, base.model.state_dict()


def test_it_learns_and_keeps_the_best_epoch() -> None:
    """The blots are found, and the model that is left is that of the best validation scores."""
    best, epochs, _ = train(TrainConfig(epochs=8, batch_size=8, lr=3e-3))
    assert best["val_auc"] > 0.9
    merits = [epoch["val_auc"] + epoch["val_balanced_accuracy"] for epoch in epochs]
    ties = [
        epoch["val_loss"] for epoch, merit in zip(epochs, merits, strict=True) if merit == max(merits)
    ]
    assert best["val_auc"] + best["val_balanced_accuracy"] == max(merits)
    assert best["val_loss"] == min(ties)
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 9))


def test_same_seed_same_weights() -> None:
    """Order, augmentation and initialisation all come from the seed."""
    _, _, one = train()
    _, _, two = train()
    _, _, other = train(seed=1)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_patience_ends_a_training_that_gets_worse() -> None:
    """With validation labels that contradict the rest, every epoch of learning makes it worse."""
    recipe = TrainConfig(epochs=30, batch_size=8, lr=3e-3, patience=3)
    best, epochs, _ = train(recipe, flip_validation=True)
    assert len(epochs) == best["epoch"] + 3 < 30


def test_a_diverging_loss_is_an_error_with_a_remedy() -> None:
    """A learning rate beyond reason ends in words, not in a model of NaN."""
    with pytest.raises(BackboneError, match=r"the loss is (nan|inf) in epoch \d.*lr="):
        train(TrainConfig(epochs=4, batch_size=8, lr=1e30, warmup=0, clip_norm=None))


def test_every_setting_of_the_recipe_has_an_effect() -> None:
    """No dead flag: changing any one of them changes the weights."""
    _, _, reference = train()
    changes: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 16,
        "lr": 1e-3,
        "weight_decay": 0.5,
        "warmup": 0.0,
        "label_smoothing": 0.2,
        "flips": False,
        "colour_jitter": 0.0,
        "clip_norm": 1e-3,
    }
    for setting, value in changes.items():
        _, _, state = train(RECIPE.model_copy(update={setting: value}))
        assert any(not torch.equal(state[name], reference[name]) for name in state), setting
    assert set(TrainConfig.model_fields) == {*changes, "patience", "class_weights"}


def test_balanced_class_weights_lift_the_rare_class() -> None:
    """With one image in eight malignant, balancing raises its probability."""
    fit, validation = parts()
    rare = np.flatnonzero((fit.labels == 0) | (np.arange(64) % 8 == 1))
    fit = Part(fit.pixels, fit.labels, rare[rare < 48])
    shares = []
    for policy in ("none", "balanced"):
        torch.manual_seed(0)
        base = create("test_resnet", 2, BackboneConfig(weights="random"))
        recipe = TrainConfig(epochs=1, batch_size=8, lr=1e-3, class_weights=policy)
        finetune(base, fit, validation, recipe, 0, CPU, torch.float32, lambda _: None)
        base.freeze()
        with torch.no_grad():
            images = base.normalise(torch.from_numpy(validation.pixels[validation.rows]))
            shares.append(base.model(images).softmax(1)[:, 1].mean().item())
    assert shares[1] > shares[0]
