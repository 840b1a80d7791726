"""Data, backbones, findings and caches as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from stacker.cli.tables.common import make_table, number

if TYPE_CHECKING:
    from stacker.audit.report import Finding, Report
    from stacker.caches.summary import Summary
    from stacker.maps.verify import Verdict

COLOURS = {"error": "red", "warning": "yellow", "note": "blue"}
Counts = Mapping[str, Mapping[str, int]]  # images, slides and cases by name


def caches_table(summaries: Sequence[Summary]) -> Table:
    """Return what each cache of a run holds, and what it took."""
    headings = ("cache", "images", "maps", "embedding", "MB", "kB/image", "images/s", "layers")
    table = make_table("Caches", [*headings, "checkpoint"])
    for s in summaries:
        images = ", ".join(f"{count} {part}" for part, count in s.images.items())
        grids = dict.fromkeys(f"{height}x{width}" for _, height, width in s.maps.values())
        maps = f"{', '.join(s.methods)} on {', '.join(grids)}" if s.maps else ""
        rate = "" if s.images_per_second is None else f"{s.images_per_second:g}"
        rate += f" with {s.together_with} more" if s.together_with else ""
        sizes = (str(s.embedding), f"{s.megabytes:.2f}", f"{s.kilobytes_per_image:.2f}", rate)
        layers = ", ".join(s.layers)
        table.add_row(f"{s.backbone}/{s.fold}", images, maps, *sizes, layers, s.checkpoint)
    return table


def flags_table(summaries: Sequence[Summary]) -> Table:
    """Return how many images have maps that are not what a map should be."""
    rows = (
        (f"{s.backbone}/{s.fold}", flag, f"{count} of {sum(s.images.values())}")
        for s in summaries
        for flag, count in s.flagged.items()
    )
    return make_table("Flagged maps", ("cache", "what", "images"), rows)


def verdicts_table(verdicts: Sequence[Verdict]) -> Table:
    """Return the state of each cache of a run."""
    rows = (
        (v.name, f"{v.whole} of {v.parts}", str(v.images), "\n".join(v.problems) or "whole")
        for v in verdicts
    )
    return make_table("Caches", ("cache", "whole parts", "images", "state"), rows)


def census_table(census: Mapping[str, Counts]) -> Table:
    """Return the number of images, slides and cases of everything that is told apart."""
    units = ("images", "slides", "cases")
    table = make_table("Data", ["", "", *map(number, units)])
    for view, rows in census.items():
        for i, (name, counts) in enumerate(rows.items()):
            cells = (str(counts[unit] or "-") for unit in units)
            table.add_row("" if i else view, escape(name), *cells, end_section=i == len(rows) - 1)
    return table


def parts_table(parts: Mapping[str, Counts], split: str) -> Table:
    """Return images and cases of every part of a split, in all and by class."""
    classes = list(next(iter(parts.values())))
    title = f"Images (cases) by part: {split}"
    rows = (
        [part, *(f"{counts[name]['images']} ({counts[name]['cases'] or '-'})" for name in classes)]
        for part, counts in parts.items()
    )
    return make_table(title, ["part", *map(escape, classes)], rows, min_width=len(title))


def backbones_table(report: Report) -> Table:
    """Return what each backbone will be, and what the run will take on the disk."""
    headings = ("backbone", "weights", "map layer", "map grid", "embedding", "million parameters")
    table = make_table("Backbones", headings)
    for fit in report.backbones:
        grid = " x ".join(map(str, fit.grid))
        size = f"{fit.parameters / 1e6:.1f}"
        name = f"{fit.backbone}, frozen" if fit.frozen else fit.backbone
        table.add_row(name, fit.weights, fit.layer, grid, str(fit.embedding), size)
    if report.disk is not None:
        sizes = {
            "images": report.disk.images,
            "models": report.disk.models,
            "a resume file meanwhile": report.disk.resume,
            "caches": report.disk.caches,
        }
        listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in sizes.items())
        table.caption = f"Disk, GB still to be written: {listed}; free {report.disk.free / 1e9:.1f}"
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return the findings, the worst first, with the first examples."""
    headings = ("severity", "what", "found", "what to do")
    table = make_table("Findings", headings, show_lines=True)
    for finding in findings:
        more = [f"... and {finding.count - 3} more"] if finding.count > 3 else []
        text = "\n".join([finding.message, *finding.examples[:3], *more])
        severity = f"[{COLOURS[finding.severity]}]{finding.severity}[/]"
        table.add_row(severity, finding.topic, escape(text), finding.advice)
    if not findings:
        table.add_row("none", "", "", "")
    return table
