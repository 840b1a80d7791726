"""The loop learns, keeps the best epoch, repeats itself, and goes on where it stopped."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from stacker.backbones.backbone import Backbone, create
from stacker.backbones.devices import Machine, Subset
from stacker.config.training import AugmentConfig, BackboneConfig, TrainConfig
from stacker.errors import BackboneError
from stacker.training.augment import draw_order
from stacker.training.loop import Training, finetune
from stacker.training.measures import Epoch
from stacker.training.record import Snapshot, load_snapshot

MACHINE = Machine(torch.device("cpu"), torch.float32)
RECIPE = TrainConfig(epochs=4, batch_size=8, lr=3e-3)
RANDOM = BackboneConfig(weights="random")


def parts(flip_validation: bool = False) -> tuple[Subset, Subset]:
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
    return Subset(pixels, labels, np.arange(48)), Subset(pixels, validation_labels, np.arange(48, 64))


def small(name: str = "test_resnet", seed: int = 0) -> Backbone:
    """Return a small backbone of known initialisation."""
    torch.manual_seed(seed)
    return create(name, 2, RANDOM, (32, 32))


def train(
    recipe: TrainConfig = RECIPE, seed: int = 0, name: str = "test_resnet", **kwargs: Any
) -> tuple[Epoch, list[Epoch], Any]:
    """Train one small model; return its best epoch, all epochs and the model's weights."""
    base = small(name, seed)
    epochs: list[Epoch] = []
    machine = Machine(MACHINE.device, MACHINE.precision, seed)
    best = finetune(base, *parts(**kwargs), recipe, machine, lambda epoch, _: epochs.append(epoch))
    return best, epochs, base.model.state_dict()


