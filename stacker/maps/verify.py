"""Check every byte of the caches of a run, and say of each what is wrong with it.

Everything that stage three relies on is looked at: that all parts are there and are what was written,
that they belong to this run's base models, images, split and settings, that no row's case trained its
model, that the index shows to others what the parts hold, and, where a Grad-CAM map sums to its logit
minus the bias, that it does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stacker.caches.format import INDEX
from stacker.caches.reader import open_cache, opened, read_dataset, read_provenance
from stacker.caches.rows import refuse_leaks, refuse_trained_images, rows_of_cache
from stacker.data.folds import Fold
from stacker.errors import BackboneError, CacheError, RunError, first_few
from stacker.maps.targets import Target, make_target, planned
from stacker.run import BaseModel, Run

log = logging.getLogger(__name__)
SUMMING = ("gradcam", "hirescam")  # the methods whose maps sum to the logit behind an average


@dataclass(frozen=True)
class Verdict:
    """What is wrong with one cache: nothing, if it is as it should be."""

    name: str
    whole: int
    parts: int
    images: int
    problems: tuple[str, ...]


def verify(run: Run) -> list[Verdict]:
    """Examine every cache that a run should have, and name folders that are none of them.

    Those of a base model that is no longer in the config stay out of it.
    """
    verdicts = [_examine(run, base, fold) for base, fold in planned(run)]
    places = [BaseModel(folder.parent.name, folder.name) for folder in run.path.glob("cache/*/*/")]
    idle = [base for base in places if not run.takes_part(base) and run.model_file(*base).exists()]
    for base in idle:
        log.info("cache/%s is ignored: its backbone is not in this config", base)
    strangers = {str(base) for base in places if base not in idle}
    strangers -= {verdict.name for verdict in verdicts}
    stranger = "not a cache of this run: remove the folder"
    return [*verdicts, *(Verdict(name, 0, 0, 0, (stranger,)) for name in sorted(strangers))]


def _examine(run: Run, base: BaseModel, fold: Fold | None) -> Verdict:
    """Return what is wrong with the parts of a cache, or where they are right with the whole of it."""
    try:
        target = make_target(run, base, fold)
    except (RunError, BackboneError) as error:
        return Verdict(str(base), 0, 0, 0, (str(error),))
    missing = target.missing()
    problems = list(_bad_parts(target, missing))
    if not missing:
        problems += _complaints(_examine_index, target.folder, target.files)
        rows = rows_of_cache(run, fold)
        problems += _complaints(refuse_leaks, rows, target.provenance, target.name)
        if fold is not None:
            problems += _complaints(refuse_trained_images, rows, run, fold, target.name)
    parts = len(target.pieces)
    return Verdict(target.name, parts - len(missing), parts, target.images, tuple(problems))


def _bad_parts(target: Target, missing: Mapping[int, str]) -> Iterator[str]:
    """Yield what is wrong with the parts of a cache; those that are not there in one line."""
    absent = [number for number in missing if not target.files[number].exists()]
    if absent:
        more = f", and so are {len(absent) - 1} more parts" if len(absent) > 1 else ""
        yield f"{target.files[absent[0]]} is missing{more}"
    yield from (why for number, why in missing.items() if number not in absent)
    for number, file in enumerate(target.files):
        if number not in missing:
            yield from _complaints(_examine_sums, file)
    yield from (f"{stray} is not one of its parts" for stray in target.strays())


def _complaints(examine: Callable[..., None], *arguments: Any) -> list[str]:
    """Return what an examination complains about."""
    try:
        examine(*arguments)
    except CacheError as error:
        return [error.what]
    return []


def _examine_sums(path: Path) -> None:
    """Raise CacheError when maps do not add up to their logits, as far as float16 can tell."""
    with opened(path) as file:
        origin = read_provenance(file)
        if not (origin.classifier_bias and origin.methods and origin.methods[0] in SUMMING):
            return
        maps_NKhw = read_dataset(file, "maps").astype(np.float64)
        logits_NK, ids = read_dataset(file, "logits"), read_dataset(file, "image_id")
        flagged_N = read_dataset(file, "flags")[:, 0] > 0  # clipped, or no numbers: they cannot sum
    rounding_NK = np.abs(maps_NKhw).sum(axis=(2, 3)) * 2.0**-11 + maps_NKhw[0, 0].size * 2.0**-24
    gap_NK = np.abs(maps_NKhw.sum(axis=(2, 3)) - (logits_NK - np.array(origin.classifier_bias)))
    wrong_N = (gap_NK > 2 * rounding_NK + 1e-4 * np.abs(logits_NK) + 1e-4).any(axis=1)
    wrong = np.flatnonzero(wrong_N & ~flagged_N)
    if len(wrong):
        raise CacheError(
            f"{path}: maps of {len(wrong)} images do not sum to logit - bias "
            f"({first_few([image.decode() for image in ids[wrong]])}): delete the file"
        )


def _examine_index(folder: Path, parts: Sequence[Path]) -> None:
    """Raise CacheError when the index is not as it was written, or does not show what the parts hold."""
    open_cache(folder)
    with opened(folder / INDEX) as index:
        if [str(name) for name in index.attrs["parts"]] != [part.name for part in parts]:
            raise CacheError(f"{folder / INDEX} lists other parts than the folder has")
        start = 0
        for part in parts:
            with opened(part) as file:
                end = start + len(file["label"])
                for name in file:
                    if index[name][start:end].tobytes() != file[name][:].tobytes():
                        raise CacheError(f"{folder / INDEX} and {part.name} differ in {name}")
                start = end
