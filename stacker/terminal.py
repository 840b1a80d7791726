"""Tables for the terminal: plain results in, rich renderables out; only the CLI prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # predict loads torch, which a table of scores does not need
    from stacker.bench import Timing
    from stacker.bench_cache import CacheBench
    from stacker.bench_compression import Compression
    from stacker.bench_costs import Deviation
    from stacker.bench_maps import Apart
    from stacker.check import Report
    from stacker.findings import Finding
    from stacker.inspection import Summary
    from stacker.verify import Verdict

NAMES = {"accuracy": "accuracy", "auc": "AUC"}


LEAK_STYLE = "bold red"
PARTS = {"test": "Test set", "held_out": "Out of fold, development cases"}


def scores_table(metrics: dict[str, Any], part: str = "test") -> Table:
    """Return the scores of all models on a part of the data, each with its interval."""
    first, unit = next(iter(metrics[part].values())), metrics["unit"]
    groups = "cases not known" if unit == "image" else f"{first[unit]['n']} {unit}s"
    sizes = f"{first['image']['n']} images, {groups}"
    title = title_of(f"{PARTS[part]}: {sizes}; ", metrics["split"])
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    columns = [("image", "accuracy"), ("image", "auc")]
    columns += [(unit, "accuracy"), (unit, "auc")] if unit != "image" else []
    columns += [(unit, "recognition_rate")] if unit == "case" else []
    for of, score in columns:
        table.add_column(f"{of} {NAMES[score]}" if score in NAMES else "recognition rate")
    for name, scores in metrics[part].items():
        mark = " *" if name == metrics.get("best_base") else ""
        mark += " (!)" if scores["constant_prediction"] else ""
        table.add_row(name + mark, *(_with_interval(scores[of], score) for of, score in columns))
    star = "* best base model on held-out cases; " if "best_base" in metrics else ""
    marks = f"{star}(!) predicts one class. AUC: pairs of images of one part"
    table.caption = f"Intervals: {metrics['intervals']}. {marks}"
    table.caption_justify = "left"
    return table


def title_of(start: str, split: str) -> Text:
    """Return a title with the label of the split, red where cases straddle it."""
    return Text(start, style="italic").append(split, LEAK_STYLE if "leaks" in split else "italic")


def _with_interval(scores: dict[str, Any], score: str) -> str:
    value = scores.get(score)
    if value is None:
        return "-"
    why = scores["withheld"].get(score)
    return f"{value:.3f} " + (f"({why})" if why else _interval(scores["interval"][score]))


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"


def differences_table(metrics: dict[str, Any]) -> Table:
    """Return what each first model gains over the second, on the same images."""
    title = f"Gain on the same images, paired by {metrics['unit']}"
    table = Table(title=title, title_justify="left")
    parts = any("part" in row for row in metrics["differences"])
    for heading in (*(("on",) if parts else ()), "model", "against", "score", "difference"):
        table.add_column(heading)
    for row in metrics["differences"]:
        gain = "-" if row["difference"] is None else f"{row['difference']:+.3f}"
        bounds = f"({row['withheld']})" if row["withheld"] else _interval(row["interval"])
        part = [PARTS[row["part"]].split(",")[0]] if parts else []
        table.add_row(*part, row["first"], row["second"], row["score"], f"{gain} {bounds}")
    return table


def localisation_table(metrics: dict[str, Any]) -> Table:
    """Return how well the maps of the true class point into the masks."""
    table = Table(title="Maps of the true class against the lesion masks", title_justify="left")
    for heading in ("backbone", "pointing game", "mass inside", "mask area (chance)", "maps"):
        table.add_column(heading)
    for name, found in metrics["localisation"].items():
        shares = (f"{found[key]:.3f}" for key in ("pointing_game", "mass_inside", "mask_area"))
        table.add_row(name, *shares, str(found["maps"]))
    return table


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


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def apart_table(found: Sequence[Apart]) -> Table:
    """Return how far maps are from the grad-cam package's."""
    headings = ("base model", "layer", "float32, at most", "here, at most", "on average")
    table = _table("Shown maps, from 0 to 1: away from the grad-cam package's", *headings)
    for each in found:
        here = f"{each.maximum:.2g} ({each.precision})"
        name = f"{each.backbone}, {each.start}"
        table.add_row(name, each.layer, f"{each.exact_maximum:.2g}", here, f"{each.mean:.2g}")
    return table


