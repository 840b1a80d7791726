"""Measured on this machine, in one run: what a cached image costs, beside a forward pass and grad-cam.

Stage two as it runs (images from the store, all classes, parts synced to the disk) is timed on the same
images as a bare forward pass of the same base models in the same arithmetic, and as the grad-cam package
twice: in batches, of the size and in the memory layout that suit it best, and in the loop that people
write, an image and a model at a time. Both are float32 with a full backward pass and give the map of one
class. All ways but stage two find their pixels normalised, in the memory of the device, and write
nothing: that favours them. The bare pass gets stage two's way with memory (`devices.keep_memory`), the
package that of any program. What it takes for several base models is the sum, for it goes from one to
the next.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from stacker.backbones.devices import autocast, keep_memory
from stacker.bench.peers import SIZES, Peer, find_peers, milliseconds
from stacker.bench.setup import Base, Setup, normalised, set_up
from stacker.bench.timing import (
    BARE,
    BATCHED,
    LOOP,
    OURS,
    TOGETHER,
    Cost,
    Deviation,
    Ratio,
    cost,
    deviation,
    ratios,
    sums,
    verdict,
)
from stacker.caches.format import part_file
from stacker.config.root import Config
from stacker.errors import CacheError
from stacker.maps.extract import Arrays, extract
from stacker.maps.fill import Portion, write_portions
from stacker.progress import track

BATCHED_IMAGES, LOOP_IMAGES = 16, 8  # the package is slow


@dataclass(frozen=True)
class Subject:
    """A base model that was measured; grad-cam's layer, batch and layout where it has any."""

    backbone: str
    start: str
    bytes_per_image: float
    peer_layer: str | None
    peer_batch_size: int | None
    peer_layout: str | None


@dataclass(frozen=True)
class CacheBench:
    """The cost of all ways, and what they mean."""

    size: tuple[int, int]
    images: int
    batch_size: int
    precision: str
    device: str
    threads: int
    maps: tuple[str, ...]
    subjects: tuple[Subject, ...]
    costs: tuple[Cost, ...]
    ratios: tuple[Ratio, ...]
    deviations: tuple[Deviation, ...] | None
    notes: tuple[str, ...]
    verdict: str


@dataclass(frozen=True)
class Way:
    """One way to answer for so many images."""

    name: str
    of: str
    images: int
    run: Callable[[], object]


def bench_cache(config: Config, images: int, repeats: int) -> CacheBench:
    """Time all ways in turn on so many images, `repeats` times after a warm-up."""
    setup = set_up(config, images)
    inputs = normalised(setup)
    few = {name: (setup.bases[name].backbone, found[: max(SIZES)]) for name, found in inputs.items()}
    keep_memory(False)
    peers, notes = find_peers(few, setup.machine.device)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=config.artifacts) as name:
        folder = Path(name)
        timed = _time_in_turn(_ways(setup, inputs, peers, folder), repeats, setup.machine.device)
        sizes = {name: _bytes(folder / name) / images for name in setup.bases}
    costs = timed + sums(timed, list(setup.bases))
    found = ratios(costs)
    subjects = [_subject(base, sizes[name], peers.get(name)) for name, base in setup.bases.items()]
    return CacheBench(
        size=config.images.shape,
        images=images,
        batch_size=config.cam.batch_size,
        precision=str(setup.machine.precision),
        device=str(setup.machine.device),
        threads=torch.get_num_threads(),
        maps=tuple(config.cam.maps),
        subjects=tuple(subjects),
        costs=tuple(costs),
        ratios=tuple(found),
        deviations=_deviations(setup),
        notes=tuple(notes),
        verdict=verdict(found[-1]),
    )


