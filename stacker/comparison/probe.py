"""The first thing that anyone would try: frozen features and a logistic regression, on the same split.

The last grid of every backbone of the config, with the weights that it starts from, is averaged over the
image; a regularised regression on the standardised averages is fitted per fold on exactly the images
that train the fold's base model. What fine-tuning gains over that is then a paired difference.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stacker.backbones.backbone import create
from stacker.backbones.devices import Machine, autocast
from stacker.caches.format import Rows
from stacker.caches.rows import unseen
from stacker.data.store import Pixels
from stacker.errors import CacheError, RunError
from stacker.files import write_json
from stacker.progress import bar
from stacker.run import Run
from stacker.scores.bootstrap import Resampling
from stacker.stacking.admission import open_caches
from stacker.stacking.finish import Says, say_plainly
from stacker.stacking.fitting import parts_of
from stacker.stacking.stage import baselines, by_unit

log = logging.getLogger(__name__)
BATCH = 32
Answers: TypeAlias = tuple[np.ndarray, ...]  # out of fold (N, K), of test rows (folds, N, K)


def probe(run: Run, strength: float) -> dict[str, Any]:
    """Score the probes of all backbones, beside the base models that are cached already."""
    config, manifest = run.config, run.manifest
    pixels = run.pixels()
    answers: dict[str, Answers] = {}
    with bar("probe", len(pixels) * len(config.backbones)) as advance:
        for name in config.backbones:
            answers[f"{name}, frozen"] = _fit(run, _embed(run, name, pixels, advance), strength)
    if len(answers) > 1:
        both = zip(*answers.values(), strict=True)
        answers["mean, frozen"] = tuple(np.mean(of_backbones, axis=0) for of_backbones in both)
    tuned = _tuned(run)
    says = _say(run, answers) | tuned
    development = {name: model.development for name, model in says.items() if model.development}
    test = {name: model.test for name, model in says.items()}
    pairs = [(name, f"{name}, frozen") for name in tuned if name in development]
    how = Resampling(config.stack.bootstrap, config.seed, manifest.classes, manifest.unit)
    metrics: dict[str, Any] = {
        "split": run.folds.label,
        "leaks": run.folds.leaks,
        "classes": manifest.classes,
        "positive": manifest.positive,
        "unit": manifest.unit,
        "C": strength,
        "intervals": how.description,
        "development": by_unit(how.evaluate(development), manifest.unit),
        "test": by_unit(how.evaluate(test), manifest.unit),
        "differences": how.differences(development, pairs),
    }
    write_json(run.path / "probe.json", metrics)
    return metrics


def _embed(run: Run, name: str, pixels: Pixels, advance: Any) -> np.ndarray:
    """Return the averaged last grid (N, C) of all images, from the weights that training starts from."""
    config = run.config
    machine = Machine.of(config).set_up()
    device, precision = machine.device, machine.precision
    torch.manual_seed(config.seed)
    size, classes = config.images.shape, len(run.manifest.classes)
    backbone = create(name, classes, config.backbones[name], size).freeze()
    backbone.model.to(device)
    grids = []
    for start in range(0, len(pixels), BATCH):
        images_BHWC = torch.from_numpy(pixels[np.arange(start, min(start + BATCH, len(pixels)))])
        with torch.no_grad(), autocast(device, precision):
            grid_BChw = backbone.trunk(backbone.normalise(images_BHWC.to(device))).grid_BChw
        grids.append(grid_BChw.float().mean(dim=(2, 3)).cpu().numpy())
        advance(len(images_BHWC))
    features: np.ndarray = np.concatenate(grids)
    return features


def _fit(run: Run, features: np.ndarray, strength: float) -> Answers:
    """Return out-of-fold probabilities (N, K), fold after fold, and those of test rows (folds, N, K)."""
    manifest, folds = run.manifest, run.folds
    tests, _ = unseen(run, None)
    development, test = [], []
    for fold in folds.folds:
        trained = manifest.rows_of(folds.group, (*fold.train, *fold.validation))
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
        model.fit(features[trained], manifest.labels[trained])
        development.append(model.predict_proba(features[unseen(run, fold)[0]]))
        test.append(model.predict_proba(features[tests]))
    return np.concatenate(development), np.stack(test)


def _say(run: Run, answers: Mapping[str, Answers]) -> dict[str, Says]:
    """Return what the probes say, finished and scored as the base models of the run are."""
    config, manifest, folds = run.config, run.manifest, run.folds
    by_fold = [unseen(run, fold)[1] for fold in folds.folds]
    rows, tests = Rows.join(by_fold), unseen(run, None)[1]
    fold = np.repeat(np.arange(len(by_fold)), [len(of_fold) for of_fold in by_fold])
    groups = np.char.decode(rows.group_id.astype("S"), "utf-8")
    parts = parts_of(rows.label, groups, fold, len(manifest.classes), config.stack, config.seed)
    truth, test_truth = (rows.label, rows.case_id), (tests.label, tests.case_id)
    return {
        name: say_plainly(config.stack, parts, truth, development, test_truth, test)
        for name, (development, test) in answers.items()
    }


def _tuned(run: Run) -> dict[str, Says]:
    """Return what the run's base models say of the same images in the same order, if cached."""
    try:
        caches = open_caches(run, frozen=False)
    except (CacheError, RunError) as error:
        log.info("base models are not compared with the probes: %s", error)
        return {}
    says = baselines(caches, caches.tables(["logits"], run.config.stack), run)
    return {name: says[name] for name in caches.backbones}
