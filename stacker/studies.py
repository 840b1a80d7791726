"""A run with its images and its split: begun once, frozen, and reopened by every later command."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stacker.config import Config
from stacker.errors import ConfigError, RunError
from stacker.folds import Fold, Folds, load_folds, make_folds, save_folds
from stacker.manifest import Manifest, load_manifest, save_manifest
from stacker.pixels import Pixels
from stacker.readers import read_manifest
from stacker.run import Run, create_run, open_run, read_json
from stacker.store import open_store, open_usable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Study:
    """A run with its images and its split: what every stage works on."""

    run: Run
    manifest: Manifest
    folds: Folds

    def jobs(self) -> list[tuple[str, Fold]]:
        """Return the base models of the run: every backbone in every fold."""
        return [(name, fold) for name in self.run.config.backbones for fold in self.folds.folds]

    def pixels(self) -> Pixels:
        """Return the decoded images in the manifest's order."""
        config = self.run.config
        return open_store(config.artifacts / ".images", self.manifest, config.images)


def begin(config: Config) -> Study:
    """Start a run, or reopen it; raise before anything is written when the data is unusable."""
    from stacker.backbone import require_known
    from stacker.copies import undisputed
    from stacker.optimize import require_optimizer
    from stacker.weights import require_files, require_unseen

    require_known([*config.backbones, *config.frozen])
    require_files({**config.backbones, **config.frozen})
    for name in config.backbones:
        require_optimizer(name, config.recipe(name))
    if has_begun(config):
        study = reopen(config)
        require_unseen({**config.backbones, **config.frozen}, study.manifest.clusters)
        _require_losses(config, study.manifest.classes)
        return study
    listed = undisputed(read_manifest(config.data), config.images, config.data.on_error)
    require_unseen({**config.backbones, **config.frozen}, listed.clusters)
    _require_losses(config, listed.classes)
    folds = make_folds(listed, config.folds, config.seed)  # a refusal costs no decoding
    folder = config.artifacts / ".images"
    manifest, _ = open_usable(folder, listed, config.images, config.data.on_error)
    if manifest is not listed:
        folds = make_folds(manifest, config.folds, config.seed)
    run = create_run(config)
    save_folds(folds, run.folds_file)
    save_manifest(manifest, run.manifest_file)
    log.info("%s; %s", manifest.describe(), folds.label)
    _mention_audit(run)
    return Study(run, manifest, folds)


def _require_losses(config: Config, classes: Sequence[str]) -> None:
    """Raise ConfigError for one logit where there are more than two classes."""
    wanting = [name for name in config.backbones if config.recipe(name).loss == "bce"]
    if wanting and len(classes) > 2:
        raise ConfigError(
            f"train.loss=bce tells two classes apart, found {len(classes)}: {', '.join(classes)}; take "
            "loss=cross_entropy, or two of them (data.classes)"
        )


def _mention_audit(run: Run) -> None:
    """Remind of errors that `stacker check` found in the data."""
    path = run.path / "audit.json"
    found = read_json(path)["findings"] if path.exists() else []
    errors = [each["topic"] for each in found if each["severity"] == "error"]
    if errors:
        log.warning(
            "'stacker check' found errors (%s): see %s", ", ".join(errors), path.with_suffix(".md")
        )


def has_begun(config: Config) -> bool:
    """Say whether the config's run has its images and its split already."""
    return (config.run_path / "manifest.csv").exists()


def reopen(config: Config, store: bool = True) -> Study:
    """Reopen a run that has been started; raise RunError when it has not, or by another config.

    Without `store` the run keeps the config that it has.
    """
    if not has_begun(config):
        raise RunError(f"{config.run_path}: nothing is here yet; run 'stacker train CONFIG' first")
    return _study(create_run(config, store))


def open_study(path: Path, overrides: tuple[str, ...] = ()) -> Study:
    """Open a run directory as it is, for looking and predicting; `overrides` change nothing on disk."""
    return _study(open_run(path, overrides))


def _study(run: Run) -> Study:
    manifest = load_manifest(run.manifest_file, run.config.data.classes)
    return Study(run, manifest, load_folds(run.folds_file, manifest))
