"""What a cached image costs, beside a bare forward pass and the grad-cam package.

Stage two as it runs (images from the store, all classes, parts synced to the disk) is timed on the same
images as a bare forward pass of the same base models in the same arithmetic, and as the grad-cam package
twice: in batches, of the size and in the memory layout that suit it best, and in the loop that people
write, an image and a model at a time. Both are float32 with a full backward pass and give the map of one
class. All ways but stage two find their pixels normalised, in the memory of the device, and write
nothing: that favours them. The bare pass keeps freed memory as stage two does (`devices.keep_memory`),
the package has the defaults of any program. What it takes for several base models is the sum, for it
goes from one to the next.

One base model is measured after the other, all ways in turn, and its figures are logged when they are
there. How many images and repeats fit into the time is planned from a warm-up of every way.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stacker.backbones.backbone import Backbone
from stacker.backbones.devices import autocast, keep_memory
from stacker.bench.costs import (
    BARE,
    BATCHED,
    LOOP,
    OURS,
    TOGETHER,
    Cost,
    cost_of,
    describe_costs,
    describe_work,
    deviation,
    ratios_of,
    sums,
    verdict,
)
from stacker.bench.peers import SIZES, Peer, find_peers
from stacker.bench.timing import MINUTES, REPEATS, Budget, in_turn, plan, second_time, seconds
from stacker.bench.work import UNTRAINED, Work, prepare
from stacker.caches.format import Provenance, part_file
from stacker.config.root import Config
from stacker.errors import CacheError
from stacker.maps.extract import Arrays, extract
from stacker.maps.fill import Portion, write_portions
from stacker.progress import track

log = logging.getLogger(__name__)
IMAGES = (64, 32, 16, 8)  # best first
WARM_UP = 4  # images; on a GPU a whole batch
PEERS_SHARE = 0.3  # of the time that is left, to find the package's best batch
DEVIATIONS = 16  # images that are compared in both precisions

Ways = dict[str, tuple[int, Callable[[], object]]]  # images, how


def bench_cache(
    config: Config,
    images: int | None = None,
    repeats: int | None = None,
    minutes: float = MINUTES,
) -> dict[str, Any]:
    """Time all ways in turn; return what was timed, costs, ratios and a verdict.

    Without `images` and `repeats`, as many as fit into the minutes.
    """
    budget = Budget.of("cache", minutes)
    work = prepare(config, images, max(IMAGES))
    there = len(work.rows)
    numbers = [images] if images else sorted({min(there, number) for number in IMAGES}, reverse=True)
    return measure(work, budget, numbers, [repeats] if repeats else REPEATS)


def measure(work: Work, budget: Budget, images: Sequence[int], repeats: Sequence[int]) -> dict[str, Any]:
    """Warm every way up, plan what fits into the budget, and time it.

    Numbers of images and repeats are listed best first; one alone is measured whatever it takes.
    """
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=work.folder) as folder:
        done = _plan_and_measure(work, Path(folder), budget, images, repeats)
    costs, fewest = done.costs, min(len(cost.repeats) for cost in done.costs)
    ratios = [ratios_of(costs, of) for of in dict.fromkeys(cost.of for cost in costs)]
    return {
        "size": next(iter(work.backbones.values())).size,
        "images": done.images,
        "repeats": fewest,
        "batch_size": work.cam.batch_size,
        "precision": str(work.machine.precision),
        "device": str(work.machine.device),
        "threads": torch.get_num_threads(),
        "maps": list(work.cam.maps),
        "subjects": [_subject(origin, done) for origin in work.origins.values()],
        "costs": costs,
        "ratios": ratios,
        "deviations": done.deviations,
        "notes": done.notes,
        "verdict": f"{verdict(ratios[-1])}; {describe_work(done.images, fewest)}",
    }


@dataclass(frozen=True)
class _Measured:
    """What was measured on so many images: costs, bytes on the disk, and what was left out."""

    images: int
    costs: list[Cost]
    sizes: dict[str, float]
    peers: dict[str, Peer]
    deviations: list[dict[str, Any]] | None
    notes: list[str]


def _plan_and_measure(
    work: Work, folder: Path, budget: Budget, images: Sequence[int], repeats: Sequence[int]
) -> _Measured:
    """Warm up, plan and time; the parts of stage two lie in a folder for the while."""
    inputs = {name: _normalised(work, backbone) for name, backbone in work.backbones.items()}
    taken = _warm_up(work, inputs, folder)
    keep_memory(False)
    few = {name: (work.backbones[name], pixels[: max(SIZES)]) for name, pixels in inputs.items()}
    peers, notes = find_peers(few, work.machine.device, PEERS_SHARE * budget.left)
    estimate = partial(_estimate, work, taken, peers)
    # of the comparison with float32, which is slower than what is measured
    compared = 0 if work.machine.precision == torch.float32 else 3 * sum(taken.values())

    def cost(number: int, times: int) -> float:
        return times * sum(estimate(number).values()) + min(number, DEVIATIONS) * compared

    chosen = plan(cost, budget, images, repeats)
    work = work.first(chosen.images)
    expected = {of: chosen.repeats * each for of, each in estimate(chosen.images).items()}
    limits = _Limits(budget, expected, strict=len(repeats) > 1)
    costs = _measure(work, inputs, peers, folder, chosen.repeats, limits)
    measured = {cost.of for cost in costs}
    notes += [f"{of} was skipped: not enough time" for of in expected if of not in measured]
    sizes = {name: _bytes_of(folder / name) / chosen.images for name in measured - {TOGETHER}}
    deviations = None
    if not limits.strict or min(chosen.images, DEVIATIONS) * compared < budget.left:
        deviations = _deviations(work.first(DEVIATIONS))
    elif compared:
        notes.append("bfloat16 was not compared with float32: not enough time")
    return _Measured(chosen.images, costs, sizes, peers, deviations, notes)


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("part-*.h5"))


def _normalised(work: Work, backbone: Backbone) -> Tensor:
    """Return the images as a base model wants them, on the device."""
    batches = work.part.batches(work.part.rows, work.cam.batch_size, work.machine.device)
    return torch.cat([backbone.normalise(pixels) for pixels, _ in batches])


def _groups(work: Work) -> dict[str, list[str]]:
    """Return the base models that are measured at once, by what their figures are called."""
    names = list(work.backbones)
    return {name: [name] for name in names} | ({TOGETHER: names} if len(names) > 1 else {})


def _warm_up(work: Work, inputs: Mapping[str, Tensor], folder: Path) -> dict[str, float]:
    """Run stage two and the bare pass on a few images; return what both take per image, in seconds."""
    device = work.machine.device
    few = work.first(WARM_UP if device.type == "cpu" else work.cam.batch_size)
    keep_memory(device.type == "cpu")
    taken = {}
    for name in track(work.backbones, "warm-up", len(work.backbones)):
        log.info("warm-up: stage two and a bare forward pass of %s", name)
        ways = partial(_cache, few, [name], folder), partial(_forward, few, [name], inputs)
        taken[name] = sum(second_time(run, device) for run in ways) / len(few.rows)
    return taken


def _estimate(
    work: Work, taken: Mapping[str, float], peers: Mapping[str, Peer], images: int
) -> dict[str, float]:
    """Return the seconds that a repeat takes for each base model and for all, by the warm-up."""
    run = images + min(images, work.cam.batch_size)  # a batch is not counted
    each = {of: run * sum(taken[n] for n in names) for of, names in _groups(work).items()}
    for name, peer in peers.items():
        several, few = _shares(images, peer)
        each[name] += several * peer.seconds + few * peer.loop_seconds
    return each


def _shares(images: int, peer: Peer) -> tuple[int, int]:
    """Return on how many of the images the package is measured, in batches and in the loop."""
    return min(images, max(images // 4, peer.batch_size)), max(1, images // 8)


def _ways(
    work: Work, of: str, inputs: Mapping[str, Tensor], peers: Mapping[str, Peer], folder: Path
) -> Ways:
    """List the ways for a base model or for all: stage two, the bare pass, and grad-cam for one."""
    images, group = len(work.rows), _groups(work)[of]
    ways: Ways = {
        OURS: (images, partial(_cache, work, group, folder)),
        BARE: (images, partial(_forward, work, group, inputs)),
    }
    if of in peers:
        several, few = _shares(images, peers[of])
        ways[BATCHED] = several, partial(peers[of].batched, several)
        ways[LOOP] = few, partial(peers[of].loop, few)
    return ways


def _cache(work: Work, names: Sequence[str], folder: Path) -> None:
    """Let stage two write the parts of some base models."""
    cam, portions = work.cam, []
    for number, start in enumerate(range(0, len(work.rows), cam.part_rows)):
        piece = slice(start, start + cam.part_rows)
        parts = {name: (part_file(folder / name, number), work.origins[name]) for name in names}
        portions.append(Portion(work.part.rows[piece], work.rows.take(piece), parts))
    backbones = {name: work.backbones[name] for name in names}
    wanted = dict.fromkeys(names, cam.maps)
    failures = write_portions(
        portions, backbones, wanted, work.part, cam.batch_size, work.machine, lambda _: None
    )
    if failures:
        raise CacheError("\n  ".join(failures.values()))


def run_stage_two(work: Work) -> None:
    """Let stage two write the parts of all base models, and remove them."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=work.folder) as folder:
        _cache(work, list(work.backbones), Path(folder))


