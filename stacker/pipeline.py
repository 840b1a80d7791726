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
from typing import Any

import numpy as np

from stacker.cache import Provenance, Rows, describe_preprocessing, fixed_text
from stacker.config import Config
from stacker.errors import RunError
from stacker.folds import Fold
from stacker.progress import bar
from stacker.run import file_sha256, held, versions
from stacker.studies import Study, begin

log = logging.getLogger(__name__)


def train(study: Study, backbones: Sequence[str] = (), folds: Sequence[str] = ()) -> list[str]:
    """Stage one: fine-tune base models that are not there yet; return those that others have in hand."""
    from stacker.jobs import list_jobs, run_jobs

    return [job.name for job in run_jobs(list_jobs(study, backbones, folds))]


def cache(study: Study) -> None:
    """Stage two: fill the caches of all base models with the images that they never saw."""
    from stacker.checkpoint import load_checkpoint
    from stacker.devices import choose_device, choose_precision, set_deterministic
    from stacker.extract import cache_is_done, fill_cache
    from stacker.jobs import list_jobs

    run, config = study.run, study.run.config
    set_deterministic(config.deterministic)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    jobs = list_jobs(study)
    for job in jobs:
        if not job.is_done():
            raise RunError(f"{job.path}: no such base model; run 'stacker train CONFIG' first")
    plans = []
    for name, fold, path in ((job.backbone, job.fold, job.path) for job in jobs):
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
            backbone, _ = load_checkpoint(path)
            plan = (folder, backbone, pixels, store_rows, rows, origin, config.cam)
            with held(folder.with_name(f".{fold.name}.lock"), wait=True):
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
    from stacker.checkpoint import read_facts

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
    elsewhere = train(study)
    if elsewhere:
        raise RunError(
            f"{', '.join(elsewhere)}: other processes are training these; run this again when "
            "they are done"
        )
    cache(study)
    return stack(study, config.stack.meta)
