"""Stage one: fine-tune one backbone on the training part of one fold.

The loop reads from top to bottom and knows nothing of files: pixels and labels come in, epochs go out
through `log_epoch`, and the model is left with the weights of its best epoch, chosen on the fold's inner
validation images. Every random choice comes from the seed, so that a job started again after an
interruption ends with the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stacker.backbone import Backbone, autocast
from stacker.config import TrainConfig
from stacker.errors import BackboneError
from stacker.metrics import scores
from stacker.pixels import Pixels

Epoch = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Rows of the store with their class indices."""

    pixels: Pixels
    labels: np.ndarray
    rows: np.ndarray

    def batches(
        self, order: np.ndarray, size: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (pixels_BHWC uint8, labels_B) on the device, in the given order of rows."""
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            pixels = torch.from_numpy(self.pixels[chosen])
            labels = torch.from_numpy(self.labels[chosen])
            if device.type == "cuda":
                pixels, labels = pixels.pin_memory(), labels.pin_memory()
            yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def finetune(
    backbone: Backbone,
    fit: Part,
    validation: Part,
    recipe: TrainConfig,
    seed: int,
    device: torch.device,
    precision: torch.dtype,
    log_epoch: Callable[[Epoch], None],
) -> Epoch:
    """Train the model in place and leave it with its best weights; return the best epoch's record.

    Raise BackboneError when the loss is not a number any more.
    """
    torch.manual_seed(seed)
    order_rng = np.random.default_rng(seed)
    augment_rng = torch.Generator(device).manual_seed(seed)
    model = backbone.model.requires_grad_(True).to(device)
    classes = int(fit.labels.max()) + 1
    weights = _class_weights(fit.labels[fit.rows], classes, recipe.class_weights).to(device)
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, recipe.weight_decay), lr=recipe.lr, fused=True
    )
    images = len(fit.rows) - (len(fit.rows) % recipe.batch_size == 1)  # BatchNorm cannot train on one
    steps_per_epoch = math.ceil(images / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, _warmup_then_cosine(recipe.epochs * steps_per_epoch, recipe.warmup)
    )
    best: Epoch = {}
    best_state: dict[str, Tensor] = {}
    for number in range(1, recipe.epochs + 1):
        started = time.perf_counter()
        model.train()
        losses = []
        order = _interleave(fit, order_rng)[:images]
        for pixels_BHWC, labels_B in fit.batches(order, recipe.batch_size, device):
            images_BCHW = _augment(backbone.normalise(pixels_BHWC), recipe, augment_rng)
            with autocast(device, precision):
                logits_BK = model(images_BCHW)
            loss = cross_entropy(
                logits_BK.float(), labels_B, weights, label_smoothing=recipe.label_smoothing
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        train_loss = float(torch.stack(losses).mean())
        if not math.isfinite(train_loss):
            raise BackboneError(
                f"{backbone.name}: the loss is {train_loss} in epoch {number}; lower the learning rate "
                f"(--set backbones.{backbone.name}.lr={recipe.lr / 3:.0e}) and run it again"
            )
        seconds = time.perf_counter() - started
        epoch = {
            "epoch": number,
            "train_loss": round(train_loss, 6),
            **_validate(backbone, validation, recipe.batch_size, device, precision),
            "lr": schedule.get_last_lr()[0],
            "images_per_second": round(images / seconds, 1),
        }
        if not best or _merit(epoch) > _merit(best):
            best = epoch
            best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}
        log_epoch(epoch)
        if recipe.patience is not None and number - best["epoch"] >= recipe.patience:
            break
    model.load_state_dict(best_state)
    return best


def _merit(epoch: Epoch) -> tuple[float, float]:
    """Order epochs by how well they separate the classes and decide between them, then by loss.

    Loss alone would prefer an early, undecided epoch: the running statistics of BatchNorm lag behind in
    short trainings, and a network that separates well is punished for being badly calibrated.
    """
    return epoch["val_auc"] + epoch["val_balanced_accuracy"], -epoch["val_loss"]


def _interleave(part: Part, rng: np.random.Generator) -> np.ndarray:
    """Return the rows in random order, each class spread evenly, so that every batch has its mix.

    What all images have in common then cancels in a batch's gradient from the first step on, which a
    network without normalisation layers (VGG) needs to leave its starting plateau.
    """
    labels = part.labels[part.rows]
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    rows: np.ndarray = part.rows[np.argsort(place)]
    return rows


@torch.inference_mode()
def _validate(
    backbone: Backbone, part: Part, batch_size: int, device: torch.device, precision: torch.dtype
) -> Epoch:
    """Return loss, accuracy and AUC on the inner validation images."""
    backbone.model.eval()
    logits, labels = [], []
    for pixels_BHWC, labels_B in part.batches(part.rows, batch_size, device):
        with autocast(device, precision):
            logits.append(backbone.model(backbone.normalise(pixels_BHWC)).float())
        labels.append(labels_B)
    logits_NK, labels_N = torch.cat(logits), torch.cat(labels)
    found = scores(
        labels_N.cpu().numpy(), logits_NK.softmax(1).cpu().numpy(), np.ones((1, len(labels_N)))
    )
    wanted = ("accuracy", "balanced_accuracy", "auc")
    return {
        "val_loss": round(float(cross_entropy(logits_NK, labels_N)), 6),
        **{f"val_{name}": round(float(found[name][0]), 6) for name in wanted},
    }


def _augment(images_BCHW: Tensor, recipe: TrainConfig, rng: torch.Generator) -> Tensor:
    """Flip, turn by quarters and jitter the colour, each image by its own draw.

    A tissue section has no up or down: all eight symmetries of the square are equally likely.
    """
    device, count = images_BCHW.device, len(images_BCHW)
    if recipe.flips:
        turned = torch.empty_like(images_BCHW)
        symmetry_B = torch.randint(8, (count,), generator=rng, device=device)
        for symmetry in range(8):
            chosen = symmetry_B == symmetry
            images = images_BCHW[chosen].rot90(symmetry % 4, dims=(2, 3))
            turned[chosen] = images.flip(3) if symmetry >= 4 else images
        images_BCHW = turned
    if recipe.colour_jitter > 0:
        draw = torch.rand(2, count, 3, 1, 1, generator=rng, device=device) * 2 - 1
        gain_BC11, shift_BC11 = draw * recipe.colour_jitter
        images_BCHW = images_BCHW * (1 + gain_BC11) + shift_BC11
    return images_BCHW


def _class_weights(labels: np.ndarray, classes: int, policy: str) -> Tensor:
    """Return one loss weight per class: inversely proportional to its images, or all equal."""
    if policy == "none":
        return torch.ones(classes)
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices and filters only: biases and normalisation scales are left alone."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _warmup_then_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """Return the one-cycle factor of the learning rate: linear up, then half a cosine down to zero."""
    rising = round(steps * warmup)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return factor
