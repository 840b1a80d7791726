"""A run begins: its settings are checked, its images read and split, and both are frozen on disk."""

from __future__ import annotations

import logging

from stacker.config.root import Config
from stacker.data.disputed import undisputed
from stacker.data.folds import make_folds, save_folds
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import Manifest, save_manifest
from stacker.data.store import open_usable
from stacker.errors import ConfigError
from stacker.files import read_json
from stacker.run import Run, create_run, has_begun, reopen, store_config
from stacker.training.plan import is_settled

log = logging.getLogger(__name__)


def begin(config: Config) -> Run:
    """Start a run, or reopen it; raise before anything is written when the data is unusable.

    Of a run whose base models are all there, nothing is asked that they have answered: torch and timm
    are not loaded.
    """
    if has_begun(config):
        run = reopen(config, store=False)
        if not is_settled(run):
            require_usable(config)
            _require_fitting(config, run.manifest)
        store_config(run)
        return run
    require_usable(config)
    manifest = undisputed(read_manifest(config.data), config.images, config.data.on_error)
    _require_fitting(config, manifest)
    folder = config.artifacts / ".images"
    if config.data.on_error == "skip":  # which images there are is known when they are decoded
        manifest, _ = open_usable(folder, manifest, config.images, config.data.on_error)
        folds = make_folds(manifest, config.folds, config.seed)
    else:  # a split that is refused costs no decoding
        folds = make_folds(manifest, config.folds, config.seed)
        open_usable(folder, manifest, config.images, config.data.on_error)
    run = create_run(config).with_split(manifest, folds)
    save_folds(folds, run.folds_file)
    cases = len(set(manifest.cases)) if all(manifest.cases) else None
    run.record("data", {"images": len(manifest.images), "cases": cases})
    save_manifest(manifest, run.manifest_file)
    log.info("%s; %s", manifest.describe(), folds.label)
    _mention_audit(run)
    return run


def require_usable(config: Config) -> None:
    """Raise StackerError for a backbone, a weights file or an optimizer that is not there."""
    from stacker.backbones.backbone import require_known
    from stacker.backbones.weights import require_files
    from stacker.training.optimizer import require_optimizer

    backbones = {**config.backbones, **config.frozen}
    require_known(list(backbones))
    require_files(backbones)
    for name in config.backbones:
        require_optimizer(name, config.recipe(name))


def _require_fitting(config: Config, manifest: Manifest) -> None:
    """Raise for weights that cases of these images trained, and for one logit of several classes."""
    from stacker.backbones.weights import require_unseen

    require_unseen({**config.backbones, **config.frozen}, manifest.cases)
    wanting = [name for name in config.backbones if config.recipe(name).loss == "bce"]
    if wanting and len(manifest.classes) > 2:
        raise ConfigError(
            f"train.loss=bce is for two classes, found {len(manifest.classes)}: "
            f"{', '.join(manifest.classes)}; use loss=cross_entropy, or two classes (data.classes)"
        )


def _mention_audit(run: Run) -> None:
    """Remind of errors that `stacker check` found in the data, where it looked at just these images.

    What it found otherwise (weights, disk) has been fixed by now, or this run would not have begun.
    """
    path = run.path / "audit.json"
    if not path.exists():
        return
    report, page = read_json(path), path.with_suffix(".md")
    if (report.get("manifest_digest"), report.get("folds_digest")) != (
        run.manifest.digest,
        run.folds.digest,
    ):
        log.info(
            "%s was made from other images or another split; 'stacker check CONFIG' looks again", page
        )
        return
    topics = (report.get("audit") or {}).get("topics", [])
    found = [finding["topic"] for finding in report["findings"] if finding["severity"] == "error"]
    errors = [topic for topic in found if topic in topics]
    if errors:
        log.warning("'stacker check' found errors in the data (%s): see %s", ", ".join(errors), page)
