"""The caches of a run: which there are, what they hold, where they come from and what they cost."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stacker.caches.format import FLAGS
from stacker.caches.reader import Cache, open_cache
from stacker.errors import CacheError, first_few, plural
from stacker.files import read_json
from stacker.run import BaseModel, Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What one cache holds, where it comes from, and what it cost.

    `flagged` counts the images with a map that is not what a map should be, by kind of map and reason.
    """

    backbone: str
    fold: str
    images: dict[str, int]
    methods: tuple[str, ...]
    maps: dict[str, tuple[int, ...]]
    embedding: int
    layers: tuple[str, ...]
    precision: str
    parts: int
    megabytes: float
    kilobytes_per_image: float
    flagged: dict[str, int]
    images_per_second: float | None
    together_with: int | None
    checkpoint: str
    training_cases: int
    versions: dict[str, str]


def find_caches(run: Run) -> dict[BaseModel, Cache]:
    """Return the complete caches of a run by base model; raise CacheError when there is none.

    A warning names the caches that are incomplete, and so left out.
    """
    complete = {base: open_cache(run.cache_folder(*base)) for base in run.kept_caches()}
    begun = filter(run.takes_part, _bases_of(run.path.glob("cache/*/*/part-*.h5")))
    incomplete = [str(base) for base in begun if base not in complete]
    again = f"stacker cache {run.path}/config.yaml"
    if not complete:
        state = (
            f"none of {plural(len(incomplete), 'cache')} is complete" if incomplete else "no cache yet"
        )
        raise CacheError(f"{run.path}: {state}", f"run '{again}'")
    if incomplete:
        log.warning("left out, incomplete: %s (run '%s')", first_few(incomplete), again)
    return complete


def _bases_of(files: Iterable[Path]) -> list[BaseModel]:
    """Return the base models in whose folders some files lie."""
    return sorted({BaseModel(file.parent.parent.name, file.parent.name) for file in files})


def summaries(run: Run, caches: Mapping[BaseModel, Cache]) -> list[Summary]:
    """Return what the caches of a run hold."""
    book = read_json(run.path / "run.json").get("cache", {})
    return [_summarise(cache, book) for cache in caches.values()]


def _summarise(cache: Cache, book: Mapping[str, Any]) -> Summary:
    """Return what one cache holds; `book` is the section of the run's logbook about caches."""
    parts, counts = np.unique(cache.rows.fold, return_counts=True)
    size = sum(file.stat().st_size for file in cache.folder.glob("*.h5"))
    origin = cache.provenance
    logged = book.get(str(BaseModel(origin.backbone, origin.model_fold)), {})
    return Summary(
        backbone=origin.backbone,
        fold=origin.model_fold,
        images={part.decode(): int(n) for part, n in zip(parts, counts, strict=True)},
        methods=origin.methods,
        maps={name: cache.shapes[name] for name in cache.maps},
        embedding=cache.shapes["features"][0],
        layers=(origin.target_layer, *origin.lower_layers),
        precision=origin.precision,
        parts=len(cache.parts),
        megabytes=round(size / 1e6, 2),
        kilobytes_per_image=round(size / 1e3 / len(cache.rows), 2),
        flagged=_flagged(cache),
        images_per_second=logged.get("images_per_second"),
        together_with=logged.get("together_with"),
        checkpoint=origin.checkpoint_sha256[:12],
        training_cases=len(origin.training_cases),
        versions=json.loads(origin.versions),
    )


def _flagged(cache: Cache) -> dict[str, int]:
    """Count the images whose maps carry a flag."""
    if not cache.maps:
        return {}
    flags = cache.read("flags")
    counts = {
        f"{name}: {meaning}": int((flags[:, column] & bit > 0).sum())
        for column, name in enumerate(cache.maps)
        for bit, meaning in FLAGS.items()
    }
    return {what: count for what, count in counts.items() if count}


def sample(caches: dict[BaseModel, Cache], count: int, seed: int) -> list[str]:
    """Return image ids drawn from the cached test images, taking the classes in turn."""
    rows = next(iter(caches.values())).rows
    tests = rows.take(rows.fold == b"test")
    rng = np.random.default_rng(seed)
    piles = [rng.permutation(np.flatnonzero(tests.label == k)) for k in np.unique(tests.label)]
    turns = [(turn, pile[turn]) for pile in piles for turn in range(min(count, len(pile)))]
    chosen = [row for _, row in sorted(turns, key=lambda pair: pair[0])][:count]
    return [tests.image_id[row].decode() for row in sorted(chosen, key=lambda r: tests.label[r])]
