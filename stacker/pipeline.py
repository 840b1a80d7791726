"""The stages in order: what to do, in which run, and what is done already.

Stage one and two are lists of jobs, one per backbone and fold, worked off in this process. A job's
result says in itself from what it was made (an identity digest in a checkpoint, the provenance in a
cache); a job whose result is there is skipped, and anything else that lies in its place is refused or
made anew. Torch is imported by the stages that need it, so stage three runs without it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stacker.cache import Provenance, Rows, describe_preprocessing, fixed_text
from stacker.config import Config, TrainConfig
from stacker.errors import RunError
from stacker.folds import Fold
from stacker.pixels import Pixels
from stacker.progress import bar
from stacker.run import (
    digest,
    file_sha256,
    require_space,
    versions,
)
from stacker.studies import Study, begin

if TYPE_CHECKING:
    from stacker.finetune import Epoch

log = logging.getLogger(__name__)


def train(study: Study) -> None:
    """Stage one: fine-tune the base models that are not there yet."""
    from stacker import backbone as backbones

    config = study.run.config
    device = backbones.choose_device(config.device)
    precision = backbones.choose_precision(config.precision, device)
    pixels = study.pixels()
    jobs = study.jobs()
    total = sum(_recipe(config, name).epochs for name, _ in jobs)
    with bar("train", total) as advance:
        for name, fold in jobs:
            path = study.run.model_file(name, fold.name)
            if path.exists():
                _require_same(path, backbones.read_facts(path)["identity"], _identity(study, name, fold))
                log.info("train %s/%s: done already", name, fold.name)
                advance(_recipe(config, name).epochs)
            else:
                _train_one(study, name, fold, pixels, device, precision, advance)


def _recipe(config: Config, name: str) -> TrainConfig:
    """Return the training recipe of a backbone: `train`, with what its own section changes."""
    own = config.backbones[name].model_dump(include={"lr", "epochs"}, exclude_none=True)
    return config.train.model_copy(update=own)


def _identity(study: Study, name: str, fold: Fold) -> str:
    """Return the digest of all that decides a base model's weights."""
    config = study.run.config
    weights = config.backbones[name].weights
    return digest(
        {
            "backbone": name,
            "weights_sha256": file_sha256(Path(weights)) if Path(weights).is_file() else None,
            "settings": config.backbones[name].model_dump(mode="json"),
            "train": config.train.model_dump(mode="json"),
            "images": config.images.model_dump(mode="json"),
            "seed": config.seed,
            "fold": fold.name,
            "manifest": study.manifest.digest,
            "folds": study.folds.digest,
        }
    )


