"""Everything that can go wrong, before GPU time: the backbones, the disk, the images and the split.

Faults do not stop the examination: each becomes a finding, and what can still be looked at is looked
at. Unreadable images are left out for the rest of it, as `data.on_error: skip` would. Images that are
equal to the byte under two cases are left out only where they would be; else the audit has them, too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stacker.audit.backbones import Fit, _check_weights, _fit_backbones
from stacker.audit.data import audit
from stacker.audit.findings import Audit, Finding, finding, markdown, sort
from stacker.config.root import Config
from stacker.data.disputed import dispute, disputed
from stacker.data.folds import Folds, make_folds
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import Manifest
from stacker.data.store import is_packed, open_store, store_bytes
from stacker.errors import DataError, StackerError, UnreadableImages, plural
from stacker.files import publish, versions, write_json
from stacker.run import FROZEN, Run, has_begun, reopen


@dataclass(frozen=True)
class Disk:
    """Bytes that a run will take, and those that are free."""

    images: int
    models: int
    resume: int  # the largest resume file, twice while it is written
    caches: int
    free: int


@dataclass(frozen=True)
class Report:
    """What `stacker check` found; the parts that could not be examined are empty."""

    findings: tuple[Finding, ...]
    backbones: tuple[Fit, ...]
    disk: Disk | None
    audit: Audit | None
    manifest_digest: str = ""
    folds_digest: str = ""


def check(config: Config) -> Report:
    """Examine a config and its data; nothing is frozen, but decoded images are kept for the run."""
    found: list[Finding] = []
    try:
        manifest, folds = _data(config, found)
    except StackerError as error:
        found.append(finding("error", "data", str(error)))
        fits = _fit_backbones(config, 2, found)
        return Report(sort(found), fits, None, None)
    fits = _fit_backbones(config, len(manifest.classes), found)
    _check_weights(config, manifest, found)
    disk = _estimate(config, manifest, folds, fits)
    found += _check_disk(config, disk)
    try:
        return _with_audit(config, manifest, folds, Report(tuple(found), fits, disk, None))
    except StackerError as error:
        found.append(finding("error", "images", str(error)))
        return Report(sort(found), fits, disk, None)


def _with_audit(config: Config, manifest: Manifest, folds: Folds | None, report: Report) -> Report:
    """Decode the images, and add what is found in them; raise where too few can be decoded."""
    found = list(report.findings)
    folder = config.artifacts / ".images"
    try:
        pixels = open_store(folder, manifest, config.images)
    except UnreadableImages as error:
        found.append(_unreadable(config, error))
        manifest = manifest.without(error.reasons)
        folds = None if folds is None else make_folds(manifest, config.folds, config.seed)
        pixels = open_store(folder, manifest, config.images)
    audited = audit(manifest, folds, pixels, config.seed)
    findings = sort([*found, *audited.findings])
    digests = (manifest.digest, "" if folds is None else folds.digest)
    return Report(findings, report.backbones, report.disk, audited, *digests)


def _data(config: Config, found: list[Finding]) -> tuple[Manifest, Folds | None]:
    """Return the run's images and split, or those that it would begin with."""
    if has_begun(config):
        run = reopen(config)
        return run.manifest, run.folds
    lenient = config.data.model_copy(update={"on_error": "skip"})
    try:
        manifest = read_manifest(config.data)
    except UnreadableImages as error:
        found.append(_unreadable(config, error))
        manifest = read_manifest(lenient)
    manifest = _check_disputed(config, manifest, found)
    try:
        return manifest, make_folds(manifest, config.folds, config.seed)
    except DataError as error:
        found.append(finding("error", "split", str(error)))
        return manifest, None


def _unreadable(config: Config, error: UnreadableImages) -> Finding:
    stop = config.data.on_error == "stop"
    return finding(
        "error" if stop else "warning",
        "unreadable images",
        f"{plural(len(error.reasons), 'image')} cannot be used",
        "mend or remove them, or go on without them: data.on_error=skip" if stop else "",
        [error.reasons[row] for row in sorted(error.reasons)],
    )


def _check_disputed(config: Config, manifest: Manifest, found: list[Finding]) -> Manifest:
    """Find images that are equal to the byte under two cases; leave them out where the run will."""
    groups = disputed(manifest, config.images)
    if not groups:
        return manifest
    stop = config.data.on_error == "stop"
    text = f"{plural(len(groups), 'picture')} equal to the byte under two cases, one of which is wrong: "
    text += "no run begins with them" if stop else "all images concerned are left out"
    advice = "correct the cases or remove the files"
    advice += ", or go on without them: data.on_error=skip" if stop else ""
    listed = [dispute(manifest, rows) for rows in groups]
    found.append(
        finding("error" if stop else "warning", "one file under two cases", text, advice, listed)
    )
    return manifest if stop else manifest.without(row for rows in groups for row in rows)


def _estimate(config: Config, manifest: Manifest, folds: Folds | None, fits: tuple[Fit, ...]) -> Disk:
    """Return what the run has still to write: packed images, checkpoints, caches of unseen images."""
    run, classes = Run(config.run_path, config), len(manifest.classes)
    packed = is_packed(config.artifacts / ".images", manifest, config.images)
    images = 0 if packed else store_bytes(manifest, config.images)
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
        text = f"the run will take {needed / 1e9:.1f} GB and {disk.free / 1e9:.1f} GB are free"
        yield finding("error", "disk", text, "make room, or point 'artifacts' at another disk")
    folder = _existing(config.artifacts)
    if not os.access(folder, os.W_OK) or any(
        path.is_file() for path in config.artifacts.absolute().parents
    ):
        text = f"{config.artifacts} cannot be made in {folder}"
        yield finding("error", "disk", text, "point 'artifacts' at another folder")


def write(report: Report, config: Config, folder: Path) -> bool:
    """Publish audit.json, with everything, and audit.md, for people.

    A check that got no look at the images does not replace one that did; then return False.
    """
    if report.audit is None and (folder / "audit.json").exists():
        return False
    content: dict[str, Any] = asdict(report)
    if report.audit is not None:
        del content["audit"]["findings"]  # those of the report are these and more
    data = config.model_dump(mode="json", include={"data", "images", "folds", "seed"})
    write_json(folder / "audit.json", {"config": data, "versions": versions(), **content})
    with publish(folder / "audit.md") as temporary:
        temporary.write_text(markdown(report, config), encoding="utf-8")
    return True
