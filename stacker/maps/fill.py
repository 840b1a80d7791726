"""Stage two: what is missing of a run's caches is filled in.

One read of a piece of images feeds every base model that misses it; as many base models are held at once
as `cam.memory_gb` allows. A part is skipped when its digests and its origin are right, and made again
otherwise; batches start afresh at every part, so a resumed cache equals an undisturbed one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from stacker.backbones.backbone import Backbone
from stacker.backbones.batches import Subset
from stacker.backbones.checkpoint import load_checkpoint
from stacker.backbones.devices import Machine
from stacker.caches.format import INDEX, Provenance, Rows, part_file
from stacker.caches.writer import write_index, write_part
from stacker.data.store import Pixels
from stacker.errors import CacheError
from stacker.files import held, sweep
from stacker.maps.cam import Wanted, look
from stacker.maps.extract import classifier_bias, extract
from stacker.maps.formulas import PERTURB
from stacker.maps.targets import Target, keep_frozen, list_targets
from stacker.progress import bar
from stacker.run import Run

log = logging.getLogger(__name__)
Advance = Callable[[int], None]


def fill(run: Run) -> list[Target]:
    """Write what is missing of a run's caches; return these caches.

    Caches that another process has in hand are waited for, at the end.
    """
    keep_frozen(run)
    targets = list_targets(run)
    unfinished = [target for target in targets if _is_wanting(target)]
    if not unfinished:
        return targets
    pixels, machine = run.pixels(), Machine.of(run.config).set_up()
    failures: dict[str, str] = {}
    with bar("cache", sum(target.images for target in unfinished)) as advance:
        left = [
            target
            for together in _rounds(unfinished, run.config.cam.memory_gb)
            for target in _fill_round(run, together, pixels, machine, advance, failures, wait=False)
        ]
        for target in left:
            log.info("cache %s: another process fills it; waiting for it", target.name)
            _fill_round(run, [target], pixels, machine, advance, failures, wait=True)
    if failures:
        count = f"{len(failures)} of {len(targets)} caches cannot be filled:"
        raise CacheError("\n  ".join([count, *failures.values()]))
    return targets


def _is_wanting(target: Target) -> bool:
    """Say whether a cache is not as it should be; log why parts that are there are made anew."""
    missing = target.missing()
    there = {n: why for n, why in missing.items() if part_file(target.folder, n).exists()}
    if there:
        why, number = next(iter(there.values())), len(target.pieces)
        log.warning("cache %s: %d of %d parts are made anew: %s", target.name, len(there), number, why)
    for stray in target.strays():
        log.warning("cache %s: %s is none of its parts, and is removed", target.name, stray.name)
    if missing or not target.is_whole():
        return True
    log.info("cache %s: done already", target.name)
    return False


def _rounds(targets: Sequence[Target], memory_gb: float) -> Iterator[list[Target]]:
    """Yield caches to be filled together, as many as have base models that fit into the memory."""
    found: list[Target] = []
    taken = 0.0
    for target in sorted(targets, key=lambda t: t.fold):  # those of a fold share all their images
        size = target.model.stat().st_size / 1e9
        if found and taken + size > memory_gb:
            yield found
            found, taken = [], 0.0
        found.append(target)
        taken += size
    yield found


def _fill_round(
    run: Run,
    targets: Sequence[Target],
    pixels: Pixels,
    machine: Machine,
    advance: Advance,
    failures: dict[str, str],
    wait: bool,
) -> list[Target]:
    """Fill some caches from one read of their images; return those that other processes have in hand.

    A base model whose answers are no numbers goes into `failures`; the others are filled.
    """
    with ExitStack() as stack:
        mine = [
            target
            for target in targets
            if stack.enter_context(held(target.folder.with_name(f".{target.fold}.lock"), wait))
        ]
        for target in mine:
            sweep(target.folder)
        # Asked again with the locks in hand: the other may have just ended.
        missing = {target.name: list(target.missing()) for target in mine}
        advance(sum(t.images - t.count(missing[t.name]) for t in mine))
        busy = [target for target in mine if missing[target.name]]
        if busy:
            started = time.perf_counter()
            failures |= _compute(run, busy, missing, pixels, machine, advance)
            _record(run, busy, missing, time.perf_counter() - started, machine)
        for target in mine:
            if target.name not in failures:
                _finish(target)
    return [target for target in targets if target not in mine]


def _compute(
    run: Run,
    targets: Sequence[Target],
    missing: Mapping[str, list[int]],
    pixels: Pixels,
    machine: Machine,
    advance: Advance,
) -> dict[str, str]:
    """Write the missing parts of some caches, each piece of images being read once for all of them.

    Return what stood against it, by base model.
    """
    portions: dict[bytes, Portion] = {}
    backbones = {}
    for target in targets:
        (target.folder / INDEX).unlink(missing_ok=True)  # it must never speak of other parts
        backbone = load_checkpoint(target.model)[0].freeze()
        backbone.model.to(machine.device)
        backbones[target.name] = backbone
        layers = tuple(backbone.layers_below(target.provenance.lower)[::-1])
        bias = classifier_bias(backbone)
        origin = replace(target.provenance, lower_layers=layers, classifier_bias=bias)
        for number in missing[target.name]:
            piece = target.pieces[number]
            portion = portions.setdefault(piece.key, Portion(piece.images, piece.rows, {}))
            portion.parts[target.name] = part_file(target.folder, number), origin
        _warn_of_cost(target, backbone, pixels, missing[target.name], machine)
    wanted = {target.name: target.wanted for target in targets}
    part = Subset(pixels, run.manifest.labels, np.empty(0, int))
    size = run.config.cam.batch_size
    return write_portions(portions.values(), backbones, wanted, part, size, machine, advance)


@dataclass(frozen=True)
class Portion:
    """Images that are read once, and the parts to be written of them, with origin, by base model."""

    images: np.ndarray
    rows: Rows
    parts: dict[str, tuple[Path, Provenance]]


def write_portions(
    portions: Iterable[Portion],
    backbones: Mapping[str, Backbone],
    wanted: Mapping[str, Wanted],
    part: Subset,
    batch_size: int,
    machine: Machine,
    advance: Advance,
) -> dict[str, str]:
    """Answer for the images of every portion and publish its parts; the device goes on meanwhile.

    Return the base models whose answers could not be written, with the reason.
    """
    pending: dict[str, Future[None]] = {}
    failures: dict[str, str] = {}

    def settle() -> None:
        for name, written in pending.items():
            try:
                written.result()
            except CacheError as error:
                failures[name] = str(error)
        pending.clear()

    with ThreadPoolExecutor(1) as writer:
        for portion in portions:
            busy = {name: backbones[name] for name in portion.parts if name not in failures}
            batches = part.batches(portion.images, batch_size, machine.device)
            found = extract(busy, (pixels for pixels, _ in batches), wanted, machine.precision, advance)
            settle()
            for name in found:
                path, origin = portion.parts[name]
                pending[name] = writer.submit(write_part, path, found[name], portion.rows, origin)
        settle()
    return failures


def _warn_of_cost(
    target: Target, backbone: Backbone, pixels: Pixels, numbers: Sequence[int], machine: Machine
) -> None:
    """Time methods that need a pass per channel on one image, and say what all images will cost."""
    first, images = target.pieces[0].images[:1], target.count(numbers)
    for name, (method, level) in target.wanted.items():
        if method in PERTURB:
            image = torch.from_numpy(pixels[first]).to(machine.device)
            started = time.perf_counter()
            look(backbone, backbone.normalise(image), {name: (method, level)}, machine.precision)
            seconds = time.perf_counter() - started
            log.warning(
                "cache %s: %s takes %.2g s per image, %s for the %d images to do",
                *(target.name, method, seconds, _duration(seconds * images), images),
            )


def _duration(seconds: float) -> str:
    units = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
    size, name = next((unit for unit in units if seconds >= 2 * unit[0]), units[-1])
    return f"{seconds / size:.1f} {name}"


def _record(
    run: Run,
    targets: Sequence[Target],
    missing: Mapping[str, list[int]],
    seconds: float,
    machine: Machine,
) -> None:
    """Write into the run's logbook what a round took."""
    images = sum(target.count(missing[target.name]) for target in targets)
    rate = round(images / seconds, 1)
    for target in targets:
        entry = {
            "images": target.count(missing[target.name]),
            "parts_written": len(missing[target.name]),
            "together_with": len(targets) - 1,
            "seconds": round(seconds, 1),
            "images_per_second": rate,
            "device": str(machine.device),
            "precision": target.provenance.precision,
        }
        run.record("cache", {target.name: entry})
    shown = ", ".join(target.name for target in targets[:3])
    shown += f" and {len(targets) - 3} more" if len(targets) > 3 else ""
    log.info("cache %s: %d images in %.1f s, %.1f per second", shown, images, seconds, rate)


def _finish(target: Target) -> None:
    """Write the index of a cache whose parts are all there, and remove parts that are none of it."""
    parts = [part_file(target.folder, number) for number in range(len(target.pieces))]
    for stray in target.strays():
        stray.unlink()
    write_index(target.folder, parts)
