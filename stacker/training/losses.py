"""What is minimised: cross-entropy over the classes, or binary cross-entropy on one logit.

Losses are sums over images, weighted by class, and divided by the weight of the whole batch: a batch
that passes in slices has the same gradient as one that passes at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from stacker.config.training import TrainConfig
from stacker.errors import BackboneError


class Loss:
    """The recipe's loss for a model of so many classes."""

    def __init__(
        self, recipe: TrainConfig, labels: np.ndarray, classes: int, device: torch.device
    ) -> None:
        counts = np.bincount(labels, minlength=classes)
        self.classes = classes
        self.binary, self.smoothing = recipe.loss == "bce", recipe.label_smoothing
        weights = np.ones(self.classes)
        if recipe.balance == "weights":  # inversely proportional to the class's images
            weights = len(labels) / (self.classes * np.maximum(counts, 1))
        self.weights_K = torch.tensor(weights, dtype=torch.float32, device=device)

    def weight(self, targets_BK: Tensor) -> Tensor:
        """Return what a batch's sum is divided by."""
        return (targets_BK @ self.weights_K).sum()

    def __call__(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        """Return the weighted sum over the images; targets are shares of the classes."""
        targets_BK = targets_BK * (1 - self.smoothing) + self.smoothing / self.classes
        if not self.binary:
            return cross_entropy(logits_BK, targets_BK, self.weights_K, reduction="sum")
        return binary_cross_entropy_with_logits(
            logits_BK[:, 0], targets_BK[:, 1], targets_BK @ self.weights_K, reduction="sum"
        )

    def as_classes(self, logits_BK: Tensor) -> Tensor:
        """Return one logit per class: one alone stands for two of the same probabilities."""
        return torch.cat([-logits_BK / 2, logits_BK / 2], dim=1) if self.binary else logits_BK


def to_two_logits(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Load a one-logit state into a model of two that gives the same probabilities.

    softmax(-z/2, z/2) is sigmoid(z): everything behind stage one sees a plain two-class model.
    """
    old = _classifier_name(model)
    model.load_state_dict(state)
    one = {name: value.detach().clone() for name, value in model.get_classifier().state_dict().items()}
    model.reset_classifier(2)
    if _classifier_name(model) != old:
        raise BackboneError(f"{type(model).__name__}: its head changes place with the number of classes")
    model.get_classifier().load_state_dict(
        {name: torch.cat([-value / 2, value / 2]) for name, value in one.items()}
    )


def _classifier_name(model: Any) -> str:
    classifier = model.get_classifier()
    names: list[str] = [name for name, module in model.named_modules() if module is classifier]
    return names[0]
