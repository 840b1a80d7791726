"""The score of a recipe, without a leak: answers for images of inner folds that were held out.

The development cases of a run (neither its test part nor, under `holdout`, its stack part) are cut into
inner folds, the same for every recipe and with the same seeds. Each model is trained on a part of the
other folds, and its epoch chosen on the rest of them; it answers for the fold that it has not seen.

The models of two folds give numbers of two scales: an image of one fold above an image of another says
little. The AUC therefore counts pairs within a fold, all of which weigh the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stacker.backbones.devices import Machine, Subset
from stacker.config.root import Config
from stacker.config.training import TuneConfig
from stacker.data.folds import Folds, make_folds
from stacker.data.manifest import Manifest
from stacker.data.store import Pixels
from stacker.errors import BackboneError, DataError
from stacker.files import digest
from stacker.run import Run
from stacker.scores.bootstrap import points
from stacker.scores.predictions import Predictions, by_case
from stacker.training.loop import finetune
from stacker.training.measures import logits_of
from stacker.training.plan import Job

SCORES = {"auc": "AUC within folds", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}
SCORING = 2  # rises when the same answers get another score


class DivergedError(BackboneError):
    """A training that came to nothing: it counts as a trial, and says something of its settings."""


@dataclass(frozen=True)
class Search:
    """What all trials share: the images, the inner folds, the backbones and the machine."""

    run: Run
    tune: TuneConfig
    inner: Folds
    backbones: tuple[str, ...]
    pixels: Pixels
    machine: Machine

    @property
    def name(self) -> str:
        """Stand for all that a score depends on: trials of another search are not mixed in."""
        tune = self.tune.model_dump(mode="json", include={"space", "score", "unit", "folds"})
        results = self.run.config.results()
        return digest([SCORING, results, tune, self.inner.digest, sorted(self.backbones)])

    @property
    def what(self) -> str:
        """Say for people what a score is a score of."""
        leak = f" (split by {self.inner.group}: leaks across cases)" if self.inner.leaks else ""
        where = f"{len(self.inner.folds)} inner folds of the development cases{leak}"
        return f"{SCORES[self.tune.score]} by {self.tune.unit}, out of fold on {where}"

    def score(self, rows: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> float:
        """Return the score of the answers for the images of some inner folds, fold by fold.

        The AUC is one of pairs within a fold: models of different folds differ in scale.
        """
        fold = np.repeat(np.arange(len(rows)), [len(rows_of_fold) for rows_of_fold in rows])
        everything = (np.concatenate(rows), np.concatenate(answers), self.tune.unit, fold)
        predictions = predictions_of(self.run.manifest, *everything)
        return float(points(predictions, {self.tune.score})["image"][self.tune.score])


def prepare(run: Run, tune: TuneConfig, backbones: tuple[str, ...]) -> Search:
    """Cut a run's development cases into inner folds; raise DataError when they cannot be scored."""
    config, inner = run.config, inner_folds(run, tune.folds)
    rows = run.manifest.rows_of(inner.group, [g for fold in inner.folds for g in fold.held_out])
    nothing = np.ones((len(rows), 1)), tune.unit, np.zeros(len(rows), np.int64)
    predictions_of(run.manifest, rows, *nothing)
    return Search(run, tune, inner, backbones, run.pixels(), Machine.of(config).set_up())


def inner_folds(run: Run, count: int) -> Folds:
    """Cut what trains a run's base models into folds; all its other groups are their test part.

    Raise DataError when a class has too few groups.
    """
    config, folds, manifest = run.config, run.folds, run.manifest
    development = {group for fold in folds.folds for group in (*fold.train, *fold.validation)}
    marked = [
        replace(image, split="train" if group in development else "test")
        for image, group in zip(manifest.images, manifest.groups(folds.group), strict=True)
    ]
    changes = {"protocol": "crossfit", "test": "official", "k": count}
    asked = config.folds.model_copy(update=changes)
    try:
        return make_folds(Manifest(tuple(marked), manifest.classes), asked, config.seed)
    except DataError as error:
        raise DataError(
            f"tune.folds={count}: the development {folds.group}s cannot be cut into that many inner "
            f"folds; try another number: {error}"
        ) from None


def evaluate(search: Search, config: Config) -> Iterator[float]:
    """Yield the score of a config's recipes after each inner fold, of all answers so far."""
    run = replace(search.run, config=config).with_split(search.run.manifest, search.inner)
    answers: dict[str, list[np.ndarray]] = {name: [] for name in search.backbones}
    held_out: list[np.ndarray] = []
    for fold in search.inner.folds:
        held_out.append(run.manifest.rows_of(search.inner.group, fold.held_out))
        for name in search.backbones:
            answers[name].append(probabilities_of(Job(run, name, fold), search, held_out[-1]))
        yield float(np.mean([search.score(held_out, by_fold) for by_fold in answers.values()]))


def probabilities_of(job: Job, search: Search, rows: np.ndarray) -> np.ndarray:
    """Train a model as stage one would; return its probabilities for images that it has not seen."""
    backbone, machine = job.build(), replace(search.machine, seed=job.seed)
    try:
        finetune(backbone, *job.parts(search.pixels), job.recipe, machine)
    except BackboneError as error:
        raise DivergedError(str(error)) from error
    held_out = Subset(search.pixels, job.run.manifest.labels, rows)
    logits_NK = logits_of(backbone.model, backbone, held_out, job.recipe.batch_size, machine)
    probabilities: np.ndarray = logits_NK.softmax(1).cpu().numpy()
    if not np.isfinite(probabilities).all():
        raise DivergedError(f"{job.base}: its outputs are not finite any more")
    return probabilities


def predictions_of(
    manifest: Manifest, rows: np.ndarray, probabilities: np.ndarray, unit: str, fold: np.ndarray
) -> Predictions:
    """Return the answers by image or by case; raise DataError when cases cannot be scored."""
    cases = np.array(manifest.cases)[rows]
    by_image = Predictions(
        manifest.labels[rows], cases, probabilities, raw=probabilities[None], parts=fold[None]
    )
    if unit == "image":
        return by_image
    if manifest.unit != "case":
        raise DataError(
            f"tune.unit=case: the cases are not known, only the {manifest.unit}s; use tune.unit=image"
        )
    of_cases = by_case(by_image)
    if of_cases is None:
        raise DataError(
            "tune.unit=case: some cases have images of several classes, and so no label of their own; "
            "use tune.unit=image"
        )
    return of_cases
