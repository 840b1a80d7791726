"""Measured on this machine, in one run: how fast stage one trains, and what holds it back.

Our loop on the images is compared with the same loop on one batch that lies on the device already and
is not varied (what the hardware can do), with the loader alone (what the data can do), and, where its
script is given, with timm's own train.py on the same files, size, batch and precision.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import torch

from stacker.backbones.backbone import Backbone, create
from stacker.backbones.devices import Machine, Subset
from stacker.backbones.weights import drop_settings
from stacker.bench.images import Timing
from stacker.config.root import Config
from stacker.config.training import AugmentConfig, BackboneConfig, TrainConfig
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import Image
from stacker.data.store import open_usable
from stacker.errors import ConfigError, require_one_of
from stacker.training.augment import draw_order
from stacker.training.loop import Training

OURS, COMPILED, SYNTHETIC, LOADER = (
    "our loop",
    "our loop, compiled",
    "our loop, synthetic tensor",
    "loader alone",
)
PEER = "timm's train.py"
ENOUGH = 0.9  # of the synthetic rate: nothing but the arithmetic holds the loop back


@dataclass(frozen=True)
class TrainBench:
    """The rates of all ways, and what they mean."""

    backbone: str
    size: tuple[int, int]
    batch_size: int
    precision: str
    device: str
    timings: tuple[Timing, ...]
    verdict: str


def bench_train(
    config: Config, backbone: str, images: int, repeats: int, compiled: bool, script: Path | None
) -> TrainBench:
    """Time an epoch of so many images, all ways in turn, `repeats` times after a warm-up."""
    require_one_of("backbone of this config", [backbone], config.backbones)
    machine = Machine.of(config).set_up()
    device, precision = machine.device, machine.precision
    recipe = config.recipe(backbone)
    manifest, pixels = open_usable(
        config.artifacts / ".images", read_manifest(config.data), config.images, config.data.on_error
    )
    images = images // recipe.batch_size * recipe.batch_size
    if not 0 < images <= len(manifest.images):
        raise ConfigError(
            f"--images: a whole number of batches of {recipe.batch_size}, of the {len(manifest.images)} "
            "that there are"
        )
    rows = np.random.default_rng(config.seed).permutation(len(manifest.images))[:images]
    part = Subset(pixels, manifest.labels, rows, np.array(manifest.cases))
    ways: dict[str, Callable[[], float]] = {LOADER: lambda: _load(part, recipe, device)}
    for way, machine in {
        OURS: Machine(device, precision),
        **({COMPILED: Machine(device, precision, compile=True)} if compiled else {}),
    }.items():
        ways[way] = _real(_training(config, backbone, part, recipe, machine), part)
    still = recipe.model_copy(update={"augment": STILL})
    ways[SYNTHETIC] = _synthetic(
        _training(config, backbone, part, still, Machine(device, precision)), part
    )
    if script is not None:
        chosen = [manifest.images[row] for row in rows]
        ways[PEER] = lambda: _timm(script, chosen, config, backbone, device, precision)
    timings = _time_in_turn(ways, repeats)
    facts = (backbone, config.images.shape, recipe.batch_size, str(precision), str(device))
    return TrainBench(*facts, tuple(timings.values()), _verdict(timings))


STILL = AugmentConfig(flips=False, quarter_turns=False, colour_jitter=0)


def _training(
    config: Config, name: str, part: Subset, recipe: TrainConfig, machine: Machine
) -> Training:
    """Return a training of a randomly initialised backbone, which is as fast as any other."""
    classes = int(part.labels.max()) + 1
    settings = BackboneConfig(weights="random")
    base: Backbone = create(name, classes, settings, config.images.shape, drop_settings(recipe))
    training = Training(base, part, recipe, machine)
    training.set_trainable(1)
    return training


def _real(training: Training, part: Subset) -> Callable[[], float]:
    """Return a function that times an epoch as stage one runs it."""

    def epoch() -> float:
        started = time.perf_counter()
        order = draw_order(part, training.recipe.balance, training.order_rng)
        batches = part.batches(order, training.recipe.batch_size, training.machine.device)
        training.run_epoch(batches, lambda _: None)
        return len(part.rows) / (time.perf_counter() - started)

    return epoch


def _synthetic(training: Training, part: Subset) -> Callable[[], float]:
    """Return a function that times the same epoch on one batch that lies on the device."""
    size, device = training.recipe.batch_size, training.machine.device
    ((pixels, labels),) = part.batches(part.rows[:size], size, device)
    steps = len(part.rows) // size

    def epoch() -> float:
        started = time.perf_counter()
        training.run_epoch(repeat((pixels, labels), steps), lambda _: None)
        return steps * size / (time.perf_counter() - started)

    return epoch


def _load(part: Subset, recipe: TrainConfig, device: torch.device) -> float:
    """Time the batches of an epoch, to the device and no further."""
    started = time.perf_counter()
    for _ in part.batches(np.random.default_rng(0).permutation(part.rows), recipe.batch_size, device):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return len(part.rows) / (time.perf_counter() - started)


def _time_in_turn(ways: dict[str, Callable[[], float]], repeats: int) -> dict[str, Timing]:
    """Run every way once to warm up, then all in turn, so that none has the machine's better minute."""
    for way, run in ways.items():
        if way != PEER:  # its own second epoch is what is read
            run()
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            rates[way].append(round(run(), 1))
    return {way: Timing(way, round(statistics.median(r), 1), tuple(r)) for way, r in rates.items()}


