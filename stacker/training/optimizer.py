"""Which layers of a model are trained, by which optimizer, and the course of the learning rate.

A stage is what timm's `group_matcher` says (`layer3` of a ResNet, a dense block with its transition, a
block of a vision transformer); VGG's and AlexNet's end with a max-pool. What belongs to no stage is the
head. What is frozen stays in eval mode: its batch normalisation does not drift, its dropout is off.

The optimizers are torch's and timm's own, by timm's names. The learning rate of a step is that of the
recipe, times the layer's scale, times a factor that is a plain function of the step; only the factor of
`plateau` remembers something, three numbers, which go into the resume file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from stacker.backbones.alexnet import AlexNet
from stacker.backbones.zoo import VGG, group_parameters, optimizers
from stacker.config.training import Trainable, TrainConfig
from stacker.errors import BackboneError, ConfigError, require_one_of

POINTS = 16  # of an epoch at which the learning rate is written down
FUSED = {"adam", "adamw"}  # one kernel for all tensors; SGD's cannot begin with a part of them


def stages(model: Any) -> list[list[str]]:
    """Return the names of each stage's parameters, from the stem on; the last entry is the head."""
    names = [name for name, _ in model.named_parameters()]
    if isinstance(model, VGG | AlexNet):
        return _stages_between_pools(model, names)
    grouped = group_parameters(model, model.group_matcher(coarse=True))
    groups = [grouped[key] for key in sorted(grouped)]
    classifier = {id(p) for p in model.get_classifier().parameters()}
    head = [name for name, p in model.named_parameters() if id(p) in classifier]
    if groups and set(head) <= set(groups[-1]):
        return groups
    rest = [[name for name in group if name not in head] for group in groups]
    return [*filter(None, rest), head]


def _stages_between_pools(model: Any, names: list[str]) -> list[list[str]]:
    """Cut a row of convolutions into stages behind its max-pools."""
    stage_of, stage = {}, 0
    for number, layer in enumerate(model.features):
        stage_of[f"features.{number}"] = stage
        stage += isinstance(layer, nn.MaxPool2d)
    grouped: dict[int, list[str]] = {}
    for name in names:
        grouped.setdefault(stage_of.get(".".join(name.split(".")[:2]), stage + 1), []).append(name)
    return [grouped[key] for key in sorted(grouped)]


def require_stages(backbone: str, model: Any, recipe: TrainConfig) -> None:
    """Raise BackboneError where a recipe trains more stages than there are, now or later."""
    count = len(stages(model)) - 1
    for wanted in (recipe.trainable, *recipe.unfreeze.values()):
        if isinstance(wanted, int) and wanted > count:
            raise BackboneError(
                f"backbones.{backbone}: the recipe trains {wanted} stages and the model has {count}; "
                "use 'all' to train everything"
            )


def set_trainable(model: Any, wanted: Trainable) -> int:
    """Freeze all but the wanted part, and put that in training mode; return its number of parameters."""
    groups = stages(model)
    count = len(groups) if wanted == "all" else 1 if wanted == "head" else 1 + wanted
    names = {name for group in groups[-count:] for name in group}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def require_optimizer(backbone: str, recipe: TrainConfig) -> None:
    """Raise ConfigError for an optimizer that timm does not have, or that needs second derivatives."""
    # no resume file could hold the lists that Kron keeps
    listed = optimizers().list_optimizers(exclude_filters=["bnb*", "fused*", "kron*"])
    known = [name for name in listed if not optimizers().get_optimizer_info(name).second_order]
    try:
        require_one_of("optimizer", [recipe.optimizer], known)
    except ConfigError as error:
        raise ConfigError(f"backbones.{backbone}: {error}") from None


def make_optimizer(model: nn.Module, recipe: TrainConfig) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over all parameters; those without gradients are left alone.

    Biases and normalisation scales do not decay. Layers further from the head learn slower where
    `layer_decay` is given.
    """
    special: dict[str, bool] = {"fused": True} if recipe.optimizer in FUSED else {}
    if recipe.momentum == 0 and recipe.optimizer == "sgd":
        special["nesterov"] = False  # there is nothing to look ahead with
    optimizer: torch.optim.Optimizer = optimizers().create_optimizer_v2(
        model,
        opt=recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        layer_decay=recipe.layer_decay,
        **special,
    )
    return optimizer


class Schedule:
    """The learning rate by step: warm-up, then the recipe's course; `memory` is what a plateau needs.

    timm's own plateau is deprecated, as its memory is in no checkpoint.
    """

    def __init__(self, recipe: TrainConfig, steps_per_epoch: int) -> None:
        total = recipe.epochs * steps_per_epoch
        self.recipe, self.steps_per_epoch = recipe, steps_per_epoch
        self.rising = round(total * recipe.warmup)
        self.left = max(1, total - self.rising)
        self.memory = {"factor": 1.0, "best": math.inf, "waited": 0}

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rates for a step, counted from 0."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step) * group.get("lr_scale", 1.0)

    def rate(self, step: int) -> float:
        """Return the learning rate of the last layers."""
        if step < self.rising:
            return self.recipe.lr * (step + 1) / self.rising
        return self.recipe.lr * self._factor(step - self.rising)

    def course(self, first: int, end: int) -> list[list[float]]:
        """Return some steps of an epoch, the first and the last among them, with their rates."""
        steps = sorted({round(step) for step in np.linspace(first, end - 1, POINTS)})
        return [[step, self.rate(step)] for step in steps]

    def _factor(self, step: int) -> float:
        """Return what the rate is multiplied with, by the step after the warm-up."""
        if self.recipe.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(step, self.left) / self.left))
        if self.recipe.schedule == "step":
            every = self.recipe.decay_epochs * self.steps_per_epoch
            return self.recipe.decay_rate ** (step // every)
        return self.memory["factor"]  # of the plateau; a constant rate never hears a loss

    def end_epoch(self, val_loss: float, step: int) -> None:
        """Hear the validation loss after so many steps; while the rate rises it is no plateau.

        After more than `decay_patience` epochs without a lower one, the rate shrinks by `decay_rate`.
        """
        if self.recipe.schedule != "plateau" or step < self.rising:
            return
        memory = self.memory
        memory["waited"] += 1
        if val_loss < memory["best"] * (1 - 1e-4):
            memory |= {"best": val_loss, "waited": 0}
        if memory["waited"] > self.recipe.decay_patience:
            memory |= {"factor": memory["factor"] * self.recipe.decay_rate, "waited": 0}
