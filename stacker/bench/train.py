"""How fast stage one trains, and what holds it back.

Our loop on the images is compared with the same loop on one batch that lies on the device already and
is not augmented (what the hardware can do), with the loader alone (what the data can do), and, where its
script is given, with timm's own train.py on the same files, size, batch and precision. How many images
and repeats fit into the time is planned from a warm-up of every way.
"""

from __future__ import annotations

import logging
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stacker.backbones.backbone import create
from stacker.backbones.devices import Machine, Subset
from stacker.backbones.weights import drop_settings
from stacker.bench.costs import describe_work
from stacker.bench.images import shuffled_images
from stacker.bench.timing import (
    MINUTES,
    REPEATS,
    Budget,
    Plan,
    Ratio,
    Timing,
    plan,
    ratio,
    seconds,
    time_rates,
)
from stacker.config.root import Config
from stacker.config.training import AugmentConfig, BackboneConfig, TrainConfig
from stacker.data.manifest import Image
from stacker.errors import ConfigError, plural, require_one_of
from stacker.progress import track
from stacker.training.augment import draw_order
from stacker.training.loop import Training

log = logging.getLogger(__name__)
OURS, COMPILED, SYNTHETIC = "our loop", "our loop, compiled", "our loop, synthetic tensor"
LOADER, PEER = "loader alone", "timm's train.py"
IMAGES = (256, 128, 64)  # per epoch, best first
STARTING = 20.0  # seconds that timm's script takes to start
ENOUGH = 0.9  # of the synthetic rate: nothing but the arithmetic holds the loop back
STILL = AugmentConfig(flips=False, quarter_turns=False, colour_jitter=0)


def bench_train(
    config: Config,
    images: int | None = None,
    repeats: int | None = None,
    minutes: float = MINUTES,
    backbone: str | None = None,
    compiled: bool = False,
    script: Path | None = None,
) -> dict[str, Any]:
    """Time epochs of so many images in all ways; return what was timed, the rates and a verdict.

    Without `images` and `repeats`, as many as fit into the minutes.
    """
    budget, backbone = Budget.of("train", minutes), backbone or next(iter(config.backbones))
    require_one_of("backbone of this config", [backbone], config.backbones)
    machine = replace(Machine.of(config).set_up(), compile=False)
    manifest, pixels, order = shuffled_images(config)
    device, size = machine.device, config.recipe(backbone).batch_size
    wanted = _sizes(images, size, len(order))
    part = Subset(pixels, manifest.labels, order[: wanted[0]], np.array(manifest.cases))
    epochs = _epochs(config, backbone, part, machine, compiled)
    taken = _warm_up(epochs, replace(part, rows=part.rows[:size]), device)
    chosen = _plan(taken, budget, wanted, [repeats] if repeats else REPEATS, script is not None)
    part = replace(part, rows=part.rows[: chosen.images])
    ways = {way: partial(_rate, epoch, part, device) for way, epoch in epochs.items()}
    if script is not None:
        files = [manifest.images[row] for row in part.rows]
        ways[PEER] = partial(_timm, script, files, config, backbone, machine)
    limit = math.inf if repeats else budget.left
    timings = time_rates(ways, chosen.images, chosen.repeats, limit)
    done = len(timings[0].repeats)
    return {
        "backbone": backbone,
        "size": config.images.shape,
        "batch_size": size,
        "precision": str(machine.precision),
        "device": str(device),
        "images": chosen.images,
        "repeats": done,
        "timings": timings,
        "verdict": f"{verdict(timings)}; {describe_work(chosen.images, done)}",
    }


def _plan(
    taken: Mapping[str, float],
    budget: Budget,
    images: Sequence[int],
    repeats: Sequence[int],
    with_script: bool,
) -> Plan:
    """Choose how many images and repeats fit; timm's script starts anew each time, for two epochs."""
    extra, start = (2 * taken[OURS], STARTING) if with_script else (0.0, 0.0)
    each = sum(taken.values()) + extra
    return plan(lambda number, times: times * (start + number * each), budget, images, repeats)


