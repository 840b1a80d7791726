"""What a check reports: findings, the worst first, with the numbers behind them.

audit.json has everything; audit.md is a page of Markdown for the data section of a paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from stacker import __version__
from stacker.config.data import FoldsConfig
from stacker.config.root import Config
from stacker.files import publish, versions, write_json

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
EXAMPLES = 5  # of a finding, on the page
WHAT_IS_POSITIVE = "sensitivity, ROC curve, average precision and threshold are about it"


@dataclass(frozen=True)
class Finding:
    """One thing found: how bad, what, in how many places, which, what to do."""

    severity: Severity
    topic: str
    message: str
    advice: str = ""
    count: int = 1
    examples: tuple[str, ...] = ()


def finding(
    severity: Severity, topic: str, message: str, advice: str = "", examples: Sequence[str] = ()
) -> Finding:
    """Return a finding with as many places as there are examples."""
    return Finding(severity, topic, message, advice, max(1, len(examples)), tuple(examples))


def sort(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings with the errors first; those of one severity stay in their order."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def worst(findings: Iterable[Finding]) -> Severity | None:
    """Return the severity of the worst finding."""
    return next((finding.severity for finding in sort(findings)), None)


@dataclass(frozen=True)
class Audit:
    """All that was found in a data set, with the numbers behind it."""

    findings: tuple[Finding, ...]
    census: dict[str, Any]
    unit: str
    split: str
    parts: dict[str, Any]
    cases: dict[str, Any]
    shortcuts: dict[str, Any]
    copies: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Fit:
    """What one backbone will be: where its maps come from, their grid at the run's image size."""

    backbone: str
    weights: str
    layer: str
    grid: tuple[int, int]
    embedding: int
    parameters: int
    cells: int  # of all maps of one image
    frozen: bool


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
    positive: str | None = None


def write(report: Report, config: Config, folder: Path) -> bool:
    """Publish audit.json, with everything, and audit.md, for people.

    A check that got no look at the images does not replace one that did; then return False.
    """
    if report.audit is None and (folder / "audit.json").exists():
        return False
    content: dict[str, Any] = asdict(report)
    if report.audit is not None:
        # the findings of the report are these and more
        content["audit"]["topics"] = sorted({f["topic"] for f in content["audit"].pop("findings")})
    data = config.model_dump(mode="json", include={"data", "images", "folds", "seed"})
    write_json(folder / "audit.json", {"config": data, "versions": versions(), **content})
    with publish(folder / "audit.md") as temporary:
        temporary.write_text(markdown(report, config), encoding="utf-8")
    return True


def markdown(report: Report, config: Config) -> str:
    """Return the whole page."""
    lines = [f"# Data of {config.run}", "", f"Written by stacker {__version__}.", ""]
    if report.audit is not None:
        lines += _data(report.audit, config, report)
    lines += ["## Findings", ""]
    lines += [line for finding in report.findings for line in _item(finding)] or ["None.", ""]
    return "\n".join(lines)


def _data(audit: Audit, config: Config, report: Report) -> Iterator[str]:
    total = audit.census["total"]["all"]
    yield (
        f"{total['images']} images, {_known(total, 'slide')}, {_known(total, 'case')} "
        f"({config.data.format}, manifest {report.manifest_digest})."
    )
    yield ""
    if report.positive is not None:
        yield f"Positive class: {report.positive} ({WHAT_IS_POSITIVE})."
        yield ""
    for view, rows in audit.census.items():
        if view != "total":
            yield from _table(view, rows)
    if audit.parts["own"]:
        yield f"## Split: {audit.split}"
        yield ""
        yield f"{_method(config.folds)} Seed {config.seed}, split {report.folds_digest}."
        yield ""
        yield from _parts(audit.parts["own"])
    if audit.shortcuts:
        yield "## Shortcuts: can the class be told without the tissue?"
        yield ""
        yield f"A random forest on the clue alone, scored on held-out {audit.unit}s."
        yield ""
        yield from (f"| clue | AUC | 95 % interval by {audit.unit} |", "|---|---|---|")
        for clue, area in audit.shortcuts.items():
            bounds, auc = area["interval"], area["auc"]
            shown = area["withheld"] or "-"
            shown = shown if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"
            yield f"| {clue} | {'-' if auc is None else f'{auc:.3f}'} | {shown} |"
        yield ""


def _known(counts: Mapping[str, int], unit: str) -> str:
    number = counts[f"{unit}s"]
    return f"{number} {unit}s" if number else f"{unit}s unknown"


def _method(folds: FoldsConfig) -> str:
    """Say in a sentence how the split was made."""
    test = "the data set's own test part" if folds.test == "official" else f"{100 * folds.test:.0f} %"
    if folds.protocol == "crossfit":
        rest = f"the rest is split into {folds.k} folds"
    elif folds.stack == "official":
        rest = "the data set's own valid part is kept for stacking"
    else:
        rest = f"{100 * folds.stack:.0f} % are kept for stacking"
    return (
        f"The split is by {folds.group}, stratified by class and subtype: {test} for testing, {rest}. "
        f"{100 * folds.validation:.0f} % of each model's training part validates it and chooses the "
        "epoch, if it has at least five cases of each class."
    )


def _table(heading: str, rows: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    yield from (f"| {heading} | images | slides | cases |", "|---|---|---|---|")
    for name, counts in rows.items():
        yield f"| {name} | {counts['images']} | {counts['slides'] or '-'} | {counts['cases'] or '-'} |"
    yield ""


def _parts(parts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Iterator[str]:
    columns: Sequence[str] = list(next(iter(parts.values())))
    yield "| part | " + " | ".join(f"{name}: images (cases)" for name in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for part, counts in parts.items():
        cells = (f"{counts[name]['images']} ({counts[name]['cases'] or '-'})" for name in columns)
        yield f"| {part} | " + " | ".join(cells) + " |"
    yield ""


def _item(finding: Finding) -> Iterator[str]:
    advice = f" *{finding.advice}.*" if finding.advice else ""
    yield f"- **{finding.severity}: {finding.topic}.** {finding.message}.{advice}"
    yield from (f"  - {example}" for example in finding.examples[:EXAMPLES])
    if finding.count > EXAMPLES:
        yield f"  - and {finding.count - EXAMPLES} more, all in audit.json"
    yield ""
