"""How fast stage one trains, and what holds it back.

Our loop on the images is compared with the same loop on one batch that lies on the device already and
is not varied (what the hardware can do), with the loader alone (what the data can do), and, where its
script is given, with timm's own train.py on the same files, size, batch and precision.
"""

from __future__ import annotations

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
from stacker.bench.images import shuffled_images
from stacker.bench.timing import seconds, time_rates
from stacker.config.root import Config
from stacker.config.training import AugmentConfig, BackboneConfig, TrainConfig
from stacker.data.manifest import Image
from stacker.errors import ConfigError, require_one_of
from stacker.training.augment import draw_order
from stacker.training.loop import Training

OURS, COMPILED, SYNTHETIC = "our loop", "our loop, compiled", "our loop, synthetic tensor"
LOADER, PEER = "loader alone", "timm's train.py"
ENOUGH = 0.9  # of the synthetic rate: nothing but the arithmetic holds the loop back
STILL = AugmentConfig(flips=False, quarter_turns=False, colour_jitter=0)


def bench_train(
    config: Config,
    images: int,
    repeats: int,
    backbone: str | None = None,
    compiled: bool = False,
    script: Path | None = None,
) -> dict[str, Any]:
    """Time an epoch of so many images in all ways; return what was timed, the rates and a verdict."""
    backbone = backbone or next(iter(config.backbones))
    require_one_of("backbone of this config", [backbone], config.backbones)
    machine, recipe = replace(Machine.of(config).set_up(), compile=False), config.recipe(backbone)
    manifest, pixels, order = shuffled_images(config)
    size, device = recipe.batch_size, machine.device
    images = images // size * size
    if not 0 < images <= len(order):
        raise ConfigError(
            f"--images: a whole number of batches of {size}, of the {len(order)} that there are"
        )
    part = Subset(pixels, manifest.labels, order[:images], np.array(manifest.cases))
    begin = partial(_begin, config, backbone, part)
    still = begin(recipe.model_copy(update={"augment": STILL}), machine)
    (batch,) = part.batches(part.rows[:size], size, device)
    epochs: dict[str, Callable[[], object]] = {
        LOADER: partial(_load, part, size, device),
        OURS: partial(_train, begin(recipe, machine), part),
        SYNTHETIC: lambda: still.run_epoch(repeat(batch, images // size), lambda _: None),
    }
    if compiled:
        epochs[COMPILED] = partial(_train, begin(recipe, replace(machine, compile=True)), part)

    def rate(epoch: Callable[[], object]) -> float:
        return images / seconds(epoch, device)

    ways = {way: partial(rate, epoch) for way, epoch in epochs.items()}
    if script is not None:
        chosen = [manifest.images[row] for row in part.rows]
        ways[PEER] = partial(_timm, script, chosen, config, backbone, machine)
    timings = time_rates(ways, repeats, warm=[PEER])
    return {
        "backbone": backbone,
        "size": config.images.shape,
        "batch_size": size,
        "precision": str(machine.precision),
        "device": str(device),
        "timings": timings,
        "verdict": verdict({timing.way: timing.images_per_second for timing in timings}),
    }


def _begin(config: Config, name: str, part: Subset, recipe: TrainConfig, machine: Machine) -> Training:
    """Return a training of a randomly initialised backbone, which is as fast as any other."""
    settings, classes = BackboneConfig(weights="random"), int(part.labels.max()) + 1
    backbone = create(name, classes, settings, config.images.shape, drop_settings(recipe))
    training = Training(backbone, part, recipe, machine)
    training.set_trainable(1)
    return training


def _train(training: Training, part: Subset) -> None:
    """Run an epoch as stage one does."""
    order = draw_order(part, training.recipe.balance, training.order_rng)
    batches = part.batches(order, training.recipe.batch_size, training.machine.device)
    training.run_epoch(batches, lambda _: None)


def _load(part: Subset, size: int, device: torch.device) -> None:
    """Bring the batches of an epoch to the device, and no further."""
    for _ in part.batches(np.random.default_rng(0).permutation(part.rows), size, device):
        pass


def verdict(rates: Mapping[str, float]) -> str:
    """Say what the loop waits for, and how it compares with the peer."""
    share = rates[OURS] / rates[SYNTHETIC]
    if share >= ENOUGH:
        cause = "arithmetic is the bottleneck"
    elif rates[LOADER] < 2 * rates[SYNTHETIC]:
        cause = "loading is the bottleneck: put 'artifacts' on a faster disk"
    else:
        cause = "varying the images is the bottleneck: see train.augment"
    said = [f"{share:.2f} of the synthetic rate: {cause}"]
    if COMPILED in rates:
        gain = rates[COMPILED] / rates[OURS]
        pays = "pays" if gain > 1.05 else "does not pay"
        said.append(f"compiled {gain:.2f}x, {pays} (compile: true)")
    if PEER in rates:
        said.append(f"{rates[OURS] / rates[PEER]:.2f}x {PEER}")
    return "; ".join(said)


def _timm(
    script: Path, images: Sequence[Image], config: Config, backbone: str, machine: Machine
) -> float:
    """Run timm's script on links to the same files for two epochs; return the rate of the second.

    Its images are resized and normalised, not varied: that is the cheapest it can do.
    """
    if any(image.index is not None for image in images):
        raise ConfigError("--timm-script reads picture files; this data set lies in arrays")
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