def _epochs(
    config: Config, backbone: str, part: Subset, machine: Machine, compiled: bool
) -> dict[str, Callable[[Subset], object]]:
    """Return what runs an epoch in each way."""
    recipe, device = config.recipe(backbone), machine.device
    start, size = partial(begin, config.images.shape, backbone, part), recipe.batch_size
    still = start(recipe.model_copy(update={"augment": STILL}), machine)
    (batch,) = part.batches(part.rows[:size], size, device)
    epochs: dict[str, Callable[[Subset], object]] = {
        LOADER: partial(_load, size, device),
        OURS: partial(train_epoch, start(recipe, machine)),
        SYNTHETIC: lambda part: still.run_epoch(repeat(batch, len(part.rows) // size), lambda _: None),
    }
    if compiled:
        epochs[COMPILED] = partial(train_epoch, start(recipe, replace(machine, compile=True)))
    return epochs


def _sizes(images: int | None, size: int, there: int) -> list[int]:
    """Return the numbers of images that may be measured, in whole batches; refuse what is none."""
    wanted = [images] if images else [min(number, there) for number in (*IMAGES, size)]
    whole = {number // size * size for number in wanted if size <= number <= there}
    if not whole:
        raise ConfigError(
            f"{'' if images is None else f'--images {images}: '}{there} images are there and a batch "
            f"has {size}",
            f"ask for {size} to {there} images, or lower train.batch_size",
        )
    return sorted(whole, reverse=True)


def _warm_up(
    epochs: Mapping[str, Callable[[Subset], object]], part: Subset, device: torch.device
) -> dict[str, float]:
    """Run a batch twice in every way; return what the second one took per image, in seconds."""
    log.info("warm-up: %s of %s", plural(len(epochs), "way"), plural(len(part.rows), "image"))
    taken = {}
    for way, epoch in track(epochs.items(), "warm-up", len(epochs)):
        epoch(part)
        taken[way] = seconds(partial(epoch, part), device) / len(part.rows)
    return taken


def _rate(epoch: Callable[[Subset], object], part: Subset, device: torch.device) -> float:
    """Return the images per second of an epoch."""
    return len(part.rows) / seconds(partial(epoch, part), device)


def begin(
    shape: tuple[int, int], name: str, part: Subset, recipe: TrainConfig, machine: Machine
) -> Training:
    """Return a training of a randomly initialised backbone, which is as fast as any other."""
    settings, classes = BackboneConfig(weights="random"), int(part.labels.max()) + 1
    backbone = create(name, classes, settings, shape, drop_settings(recipe))
    training = Training(backbone, part, recipe, machine)
    training.set_trainable(1)
    return training


def train_epoch(training: Training, part: Subset) -> None:
    """Run an epoch as stage one does."""
    order = draw_order(part, training.recipe.balance, training.order_rng)
    batches = part.batches(order, training.recipe.batch_size, training.machine.device)
    training.run_epoch(batches, lambda _: None)


def _load(size: int, device: torch.device, part: Subset) -> None:
    """Bring the batches of an epoch to the device, and no further."""
    for _ in part.batches(np.random.default_rng(0).permutation(part.rows), size, device):
        pass


def verdict(timings: Sequence[Timing]) -> str:
    """Say what the loop waits for, and how it compares with the peer."""
    by_way = {timing.way: timing for timing in timings}

    def compared(above: str, below: str) -> Ratio:
        one, other = by_way[above], by_way[below]
        return ratio(one.repeats, other.repeats, one.rough or other.rough)

    share = compared(OURS, SYNTHETIC)
    if share.value >= ENOUGH:
        cause = "arithmetic is the bottleneck"
    elif by_way[LOADER].images_per_second < 2 * by_way[SYNTHETIC].images_per_second:
        cause = "loading is the bottleneck: put 'artifacts' on a faster disk"
    else:
        cause = "augmentation is the bottleneck: see train.augment"
    said = [f"{OURS} at {share.times('the synthetic rate')}: {cause}"]
    if COMPILED in by_way:
        gain = compared(COMPILED, OURS)
        pays = "pays off" if gain.value > 1.05 else "does not pay off"
        said.append(f"compiled {gain.times('as fast')}, which {pays} (compile: true)")
    if PEER in by_way:
        said.append(f"{OURS} at {compared(OURS, PEER).times(f'the rate of {PEER}')}")
    return "; ".join(said)


def _timm(
    script: Path, images: Sequence[Image], config: Config, backbone: str, machine: Machine
) -> float:
    """Run timm's script on links to the same files for two epochs; return the rate of the second.

    Its images are resized and normalised, not varied: that is the cheapest it can do.
    """
    if any(image.index is not None for image in images):
        raise ConfigError(
            "--timm-script reads picture files, and the images of this data set lie in arrays",
            "leave it out",
        )
    recipe, (height, width) = config.recipe(backbone), config.images.shape
    options = (
        f"--train-split train --val-split val --model {backbone} --batch-size {recipe.batch_size} "
        f"--num-classes {len({image.label for image in images})} --input-size 3 {height} {width} "
        f"--opt {recipe.optimizer} --lr {recipe.lr} --epochs 2 --warmup-epochs 0 --log-interval 1 "
        f"--workers {torch.get_num_threads()} --device {machine.device} --channels-last --no-aug "
        "--pin-mem"
    ).split()
    options += ["--amp", "--amp-dtype", "bfloat16"] if machine.precision == torch.bfloat16 else []
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(images):
            for part in ("train", "val") if number < recipe.batch_size else ("train",):
                link = Path(folder, part, image.label, f"{number}{Path(image.path).suffix}")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(image.path).absolute())
        command = [sys.executable, str(script), "--data-dir", folder, "--output", f"{folder}/output"]
        ran = subprocess.run(  # noqa: S603  # the user's own script
            [*command, *options], capture_output=True, text=True, check=False
        )
    output = ran.stdout + ran.stderr
    rates = re.findall(r"Train: 1 .*?\(\s*([\d.]+)s,\s*[\d.]+/s\)", output)
    if ran.returncode or not rates:
        tail = "\n  ".join(output.strip().splitlines()[-5:])
        raise ConfigError(f"--timm-script: {script} ended with {ran.returncode} and no rates:\n  {tail}")
    return recipe.batch_size / float(rates[-1])