def _require_same(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise RunError(
            f"{path} was trained for another run (identity {found}, expected {expected}); delete it and "
            "run 'stacker train CONFIG' again"
        )


def _train_one(
    study: Study, name: str, fold: Fold, pixels: Pixels, device: Any, precision: Any, advance: Any
) -> None:
    import torch

    from stacker.backbone import create, save_checkpoint
    from stacker.finetune import Part, finetune

    run, manifest, recipe = study.run, study.manifest, _recipe(study.run.config, name)
    started = time.perf_counter()
    seed = int(digest([run.config.seed, name, fold.name]), 16) % 2**31
    torch.manual_seed(seed)
    backbone = create(name, len(manifest.classes), run.config.backbones[name])
    path = run.model_file(name, fold.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    require_space(path.parent, sum(t.nbytes for t in backbone.model.state_dict().values()))
    curve = path.with_name("metrics.jsonl")
    curve.unlink(missing_ok=True)

    def log_epoch(epoch: Epoch) -> None:
        with curve.open("a", encoding="utf-8") as file:
            file.write(json.dumps(epoch) + "\n")
        log.info(
            "train %s/%s: epoch %d/%d  loss %.3f  val loss %.3f  acc %.3f  AUC %.3f  %.0f img/s",
            *(name, fold.name, epoch["epoch"], recipe.epochs, epoch["train_loss"]),
            *(epoch["val_loss"], epoch["val_accuracy"], epoch["val_auc"], epoch["images_per_second"]),
        )
        advance(1)

    fit, validation = (
        Part(pixels, manifest.labels, manifest.rows_of(study.folds.group, groups))
        for groups in (fold.fit, fold.validation)
    )
    best = finetune(backbone, fit, validation, recipe, seed, device, precision, log_epoch)
    facts = _facts(study, name, fold, np.concatenate([fit.rows, validation.rows]))
    best_scores = {k: v for k, v in best.items() if k != "images_per_second"}
    save_checkpoint(path, backbone, {**facts, "best": best_scores})
    seconds = round(time.perf_counter() - started, 1)
    entry = {"seconds": seconds, "best_epoch": best["epoch"], "device": str(device)}
    run.record("train", {f"{name}/{fold.name}": entry | {"precision": str(precision)}})


def _facts(study: Study, name: str, fold: Fold, trained: np.ndarray) -> dict[str, Any]:
    """Return what a checkpoint says of its origin; `trained` are the rows that it has seen."""
    manifest, folds = study.manifest, study.folds
    return {
        "identity": _identity(study, name, fold),
        "classes": manifest.classes,
        "fold": fold.name,
        "group": folds.group,
        "training_cases": sorted({manifest.clusters[row] for row in trained}),
        "manifest_digest": manifest.digest,
        "folds_digest": folds.digest,
        "config": study.run.config.results(),
        "versions": versions(),
    }


def cache(study: Study) -> None:
    """Stage two: fill the caches of all base models with the images that they never saw."""
    from stacker import backbone as backbones
    from stacker.extract import cache_is_done, fill_cache

    run, config = study.run, study.run.config
    device = backbones.choose_device(config.device)
    precision = backbones.choose_precision(config.precision, device)
    checkpoints = [(name, fold, run.model_file(name, fold.name)) for name, fold in study.jobs()]
    for name, fold, path in checkpoints:
        if not path.exists():
            raise RunError(f"{path}: no such base model; run 'stacker train CONFIG' first")
        _require_same(path, backbones.read_facts(path)["identity"], _identity(study, name, fold))
    plans = []
    for name, fold, path in checkpoints:
        store_rows, rows = _rows(study, fold)
        origin = _provenance(study, name, fold, path, str(precision))
        if cache_is_done(run.cache_folder(name, fold.name), rows, origin, config.cam):
            log.info("cache %s/%s: done already", name, fold.name)
        else:
            plans.append((name, fold, path, store_rows, rows, origin))
    if not plans:
        return
    pixels = study.pixels()
    with bar("cache", sum(len(plan[4]) for plan in plans)) as advance:
        for name, fold, path, store_rows, rows, origin in plans:
            folder = run.cache_folder(name, fold.name)
            started = time.perf_counter()
            backbone, _ = backbones.load_checkpoint(path)
            plan = (folder, backbone, pixels, store_rows, rows, origin, config.cam)
            written = fill_cache(*plan, device, precision, advance)
            seconds = round(time.perf_counter() - started, 1)
            run.record("cache", {f"{name}/{fold.name}": {"seconds": seconds, "parts_written": written}})
            log.info("cache %s/%s: %d images in %.1f s", name, fold.name, len(rows), seconds)


def _rows(study: Study, fold: Fold) -> tuple[np.ndarray, Rows]:
    """Return the images that a fold's model never saw, held-out ones and test, and who they are."""
    manifest, folds = study.manifest, study.folds
    held_out = manifest.rows_of(folds.group, fold.held_out)
    tests = manifest.rows_of(folds.group, folds.test)
    part = fold.name if folds.protocol == "crossfit" else "stack"
    store_rows = np.concatenate([held_out, tests])
    images = [manifest.images[row] for row in store_rows]
    return store_rows, Rows(
        label=manifest.labels[store_rows],
        image_id=fixed_text([image.id for image in images]),
        case_id=fixed_text([manifest.clusters[row] for row in store_rows]),
        fold=fixed_text([part] * len(held_out) + ["test"] * len(tests)),
    )


def _provenance(study: Study, name: str, fold: Fold, path: Path, precision: str) -> Provenance:
    from stacker.backbone import read_facts

    facts = read_facts(path)
    images = study.run.config.images
    return Provenance(
        backbone=name,
        model_fold=fold.name,
        classes=study.manifest.classes,
        group=study.folds.group,
        checkpoint_sha256=file_sha256(path),
        manifest_digest=study.manifest.digest,
        folds_digest=study.folds.digest,
        training_cases=tuple(facts["training_cases"]),
        target_layer=facts["target_layer"],
        method=study.run.config.cam.method,
        preprocessing=describe_preprocessing(images.size, images.resize, facts["mean"], facts["std"]),
        precision=precision.removeprefix("torch."),
        versions=json.dumps(versions()),
    )


def stack(study: Study, metas: Sequence[str]) -> dict[str, Any]:
    """Stage three: fit the meta-learners that are not fitted yet; return the run's metrics."""
    from stacker.stack import fit_stack

    return fit_stack(study.run, study.manifest, study.folds, metas)


def run_all(config: Config) -> dict[str, Any]:
    """Do all three stages, skipping what is done; return the run's metrics."""
    study = begin(config)
    train(study)
    cache(study)
    return stack(study, config.stack.meta)
