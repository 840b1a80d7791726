"""What a model in training is measured by: the loss that is minimised, and scores that choose its epoch.

The loss is cross-entropy over the classes, or binary cross-entropy on one logit. Losses are sums over
images, weighted by class, and divided by the weight of the whole batch: a batch that passes in slices
has the same gradient as one that passes at once. Scores are those on the inner validation images.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from stacker.backbones.backbone import Backbone
from stacker.backbones.devices import Machine, Subset, autocast
from stacker.config.training import TrainConfig
from stacker.errors import BackboneError, plural
from stacker.scores.metrics import scores

log = logging.getLogger(__name__)
Epoch = dict[str, Any]
FAR = math.log(2)  # above ln K: the right class has half of the probability that guessing gives it
FEWEST_CASES = 5  # of a class, below which the scores of an epoch are those of a few patients


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


def to_two_logits(model: Any, state: dict[str, Tensor]) -> None:
    """Load a one-logit state into a model of two that gives the same probabilities.

    softmax(-z/2, z/2) is sigmoid(z): everything behind stage one sees a plain two-class model.
    """
    place = _place_of_classifier(model)
    model.load_state_dict(state)
    one = {name: value.detach().clone() for name, value in model.get_classifier().state_dict().items()}
    model.reset_classifier(2)
    if _place_of_classifier(model) != place:
        raise BackboneError(
            f"{type(model).__name__}: its classifier moves when the number of classes changes, so it "
            "cannot be trained with loss=bce; use loss=cross_entropy"
        )
    model.get_classifier().load_state_dict(
        {name: torch.cat([-value / 2, value / 2]) for name, value in one.items()}
    )


def _place_of_classifier(model: Any) -> str:
    classifier = model.get_classifier()
    names: list[str] = [name for name, module in model.named_modules() if module is classifier]
    return names[0]


@torch.inference_mode()
def logits_of(
    model: nn.Module, backbone: Backbone, subset: Subset, batch_size: int, machine: Machine
) -> Tensor:
    """Return a model's logits for some images, on the device."""
    model.eval()
    logits = []
    for pixels_BHWC, _ in subset.batches(subset.rows, batch_size, machine.device):
        with autocast(machine.device, machine.precision):
            logits.append(model(backbone.normalise(pixels_BHWC)).float())
    return torch.cat(logits)


@torch.inference_mode()
def validate(
    model: nn.Module, backbone: Backbone, subset: Subset, loss: Loss, batch_size: int, machine: Machine
) -> Epoch:
    """Return loss and scores on the inner validation images, the commonest answer and its share."""
    labels = subset.labels[subset.rows]
    logits_NK = loss.as_classes(logits_of(model, backbone, subset, batch_size, machine)).cpu()
    shares_NK = logits_NK.softmax(1).numpy()
    values = scores(labels, shares_NK, np.ones((1, len(labels))))
    values["precision"] = np.nan_to_num(values["precision"])  # a class that is never answered
    values["recall"] = values.get("sensitivity", values["balanced_accuracy"])
    wanted = ("accuracy", "balanced_accuracy", "auc", "precision", "recall", "f1")
    answers = np.bincount(shares_NK.argmax(1), minlength=shares_NK.shape[1])
    return {
        "val_loss": round(float(cross_entropy(logits_NK, torch.from_numpy(labels))), 6),
        **{f"val_{name}": round(float(values[name][0]), 6) for name in wanted},
        "val_majority": subset.name_of(int(answers.argmax())),
        "val_majority_share": round(float(answers.max() / len(labels)), 6),
    }


def check_start(name: str, when: str, loss: float, classes: int, advice: str) -> bool:
    """Warn of a loss far above that of guessing; say whether it is.

    That is ln K of K classes, whatever the weights of the classes, the smoothing and the mixing: twice
    that of two classes, or as much more of several, is no start that a new classifier makes.
    """
    guessing = math.log(classes)
    if loss <= guessing + FAR:
        return False
    log.warning(
        "%s: %s is %.2f, and guessing among %d classes gives %.2f (ln %d): %s",
        *(name, when, loss, classes, guessing, classes, advice),
    )
    return True


def settle(recipe: TrainConfig, validation: Subset, name: str) -> TrainConfig:
    """Return the recipe as it is followed: with few validation cases, the last epoch is kept.

    With fewer than five cases of a class, the epoch that looks best is the one that suits these
    patients. The schedule then runs to its end, and validation is only watched.
    """
    if recipe.monitor == "last" or not len(validation.cases):
        return recipe
    labels, cases = validation.labels[validation.rows], validation.cases[validation.rows]
    classes = np.unique(validation.labels)
    fewest, label = min((len(np.unique(cases[labels == k])), int(k)) for k in classes)
    if fewest >= FEWEST_CASES:
        return recipe
    log.info(
        "%s: only %s of %s, and %d are needed to choose the best epoch: training runs to its end, and "
        "the last epoch is kept",
        *(name, plural(fewest, "validation case"), validation.name_of(label), FEWEST_CASES),
    )
    return recipe.model_copy(update={"monitor": "last", "patience": None})


def merit(epoch: Epoch, monitor: str) -> tuple[float, float]:
    """Order epochs by what the recipe looks at, then by loss.

    Loss alone would prefer an early, undecided epoch: the running statistics of BatchNorm lag behind in
    short trainings, and a network that separates well is punished for being badly calibrated.
    """
    if monitor == "last":
        return epoch["epoch"], 0.0
    loss = epoch["val_loss"] if math.isfinite(epoch["val_loss"]) else math.inf
    if monitor == "loss":
        return -loss, 0.0
    values = (epoch[f"val_{name}"] for name in monitor.split("+"))
    return sum(value for value in values if math.isfinite(value)), -loss
