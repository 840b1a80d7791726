"""Look into the caches of a run: what they hold, and their maps drawn over the images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from stacker.cache import Cache, open_cache
from stacker.errors import CacheError, ConfigError, require_one_of
from stacker.figures import Picture, heatmap_sheet
from stacker.heatmaps import read_mask
from stacker.images import decode_image
from stacker.manifest import Image, Manifest, load_manifest
from stacker.run import Run


@dataclass(frozen=True)
class Summary:
    """One cache in a line."""

    backbone: str
    fold: str
    images: dict[str, int]
    maps: tuple[int, ...]
    embedding: int
    method: str
    layer: str
    megabytes: float
    checkpoint: str


def find_caches(run: Run) -> dict[tuple[str, str], Cache]:
    """Return the complete caches of a run by (backbone, fold); raise CacheError when there is none."""
    found = {
        (index.parent.parent.name, index.parent.name): open_cache(index.parent)
        for index in sorted(run.path.glob("cache/*/*/index.h5"))
    }
    if not found:
        raise CacheError(f"{run.path}: nothing is cached yet; run 'stacker cache CONFIG' first")
    return found


def summarise(cache: Cache) -> Summary:
    """Return what one cache holds."""
    parts, counts = np.unique(cache.rows.fold, return_counts=True)
    size = sum(file.stat().st_size for file in cache.folder.glob("*.h5"))
    origin = cache.provenance
    return Summary(
        backbone=origin.backbone,
        fold=origin.model_fold,
        images={part.decode(): int(n) for part, n in zip(parts, counts, strict=True)},
        maps=cache.read("maps").shape[1:],
        embedding=cache.read("features").shape[1],
        method=origin.method,
        layer=origin.target_layer,
        megabytes=round(size / 1e6, 2),
        checkpoint=origin.checkpoint_sha256[:12],
    )


def sample(caches: dict[tuple[str, str], Cache], count: int, seed: int) -> list[str]:
    """Return image ids drawn from the cached test images, taking the classes in turn."""
    rows = next(iter(caches.values())).rows
    tests = rows.take(rows.fold == b"test")
    rng = np.random.default_rng(seed)
    piles = [rng.permutation(np.flatnonzero(tests.label == k)) for k in np.unique(tests.label)]
    turns = [(turn, pile[turn]) for pile in piles for turn in range(min(count, len(pile)))]
    chosen = [row for _, row in sorted(turns, key=lambda pair: pair[0])][:count]
    return [tests.image_id[row].decode() for row in sorted(chosen, key=lambda r: tests.label[r])]


def draw(
    run: Run,
    caches: dict[tuple[str, str], Cache],
    image_ids: Sequence[str],
    backbones: Sequence[str] = (),
    classes: Sequence[str] = (),
    signed: bool = False,
) -> Figure:
    """Draw cached maps over images: one column per backbone and class, one row per image.

    Every backbone and the last class (malignant, in BreakHis) are taken when none is named. Test images
    are cached once per fold: their maps are averaged, for the eye only. Raise ConfigError for an image,
    backbone or class that is not there.
    """
    manifest = load_manifest(run.manifest_file, run.config.data.classes)
    backbones = list(backbones) or list(dict.fromkeys(backbone for backbone, _ in caches))
    classes = list(classes) or [manifest.classes[-1]]
    require_one_of("backbone", backbones, {backbone for backbone, _ in caches})
    require_one_of("class", classes, manifest.classes)
    images = _images(manifest, image_ids)
    panels = {}
    for backbone in backbones:
        maps = _mean_maps([c for (name, _), c in caches.items() if name == backbone], image_ids)
        for label in classes:
            k = manifest.classes.index(label)
            panels[f"{backbone}\n{label}"] = [maps[image.id][k] for image in images]
    return heatmap_sheet([_picture(image, run) for image in images], panels, signed)


def _images(manifest: Manifest, image_ids: Sequence[str]) -> list[Image]:
    by_id = {image.id: image for image in manifest.images}
    require_one_of("image", image_ids, by_id)
    return [by_id[image_id] for image_id in image_ids]


def _picture(image: Image, run: Run) -> Picture:
    title = f"{image.id}\ntrue label: {image.label}"
    return Picture(title, decode_image(image, run.config.images), read_mask(image, run.config))


def _mean_maps(caches: Sequence[Cache], image_ids: Sequence[str]) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    wanted = {image_id.encode() for image_id in image_ids}
    for cache in caches:
        mask = np.isin(cache.rows.image_id, list(wanted))
        for image_id, maps in zip(cache.rows.image_id[mask], cache.read("maps", mask), strict=True):
            found[image_id.decode()].append(maps.astype(np.float32))
    missing = [image_id for image_id in image_ids if image_id not in found]
    if missing:
        raise ConfigError(
            f"{missing[0]} is not cached: it trained the base models; choose an image that was held out "
            "(see --sample)"
        )
    return {image_id: np.mean(maps, axis=0) for image_id, maps in found.items()}