def changed(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of the tensors that differ."""
    return {name for name in one if not torch.equal(one[name], two[name])}


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


@pytest.mark.parametrize("monitor", ["auc", "balanced_accuracy", "loss", "last"])
def test_the_epoch_is_kept_by_what_the_recipe_looks_at(monitor: str) -> None:
    """The best by one score, or the last."""
    best, epochs, _ = train(TrainConfig.model_validate({**RECIPE.model_dump(), "monitor": monitor}))
    if monitor == "last":
        assert best is epochs[-1]
    elif monitor == "loss":
        assert best["val_loss"] == min(epoch["val_loss"] for epoch in epochs)
    else:
        assert best[f"val_{monitor}"] == max(epoch[f"val_{monitor}"] for epoch in epochs)


def test_same_seed_same_weights() -> None:
    """Order, augmentation and initialisation all come from the seed."""
    _, _, one = train()
    _, _, two = train()
    _, _, other = train(seed=1)
    assert not changed(one, two)
    assert changed(one, other)


def test_patience_ends_a_training_that_gets_worse() -> None:
    """With validation labels that contradict the rest, every epoch of learning makes it worse."""
    recipe = TrainConfig(epochs=30, batch_size=8, lr=3e-3, patience=3)
    best, epochs, _ = train(recipe, flip_validation=True)
    assert len(epochs) == best["epoch"] + 3 < 30


FLIPPED = {"epochs": 6, "batch_size": 8, "lr": 3e-3}  # of contradicting labels: the first epoch is best


def flipped(cases: int | list[int]) -> tuple[Subset, Subset]:
    """Return parts whose validation gets worse as the model learns, with so many cases of each class."""
    fit, validation = parts(flip_validation=True)
    wanted = np.array([cases, cases] if isinstance(cases, int) else cases)
    place = np.arange(64) // 2
    named = validation.labels * 100 + place % np.maximum(wanted, 1)[validation.labels]
    rows = validation.rows[wanted[validation.labels[validation.rows]] > 0]
    names = ("benign", "malignant")
    return replace(fit, cases=named), replace(validation, rows=rows, cases=named, names=names)


def kept(recipe: dict[str, Any], cases: int | list[int], **kwargs: Any) -> tuple[Epoch, list[Epoch]]:
    """Train on flipped parts; return the epoch that is kept, and all epochs."""
    epochs: list[Epoch] = []
    asked = TrainConfig.model_validate({**FLIPPED, **recipe})
    best = finetune(
        small(), *flipped(cases), asked, MACHINE, lambda epoch, _: epochs.append(epoch), **kwargs
    )
    return best, epochs


@pytest.mark.parametrize("cases", [4, [5, 4], [1, 5], [6, 0]])
def test_with_few_validation_cases_of_a_class_the_last_epoch_is_kept(
    cases: int | list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Though an earlier one scored better, and whatever the patience; the log says why."""
    with caplog.at_level(logging.INFO, "stacker"):
        best, epochs = kept({"monitor": "loss", "patience": 1}, cases)
    assert best is epochs[-1]
    assert best["epoch"] == 6
    assert best["val_loss"] > min(epoch["val_loss"] for epoch in epochs)
    (said,) = [text for text in caplog.messages if "are needed to choose the best epoch" in text]
    fewest = min(cases) if isinstance(cases, list) else cases
    which = cases.index(fewest) if isinstance(cases, list) else 0
    counted = "1 validation case" if fewest == 1 else f"{fewest} validation cases"
    assert f"only {counted} of {('benign', 'malignant')[which]}, and 5 are" in said
    assert said.endswith("training runs to its end, and the last epoch is kept")


def test_with_five_validation_cases_of_each_class_the_best_epoch_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By what the recipe looks at, and for as long as its patience lasts; nothing is said."""
    with caplog.at_level(logging.INFO, "stacker"):
        best, epochs = kept({"monitor": "loss", "patience": 2}, 5)
    assert best["val_loss"] == min(epoch["val_loss"] for epoch in epochs)
    assert len(epochs) == best["epoch"] + 2 < 6
    assert "validation case" not in caplog.text


def test_a_recipe_that_keeps_the_last_epoch_needs_no_telling(caplog: pytest.LogCaptureFixture) -> None:
    """Few cases change nothing there."""
    with caplog.at_level(logging.INFO, "stacker"):
        best, epochs = kept({"monitor": "last"}, 1)
    assert best is epochs[-1]
    assert "validation case" not in caplog.text


def test_a_resumed_training_keeps_the_last_epoch_too(tmp_path: Path) -> None:
    """Even if it was begun where the first epoch counted as the best."""
    recipe = {"monitor": "loss", "patience": 6}

    def save(epoch: Epoch, take: Callable[[], Snapshot]) -> None:
        snapshot = take()
        snapshot.facts["identity"] = "job"
        if epoch["epoch"] == 3:
            snapshot.save(tmp_path / "resume.safetensors")

    asked = TrainConfig.model_validate({**FLIPPED, **recipe})
    finetune(small(), *flipped(5), asked, MACHINE, save)
    snapshot = load_snapshot(tmp_path / "resume.safetensors", "job")
    assert snapshot is not None
    assert snapshot.facts["best"] < 3
    best, epochs = kept(recipe, 4, snapshot=snapshot)
    assert [epoch["epoch"] for epoch in epochs] == [4, 5, 6]
    assert best is epochs[-1]


GUESSING = r"and guessing among 2 classes gives 0\.69 \(ln 2\)"


def test_a_first_loss_far_above_guessing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Once, with what to look at; nothing is wrong with the learning rate yet."""
    base = small("test_efficientnet")
    with torch.no_grad():
        base.model.get_classifier().weight *= 100
    with caplog.at_level(logging.WARNING, "stacker"):
        finetune(base, *parts(), RECIPE, MACHINE)
    (said,) = [record.getMessage() for record in caplog.records if "guessing" in record.getMessage()]
    assert re.search(rf"the first batch, before any learning, is \d+\.\d\d, {GUESSING}", said)
    assert "backbones.test_efficientnet.weights" in said
    assert ".mean and .std" in said


def test_a_first_epoch_far_above_guessing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """What started well and got worse has too high a learning rate."""
    recipe = TrainConfig(epochs=2, batch_size=8, lr=3.0, optimizer="sgd", warmup=0, clip_norm=None)
    with caplog.at_level(logging.WARNING, "stacker"):
        train(recipe)
    (said,) = [record.getMessage() for record in caplog.records if "guessing" in record.getMessage()]
    assert re.search(rf"mean training loss of the first epoch is \d+\.\d\d, {GUESSING}", said)
    assert "try --set backbones.test_resnet.train.lr=3e-01" in said


HARD = {"label_smoothing": 0.2, "augment": {"mixup": 1.0, "rotation": 40}, "balance": "none"}


@pytest.mark.parametrize("changes", [{}, {"loss": "bce"}, HARD, {"trainable": "head"}])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_a_normal_start_is_not_warned_of(
    name: str, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the loss, the mixing and what is trained."""
    recipe = TrainConfig.model_validate({"epochs": 1, "batch_size": 8, **changes})
    with caplog.at_level(logging.WARNING, "stacker"):
        train(recipe, name=name)
    assert "guessing" not in caplog.text


def test_a_diverging_loss_is_an_error_with_a_remedy() -> None:
    """A learning rate beyond reason ends in words, not in a model of NaN."""
    with pytest.raises(BackboneError, match=r"the loss is (nan|inf) in epoch \d.*train\.lr="):
        train(TrainConfig(epochs=4, batch_size=8, lr=1e30, warmup=0, clip_norm=None))


CHANGES: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 16,
    "optimizer": "nadam",
    "lr": 1e-3,
    "weight_decay": 0.5,
    "layer_decay": 0.5,
    "schedule": "constant",
    "warmup": 0.0,
    "clip_norm": 1e-3,
    "loss": "bce",
    "label_smoothing": 0.2,
    "trainable": 1,
    "unfreeze": {2: "head"},
    "ema": 0.9,
    "augment": {"colour_jitter": 0.0},
}
WITH_OTHERS: dict[str, tuple[dict[str, Any], Any]] = {  # settings that others wake up
    "momentum": ({"optimizer": "sgd"}, 0.5),
    "decay_rate": ({"schedule": "step", "decay_epochs": 1}, 0.5),
    "decay_epochs": ({"schedule": "step"}, 2),
    "decay_patience": ({"schedule": "plateau"}, 0),
}


@pytest.mark.parametrize("setting", [*CHANGES, *WITH_OTHERS])
def test_every_setting_of_the_recipe_has_an_effect(setting: str) -> None:
    """No dead flag: changing any one of them changes the weights."""
    others, value = WITH_OTHERS.get(setting, ({}, CHANGES.get(setting)))
    base = {**RECIPE.model_dump(), "monitor": "last", **others}
    _, _, one = train(TrainConfig.model_validate(base), flip_validation=True)
    _, _, two = train(TrainConfig.model_validate({**base, setting: value}), flip_validation=True)
    assert changed(one, two)


def test_no_setting_of_the_recipe_is_untested() -> None:
    """Those that are not above have tests of their own."""
    elsewhere = {"accumulate", "balance", "monitor", "patience", "dropout", "drop_path"}
    assert set(TrainConfig.model_fields) == {*CHANGES, *WITH_OTHERS, *elsewhere}


@pytest.mark.parametrize("policy", ["weights", "sampling"])
def test_balance_lifts_the_rare_class(policy: str) -> None:
    """With one image in eight malignant, balancing raises its probability."""
    fit, validation = parts()
    rare = np.flatnonzero((fit.labels == 0) | (np.arange(64) % 8 == 1))
    fit = Subset(fit.pixels, fit.labels, rare[rare < 48])
    shares = []
    for balance in ("none", policy):
        base = small("test_vit")
        recipe = TrainConfig.model_validate(
            {"epochs": 8, "batch_size": 8, "lr": 3e-3, "balance": balance, "monitor": "last"}
        )
        finetune(base, fit, validation, recipe, MACHINE)
        base.freeze()
        with torch.no_grad():
            images = base.normalise(torch.from_numpy(validation.pixels[validation.rows]))
            shares.append(base.model(images).softmax(1)[:, 1].mean().item())
    assert shares[1] > shares[0] + 0.1


def test_orders_hold_every_row_and_spread_the_classes() -> None:
    """An epoch is a permutation; a balanced one has equally many of each class, none left out."""
    labels = np.r_[np.zeros(40, int), np.ones(8, int)]
    part = Subset(np.zeros((48, 1, 1, 3), np.uint8), labels, np.arange(48))
    rng = np.random.default_rng(0)
    order = draw_order(part, "none", rng)
    assert sorted(order) == list(range(48))
    assert all(labels[order[i : i + 12]].sum() in (1, 2, 3) for i in range(0, 48, 12))
    balanced = draw_order(part, "sampling", rng)
    assert len(balanced) == 48
    assert labels[balanced].sum() == 24
    assert set(balanced[labels[balanced] == 1]) == set(range(40, 48))


def test_cases_of_a_class_are_seen_equally_often() -> None:
    """A case of many images gives some of them, one of few gives all of them several times."""
    labels = np.r_[np.zeros(40, int), np.ones(20, int)]
    cases = np.array(["large"] * 37 + ["small"] * 3 + ["one"] * 10 + ["two"] * 10)
    part = Subset(np.zeros((60, 1, 1, 3), np.uint8), labels, np.arange(60), cases)
    rng = np.random.default_rng(0)
    order = draw_order(part, "cases", rng)
    assert len(order) == 60
    counts = dict(zip(*np.unique(cases[order], return_counts=True), strict=True))
    assert counts == {"large": 15, "small": 15, "one": 15, "two": 15}
    assert len(set(order[cases[order] == "large"])) == 15
    assert set(order[cases[order] == "small"]) == {37, 38, 39}
    assert all(labels[order[i : i + 12]].sum() in (5, 6, 7) for i in range(0, 60, 12))
    assert list(order) != list(draw_order(part, "cases", rng))


def one_step(recipe: TrainConfig, name: str) -> dict[str, torch.Tensor]:
    """Return the weights after one epoch of one batch."""
    base = small(name)
    finetune(base, *parts(), recipe, MACHINE)
    state: dict[str, torch.Tensor] = base.model.state_dict()
    return state


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_a_batch_in_slices_has_the_same_gradient(loss: str) -> None:
    """Without batch normalisation, slices that add up to a batch make the same step."""
    recipe = {"epochs": 1, "batch_size": 48, "loss": loss, "optimizer": "sgd", "lr": 0.1, "warmup": 0.0}
    wholes = one_step(TrainConfig.model_validate(recipe), "test_vit")
    slices = one_step(TrainConfig.model_validate({**recipe, "accumulate": 5}), "test_vit")
    for name, whole in wholes.items():
        torch.testing.assert_close(slices[name], whole, rtol=1e-4, atol=1e-6)


def test_out_of_memory_halves_the_slices(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The batch then passes in smaller slices with the same result, and the log says so."""
    recipe = TrainConfig(epochs=1, batch_size=48, lr=0.1, optimizer="sgd", warmup=0.0)
    whole = one_step(recipe, "test_vit")
    forward = Training.__init__

    def short_of_memory(self: Training, *args: Any) -> None:
        forward(self, *args)
        model = self.model

        def limited(images: torch.Tensor) -> Any:
            if len(images) > 13:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return model(images)

        self.forward = limited

    monkeypatch.setattr(Training, "__init__", short_of_memory)
    monkeypatch.setattr(logging.getLogger("stacker"), "propagate", True)
    with caplog.at_level(logging.WARNING, "stacker"):
        sliced = one_step(recipe, "test_vit")
    assert "a batch of 48 is now processed in 4 slices" in caplog.text
    for name, tensor in whole.items():
        torch.testing.assert_close(sliced[name], tensor, rtol=1e-4, atol=1e-6)


def test_memory_that_is_never_enough_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """At two images a slice nothing is left to halve."""

    def never(*_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Training, "_gradient_of_slices", never)
    with pytest.raises(BackboneError, match=r"test_resnet: .*out of memory.*images.size"):
        train()


def test_bce_leaves_a_two_class_model_of_the_same_probabilities() -> None:
    """The one logit is gone behind stage one: softmax of two gives its sigmoid."""
    base = small()
    kept: dict[str, torch.Tensor] = {}

    def look(_: Epoch, take: Callable[[], Snapshot]) -> None:
        kept.update({k: v.clone() for k, v in take().tensors["model"].items()})

    recipe = TrainConfig(epochs=1, batch_size=8, lr=3e-3, loss="bce")
    finetune(base, *parts(), recipe, MACHINE, look)
    one = create("test_resnet", 1, RANDOM, (32, 32))
    one.model.load_state_dict(kept)
    images = base.normalise(torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8))
    base.freeze()
    with torch.no_grad():
        two = base.model(images).softmax(1)[:, 1]
        torch.testing.assert_close(two, one.freeze().model(images)[:, 0].sigmoid())


FULL: dict[str, Any] = {  # everything that a snapshot must carry
    "epochs": 5,
    "batch_size": 8,
    "lr": 3e-3,
    "ema": 0.9,
    "schedule": "plateau",
    "decay_patience": 0,
    "dropout": 0.3,
    "balance": "sampling",
    "unfreeze": {2: "all"},
    "trainable": 2,
    "augment": {"rotation": 10, "stain_jitter": 0.1, "mixup": 0.2, "cutmix": 1.0},
}


@pytest.mark.parametrize("optimizer", ["adamw", "nadam", "sgd", "lamb", "adan", "nadamw"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_training_ends_with_the_same_bits(optimizer: str, stop: int, tmp_path: Path) -> None:
    """Stopped after some epochs and begun again in another process's stead, from the file alone."""
    recipe = TrainConfig.model_validate({**FULL, "optimizer": optimizer})

    def fresh() -> Backbone:
        torch.manual_seed(0)
        return create("test_resnet", 2, RANDOM, (32, 32), {"drop_rate": 0.3})

    straight = fresh()
    best = finetune(straight, *parts(), recipe, MACHINE)

    class Killed(Exception):
        pass

    def save_and_die(epoch: Epoch, take: Callable[[], Snapshot]) -> None:
        snapshot = take()
        snapshot.facts["identity"] = "job"
        snapshot.save(tmp_path / "resume.safetensors")
        if epoch["epoch"] == stop:
            raise Killed

    with pytest.raises(Killed):
        finetune(fresh(), *parts(), recipe, MACHINE, save_and_die)
    torch.manual_seed(99)  # another process has other draws behind it
    resumed = fresh()
    snapshot = load_snapshot(tmp_path / "resume.safetensors", "job")
    assert snapshot is not None
    seen: list[int] = []
    again = finetune(
        resumed,
        *parts(),
        recipe,
        MACHINE,
        lambda epoch, _: seen.append(epoch["epoch"]),
        snapshot=snapshot,
    )
    assert seen == list(range(stop + 1, 6))
    assert not changed(straight.model.state_dict(), resumed.model.state_dict())
    assert {k: v for k, v in again.items() if k != "images_per_second"} == {
        k: v for k, v in best.items() if k != "images_per_second"
    }


def test_a_resume_file_of_another_job_is_not_used(tmp_path: Path) -> None:
    """Nor one that is damaged; no file at all is no error."""
    snapshot = Snapshot({"model": {"x": torch.zeros(1)}}, {"identity": "one"})
    snapshot.save(tmp_path / "resume.safetensors")
    assert load_snapshot(tmp_path / "resume.safetensors", "two") is None
    assert load_snapshot(tmp_path / "nothing.safetensors", "one") is None
    (tmp_path / "resume.safetensors").write_bytes(b"garbage")
    assert load_snapshot(tmp_path / "resume.safetensors", "one") is None


def test_compiled_training_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile cannot do is one message, with what to leave out."""

    def broken(*_: object, **__: object) -> Any:
        def run(*_: object) -> Any:
            raise TorchDynamoException("no C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    machine = Machine(MACHINE.device, MACHINE.precision, compile=True)
    with pytest.raises(BackboneError, match=r"no C\+\+ compiler.*compile=false"):
        finetune(small(), *parts(), RECIPE, machine)


def test_augmentation_is_the_trainings_alone() -> None:
    """With a learning rate of nearly nothing the validation scores do not move."""
    recipe = TrainConfig(
        epochs=2, batch_size=8, lr=1e-12, augment=AugmentConfig(rotation=40, mixup=1.0), trainable="head"
    )
    _, epochs, _ = train(recipe)
    assert epochs[0]["val_loss"] == epochs[1]["val_loss"]
