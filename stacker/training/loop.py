"""Stage one: fine-tune one backbone on the training part of one fold.

The loop reads from top to bottom and knows nothing of files: pixels and labels come in, epochs go out
through `on_epoch` with a snapshot to go on from, and the model is left with the weights of its best
epoch, chosen on the fold's inner validation images, or of the last one where these are of few cases.
Every random choice comes from the seed, so that a job started again, from its beginning or from a
snapshot, ends with the same weights.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn.functional import one_hot

from stacker.backbones.backbone import Backbone
from stacker.backbones.devices import Batch, Machine, Subset, autocast, rng_state, set_rng_state
from stacker.backbones.zoo import ModelEmaV3
from stacker.config.training import TrainConfig
from stacker.errors import BackboneError
from stacker.training.augment import draw_order, mix, vary
from stacker.training.measures import Epoch, Loss, check_start, merit, settle, to_two_logits, validate
from stacker.training.optimizer import Schedule, make_optimizer, set_trainable
from stacker.training.record import Snapshot, State, optimizer_state, restore_optimizer

log = logging.getLogger(__name__)


def finetune(
    backbone: Backbone,
    train: Subset,
    validation: Subset,
    recipe: TrainConfig,
    machine: Machine,
    on_epoch: Callable[[Epoch, Callable[[], Snapshot]], None] = lambda *_: None,
    on_images: Callable[[int], None] = lambda _: None,
    snapshot: Snapshot | None = None,
) -> Epoch:
    """Train the model in place and leave it with its best weights; return the best epoch's record.

    Where validation has few cases of a class, the last epoch counts as the best. `on_epoch` hears every
    epoch's record with a function that takes a snapshot, `on_images` the size of every batch. Raise
    BackboneError when the loss is not a number any more.
    """
    recipe = settle(recipe, validation, backbone.name)
    training = Training(backbone, train, recipe, machine)
    if snapshot is not None:
        training.restore(snapshot)
    for number in range(len(training.epochs) + 1, recipe.epochs + 1):
        if training.out_of_patience():
            break
        training.set_trainable(number)
        started = time.perf_counter()
        order = draw_order(train, recipe.balance, training.order_rng)[: training.images]
        batches = train.batches(order, recipe.batch_size, machine.device)
        first, train_loss = training.step, training.run_epoch(batches, on_images)
        seconds = time.perf_counter() - started
        if not math.isfinite(train_loss):
            raise BackboneError(
                f"{backbone.name}: the loss is {train_loss} in epoch {number}; lower the learning rate "
                f"(--set backbones.{backbone.name}.train.lr={recipe.lr / 3:.0e}) and run it again"
            )
        epoch = {
            "epoch": number,
            "train_loss": round(train_loss, 6),
            **validate(training.judged, backbone, validation, training.loss, recipe.batch_size, machine),
            "lr": training.schedule.rate(training.step - 1),
            "lr_by_step": training.schedule.course(first, training.step),
            "accumulate": training.accumulate,
            "images_per_second": round(len(order) / seconds, 2),
            **_memory(machine.device),
        }
        training.end_epoch(epoch)
        on_epoch(epoch, training.snapshot)
    return training.finish()


class Training:
    """What changes while a backbone is trained."""

    def __init__(self, backbone: Backbone, train: Subset, recipe: TrainConfig, machine: Machine) -> None:
        torch.manual_seed(machine.seed)
        self.order_rng = np.random.default_rng(machine.seed)
        self.augment_rng = torch.Generator().manual_seed(machine.seed)
        self.backbone, self.recipe, self.machine = backbone, recipe, machine
        classes = int(train.labels.max()) + 1
        self.loss = Loss(recipe, train.labels[train.rows], classes, machine.device)
        self.model = backbone.model
        if recipe.loss == "bce":
            self.model.reset_classifier(1)
        self.model.requires_grad_(True).to(machine.device, memory_format=torch.channels_last)
        if machine.device.type == "cuda":  # after the move: CUDA must have been initialised
            torch.cuda.reset_peak_memory_stats(machine.device)
        self.forward = torch.compile(self.model) if machine.compile else self.model
        self.optimizer = make_optimizer(self.model, recipe)
        self.images = len(train.rows) - (len(train.rows) % recipe.batch_size == 1)  # BatchNorm needs two
        self.schedule = Schedule(recipe, math.ceil(self.images / recipe.batch_size))
        self.ema = ModelEmaV3(self.model, recipe.ema, use_warmup=True) if recipe.ema else None
        self.accumulate = recipe.accumulate
        self.step, self.started_high = 0, False
        self.epochs: list[Epoch] = []
        self.best: Epoch = {}
        self.best_state: State = {}

    @property
    def judged(self) -> nn.Module:
        """The model that is validated and kept: the moving average where there is one."""
        model: nn.Module = self.ema.module if self.ema else self.model
        return model

    def set_trainable(self, epoch: int) -> None:
        """Freeze and unfreeze as the recipe has it for an epoch."""
        wanted = self.recipe.trainable_in(epoch)
        count = set_trainable(self.model, wanted)
        if epoch == 1 or wanted != self.recipe.trainable_in(epoch - 1):
            log.debug("%s: %s trainable: %d parameters", self.backbone.name, wanted, count)

    def run_epoch(self, batches: Iterable[Batch], on_images: Callable[[int], None]) -> float:
        """Take an optimizer step for every batch; return the mean loss."""
        losses = []
        for pixels_BHWC, labels_B in batches:
            targets_BK = one_hot(labels_B, self.loss.classes).float()
            how = (self.recipe.augment, self.augment_rng)
            colours_BHWC, targets_BK = mix(vary(pixels_BHWC, *how), targets_BK, *how)
            images_BCHW = self.backbone.scale(colours_BHWC)
            self.schedule.apply(self.optimizer, self.step)
            losses.append(self._gradient(images_BCHW, targets_BK))
            if self.step == 0:
                self._check_start(float(losses[0]))
            if self.recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if self.ema:
                self.ema.update(self.model, step=self.step)
            on_images(len(labels_B))
        mean = float(torch.stack(losses).mean())
        if self.step == len(losses) and not self.started_high:
            name, lower = self.backbone.name, f"{self.recipe.lr / 10:.0e}"
            advice = f"the learning rate may be too high; try --set backbones.{name}.train.lr={lower}"
            loss = "the mean training loss of the first epoch"
            check_start(name, loss, mean, self.loss.classes, advice)
        return mean

    def _check_start(self, loss: float) -> None:
        """Warn where the model is far from guessing before it has learnt anything."""
        name = self.backbone.name
        look = (
            f"check the weights it starts from (backbones.{name}.weights) and the mean and std of its "
            f"input (backbones.{name}.mean and .std)"
        )
        first = "the loss of the first batch, before any learning,"
        self.started_high = check_start(name, first, loss, self.loss.classes, look)

    def _gradient(self, images_BCHW: Tensor, targets_BK: Tensor) -> Tensor:
        """Add up the gradient of a batch, slice by slice; smaller slices when memory is short."""
        while True:
            try:
                return self._gradient_of_slices(images_BCHW, targets_BK)
            except torch.OutOfMemoryError:
                if self.accumulate * 2 > self.recipe.batch_size // 2:
                    raise BackboneError(
                        f"{self.backbone.name}: out of memory with "
                        f"{self.recipe.batch_size // self.accumulate} images at once; take "
                        "a smaller images.size or another backbone"
                    ) from None
            except TorchDynamoException as error:
                raise BackboneError(
                    f"{self.backbone.name}: torch.compile failed ({error}); turn it off "
                    "(--set compile=false)"
                ) from None
            except RuntimeError as error:
                if "deterministic implementation" not in str(error):
                    raise
                raise BackboneError(f"{self.backbone.name}: deterministic=true: {error}") from None
            self.optimizer.zero_grad(set_to_none=True)
            if self.machine.device.type == "cuda":
                torch.cuda.empty_cache()
            self.accumulate *= 2
            log.warning(
                "%s: out of memory; a batch of %d is now processed in %d slices (as with --set "
                "train.accumulate=%d)",
                *(self.backbone.name, len(images_BCHW), self.accumulate, self.accumulate),
            )

    def _gradient_of_slices(self, images_BCHW: Tensor, targets_BK: Tensor) -> Tensor:
        slices = min(self.accumulate, max(1, len(images_BCHW) // 2))
        weight, losses = self.loss.weight(targets_BK), []
        pairs = zip(images_BCHW.tensor_split(slices), targets_BK.tensor_split(slices), strict=True)
        for images, targets in pairs:
            with autocast(self.machine.device, self.machine.precision):
                logits = self.forward(images)
            loss = self.loss(logits.float(), targets) / weight
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def end_epoch(self, epoch: Epoch) -> None:
        """Remember an epoch, and its weights when it is the best so far."""
        self.epochs.append(epoch)
        self.schedule.end_epoch(epoch["val_loss"], self.step)
        if not self.best or merit(epoch, self.recipe.monitor) > merit(self.best, self.recipe.monitor):
            self.best = epoch
            self.best_state = {k: v.detach().clone() for k, v in self.judged.state_dict().items()}

    def out_of_patience(self) -> bool:
        """Say whether the scores have not risen for too many epochs."""
        patience = self.recipe.patience
        return patience is not None and len(self.epochs) - self.best.get("epoch", 0) >= patience

    def finish(self) -> Epoch:
        """Leave the model with its best weights."""
        if self.recipe.loss == "bce":
            to_two_logits(self.model, self.best_state)
            self.model.to(self.machine.device)
        else:
            self.model.load_state_dict(self.best_state)
        return self.best

    def snapshot(self) -> Snapshot:
        """Take down everything that the next epochs depend on."""
        memory, plain = optimizer_state(self.optimizer)
        tensors = {"model": dict(self.model.state_dict()), "optimizer": memory}
        tensors["rng"] = {"cpu": torch.get_rng_state(), "augment": self.augment_rng.get_state()}
        if (state := rng_state(self.machine.device)) is not None:
            tensors["rng"]["device"] = state
        if self.ema:
            tensors["ema"] = dict(self.ema.module.state_dict())
        if self.best is not self.epochs[-1]:  # else they are the judged model's
            tensors["best"] = self.best_state
        facts = {
            "epochs": self.epochs,
            "best": self.best["epoch"],
            "step": self.step,
            "accumulate": self.accumulate,
            "schedule": dict(self.schedule.memory),
            "order_rng": self.order_rng.bit_generator.state,
            "optimizer": plain,
        }
        return Snapshot(tensors, facts)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where a snapshot was taken."""
        tensors, facts = snapshot.tensors, snapshot.facts
        self.model.load_state_dict(tensors["model"])
        restore_optimizer(self.optimizer, tensors["optimizer"], facts["optimizer"])
        torch.set_rng_state(tensors["rng"]["cpu"])
        self.augment_rng.set_state(tensors["rng"]["augment"])
        if "device" in tensors["rng"]:
            set_rng_state(self.machine.device, tensors["rng"]["device"])
        if self.ema:
            self.ema.module.load_state_dict(tensors["ema"])
        self.order_rng.bit_generator.state = facts["order_rng"]
        self.schedule.memory = facts["schedule"]
        self.step, self.accumulate = facts["step"], facts["accumulate"]
        self.epochs = facts["epochs"]
        self.best = self.epochs[facts["best"] - 1]
        best = tensors.get("best", self.judged.state_dict())
        self.best_state = {k: v.detach().clone() for k, v in best.items()}


def _memory(device: torch.device) -> dict[str, float]:
    """Return the most memory that the GPU held, in GB."""
    if device.type != "cuda":
        return {}
    return {"gpu_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 2)}
