"""What training costs on generated images, loop by loop: ours as it is, ours otherwise, and timm's.

Pixels are drawn at random and lie in memory, weights are random: nothing is read from a disk. timm's
train.py is not in its package; its loop stands here in plain words, with its loader that prefetches on a
side stream, its optimizer, autocast and channels_last. One loop is built, warmed up and timed after the
other, so that the most memory that it takes is its own.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from stacker.backbones.devices import Machine, Subset, autocast
from stacker.backbones.zoo import PrefetchLoader, fast_collate, optimizers, timm
from stacker.bench.timing import is_rough, seconds
from stacker.bench.train import COMPILED, OURS, STILL, SYNTHETIC, begin, train_epoch
from stacker.bench.usage import Usage
from stacker.config.training import TrainConfig

CONTIGUOUS, TIMM = "our loop, no channels_last", "timm's loop"
LOOPS = (OURS, SYNTHETIC, CONTIGUOUS, TIMM)  # quick to start
Epoch = Callable[[Subset], object]
WARM_UP = 4  # batches


@dataclass(frozen=True)
class Task:
    """What is trained: a backbone, on so many generated images of a size, in batches."""

    backbone: str
    size: int
    batch_size: int
    images: int
    repeats: int
    machine: Machine
    workers: int = 0  # that timm's loader has


@dataclass(frozen=True)
class LoopCost:
    """How fast a loop is, in images per second, and what it takes of the device, where that is known."""

    backbone: str
    loop: str
    images: int
    repeats: tuple[float, ...]
    rough: bool
    peak_gb: float | None
    utilisation: float | None


def generate(images: int, size: int) -> Subset:
    """Return random images of two classes, each its own case."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8)
    rows = np.arange(images)
    return Subset(pixels, rows % 2, rows, rows)


def time_loop(task: Task, loop: str, part: Subset, limit: float) -> LoopCost:
    """Warm a loop up and time its epochs, of as many images as fit into so many seconds."""
    device, size = task.machine.device, task.batch_size
    started = time.perf_counter()
    epoch = _epoch(task, loop, part)
    epoch(replace(part, rows=part.rows[:size]))
    few = replace(part, rows=part.rows[: WARM_UP * size])
    each = seconds(partial(epoch, few), device) / len(few.rows)
    warm_up = time.perf_counter() - started
    fitting = int((limit - warm_up) / (task.repeats + 1) / each) // size * size
    images = min(len(part.rows) // size * size, max(size, fitting))
    chosen = replace(part, rows=part.rows[:images])
    epoch(chosen)  # timm's workers start
    with Usage(device) as usage:
        rates = [images / seconds(partial(epoch, chosen), device) for _ in range(task.repeats)]
    del epoch
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    rough = is_rough(len(rates), sum(images / rate for rate in rates))
    rounded = tuple(round(rate, 1) for rate in rates)
    facts = (images, rounded, rough, usage.peak_gb, usage.utilisation)
    return LoopCost(task.backbone, loop, *facts)


def _epoch(task: Task, loop: str, part: Subset) -> Epoch:
    """Return what runs an epoch on some of the images."""
    if loop == TIMM:
        return TimmLoop(task)
    recipe = TrainConfig(batch_size=task.batch_size)
    start = partial(begin, (task.size, task.size), task.backbone, part)
    if loop == SYNTHETIC:
        still = start(recipe.model_copy(update={"augment": STILL}), task.machine)
        (batch,) = part.batches(part.rows[: task.batch_size], task.batch_size, task.machine.device)
        return lambda some: still.run_epoch(
            repeat(batch, len(some.rows) // task.batch_size), lambda _: None
        )
    training = start(recipe, replace(task.machine, compile=loop == COMPILED))
    if loop == CONTIGUOUS:
        training.model.to(memory_format=torch.contiguous_format)
        training.forward = partial(_contiguous, training.model)
    return partial(train_epoch, training)


def _contiguous(model: nn.Module, images_BCHW: Tensor) -> Any:
    return model(images_BCHW.contiguous())


class TimmLoop:
    """The loop of timm's train.py on images in memory, with the flags that suit a GPU best."""

    def __init__(self, task: Task) -> None:
        self.task, device = task, task.machine.device
        torch.manual_seed(task.machine.seed)
        self.model: Any = timm.create_model(task.backbone, num_classes=2)
        self.model.to(device, memory_format=torch.channels_last).train()
        recipe = TrainConfig()
        decay = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        self.optimizer = optimizers().create_optimizer_v2(self.model, opt=recipe.optimizer, **decay)
        self.loaders: dict[int, PrefetchLoader] = {}

    def __call__(self, part: Subset) -> None:
        """Train an epoch."""
        machine = self.task.machine
        for images_BCHW, labels_B in self._batches(part):
            with autocast(machine.device, machine.precision):
                logits_BK = self.model(images_BCHW.contiguous(memory_format=torch.channels_last))
                loss = cross_entropy(logits_BK, labels_B)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def _batches(self, part: Subset) -> PrefetchLoader:
        """Return a loader whose processes live on from epoch to epoch, normalising on the device."""
        if len(part.rows) not in self.loaders:
            self.loaders.clear()
            loader: Any = DataLoader(
                Pictures(part),  # type: ignore[arg-type]  # a length and rows are all that it needs
                batch_size=self.task.batch_size,
                shuffle=True,
                num_workers=self.task.workers,
                collate_fn=fast_collate,
                pin_memory=self.task.machine.device.type == "cuda",
                drop_last=True,
                persistent_workers=self.task.workers > 0,
            )
            self.loaders[len(part.rows)] = PrefetchLoader(loader, device=self.task.machine.device)
        return self.loaders[len(part.rows)]


@dataclass(frozen=True)
class Pictures:
    """Images as timm's loader takes them: channels first, with a label."""

    part: Subset

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.part.rows)

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        """Return an image and its label."""
        row = self.part.rows[place]
        return self.part.pixels[row].transpose(2, 0, 1), int(self.part.labels[row])
