"""Stage two: what is missing of a run's caches is filled in.

One read of a piece of images feeds every base model that misses it; as many base models are held at once
as `cam.memory_gb` allows. A part is skipped when its digests and its origin are right, and made again
otherwise; batches start afresh at every part, so a resumed cache equals an undisturbed one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from stacker.backbones.backbone import Backbone
from stacker.backbones.checkpoint import load_checkpoint
from stacker.backbones.devices import Machine, Subset
from stacker.caches.format import INDEX, Provenance, Rows, part_file
from stacker.caches.writer import write_index, write_part
from stacker.data.store import Pixels
from stacker.errors import CacheError
from stacker.files import held, sweep
from stacker.maps.cam import Wanted, look
from stacker.maps.extract import classifier_bias, extract
from stacker.maps.formulas import PERTURB
from stacker.maps.targets import Target, keep_frozen, list_targets
from stacker.progress import bar, duration
from stacker.run import Run

log = logging.getLogger(__name__)
Advance = Callable[[int], None]


def fill(run: Run) -> list[Target]:
    """Write what is missing of a run's caches; return these caches.

    Caches that another process has in hand are waited for, at the end.
    """
    keep_frozen(run)
    targets = list_targets(run)
    with bar("cache", sum(target.images for target in targets)) as advance:
        filling = _Filling(run, Machine.of(run.config).set_up(), advance)
        by_fold = sorted(targets, key=lambda target: target.base.fold)  # which share all their images
        for target in filling.fill(by_fold, wait=False):
            log.info("cache %s: waiting for another process that is filling it", target.name)
            filling.fill([target], wait=True)
    if filling.failures:
        count = f"{len(filling.failures)} of {len(targets)} caches could not be filled:"
        raise CacheError("\n  ".join([count, *filling.failures.values()]))
    return targets


@dataclass(frozen=True)
class _Gaps:
    """A cache that is not as it should be, and the numbers of the parts that it misses."""

    target: Target
    numbers: Sequence[int]

    @property
    def images(self) -> int:
        """How many images lie in these parts."""
        return sum(len(self.target.pieces[number].images) for number in self.numbers)


@dataclass
class _Filling:
    """One call of stage two; `failures` are the caches that cannot be filled, with the reason."""

    run: Run
    machine: Machine
    advance: Advance
    failures: dict[str, str] = field(default_factory=dict)

    def fill(self, targets: Iterable[Target], wait: bool) -> list[Target]:
        """Fill caches in rounds of those whose base models fit into the memory together.

        A cache is looked at once, with its lock in hand, which is kept until its round is through.
        Return the caches that other processes have in hand.
        """
        elsewhere, together, taken = [], list[_Gaps](), 0.0
        with ExitStack() as locks:
            for target in targets:
                with ExitStack() as lock:
                    file = target.folder.with_name(f".{target.base.fold}.lock")
                    if not lock.enter_context(held(file, wait)):
                        elsewhere.append(target)
                        continue
                    gaps = _look_for_gaps(target)
                    self.advance(target.images - (gaps.images if gaps else 0))
                    if gaps is None:
                        continue
                    size = target.model.stat().st_size / 1e9
                    if together and taken + size > self.run.config.cam.memory_gb:
                        self._fill_round(together)
                        locks.close()
                        together, taken = [], 0.0
                    locks.enter_context(lock.pop_all())
                    together.append(gaps)
                    taken += size
            self._fill_round(together)
        return elsewhere

    def _fill_round(self, together: Sequence[_Gaps]) -> None:
        """Fill some caches from one read of their images, and write the index of each that is whole.

        A base model whose answers are no numbers goes into `failures`; the others are filled.
        """
        for gaps in together:
            sweep(gaps.target.folder)
        busy = [gaps for gaps in together if gaps.numbers]
        if busy:
            started = time.perf_counter()
            self._compute(busy)
            self._record(busy, time.perf_counter() - started)
        for target in (gaps.target for gaps in together):
            if target.name not in self.failures:
                for stray in target.strays():
                    stray.unlink()
                write_index(target.folder, target.files)

    def _compute(self, together: Sequence[_Gaps]) -> None:
        """Write the missing parts of some caches, each piece of images being read once for all."""
        portions: dict[bytes, Portion] = {}
        backbones, pixels = {}, self.run.pixels()
        for target, gaps in ((gaps.target, gaps) for gaps in together):
            (target.folder / INDEX).unlink(missing_ok=True)  # it must never speak of other parts
            backbone = load_checkpoint(target.model)[0].freeze()
            backbone.model.to(self.machine.device)
            backbones[target.name] = backbone
            layers = tuple(backbone.layers_below(target.provenance.lower)[::-1])
            bias = classifier_bias(backbone)
            origin = replace(target.provenance, lower_layers=layers, classifier_bias=bias)
            for number in gaps.numbers:
                piece = target.pieces[number]
                portion = portions.setdefault(piece.key, Portion(piece.images, piece.rows, {}))
                portion.parts[target.name] = part_file(target.folder, number), origin
            _warn_of_cost(gaps, backbone, pixels, self.machine)
        wanted = {gaps.target.name: gaps.target.wanted for gaps in together}
        subset = Subset(pixels, self.run.manifest.labels, np.empty(0, int))
        size = self.run.config.cam.batch_size
        self.failures |= write_portions(
            portions.values(), backbones, wanted, subset, size, self.machine, self.advance
        )

    def _record(self, together: Sequence[_Gaps], seconds: float) -> None:
        """Write into the run's logbook what a round took."""
        images = sum(gaps.images for gaps in together)
        rate = round(images / seconds, 1)
        for gaps in together:
            entry = {
                "images": gaps.images,
                "parts_written": len(gaps.numbers),
                "together_with": len(together) - 1,
                "seconds": round(seconds, 1),
                "images_per_second": rate,
                "device": str(self.machine.device),
                "precision": gaps.target.provenance.precision,
            }
            self.run.record("cache", {gaps.target.name: entry})
        shown = ", ".join(gaps.target.name for gaps in together[:3])
        shown += f" and {len(together) - 3} more" if len(together) > 3 else ""
        log.info("cache %s: %d images in %.1f s, %.1f per second", shown, images, seconds, rate)


