"""What can go wrong, found before GPU time is spent: backbones, disk, images and split.

A fault does not stop the check: it becomes a finding, and the rest is still checked. Unreadable images
are left out for the rest of it, as `data.on_error: skip` would. Identical files under two cases are left
out only where the run leaves them out; otherwise the audit has them too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from stacker.audit.backbones import check_weights, fit_backbones
from stacker.audit.data import audit
from stacker.audit.report import Audit, Disk, Finding, Fit, Report, Severity, finding, sort
from stacker.config.root import Config
from stacker.data.disputed import dispute, disputed, disputed_rows
from stacker.data.folds import Folds, make_folds
from stacker.data.formats.registry import format_of, read_manifest
from stacker.data.manifest import Manifest
from stacker.data.store import bytes_to_pack, open_store
from stacker.errors import DataError, StackerError, UnreadableImages, plural
from stacker.run import FROZEN, Run, has_begun, reopen


def check(config: Config) -> Report:
    """Examine a config and its data; nothing is frozen, but decoded images are kept for the run.

    Raise ConfigError for a data section that says what its format does not know.
    """
    format_of(config.data)
    findings: list[Finding] = []
    try:
        manifest, folds = _data(config, findings)
    except StackerError as error:
        findings.append(finding("error", "data", error.what, error.advice))
        fits = fit_backbones(config, 2, findings)
        return Report(sort(findings), fits, None, None)
    fits = fit_backbones(config, len(manifest.classes), findings)
    check_weights(config, manifest, findings)
    disk = _estimate(config, manifest, folds, fits)
    findings += _check_disk(config, disk)
    audited: tuple[Audit | None, str, str] = (None, "", "")
    try:
        audited = _audit(config, manifest, folds, findings)
    except StackerError as error:
        findings.append(finding("error", "images", error.what, error.advice))
    findings += _positive_by_name(config, manifest)
    return Report(sort(findings), fits, disk, *audited, manifest.positive)


def _audit(
    config: Config, manifest: Manifest, folds: Folds | None, findings: list[Finding]
) -> tuple[Audit, str, str]:
    """Decode and audit the images; return the digests of those that can be decoded, and their split.

    Raise where too few can be.
    """
    folder = config.artifacts / ".images"
    try:
        pixels = open_store(folder, manifest, config.images)
    except UnreadableImages as error:
        findings.append(_unreadable(config, error))  # before a class that is lost with them stops this
        manifest = manifest.without(error.reasons)
        folds = None if folds is None else make_folds(manifest, config.folds, config.seed)
        pixels = open_store(folder, manifest, config.images)
    audited = audit(manifest, folds, pixels, config.seed)
    findings += audited.findings
    return audited, manifest.digest, "" if folds is None else folds.digest


def _data(config: Config, findings: list[Finding]) -> tuple[Manifest, Folds | None]:
    """Return the run's images and split, or those that it would begin with."""
    if has_begun(config):
        run = reopen(config, store=False)
        return run.manifest, run.folds
    try:
        manifest = read_manifest(config.data)
    except UnreadableImages as error:
        findings.append(_unreadable(config, error))
        manifest = read_manifest(config.data.model_copy(update={"on_error": "skip"}))
    manifest = _check_disputed(config, manifest, findings)
    try:
        return manifest, make_folds(manifest, config.folds, config.seed)
    except DataError as error:
        findings.append(finding("error", "split", error.what, error.advice))
        return manifest, None


def _unreadable(config: Config, error: UnreadableImages) -> Finding:
    stop = config.data.on_error == "stop"
    return finding(
        "error" if stop else "warning",
        "unreadable images",
        f"{plural(len(error.reasons), 'image')} cannot be decoded{'' if stop else ', and are left out'}",
        "fix or remove them, or leave them out (data.on_error=skip)" if stop else "",
        [str(error.reasons[row]) for row in sorted(error.reasons)],
    )


def _check_disputed(config: Config, manifest: Manifest, findings: list[Finding]) -> Manifest:
    """Find identical files under two cases; leave them out where the run will."""
    groups = disputed(manifest, config.images)
    if not groups:
        return manifest
    stop = config.data.on_error == "stop"
    text = (
        f"{plural(len(groups), 'image')} stored under two cases as identical files: one case is wrong, "
    )
    text += "and no run starts with them" if stop else "so all copies are left out"
    advice = "correct the cases or remove the files"
    advice += ", or leave them out (data.on_error=skip)" if stop else ""
    listed = [dispute(manifest, rows) for rows in groups]
    severity: Severity = "error" if stop else "warning"
    findings.append(finding(severity, "identical file under two cases", text, advice, listed))
    return manifest if stop else manifest.without(disputed_rows(manifest, groups))


def _positive_by_name(config: Config, manifest: Manifest) -> Iterator[Finding]:
    """Note a positive class that nobody chose: of folders and tables, names alone decide."""
    chosen = config.data.positive or config.data.classes or config.data.format not in ("folder", "csv")
    if manifest.positive is not None and not chosen:
        text = f"{manifest.positive} is taken as the positive class: its name sorts last"
        yield finding("note", "positive class", text, "name the right one with data.positive")


def _estimate(config: Config, manifest: Manifest, folds: Folds | None, fits: tuple[Fit, ...]) -> Disk:
    """Return what the run has still to write: packed images, checkpoints, caches of unseen images."""
    run, classes = Run(config.run_path, config), len(manifest.classes)
    images = bytes_to_pack(config.artifacts / ".images", manifest, config.images)
    unseen: dict[str, int] = {}
    seen = 0
    if folds is not None:
        for fold in folds.folds:
            rows = manifest.rows_of(folds.group, (*fold.held_out, *folds.test))
            unseen[fold.name] = len(rows)
        held_out = [group for fold in folds.folds for group in fold.held_out]
        seen = len(manifest.rows_of(folds.group, (*held_out, *folds.test)))
    cached, models, resume = 0, 0, 0
    for fit in fits:
        for name, number in ({FROZEN: seen} if fit.frozen else unseen).items():
            if not run.model_file(fit.backbone, name).exists():
                models += 4 * fit.parameters
                if not fit.frozen:
                    copies = 2 * config.recipe(fit.backbone).resume_copies  # the new one beside the old
                    resume = max(resume, copies * 4 * fit.parameters)
            if not (run.cache_folder(fit.backbone, name) / "index.h5").exists():
                cached += number * (2 * fit.cells + 4 * fit.embedding + 4 * classes + 64)
    return Disk(images, models, resume, cached, shutil.disk_usage(_existing(config.artifacts)).free)


def _existing(path: Path) -> Path:
    """Return the nearest folder above a path that is there."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def _check_disk(config: Config, disk: Disk) -> Iterator[Finding]:
    needed = disk.images + disk.models + disk.resume + disk.caches
    if needed > disk.free:
        text = f"the run needs {needed / 1e9:.1f} GB and {disk.free / 1e9:.1f} GB are free"
        yield finding("error", "disk", text, "free some space, or set 'artifacts' to another disk")
    folder = _existing(config.artifacts)
    if not os.access(folder, os.W_OK) or any(
        path.is_file() for path in config.artifacts.absolute().parents
    ):
        text = f"{config.artifacts} cannot be created in {folder}"
        yield finding("error", "disk", text, "set 'artifacts' to another folder")
