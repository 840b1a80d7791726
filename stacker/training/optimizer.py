"""The optimizer of a recipe and the course of its learning rate.

The optimizers are torch's and timm's own, by timm's names. The learning rate of a step is that of the
recipe, times the layer's scale, times a factor that is a plain function of the step; only the factor of
`plateau` remembers something, three numbers, which go into the resume file.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from stacker.config.training import TrainConfig
from stacker.errors import ConfigError, require_one_of

FUSED = {"adam", "adamw"}  # one kernel for all tensors; SGD's cannot begin with a part of them


def require_optimizer(backbone: str, recipe: TrainConfig) -> None:
    """Raise ConfigError for an optimizer that timm does not have, or that needs second derivatives."""
    # no resume file could hold the lists that Kron keeps
    known = [n for n in list_optimizers(exclude_filters=["bnb*", "fused*", "kron*"]) if _usable(n)]
    unknown = [recipe.optimizer] if recipe.optimizer not in known else []
    try:
        require_one_of("optimizer", unknown, known)
    except ConfigError as error:
        raise ConfigError(f"backbones.{backbone}: {error}") from None


def _usable(name: str) -> bool:
    return not get_optimizer_info(name).second_order


def make_optimizer(model: nn.Module, recipe: TrainConfig) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over all parameters; those without gradients are left alone.

    Biases and normalisation scales do not decay. Layers further from the head learn slower where
    `layer_decay` is given.
    """
    special: dict[str, bool] = {"fused": True} if recipe.optimizer in FUSED else {}
    if recipe.momentum == 0 and recipe.optimizer == "sgd":
        special["nesterov"] = False  # there is nothing to look ahead with
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
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
    """The learning rate by step: warm-up, then the recipe's course."""

    def __init__(self, recipe: TrainConfig, steps_per_epoch: int) -> None:
        self.lr = recipe.lr
        self.plateau = _Plateau(recipe) if recipe.schedule == "plateau" else None
        self.course = _course(recipe, steps_per_epoch)
        self.rising = round(recipe.epochs * steps_per_epoch * recipe.warmup)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rates for a step, counted from 0."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step) * group.get("lr_scale", 1.0)

    def rate(self, step: int) -> float:
        """Return the learning rate of the last layers."""
        if step < self.rising:
            return self.lr * (step + 1) / self.rising
        return self.lr * (self.plateau.factor if self.plateau else self.course(step - self.rising))

    def end_epoch(self, val_loss: float, step: int) -> None:
        """Hear the validation loss after so many steps; while the rate rises it is no plateau."""
        if self.plateau and step >= self.rising:
            self.plateau.hear(val_loss)

    def state(self) -> dict[str, float]:
        """Return what is remembered."""
        return dict(vars(self.plateau)) if self.plateau else {}

    def restore(self, state: dict[str, float]) -> None:
        """Remember it again."""
        if self.plateau:
            vars(self.plateau).update(state)


class _Plateau:
    """Shrink the rate by `decay_rate` after more than `decay_patience` epochs without a lower loss.

    timm's own is deprecated, as its memory is in no checkpoint.
    """

    def __init__(self, recipe: TrainConfig) -> None:
        self.decay, self.patience = recipe.decay_rate, recipe.decay_patience
        self.factor, self.best, self.waited = 1.0, math.inf, 0

    def hear(self, loss: float) -> None:
        """Count an epoch."""
        if loss < self.best * (1 - 1e-4):
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.factor, self.waited = self.factor * self.decay, 0


def _course(recipe: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the factor of the rate by the step after the warm-up."""
    total = recipe.epochs * steps_per_epoch
    left = max(1, total - round(total * recipe.warmup))
    every = recipe.decay_epochs * steps_per_epoch
    if recipe.schedule == "cosine":
        return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, left) / left))
    if recipe.schedule == "step":
        return lambda step: recipe.decay_rate ** (step // every)
    return lambda step: 1.0  # noqa: ARG005
