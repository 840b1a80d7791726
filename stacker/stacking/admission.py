"""Which caches may be stacked: those of this run's images, split and models, and of no others.

Every cache is compared with the split row by row. A row whose case trained the model that produced it is
refused when the split is by case, whatever the file names say; a split by slide or by image leaks across
cases by its nature, was asked for and says so on its label, and is held to its own unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from stacker.caches.format import AGAIN, Provenance, Rows
from stacker.caches.reader import Cache, open_cache
from stacker.caches.rows import refuse_leaks, refuse_trained_images, rows_of_cache
from stacker.data.folds import Fold
from stacker.errors import CacheError
from stacker.files import digest, file_sha256
from stacker.run import FROZEN, BaseModel, Run
from stacker.stacking.tables import Caches, Source


def open_caches(run: Run, frozen: bool) -> Caches:
    """Open the caches of a run; raise CacheError or LeakError when one is not what it should be."""
    untrained = list(run.config.frozen) if frozen else []
    embedded = {name: _open(run, name, None) for name in untrained}
    opened = {BaseModel(name, FROZEN): cache for name, cache in embedded.items()}
    sources = []
    for fold in run.folds.folds:
        caches = {name: _open(run, name, fold) for name in run.config.backbones}
        opened |= {BaseModel(name, fold.name): cache for name, cache in caches.items()}
        rows = next(iter(caches.values())).rows
        beside = {name: (cache, _places(cache, rows)) for name, cache in embedded.items()}
        sources.append(Source(fold.name, caches, beside))
    origins = {key: cache.provenance for key, cache in opened.items()}
    _require_one_precision(origins)
    return Caches(
        sources=tuple(sources),
        classes=run.manifest.classes,
        checkpoints={key: origin.checkpoint_sha256 for key, origin in origins.items()},
        origins={key: digest({**asdict(o), "versions": None}) for key, o in origins.items()},
        precision=next(iter(origins.values())).precision,
    )


def _open(run: Run, backbone: str, fold: Fold | None) -> Cache:
    """Open the cache of a base model, or of a frozen backbone, and look whether it may be stacked."""
    base = BaseModel(backbone, FROZEN if fold is None else fold.name)
    cache = open_cache(run.cache_folder(*base))
    _check_origin(cache, base, run)
    refuse_leaks(cache.rows, cache.provenance, str(base))
    if fold is not None:
        refuse_trained_images(cache.rows, run, fold, str(base))
    if not cache.rows.equals(rows_of_cache(run, fold)):
        raise CacheError(f"{cache.folder} holds other images than the split of this run says", AGAIN)
    model = run.model_file(*base)
    if model.exists() and file_sha256(model) != cache.provenance.checkpoint_sha256:  # trained again
        raise CacheError(f"{cache.folder} was made by another model than {model}", AGAIN)
    return cache


def _places(cache: Cache, rows: Rows) -> np.ndarray:
    """Return the places in a frozen backbone's cache of some images."""
    place = {image: row for row, image in enumerate(cache.rows.image_id)}
    missing = [image for image in rows.image_id if image not in place]
    if missing:
        raise CacheError(f"{cache.folder}: {missing[0].decode()} is not among its images", AGAIN)
    return np.array([place[image] for image in rows.image_id])


def _check_origin(cache: Cache, base: BaseModel, run: Run) -> None:
    """Raise CacheError unless the cache is of this run's images, split and settings."""
    origin, cam = cache.provenance, run.config.cam
    expected: dict[str, Any] = {
        "backbone": base.backbone,
        "model_fold": base.fold,
        "manifest_digest": run.manifest.digest,
        "folds_digest": run.folds.digest,
        "classes": run.manifest.classes,
        "group": run.folds.group,
    }
    if not base.is_frozen:
        expected |= {"methods": tuple(cam.methods), "lower": cam.lower}
    for name, value in expected.items():
        cached = getattr(origin, name)
        if cached != value:
            raise CacheError(
                f"cache {base} was made with {name} {_plain(cached)}, this run uses {_plain(value)}",
                AGAIN,
            )


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _require_one_precision(origins: Mapping[BaseModel, Provenance]) -> None:
    """Raise CacheError for a table of columns in different precision."""
    examples = {origin.precision: base for base, origin in origins.items()}
    if len(examples) > 1:
        named = ", ".join(f"{base} in {precision}" for precision, base in examples.items())
        raise CacheError(f"caches differ in precision: {named}", AGAIN)