def _forward(work: Work, names: Sequence[str], inputs: Mapping[str, Tensor]) -> None:
    """Run the models on as many of the inputs as the work has images, and nothing else."""
    size, images = work.cam.batch_size, len(work.rows)
    with torch.no_grad():
        for start in range(0, images, size):
            for name in names:
                with autocast(work.machine.device, work.machine.precision):
                    work.backbones[name].model(inputs[name][start : min(start + size, images)])


@dataclass(frozen=True)
class _Limits:
    """How long every base model may take: its share of what is left, unless all is measured anyway."""

    budget: Budget
    estimate: Mapping[str, float]  # of all repeats
    strict: bool

    def of(self, name: str) -> float:
        """Return the seconds of a base model, with others still to come."""
        to_come = list(self.estimate)[list(self.estimate).index(name) :]
        share = self.estimate[name] / sum(self.estimate[other] for other in to_come)
        return self.budget.left * share if self.strict else math.inf

    def too_late(self, name: str) -> bool:
        """Say whether there is no time left to begin with a base model."""
        return self.strict and self.budget.left < self.estimate[name] / 2


def _measure(
    work: Work,
    inputs: Mapping[str, Tensor],
    peers: Mapping[str, Peer],
    folder: Path,
    repeats: int,
    limits: _Limits,
) -> list[Cost]:
    """Time one base model after the other and then all together, all ways in turn; log each."""
    costs: list[Cost] = []
    for of in _groups(work):
        if costs and limits.too_late(of):
            continue
        costs += _measure_group(work, of, inputs, peers, folder, repeats, limits.of(of))
        if of == TOGETHER:
            costs += sums(costs, list(work.backbones))
        log.info("%s", describe_costs(costs, of))
    return costs


