"""A run with its images and its split: begun once, frozen, and reopened by every later command."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from stacker.config.root import Config
from stacker.data.folds import make_folds, save_folds
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import save_manifest
from stacker.data.store import open_usable
from stacker.errors import ConfigError
from stacker.files import read_json
from stacker.run import Run, create_run, has_begun, reopen

log = logging.getLogger(__name__)


def begin(config: Config) -> Run:
    """Start a run, or reopen it; raise before anything is written when the data is unusable."""
    from stacker.backbones.backbone import require_known
    from stacker.backbones.weights import require_files, require_unseen
    from stacker.data.disputed import undisputed
    from stacker.training.optimizer import require_optimizer

    require_known([*config.backbones, *config.frozen])
    require_files({**config.backbones, **config.frozen})
    for name in config.backbones:
        require_optimizer(name, config.recipe(name))
    if has_begun(config):
        run = reopen(config)
        require_unseen({**config.backbones, **config.frozen}, run.manifest.cases)
        _require_losses(config, run.manifest.classes)
        return run
    listed = undisputed(read_manifest(config.data), config.images, config.data.on_error)
    require_unseen({**config.backbones, **config.frozen}, listed.cases)
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
    return run.with_split(manifest, folds)


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
