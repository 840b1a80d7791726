"""The jobs of stage one, each a backbone in a fold, and which of them are done.

A job's result says in itself from what it was made: an identity digest of everything that decides its
weights. Comparing it takes no torch, so that a call with nothing to train says so at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stacker.backbones.sources import read_facts, weights_sha256
from stacker.config.changes import changes, listed
from stacker.config.training import TrainConfig
from stacker.data.folds import Fold, fold_name
from stacker.data.store import Pixels
from stacker.errors import RunError, require_one_of
from stacker.files import digest
from stacker.run import FROZEN, BaseModel, Run

if TYPE_CHECKING:
    from stacker.backbones.backbone import Backbone
    from stacker.backbones.devices import Subset

TRAINING = 3  # of the training code; rises with every change by which a job ends with other weights


@dataclass(frozen=True)
class Job:
    """One base model to be: a backbone in a fold of a run."""

    run: Run
    backbone: str
    fold: Fold

    @property
    def base(self) -> BaseModel:
        """The base model, whose name is the job's."""
        return BaseModel(self.backbone, self.fold.name)

    @property
    def recipe(self) -> TrainConfig:
        """How the backbone is trained."""
        return self.run.config.recipe(self.backbone)

    @property
    def path(self) -> Path:
        """The base model's file."""
        return self.run.model_file(*self.base)

    @property
    def seed(self) -> int:
        """Where the job's randomness starts."""
        return int(digest([self.run.config.seed, *self.base]), 16) % 2**31

    @property
    def identity(self) -> str:
        """Stand for all that decides the base model's weights."""
        run, config = self.run, self.run.config
        settings = config.backbones[self.backbone]
        return digest(
            {
                "training": TRAINING,
                "backbone": self.backbone,
                "weights_sha256": weights_sha256(self.backbone, settings),
                "settings": settings.model_dump(mode="json", exclude={"train"}),
                "recipe": self.recipe.model_dump(mode="json"),
                "images": config.images.model_dump(mode="json"),
                "seed": config.seed,
                "fold": self.fold.name,
                "manifest": run.manifest.digest,
                "folds": run.folds.digest,
            }
        )

    @property
    def images(self) -> int:
        """How many images the job will see, epoch by epoch: what its progress is counted in."""
        return len(self.run.manifest.rows_of(self.run.folds.group, self.fold.train)) * self.recipe.epochs

    def build(self) -> Backbone:
        """Return the backbone that the job starts from: the same one whenever it is built."""
        import torch

        from stacker.backbones.backbone import create
        from stacker.backbones.weights import drop_settings

        run, config = self.run, self.run.config
        torch.manual_seed(self.seed)
        settings, drop = config.backbones[self.backbone], drop_settings(self.recipe)
        return create(self.backbone, len(run.manifest.classes), settings, config.images.shape, drop)

    def parts(self, pixels: Pixels) -> tuple[Subset, Subset]:
        """Return what the model is trained on, and what its best epoch is chosen by."""
        from stacker.backbones.devices import Subset

        manifest, group = self.run.manifest, self.run.folds.group
        cases = np.array(manifest.cases)
        train, validation = (
            Subset(pixels, manifest.labels, manifest.rows_of(group, groups), cases, manifest.classes)
            for groups in (self.fold.train, self.fold.validation)
        )
        return train, validation

    def is_done(self) -> bool:
        """Say whether the base model is there; raise RunError when one of other origin is."""
        if not self.path.exists():
            return False
        facts = read_facts(self.path)
        if facts["identity"] != self.identity:
            raise RunError(
                f"{self.path} was trained with other data or settings than this run's; delete it and "
                f"run 'stacker train CONFIG' again:{listed(self._differences(facts))}"
            )
        return True

    def _differences(self, facts: dict[str, Any]) -> list[str]:
        """Return in what the origin of a base model on disk differs from this job, as far as it says."""
        run, results = self.run, self.run.config.results()
        before = {
            **{key: facts.get("config", {}).get(key) for key in ("images", "seed")},
            "backbones": {
                self.backbone: facts.get("config", {}).get("backbones", {}).get(self.backbone)
            },
            **{key: facts.get(key) for key in ("manifest_digest", "folds_digest", "weights_sha256")},
        }
        now = {
            **{key: results[key] for key in ("images", "seed")},
            "backbones": {self.backbone: results["backbones"][self.backbone]},
            "manifest_digest": run.manifest.digest,
            "folds_digest": run.folds.digest,
            "weights_sha256": weights_sha256(self.backbone, run.config.backbones[self.backbone]),
        }
        return changes(before, now) or ["it was written by another version of stacker"]


def list_jobs(run: Run, backbones: Sequence[str] = (), folds: Sequence[str] = ()) -> list[Job]:
    """Return the jobs of some backbones and folds, or of all; raise ConfigError for unknown ones."""
    known = [fold.name for fold in run.folds.folds]
    wanted = [fold_name(fold) for fold in folds]
    require_one_of("backbone of this run", backbones, run.config.backbones)
    require_one_of("fold of this run", wanted, known)
    return [
        Job(run, name, fold)
        for name, fold in run.jobs()
        if name in (backbones or [name]) and fold.name in (wanted or [fold.name])
    ]


def require_trained(run: Run) -> None:
    """Raise RunError when a base model of a run is not there yet, or is another run's."""
    for job in list_jobs(run):
        if not job.is_done():
            raise RunError(
                f"{job.path}: this base model is not trained yet", "run 'stacker train CONFIG' first"
            )


def is_settled(run: Run) -> bool:
    """Say whether every base model is there, so that nothing has to be asked of backbones or weights."""
    frozen = [run.model_file(name, FROZEN) for name in run.config.frozen]
    return all(job.is_done() for job in list_jobs(run)) and all(path.exists() for path in frozen)
