"""Working off the jobs of stage one: each is trained once, and resumed where it was interrupted.

A job whose result is there is skipped (`plan` says which those are), one that another process has in
hand is left to it, and one that was killed resumes after its last whole epoch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stacker.backbones.backbone import require_linear
from stacker.backbones.checkpoint import save_checkpoint
from stacker.backbones.devices import Machine
from stacker.backbones.sources import trained_on, weights_sha256
from stacker.backbones.weights import build, drop_settings
from stacker.config.training import BackboneConfig
from stacker.errors import BackboneError
from stacker.files import held, require_space, sweep, versions
from stacker.progress import bar
from stacker.training.board import draw_maps, lent
from stacker.training.loop import finetune
from stacker.training.measures import Epoch
from stacker.training.optimizer import require_stages
from stacker.training.plan import Job
from stacker.training.record import Snapshot, Watch, load_snapshot

log = logging.getLogger(__name__)
UNKEPT = ("images_per_second", "gpu_gb", "lr_by_step")  # of an epoch, not a checkpoint's business


def run_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Train what is not trained yet; return the jobs that other processes still have in hand.

    A job that fails does not stop the others; then raise BackboneError with the reasons at the end.
    """
    if not jobs:
        return []
    machine = Machine.of(jobs[0].run.config).set_up()
    for job in {job.backbone: job for job in jobs}.values():
        _require_usable(job)
    elsewhere, failures = [], []
    with bar("train", sum(job.images for job in jobs)) as advance:
        for job in jobs:
            with held(job.path.with_name(".lock")) as locked:
                if not locked or job.is_done():  # asked with the lock in hand: it may just be done
                    state = "already done" if locked else "another process is training it"
                    log.info("train %s: %s", job.base, state)
                    elsewhere += [] if locked else [job]
                    advance(job.images)
                    continue
                try:
                    _train(job, machine, advance)
                except (BackboneError, torch.OutOfMemoryError) as error:
                    log.error("train %s: %s", job.base, error)  # noqa: TRY400  # a message, not a bug
                    failures.append(f"{job.base}: {error}")
    if failures:
        count = f"{len(failures)} of {len(jobs)} base models failed:"
        raise BackboneError("\n  ".join([count, *failures]))
    return [job for job in elsewhere if not job.path.exists()]


def _require_usable(job: Job) -> None:
    """Build a job's backbone without memory; raise BackboneError, before any job, for what it cannot be.

    Whether trunk and head are the model takes a forward pass, which the job itself makes.
    """
    name, size = job.backbone, job.run.config.images.shape
    settings, classes = BackboneConfig(weights="random"), len(job.run.manifest.classes)
    try:
        with torch.device("meta"):
            model = build(name, classes, settings, size, drop_settings(job.recipe))
    except RuntimeError:  # it computes with its weights when it is built
        return
    require_linear(name, model)
    require_stages(name, model, job.recipe)


def _train(job: Job, machine: Machine, advance: Callable[..., None]) -> None:
    """Train one base model from its beginning or its resume file, and publish it."""
    recipe, started, shown = job.recipe, time.perf_counter(), 0
    machine = replace(machine, seed=job.seed)
    backbone, folder = job.build(), job.path.parent
    sweep(folder)
    weights = sum(t.nbytes for t in backbone.model.state_dict().values())
    require_space(folder, (1 + 2 * recipe.resume_copies) * weights)
    resume_file = folder / "resume.safetensors"
    snapshot = load_snapshot(resume_file, job.identity)
    before: list[Epoch] = snapshot.facts["epochs"] if snapshot else []
    train, validation = job.parts(job.run.pixels())
    if before:
        log.info("train %s: resuming after epoch %d", job.base, len(before))

    def on_images(count: int) -> None:
        nonlocal shown
        shown += count
        advance(count, f"train {job.base}")

    def show_maps(epoch: Epoch) -> None:
        watch.board.show(draw_maps(backbone, validation, job.run.manifest, machine), epoch["epoch"])

    def on_epoch(epoch: Epoch, take: Callable[[], Snapshot]) -> None:
        watch.see(epoch)
        taken = take()
        if epoch["epoch"] < recipe.epochs:
            taken.facts["identity"] = job.identity
            taken.save(resume_file)
        if len(watch.epochs) == len(before) + 1:
            with lent(backbone.model, taken.tensors.get("ema", {})):
                show_maps(epoch)

    with closing(Watch(folder, str(job.base), recipe.epochs, before)) as watch:
        on_images(len(before) * len(train.rows))
        best = finetune(backbone, train, validation, recipe, machine, on_epoch, on_images, snapshot)
        trained = np.concatenate([train.rows, validation.rows])
        save_checkpoint(job.path, backbone, _facts(job, machine, best, trained))
        show_maps(best)  # a failure of it costs no training any more
        watch.end(best, recipe)
    resume_file.unlink(missing_ok=True)
    advance(job.images - shown)
    _record(job, machine, watch.epochs, best, round(time.perf_counter() - started, 1))


def _record(job: Job, machine: Machine, epochs: Sequence[Epoch], best: Epoch, seconds: float) -> None:
    """Write into the run's logbook what a job took."""
    entry = {"seconds": seconds, "epochs": len(epochs), "best_epoch": best["epoch"]}
    rate = float(np.median([epoch["images_per_second"] for epoch in epochs]))
    entry |= {"images_per_second": rate, "accumulate": epochs[-1]["accumulate"]}
    entry |= {"device": str(machine.device), "precision": str(machine.precision)}
    job.run.record("train", {str(job.base): entry})


def _facts(job: Job, machine: Machine, best: Epoch, trained: np.ndarray) -> dict[str, Any]:
    """Return what a checkpoint says of its origin; `trained` are the rows that it has seen."""
    manifest, folds = job.run.manifest, job.run.folds
    settings = job.run.config.backbones[job.backbone]
    inherited = set(trained_on(job.backbone, settings))
    return {
        "identity": job.identity,
        "weights_sha256": weights_sha256(job.backbone, settings),
        "classes": manifest.classes,
        "fold": job.fold.name,
        "group": folds.group,
        "training_cases": sorted({manifest.cases[row] for row in trained} | inherited),
        "manifest_digest": manifest.digest,
        "folds_digest": folds.digest,
        "config": job.run.config.results(),
        "precision": machine.arithmetic,
        "versions": versions(),
        "best": {k: v for k, v in best.items() if k not in UNKEPT},
    }
