"""How good a model in training is: its scores on inner validation images, and which epoch is better."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stacker.backbones.backbone import Backbone
from stacker.backbones.devices import Subset, autocast
from stacker.config.training import TrainConfig
from stacker.scores.metrics import scores
from stacker.training.losses import Loss

log = logging.getLogger(__name__)
Epoch = dict[str, Any]
FEWEST_CASES = 5  # of a class, below which the scores of an epoch are those of a few patients


@torch.inference_mode()
def answer(
    model: nn.Module,
    backbone: Backbone,
    part: Subset,
    batch_size: int,
    device: torch.device,
    precision: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return a model's logits for a part's images, with their labels."""
    model.eval()
    logits, labels = [], []
    for pixels_BHWC, labels_B in part.batches(part.rows, batch_size, device):
        with autocast(device, precision):
            logits.append(model(backbone.normalise(pixels_BHWC)).float())
        labels.append(labels_B)
    return torch.cat(logits), torch.cat(labels)


@torch.inference_mode()
def validate(
    model: nn.Module,
    backbone: Backbone,
    part: Subset,
    loss: Loss,
    batch_size: int,
    device: torch.device,
    precision: torch.dtype,
) -> Epoch:
    """Return loss and scores on the inner validation images, and the share of the commonest answer."""
    found_NK, labels_N = answer(model, backbone, part, batch_size, device, precision)
    logits_NK, labels_N = loss.as_classes(found_NK).cpu(), labels_N.cpu()
    shares_NK = logits_NK.softmax(1).numpy()
    found = scores(labels_N.numpy(), shares_NK, np.ones((1, len(labels_N))))
    found["precision"] = np.nan_to_num(found["precision"])  # a class that is never answered
    found["recall"] = found.get("sensitivity", found["balanced_accuracy"])
    wanted = ("accuracy", "balanced_accuracy", "auc", "precision", "recall", "f1")
    answers = np.bincount(shares_NK.argmax(1), minlength=shares_NK.shape[1])
    return {
        "val_loss": round(float(cross_entropy(logits_NK, labels_N)), 6),
        **{f"val_{name}": round(float(found[name][0]), 6) for name in wanted},
        "val_commonest": round(float(answers.max() / len(labels_N)), 6),
    }


def settle(recipe: TrainConfig, part: Subset, name: str) -> TrainConfig:
    """Return the recipe as it is followed: with few validation cases, the last epoch is kept.

    With fewer than five cases of a class, the epoch that looks best is the one that suits these
    patients. The schedule then runs to its end, and validation is only watched.
    """
    if recipe.monitor == "last" or not len(part.cases):
        return recipe
    labels, cases = part.labels[part.rows], part.cases[part.rows]
    counts = {int(label): len(np.unique(cases[labels == label])) for label in np.unique(part.labels)}
    fewest = min(counts, key=lambda label: counts[label])
    if counts[fewest] >= FEWEST_CASES:
        return recipe
    log.info(
        "%s: %d validation cases of class %d, %d are needed to choose an epoch: all %d epochs are run "
        "and the last is kept",
        *(name, counts[fewest], fewest, FEWEST_CASES, recipe.epochs),
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
    found = (epoch[f"val_{name}"] for name in monitor.split("+"))
    return sum(score for score in found if math.isfinite(score)), -loss
