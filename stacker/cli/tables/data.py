"""Tables for the terminal: plain results in, rich renderables out; only the CLI prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from stacker.cli.tables.common import _table

if TYPE_CHECKING:
    from stacker.audit.report import Finding, Report
    from stacker.caches.summary import Summary
    from stacker.maps.verify import Verdict


def caches_table(summaries: Sequence[Summary]) -> Table:
    """Return what each cache of a run holds, and what it took."""
    headings = (
        "cache",
        "images",
        "maps",
        "embedding",
        "MB",
        "kB/image",
        "images/s",
        "layers",
        "checkpoint",
    )
    table = _table("Caches", *headings)
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
    table = _table("Flagged maps", "cache", "what", "images")
    for s in summaries:
        for what, count in s.flagged.items():
            table.add_row(f"{s.backbone}/{s.fold}", what, f"{count} of {sum(s.images.values())}")
    return table


def verdicts_table(verdicts: Sequence[Verdict]) -> Table:
    """Return what was found of each cache of a run."""
    table = _table("Caches", "cache", "whole parts", "images", "state")
    for v in verdicts:
        state = "whole" if not v.problems else "\n".join(v.problems)
        table.add_row(v.name, f"{v.whole} of {v.parts}", str(v.images), state)
    return table


def census_table(census: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Table:
    """Return the number of images, slides and cases of everything that is told apart."""
    table = Table(title="Data", title_justify="left")
    for heading in ("", "", "images", "slides", "cases"):
        table.add_column(heading, justify="left" if not heading else "right")
    for view, rows in census.items():
        for i, (name, counts) in enumerate(rows.items()):
            cells = (str(counts[unit] or "-") for unit in ("images", "slides", "cases"))
            table.add_row("" if i else view, escape(name), *cells, end_section=i == len(rows) - 1)
    return table


def parts_table(parts: Mapping[str, Mapping[str, Mapping[str, int]]], split: str) -> Table:
    """Return images and cases of every part of a split, in all and by class."""
    columns = list(next(iter(parts.values())))
    title = f"Images (cases) by part: {split}"
    table = Table(title=title, title_justify="left", min_width=len(title))
    for heading in ("part", *columns):
        table.add_column(escape(heading))
    for part, counts in parts.items():
        cells = (f"{counts[name]['images']} ({counts[name]['cases'] or '-'})" for name in columns)
        table.add_row(part, *cells)
    return table


def backbones_table(report: Report) -> Table:
    """Return what each backbone will be, and what the run will take on the disk."""
    table = Table(title="Backbones", title_justify="left")
    for heading in ("backbone", "weights", "map layer", "map grid", "embedding", "million parameters"):
        table.add_column(heading)
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
        table.caption_justify = "left"
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return what was found, the worst first, with the first examples."""
    table = Table(title="Findings", title_justify="left", show_lines=True)
    for heading in ("severity", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    colours = {"error": "red", "warning": "yellow", "note": "blue"}
    for found in findings:
        more = [f"... and {found.count - 3} more" if found.count > 3 else ""]
        text = "\n".join(filter(None, [found.message, *found.examples[:3], *more]))
        severity = f"[{colours[found.severity]}]{found.severity}[/]"
        table.add_row(severity, found.topic, escape(text), found.advice)
    if not findings:
        table.add_row("none", "", "", "")
    return table