def compressions_table(found: Sequence[Compression]) -> Table:
    """Return what each way of compressing a cache saves and costs."""
    headings = ("compression", "maps", "embeddings", "kB/image", "write MB/s", "read MB/s")
    table = _table("Size as a share of the plain values, and speed", *headings)
    for way in found:
        shares = (f"{way.share_of_maps:.2f}", f"{way.share_of_features:.2f}")
        speeds = (f"{way.write_mb_per_second}", f"{way.read_mb_per_second}")
        table.add_row(way.way, *shares, f"{way.kilobytes_per_image:.2f}", *speeds)
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


def timings_table(timings: Sequence[Timing], reference: str, title: str = "") -> Table:
    """Return how fast each way is, and how many times faster one of them."""
    title = ": ".join(filter(None, ["Images per second (median of the repeats)", title]))
    table = Table(title=title, title_justify="left")
    for heading in ("way", "images/s", "repeats", f"{reference} is faster by"):
        table.add_column(heading)
    (own,) = (timing.images_per_second for timing in timings if timing.way == reference)
    for timing in timings:
        ratio = own / timing.images_per_second
        repeats = " ".join(f"{rate:.0f}" for rate in timing.repeats)
        table.add_row(timing.way, f"{timing.images_per_second:.0f}", repeats, f"{ratio:.2f}x")
    return table


def costs_table(found: CacheBench) -> Table:
    """Return what an image costs in every way, for each base model and for all."""
    height, width = found.size
    how = f"{height}x{width}, batches of {found.batch_size}, {found.precision}, {found.device}"
    title = f"Milliseconds per image (median of the repeats, least to most): {how}"
    table = Table(title=title, title_justify="left", min_width=len(title))
    ways = list(dict.fromkeys(cost.way for cost in found.costs))
    for heading in ("base model", *ways, "of a bare forward", "batched takes", "naive loop takes"):
        table.add_column(heading, overflow="fold")
    taken = {(cost.of, cost.way): cost for cost in found.costs}
    for ratio in found.ratios:
        costs = [taken.get((ratio.of, way)) for way in ways]
        cells = (f"{c.milliseconds:.3g}{_range(c.repeats)}" if c else "-" for c in costs)
        longer = ("-" if r is None else f"{r:.1f}x" for r in (ratio.batched, ratio.loop))
        table.add_row(ratio.of, *cells, f"{ratio.bare:.2f}x", *longer)
    table.caption = "\n".join(
        f"{s.backbone}: {s.start}; {s.bytes_per_image / 1e3:.2f} kB per image; grad-cam at "
        f"{s.peer_layer or '-'}, batches of {s.peer_batch_size or '-'}, {s.peer_layout or '-'}"
        for s in found.subjects
    )
    table.caption_justify = "left"
    return table


def _range(values: Sequence[float]) -> str:
    return f" ({min(values):.3g}-{max(values):.3g})" if len(values) > 1 else ""


def deviations_table(deviations: Sequence[Deviation]) -> Table:
    """Return how far bfloat16 is from float32, for each base model."""
    title = "bfloat16 against float32 (maps and embeddings: shares of the largest value)"
    table = Table(title=title, title_justify="left", min_width=len(title))
    for heading in ("base model", "what", "at most", "on average", "other predictions"):
        table.add_column(heading)
    for each in deviations:
        gaps = {"logits": each.logits, "embeddings": each.embeddings, **each.maps}
        for what, gap in gaps.items():
            changed = str(each.changed_predictions) if what == "logits" else ""
            table.add_row(each.backbone, what, f"{gap.maximum:.2g}", f"{gap.mean:.2g}", changed)
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