def _measure_group(
    work: Work,
    of: str,
    inputs: Mapping[str, Tensor],
    peers: Mapping[str, Peer],
    folder: Path,
    repeats: int,
    limit: float,
) -> list[Cost]:
    """Time all ways in turn.

    A batch that does not count fills the memory of stage two and of the bare pass again, as the package
    had the machine before.
    """
    device = work.machine.device
    ways = _ways(work, of, inputs, peers, folder)
    fill = _ways(work.first(work.cam.batch_size), of, inputs, {}, folder)

    def milliseconds(way: str) -> float:
        keep_memory(device.type == "cpu" and way in fill)
        if way in fill:
            fill[way][1]()
        images, run = ways[way]
        return 1000 * seconds(run, device) / images

    taken = in_turn({way: partial(milliseconds, way) for way in ways}, repeats, limit, of)
    return [cost_of(way, of, images, taken[way]) for way, (images, _) in ways.items()]


def _subject(origin: Provenance, done: _Measured) -> dict[str, object]:
    """Say which base model was measured, and the package's layer, batch and layout where it has any."""
    name = origin.backbone
    peer, size = done.peers.get(name), done.sizes.get(name)
    return {
        "backbone": name,
        "start": "not trained yet" if origin.checkpoint_sha256 == UNTRAINED else "trained",
        "bytes_per_image": None if size is None else round(size, 1),
        **{f"peer_{key}": getattr(peer, key, None) for key in ("layer", "batch_size", "layout")},
    }


def _deviations(work: Work) -> list[dict[str, Any]] | None:
    """Compare the answers in bfloat16 with those in float32; None when stage two runs in float32."""
    if work.machine.precision == torch.float32:
        return None
    part, cam = work.part, work.cam

    def answer(precision: torch.dtype) -> dict[str, Arrays]:
        batches = part.batches(part.rows, cam.batch_size, work.machine.device)
        wanted = dict.fromkeys(work.backbones, cam.maps)
        return extract(work.backbones, (pixels for pixels, _ in batches), wanted, precision)

    rounded, exact = answer(work.machine.precision), answer(torch.float32)
    return [deviation(name, rounded[name], exact[name]) for name in work.backbones]