def _ways(
    setup: Setup, inputs: Mapping[str, Tensor], peers: Mapping[str, Peer], folder: Path
) -> list[Way]:
    """List the ways: stage two and the bare pass for each base model and for all, grad-cam for each."""
    images, names = len(setup.rows), list(setup.bases)
    alone = {name: [name] for name in names}
    ways = []
    for of, group in {**alone, **({TOGETHER: names} if len(names) > 1 else {})}.items():
        ways.append(Way(OURS, of, images, partial(_cache, setup, group, folder)))
        ways.append(Way(BARE, of, images, partial(_forward, setup, group, inputs)))
    for name, peer in peers.items():
        several, few = min(images, max(BATCHED_IMAGES, peer.batch_size)), min(images, LOOP_IMAGES)
        ways.append(Way(BATCHED, name, several, partial(peer.batched, several)))
        ways.append(Way(LOOP, name, few, partial(peer.loop, few)))
    return ways


def _cache(setup: Setup, names: Sequence[str], folder: Path) -> None:
    """Let stage two write the parts of some base models."""
    part, cam, bases = setup.part, setup.config.cam, setup.bases
    portions = []
    for number, start in enumerate(range(0, len(part.rows), cam.part_rows)):
        piece = slice(start, start + cam.part_rows)
        parts = {name: (part_file(folder / name, number), bases[name].provenance) for name in names}
        portions.append(Portion(part.rows[piece], setup.rows.take(piece), parts))
    backbones = {name: bases[name].backbone for name in names}
    wanted = dict.fromkeys(names, cam.maps)
    how, quietly = setup.machine, lambda _: None
    failures = write_portions(portions, backbones, wanted, part, cam.batch_size, how, quietly)
    if failures:
        raise CacheError("\n  ".join(failures.values()))


def _forward(setup: Setup, names: Sequence[str], inputs: Mapping[str, Tensor]) -> None:
    """Run the models, and nothing else."""
    how, size = setup.machine, setup.config.cam.batch_size
    with torch.no_grad():
        for start in range(0, len(setup.rows), size):
            for name in names:
                with autocast(how.device, how.precision):
                    setup.bases[name].backbone.model(inputs[name][start : start + size])


def _time_in_turn(ways: Sequence[Way], repeats: int, device: torch.device) -> list[Cost]:
    """Run all ways in turn, so that none has the machine's better minute; the first round warms up.

    Stage two's memory is filled again by an untimed run after the package has had the machine.
    """
    own = [way for way in ways if way.name in (OURS, BARE)]
    others = [way for way in ways if way not in own]
    warm_up = max((way for way in own if way.name == OURS), key=lambda way: way.of == TOGETHER)
    turn = [(warm_up, False), *((way, True) for way in (*own, *others))]
    taken: dict[tuple[str, str], list[float]] = {(way.name, way.of): [] for way in ways}
    for number in track(range(repeats + 1), "bench", repeats + 1):
        for way, timed in turn:
            keep_memory(device.type == "cpu" and way in own)
            found = milliseconds(way.run, way.images, device)
            if timed and number > 0:
                taken[way.name, way.of].append(found)
    return [cost(way.name, way.of, way.images, taken[way.name, way.of]) for way in ways]


def _deviations(setup: Setup) -> tuple[Deviation, ...] | None:
    """Compare the answers in bfloat16 with those in float32; None when stage two runs in float32."""
    if setup.machine.precision == torch.float32:
        return None
    part, cam = setup.part, setup.config.cam
    backbones = {name: base.backbone for name, base in setup.bases.items()}

    def answer(precision: torch.dtype) -> dict[str, Arrays]:
        batches = part.batches(part.rows, cam.batch_size, setup.machine.device)
        wanted = dict.fromkeys(backbones, cam.maps)
        return extract(backbones, (pixels for pixels, _ in batches), wanted, precision)

    rounded, exact = answer(setup.machine.precision), answer(torch.float32)
    return tuple(deviation(name, rounded[name], exact[name]) for name in backbones)


def _subject(base: Base, size: float, peer: Peer | None) -> Subject:
    facts = (peer.layer, peer.batch_size, peer.layout) if peer else (None, None, None)
    return Subject(base.backbone.name, base.start, round(size, 1), *facts)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("part-*.h5"))
