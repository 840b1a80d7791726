"""Freezing, unfreezing, the optimizer's groups and the course of the learning rate."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from stacker.backbones.backbone import create
from stacker.config.training import BackboneConfig, TrainConfig
from stacker.errors import BackboneError, ConfigError
from stacker.training.optimizer import (
    Schedule,
    make_optimizer,
    require_optimizer,
    require_stages,
    set_trainable,
    stages,
)


def model(name: str = "resnet34") -> Any:
    """Return a timm model of two classes."""
    return create(name, 2, BackboneConfig(weights="random"), (64, 64)).model


def trained(net: Any) -> set[str]:
    """Return the first parts of the names that are trained."""
    return {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}


def test_head_last_stages_and_all() -> None:
    """What is asked for is trained, and nothing else."""
    net = model()
    everything = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
    for wanted, expected in (
        ("head", {"fc"}),
        (1, {"layer4", "fc"}),
        (2, {"layer3", "layer4", "fc"}),
        ("all", everything),
    ):
        count = set_trainable(net, wanted)  # type: ignore[arg-type]
        assert trained(net) == expected
        assert count == sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_vggs_head_is_all_behind_its_convolutions() -> None:
    """Its fully connected layers, which may start from random, are trained with the classifier."""
    net = model("vgg11")
    set_trainable(net, "head")
    assert trained(net) == {"pre_logits", "head"}
    set_trainable(net, 1)
    names = {name for name, p in net.named_parameters() if p.requires_grad and "features" in name}
    assert {name.split(".")[1] for name in names} == {"16", "18"}


@pytest.mark.parametrize("name", ["resnet34", "convnextv2_atto", "test_vit", "test_efficientnet"])
def test_frozen_layers_do_not_drift(name: str) -> None:
    """Batch normalisation keeps its statistics where it is frozen and moves them where it is not."""
    net = model(name)
    set_trainable(net, 1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net(torch.randn(4, 3, 64, 64))
    groups = stages(net)
    frozen = {name for group in groups[:-2] for name in group}
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    modules = {name.rpartition(".")[0] for name in frozen}
    assert not {key for key in moved if key.rpartition(".")[0] in modules}
    if name in ("resnet34", "test_efficientnet"):
        assert moved
    set_trainable(net, "all")
    assert all(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("settings", [{"trainable": 9}, {"unfreeze": {2: 9}}])
def test_more_stages_than_there_are_is_refused(settings: dict[str, Any]) -> None:
    """Now or later in the training: the error says how many there are."""
    recipe = TrainConfig.model_validate(settings)
    with pytest.raises(
        BackboneError, match=r"backbones\.x: the recipe trains 9 stages and the model has 5"
    ):
        require_stages("x", model(), recipe)
    require_stages("x", model(), TrainConfig(trainable=5))


def test_layer_decay_slows_what_is_far_from_the_head() -> None:
    """The stem learns slowest; biases and normalisation do not decay."""
    net = model()
    optimizer = make_optimizer(net, TrainConfig(layer_decay=0.5, lr=1.0))
    schedule = Schedule(TrainConfig(lr=1.0, warmup=0.0), 10)
    schedule.apply(optimizer, 0)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(net.fc.weight)] == 1.0
    assert rates[id(net.conv1.weight)] < rates[id(net.layer2[0].conv1.weight)] < 0.5
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays[id(net.fc.bias)] == decays[id(net.bn1.weight)] == 0
    assert decays[id(net.conv1.weight)] == 0.05


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("nadam", "NAdam"), ("sgd", "SGD")]
)
def test_optimizers_by_name(name: str, kind: str) -> None:
    """The four of the seed recipes are torch's own."""
    optimizer = make_optimizer(model("test_resnet"), TrainConfig(optimizer=name, momentum=0.8))
    assert type(optimizer).__name__ == kind
    if name == "sgd":
        assert optimizer.param_groups[0]["momentum"] == 0.8
        still = make_optimizer(model("test_resnet"), TrainConfig(optimizer=name, momentum=0))
        assert still.param_groups[0]["momentum"] == 0


def test_unknown_and_second_order_optimizers_are_refused() -> None:
    """With the nearest name."""
    for name in ("adamv", "adahessian", "kron"):
        with pytest.raises(ConfigError, match=f"backbones.x: no optimizer '{name}'"):
            require_optimizer("x", TrainConfig(optimizer=name))
    require_optimizer("x", TrainConfig(optimizer="lamb"))


def rates(**settings: Any) -> list[float]:
    """Return the learning rate of every step of ten epochs of ten steps."""
    recipe = TrainConfig.model_validate({"epochs": 10, "lr": 1.0, "warmup": 0.0, **settings})
    schedule = Schedule(recipe, 10)
    return [schedule.rate(step) for step in range(100)]


def test_courses_of_the_learning_rate() -> None:
    """Warm-up rises in a line; cosine falls to nearly nothing; steps fall at once; constant stays."""
    warm = rates(warmup=0.2, schedule="constant")
    assert warm[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert set(warm[20:]) == {1.0}
    cosine = rates(warmup=0.2)
    assert cosine[20] == 1.0
    assert cosine[60] == pytest.approx(0.5)
    assert 0 < cosine[99] < 0.01
    assert all(a > b for a, b in pairwise(cosine[20:]))
    steps = rates(schedule="step", decay_epochs=4, decay_rate=0.5)
    assert [steps[i] for i in (0, 39, 40, 79, 80)] == [1, 1, 0.5, 0.5, 0.25]


def test_plateau_waits_and_remembers() -> None:
    """After more than `decay_patience` epochs without a lower loss; its memory survives a resume."""
    recipe = TrainConfig(
        epochs=10, lr=1.0, warmup=0.0, schedule="plateau", decay_rate=0.3, decay_patience=2
    )
    rising = Schedule(recipe.model_copy(update={"warmup": 0.5}), 10)
    for _ in range(5):
        rising.end_epoch(1.0, 40)
    assert rising.rate(60) == 1.0  # no plateau while the rate still rises
    schedule = Schedule(recipe, 10)
    for loss in (1.0, 0.5, 0.6, 0.5):
        schedule.end_epoch(loss, 10)
    again = Schedule(recipe, 10)
    again.memory = dict(schedule.memory)
    assert again.rate(40) == 1.0
    again.end_epoch(0.7, 50)
    assert again.rate(50) == pytest.approx(0.3)
    for loss in (0.1, 0.2, 0.2, 0.2):
        again.end_epoch(loss, 60)
    assert again.rate(90) == pytest.approx(0.09)
