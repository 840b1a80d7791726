"""Data, backbones, findings and caches as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from stacker.cli.tables.common import make_table, number
from stacker.errors import SHOWN, first_few, plural

if TYPE_CHECKING:
    from stacker.audit.report import Finding, Report
    from stacker.caches.summary import Summary
    from stacker.maps.verify import Verdict

MOST_ROWS, MOST_CLASSES = 18, 8  # of a census, and of a table of parts
MOST_FINDINGS, MOST_CHARACTERS = 7, 70  # of an example
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
        others = plural(s.together_with, "other cache") if s.together_with else ""
        rate += f" (together with {others})" if others else ""
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
        (v.name, f"{v.whole} of {v.parts}", str(v.images), _first_lines(v.problems) or "whole")
        for v in verdicts
    )
    return make_table("Caches", ("cache", "whole parts", "images", "state"), rows)


def census_table(census: Mapping[str, Counts], complete: str) -> Table:
    """Return the number of images, slides and cases by class, subtype and so on.

    Where the table would get long, long views show their first rows and count the rest; `complete` says
    where all of them are. A view that repeats another one is left out.
    """
    units = ("images", "slides", "cases")
    table = make_table("Data", ["", "", *map(number, units)])
    views: dict[str, tuple[str, Counts]] = {}
    for view, rows in census.items():
        views.setdefault(str(rows), (view, rows))
    long = sum(len(rows) for _, rows in views.values()) > MOST_ROWS
    for view, rows in views.values():
        shown = list(rows)[:SHOWN] if long and len(rows) > SHOWN + 1 else list(rows)
        for i, name in enumerate(shown):
            cells = (str(rows[name][unit] or "-") for unit in units)
            table.add_row("" if i else view, escape(name), *cells)
        if len(shown) < len(rows):
            images = sum(rows[name]["images"] for name in rows if name not in shown)
            table.add_row("", f"and {len(rows) - len(shown)} more", str(images), "", "")
            table.caption = complete
        table.add_section()
    return table


def census_line(census: Mapping[str, Counts]) -> str:
    """Return all images, slides and cases, and the images of each class, in a line."""
    total = census["total"]["all"]
    known = [plural(total[f"{unit}s"], unit) for unit in ("image", "slide", "case") if total[f"{unit}s"]]
    classes = [f"{counts['images']} {name}" for name, counts in census["class"].items()]
    return f"{', '.join(known)}: {first_few(classes)}"


def parts_table(parts: Mapping[str, Counts], split: str) -> Table:
    """Return images and cases of every part of a split, in all and by class."""
    names = list(next(iter(parts.values())))
    classes = names if len(names) <= MOST_CLASSES + 1 else names[:MOST_CLASSES]
    rest = len(names) - len(classes)
    title = f"Images (cases) by part: {split}"
    rows = (
        [part, *(f"{counts[name]['images']} ({counts[name]['cases'] or '-'})" for name in classes)]
        for part, counts in parts.items()
    )
    caption = f"and {rest} more classes: audit.md has all of them" if rest else None
    return make_table(title, ["part", *map(escape, classes)], rows, caption, min_width=len(title))


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


def _first_lines(lines: Sequence[str]) -> str:
    """Return the first lines, and the number of the rest."""
    more = [f"and {len(lines) - SHOWN} more (--json)"] if len(lines) > SHOWN else []
    return "\n".join([*lines[:SHOWN], *more])


def _end(text: str) -> str:
    """Return a text, or the end of a long one: of a path, the file is what matters."""
    return text if len(text) <= MOST_CHARACTERS else f"...{text[-MOST_CHARACTERS:]}"


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return the worst findings, each with its first examples; count the others."""
    table = make_table("Findings", ("severity", "what", "found", "what to do"))
    for finding in findings[:MOST_FINDINGS]:
        shown = first_few([_end(example) for example in finding.examples], "; ")
        examples = f" ({shown})" if shown else ""
        severity = f"[{COLOURS[finding.severity]}]{finding.severity}[/]"
        table.add_row(severity, finding.topic, escape(finding.message + examples), finding.advice)
    if not findings:
        table.add_row("none", "", "", "")
    if len(findings) > MOST_FINDINGS:
        others = Counter(finding.severity for finding in findings[MOST_FINDINGS:])
        listed = " and ".join(plural(number, severity) for severity, number in others.items())
        table.caption = f"and {listed} more: audit.md has all of them"
    return table