def _look_for_gaps(target: Target) -> _Gaps | None:
    """Return what a cache misses, None where it is as it should be; log why parts are rebuilt."""
    missing, files = target.missing(), target.files
    reasons = [why for number, why in missing.items() if files[number].exists()]
    if reasons:
        facts = (target.name, len(reasons), len(files), reasons[0])
        log.warning("cache %s: rebuilding %d of %d parts: %s", *facts)
    for stray in target.strays():
        log.warning("cache %s: removing %s, which is not one of its parts", target.name, stray.name)
    if not missing and target.is_whole():
        log.info("cache %s: already done", target.name)
        return None
    return _Gaps(target, list(missing))


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
    subset: Subset,
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
            batches = subset.batches(portion.images, batch_size, machine.device)
            images = (pixels for pixels, _ in batches)
            arrays = extract(busy, images, wanted, machine.precision, advance)
            settle()
            for name in arrays:
                path, origin = portion.parts[name]
                pending[name] = writer.submit(write_part, path, arrays[name], portion.rows, origin)
        settle()
    return failures


def _warn_of_cost(gaps: _Gaps, backbone: Backbone, pixels: Pixels, machine: Machine) -> None:
    """Time methods that need a pass per channel on one image, and say what all images will cost."""
    first = gaps.target.pieces[0].images[:1]
    for name, (method, level) in gaps.target.wanted.items():
        if method in PERTURB:
            image = torch.from_numpy(pixels[first]).to(machine.device)
            started = time.perf_counter()
            look(backbone, backbone.normalise(image), {name: (method, level)}, machine.precision)
            seconds = time.perf_counter() - started
            log.warning(
                "cache %s: %s takes %.2g s per image, %s for the %d images to do",
                *(gaps.target.name, method, seconds, duration(seconds * gaps.images), gaps.images),
            )
