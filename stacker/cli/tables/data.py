"""Data, backbones, findings and caches as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from stacker.cli.tables.common import NOTE_STYLE, Name, make_table, number
from stacker.cli.tables.models import ModelsTable
from stacker.errors import SHOWN, first_few, plural

if TYPE_CHECKING:
    from stacker.audit.report import Finding, Report
    from stacker.caches.summary import Summary
    from stacker.maps.verify import Verdict

MOST_ROWS, MOST_CLASSES = 18, 8  # of a census, and of a table of parts
MOST_FINDINGS, MOST_CHARACTERS = 7, 70  # of an example
COLOURS = {"error": "red", "warning": "yellow", "note": "blue"}
CHECKPOINT = 12  # characters of its digest that are shown
Counts = Mapping[str, Mapping[str, int]]  # images, slides and cases by name


def caches_table(summaries: Sequence[Summary]) -> ModelsTable:
    """Return what each cache of a run holds, and what it took."""
    rates = ["" if s.images_per_second is None else f"{s.images_per_second:g}" for s in summaries]
    columns = {
        "images": [", ".join(f"{count} {part}" for part, count in s.images.items()) for s in summaries],
        "MB": [f"{s.megabytes:.2f}" for s in summaries],
        "kB/image": [f"{s.kilobytes_per_image:.2f}" for s in summaries],
        "images/s": rates,
        "checkpoint": [s.checkpoint[:CHECKPOINT] for s in summaries],
    }
    names = [f"{s.backbone}/{s.fold}" for s in summaries]
    notes = [*_what_is_cached(summaries), *_filled_together(summaries)]
    return ModelsTable("Caches", names, columns, notes, "cache", ("checkpoint", "kB/image"))


def _what_is_cached(summaries: Sequence[Summary]) -> list[str]:
    """Return a line for each backbone: its maps, where they are taken, its embeddings."""
    lines = []
    for s in summaries:
        grids = dict.fromkeys(f"{height}x{width}" for _, height, width in s.maps.values())
        maps = f"{', '.join(s.methods)} on {', '.join(grids)} of {', '.join(s.layers)}, "
        lines.append(f"{s.backbone}: {maps if s.maps else ''}embeddings of {s.embedding}")
    return list(dict.fromkeys(lines))


def _filled_together(summaries: Sequence[Summary]) -> list[str]:
    """Return of which caches images/s is that of a pass that filled several of them."""
    by_count: dict[int, list[str]] = {}
    for s in summaries:
        if s.together_with:
            by_count.setdefault(s.together_with + 1, []).append(f"{s.backbone}/{s.fold}")
    return [
        f"images/s: of one pass over the images for {count} base models ({', '.join(names)})"
        for count, names in by_count.items()
    ]


def flags_table(summaries: Sequence[Summary]) -> Table:
    """Return how many images have maps that are not what a map should be."""
    rows = [
        (Name(f"{s.backbone}/{s.fold}"), flag, f"{count} of {sum(s.images.values())}")
        for s in summaries
        for flag, count in s.flagged.items()
    ]
    return make_table("Flagged maps", ("cache", "what", number("images")), rows)


def verdicts_table(verdicts: Sequence[Verdict]) -> Table:
    """Return the state of each cache of a run, with what is wrong below."""
    rows = [
        (
            Name(v.name),
            f"{v.whole} of {v.parts}",
            str(v.images),
            plural(len(v.problems), "problem") if v.problems else "complete",
        )
        for v in verdicts
    ]
    found = [f"{v.name}: {problem}" for v in verdicts for problem in v.problems]
    problems = first_few(found, between="\n") + (" (--json)" if len(found) > SHOWN else "")
    headings = ("cache", number("parts complete"), number("images"), "state")
    return make_table("Caches", headings, rows, problems or None, caption_style="red")


def census_table(census: Mapping[str, Counts], positive: str | None, complete: str) -> Table:
    """Return the number of images, slides and cases by class, subtype and so on.

    Where the table would get long, long views show their first rows and count the rest; `complete` says
    where all of them are. A view that repeats another one is left out.
    """
    units = [unit for unit in ("images", "slides", "cases") if census["total"]["all"][unit]]
    missing = [unit for unit in ("slides", "cases") if unit not in units]
    about = f"; positive class: {positive}" if positive is not None else ""
    notes = [f"No {' and '.join(missing)}: they are not known."] if missing else []
    table = make_table(f"Data set{about}", ["", "", *map(number, units)])
    views: dict[str, tuple[str, Counts]] = {}
    for view, rows in census.items():
        views.setdefault(str(rows), (view, rows))
    long = sum(len(rows) for _, rows in views.values()) > MOST_ROWS
    for view, rows in views.values():
        shown = list(rows)[:SHOWN] if long and len(rows) > SHOWN + 1 else list(rows)
        for i, name in enumerate(shown):
            label = f"{name} (positive)" if view == "class" and name == positive else name
            cells = (str(rows[name][unit] or "-") for unit in units)
            table.add_row("" if i else view, escape(label), *cells)
        if len(shown) < len(rows):
            images = sum(rows[name]["images"] for name in rows if name not in shown)
            rest = ["" for _ in units[1:]]
            table.add_row("", f"and {len(rows) - len(shown)} more", str(images), *rest)
            notes = [*notes, complete] if complete not in notes else notes
        table.add_section()
    table.caption = "\n".join(notes) or None
    return table


def census_line(census: Mapping[str, Counts], positive: str | None) -> str:
    """Return all images, slides and cases, and the images of each class, in a line."""
    total = census["total"]["all"]
    known = [plural(total[f"{unit}s"], unit) for unit in ("image", "slide", "case") if total[f"{unit}s"]]
    classes = [f"{counts['images']} {name}" for name, counts in census["class"].items()]
    about = f"; positive class: {positive}" if positive is not None else ""
    return f"{', '.join(known)}: {first_few(classes)}{about}"


def parts_table(parts: Mapping[str, Counts], split: str) -> Table:
    """Return images and cases of every part of a split, in all and by class."""
    names = list(next(iter(parts.values())))
    classes = names if len(names) <= MOST_CLASSES + 1 else names[:MOST_CLASSES]
    known = any(counts["all"]["cases"] for counts in parts.values())
    rows = (
        [part, *(_images_and_cases(counts[name], known) for name in classes)]
        for part, counts in parts.items()
    )
    what = "Images (cases)" if known else "Images"
    rest = len(names) - len(classes)
    notes = [f"and {rest} more classes: audit.md has all of them"] if rest else []
    notes += [] if known else ["No cases: they are not known."]
    headings: list[str | Column] = ["part", *(number(escape(name)) for name in classes)]
    return make_table(f"{what} by part; {split}", headings, rows, caption="\n".join(notes) or None)


def _images_and_cases(counts: Mapping[str, int], known: bool) -> str:
    return f"{counts['images']} ({counts['cases'] or '-'})" if known else str(counts["images"])


def backbones_table(report: Report) -> Table:
    """Return what each backbone will be, and what the run will take on the disk."""
    numbers = (number("map grid"), number("embedding"), number("M params"))
    rows = [
        (
            Name(f"{fit.backbone}, frozen" if fit.frozen else fit.backbone),
            Name(fit.weights),
            Name(fit.layer),
            "x".join(map(str, fit.grid)),
            str(fit.embedding),
            f"{fit.parameters / 1e6:.1f}",
        )
        for fit in report.backbones
    ]
    table = make_table("Backbones", ("backbone", "weights", "map layer", *numbers), rows)
    if report.disk is not None:
        sizes = {
            "images": report.disk.images,
            "models": report.disk.models,
            "resume file while training": report.disk.resume,
            "caches": report.disk.caches,
        }
        listed = "; ".join(f"{name} {size / 1e9:.2f}" for name, size in sizes.items())
        table.caption = f"Disk still to be written, GB: {listed}. Free: {report.disk.free / 1e9:.1f} GB."
    return table


def _end(text: str) -> str:
    """Return a text, or the end of a long one: of a path, the file is what matters."""
    return text if len(text) <= MOST_CHARACTERS else f"...{text[-MOST_CHARACTERS:]}"


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return the worst findings, each with its first examples and what to do; count the others."""
    counts = Counter[str](finding.severity for finding in findings)
    listed = ", ".join(plural(counts[severity], severity) for severity in COLOURS if counts[severity])
    table = make_table(f"Findings: {listed or 'none'}", (), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings[:MOST_FINDINGS]:
        text = Text(finding.topic, "bold").append(f": {finding.message}", "not bold")
        if finding.examples:
            shown = first_few([_end(example) for example in finding.examples], "; ")
            text.append(f"\n{shown}", f"not bold {NOTE_STYLE}")
        if finding.advice:
            text.append(f"\nAdvice: {finding.advice}", "not bold")
        table.add_row(Text(finding.severity, COLOURS[finding.severity]), text)
    if len(findings) > MOST_FINDINGS:
        others = Counter(finding.severity for finding in findings[MOST_FINDINGS:])
        more = " and ".join(plural(count, severity) for severity, count in others.items())
        table.caption = f"and {more} more: audit.md has all of them"
    return table
