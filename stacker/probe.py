"""The first thing that anyone would try: frozen features and a logistic regression, on the same split.

The last grid of every backbone of the config, with the weights that it starts from, is averaged over the
image; a regularised regression on the standardised averages is fitted per fold on exactly the images
that train the fold's base model. What fine-tuning gains over that is then a paired difference.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stacker.admission import open_caches
from stacker.backbone import create
from stacker.devices import autocast
from stacker.errors import CacheError, RunError
from stacker.finetune import How
from stacker.metrics import Predictions, differences, evaluate
from stacker.pixels import Pixels
from stacker.progress import bar
from stacker.run import write_json
from stacker.stack import by_unit
from stacker.studies import Study

log = logging.getLogger(__name__)

BATCH = 32


def probe(study: Study, strength: float) -> dict[str, Any]:
    """Score the probes of all backbones, beside the base models that are cached already."""
    config, manifest = study.run.config, study.manifest
    pixels = study.pixels()
    held_out: dict[str, Predictions] = {}
    test: dict[str, Predictions] = {}
    with bar("probe", len(pixels) * len(config.backbones)) as advance:
        for name in config.backbones:
            features = _embed(study, name, pixels, advance)
            held_out[f"{name}, frozen"], test[f"{name}, frozen"] = _fit(study, features, strength)
    if len(held_out) > 1:
        held_out["mean, frozen"], test["mean, frozen"] = _mean_of(held_out), _mean_of(test)
    tuned_held_out, tuned_test = _tuned(study)
    pairs = [(name, f"{name}, frozen") for name in tuned_held_out]
    draws, seed = config.stack.bootstrap, config.seed
    parts = {"held_out": {**held_out, **tuned_held_out}, "test": {**test, **tuned_test}}
    metrics: dict[str, Any] = {
        "split": study.folds.label,
        "classes": manifest.classes,
        "unit": manifest.unit,
        "C": strength,
        "intervals": f"95%, {draws} bootstrap draws of whole {manifest.unit}s",
        **{
            part: by_unit(evaluate(models, draws, seed), manifest.unit) for part, models in parts.items()
        },
        "differences": differences(parts["held_out"], pairs, draws, seed),
    }
    write_json(study.run.path / "probe.json", metrics)
    return metrics


def _embed(study: Study, name: str, pixels: Pixels, advance: Any) -> np.ndarray:
    """Return the averaged last grid (N, C) of all images, from the weights that training starts from."""
    config = study.run.config
    machine = How.of(config)
    device, precision = machine.device, machine.precision
    torch.manual_seed(config.seed)
    size, classes = config.images.shape, len(study.manifest.classes)
    backbone = create(name, classes, config.backbones[name], size).freeze()
    backbone.model.to(device)
    found = []
    for start in range(0, len(pixels), BATCH):
        images_BHWC = torch.from_numpy(pixels[np.arange(start, min(start + BATCH, len(pixels)))])
        with torch.no_grad(), autocast(device, precision):
            grid_BChw = backbone.trunk(backbone.normalise(images_BHWC.to(device))).grid_BChw
        found.append(grid_BChw.float().mean(dim=(2, 3)).cpu().numpy())
        advance(len(images_BHWC))
    features: np.ndarray = np.concatenate(found)
    return features


def _fit(study: Study, features: np.ndarray, strength: float) -> tuple[Predictions, Predictions]:
    """Return out-of-fold probabilities of the held-out images, and mean ones of the test images."""
    manifest, folds = study.manifest, study.folds
    tests = manifest.rows_of(folds.group, folds.test)
    held_out_rows, held_out, test = [], [], []
    for fold in folds.folds:
        trained = manifest.rows_of(folds.group, (*fold.fit, *fold.validation))
        rows = manifest.rows_of(folds.group, fold.held_out)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
        model.fit(features[trained], manifest.labels[trained])
        held_out_rows.append(rows)
        held_out.append(model.predict_proba(features[rows]))
        test.append(model.predict_proba(features[tests]))
    rows = np.concatenate(held_out_rows)
    return (
        _predictions(study, rows, np.concatenate(held_out)),
        _predictions(study, tests, np.mean(test, axis=0)),
    )


def _predictions(study: Study, rows: np.ndarray, shares: np.ndarray) -> Predictions:
    cases = np.array([study.manifest.clusters[row].encode() for row in rows])
    return Predictions(study.manifest.labels[rows], cases, shares)


def _mean_of(found: Mapping[str, Predictions]) -> Predictions:
    """Return the mean of several models' probabilities on the same rows."""
    first = next(iter(found.values()))
    shares = np.mean([each.probabilities for each in found.values()], axis=0)
    return Predictions(first.labels, first.cases, shares)


def _tuned(study: Study) -> tuple[Mapping[str, Predictions], Mapping[str, Predictions]]:
    """Return what the run's base models say of the same images in the same order, if cached."""
    try:
        caches = open_caches(study.run, study.manifest, study.folds, frozen=False)
    except (CacheError, RunError) as error:
        log.info("no base models beside the probes: %s", error)
        return {}, {}
    tables = caches.tables(["logits"], study.run.config.stack)
    rows, tests = tables.development.rows, next(iter(tables.tests.values())).rows
    development, test = caches.base()
    return (
        {n: Predictions(rows.label, rows.case_id, p) for n, p in development.items()},
        {n: Predictions(tests.label, tests.case_id, p.mean(axis=0)) for n, p in test.items()},
    )
