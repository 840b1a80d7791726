"""The optimizer of a recipe and the course of its learning rate.

The optimizers are torch's and timm's own, by timm's names. The learning rate of a step is that of the
recipe, times the layer's scale, times a factor that is a plain function of the step; only the factor of
`plateau` remembers something, three numbers, which go into the resume file.
"""

from __future__ import annotations

import math

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from stacker.config.training import TrainConfig
from stacker.errors import ConfigError, require_one_of

FUSED = {"adam", "adamw"}  # one kernel for all tensors; SGD's cannot begin with a part of them


def require_optimizer(backbone: str, recipe: TrainConfig) -> None:
    """Raise ConfigError for an optimizer that timm does not have, or that needs second derivatives."""
    # no resume file could hold the lists that Kron keeps
    listed = list_optimizers(exclude_filters=["bnb*", "fused*", "kron*"])
    known = [name for name in listed if not get_optimizer_info(name).second_order]
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