def _verdict(timings: dict[str, Timing]) -> str:
    """Say what the loop waits for, and how it compares with the peer."""
    rate = {way: timing.images_per_second for way, timing in timings.items()}
    share = rate[OURS] / rate[SYNTHETIC]
    if share >= ENOUGH:
        cause = "arithmetic is the bottleneck"
    elif rate[LOADER] < 2 * rate[SYNTHETIC]:
        cause = "loading is the bottleneck: put 'artifacts' on a faster disk"
    else:
        cause = "varying the images is the bottleneck: see train.augment"
    found = [f"{share:.2f} of the synthetic rate: {cause}"]
    if COMPILED in rate:
        gain = rate[COMPILED] / rate[OURS]
        found.append(
            f"compiled {gain:.2f}x, {'pays' if gain > 1.05 else 'does not pay'} (compile: true)"
        )
    if PEER in rate:
        found.append(f"{rate[OURS] / rate[PEER]:.2f}x {PEER}")
    return "; ".join(found)


def _timm(
    script: Path,
    images: Sequence[Image],
    config: Config,
    backbone: str,
    device: torch.device,
    precision: torch.dtype,
) -> float:
    """Run timm's script on links to the same files for two epochs; return the rate of the second.

    Its images are resized and normalised, not varied: that is the cheapest it can do.
    """
    if any(image.index is not None for image in images):
        raise ConfigError("--timm-script reads picture files; this data set lies in arrays")
    recipe, (height, width) = config.recipe(backbone), config.images.shape
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, image in enumerate(images):
            parts = ("train", "val") if number < recipe.batch_size else ("train",)
            for part in parts:
                link = root / part / image.label / f"{number}{Path(image.path).suffix}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(image.path).absolute())
        options: dict[str, object] = {
            "--data-dir": root,
            "--train-split": "train",
            "--val-split": "val",
            "--model": backbone,
            "--num-classes": len({image.label for image in images}),
            "--input-size": f"3 {height} {width}",
            "--batch-size": recipe.batch_size,
            "--opt": recipe.optimizer,
            "--lr": recipe.lr,
            "--epochs": 2,
            "--warmup-epochs": 0,
            "--workers": torch.get_num_threads(),
            "--log-interval": 1,
            "--output": root / "output",
            "--device": device,
        }
        words = [str(word) for pair in options.items() for word in (pair[0], *str(pair[1]).split())]
        words += ["--channels-last", "--no-aug", "--pin-mem"]
        words += ["--amp", "--amp-dtype", "bfloat16"] if precision == torch.bfloat16 else []
        ran = subprocess.run(  # noqa: S603  # the user's own script
            [sys.executable, str(script), *words], capture_output=True, text=True, check=False
        )
    rates = re.findall(r"Train: 1 .*?\(\s*([\d.]+)s,\s*[\d.]+/s\)", ran.stdout + ran.stderr)
    if ran.returncode or not rates:
        tail = "\n  ".join((ran.stdout + ran.stderr).strip().splitlines()[-5:])
        raise ConfigError(f"--timm-script: {script} ended with {ran.returncode} and no rates:\n  {tail}")
    return recipe.batch_size / float(rates[-1])
