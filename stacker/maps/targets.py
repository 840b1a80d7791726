"""The caches that a run should have: of which base model, and of which images, cut into which parts.

A cache holds the images that its base model never saw: the held-out ones of its fold, and the test ones.
All caches are cut into the same pieces of images, so that one read of a piece can feed all base models.
Backbones under `frozen` are not trained: they embed all these images once, under the fold name `frozen`,
from a copy of their weights that the run keeps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stacker.backbones.backbone import create
from stacker.backbones.checkpoint import save_checkpoint
from stacker.backbones.devices import Machine
from stacker.backbones.sources import read_facts, trained_on, weights_sha256
from stacker.backbones.weights import require_unseen
from stacker.caches.format import Provenance, Rows, describe_preprocessing, part_file
from stacker.caches.reader import open_cache
from stacker.caches.rows import unseen
from stacker.caches.writer import examine_part
from stacker.data.folds import Fold
from stacker.errors import CacheError, RunError
from stacker.files import digest, file_sha256, held, versions
from stacker.maps.cam import Wanted
from stacker.run import FROZEN, BaseModel, Run


@dataclass(frozen=True)
class Piece:
    """Images that lie in one part: their positions in the manifest, and who they are."""

    images: np.ndarray
    rows: Rows

    @property
    def key(self) -> bytes:
        """What pieces of the same images have in common."""
        return self.images.tobytes()


@dataclass(frozen=True)
class Target:
    """A cache that a run should have: where, made by what, of which images, piece by piece."""

    base: BaseModel
    model: Path
    folder: Path
    provenance: Provenance
    wanted: Wanted
    pieces: tuple[Piece, ...]

    @property
    def name(self) -> str:
        """The cache as people call it."""
        return str(self.base)

    @property
    def images(self) -> int:
        """How many images it is about."""
        return sum(len(piece.images) for piece in self.pieces)

    @property
    def files(self) -> list[Path]:
        """The files of its parts."""
        return [part_file(self.folder, number) for number in range(len(self.pieces))]

    def missing(self) -> dict[int, str]:
        """Return the parts that are not there as they should be, by their digests: number and reason."""
        reasons = {}
        for number, (file, piece) in enumerate(zip(self.files, self.pieces, strict=True)):
            try:
                examine_part(file, piece.rows, self.provenance)
            except CacheError as error:
                reasons[number] = error.what
        return reasons

    def strays(self) -> list[Path]:
        """Return files that look like parts of it and are none."""
        return sorted(set(self.folder.glob("part-*.h5")) - set(self.files))

    def is_whole(self) -> bool:
        """Say whether the index and just these parts are there; the parts' content is `missing`'s."""
        try:
            cache = open_cache(self.folder)
        except CacheError:
            return False
        same = cache.provenance == self.provenance and list(cache.parts) == self.files
        return same and not self.strays()


def list_targets(run: Run) -> list[Target]:
    """Return the caches of a run; raise RunError when a model is not there yet."""
    return [make_target(run, base, fold) for base, fold in planned(run)]


def planned(run: Run) -> list[tuple[BaseModel, Fold | None]]:
    """Return base model and fold of every cache that a run should have; None for frozen backbones."""
    trained = [(BaseModel(name, fold.name), fold) for name, fold in run.jobs()]
    return [*trained, *((BaseModel(name, FROZEN), None) for name in run.config.frozen)]


def make_target(run: Run, base: BaseModel, fold: Fold | None) -> Target:
    """Return one cache of a run; raise RunError when its model is not there yet."""
    model, images, cam = run.model_file(*base), run.config.images, run.config.cam
    if not model.exists():
        stage = "cache" if base.is_frozen else "train"
        raise RunError(f"{model}: no such base model", f"run 'stacker {stage} CONFIG' first")
    facts = read_facts(model)
    provenance = Provenance(
        backbone=base.backbone,
        model_fold=base.fold,
        classes=run.manifest.classes,
        group=run.folds.group,
        checkpoint_sha256=file_sha256(model),
        manifest_digest=run.manifest.digest,
        folds_digest=run.folds.digest,
        training_cases=tuple(facts["training_cases"]),
        target_layer=facts["target_layer"],
        methods=() if base.is_frozen else tuple(cam.methods),
        lower=0 if base.is_frozen else cam.lower,
        preprocessing=describe_preprocessing(images.size, images.resize, facts["mean"], facts["std"]),
        precision=Machine.of(run.config).arithmetic,
        versions=json.dumps(versions()),
    )
    wanted = {} if base.is_frozen else cam.maps
    parts = [fold] if fold is not None else list(run.folds.folds)
    pieces = tuple(piece for part in (*parts, None) for piece in _cut(run, part))
    return Target(base, model, run.cache_folder(*base), provenance, wanted, pieces)


def _cut(run: Run, fold: Fold | None) -> Iterator[Piece]:
    """Cut the held-out images of a fold, or the test images, into pieces."""
    images, rows = unseen(run, fold)
    size = run.config.cam.part_rows
    for start in range(0, len(images), size):
        chosen = slice(start, start + size)
        yield Piece(images[chosen], rows.take(chosen))


def keep_frozen(run: Run) -> None:
    """Write the run's copies of its frozen backbones, where they are missing or of other weights."""
    require_unseen(run.config.frozen, run.manifest.cases)
    size, seed, classes = run.config.images.shape, run.config.seed, run.manifest.classes
    for name, settings in run.config.frozen.items():
        path = run.model_file(name, FROZEN)
        identity = digest(
            {
                "backbone": name,
                "weights_sha256": weights_sha256(name, settings),
                "settings": settings.model_dump(mode="json"),
                "size": size,
                "seed": seed,
            }
        )
        with held(path.with_name(".lock"), wait=True):
            if not path.exists() or read_facts(path)["identity"] != identity:
                torch.manual_seed(seed)
                backbone = create(name, len(classes), settings, size)
                facts: dict[str, Any] = {"identity": identity, "classes": classes, "fold": FROZEN}
                facts |= {"training_cases": trained_on(name, settings), "versions": versions()}
                save_checkpoint(path, backbone, facts)
