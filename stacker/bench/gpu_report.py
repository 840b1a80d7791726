"""The report of a GPU: report.json with everything, report.md with tables for docs/speed.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stacker.bench.costs import BARE, BATCHED, LOOP, OURS
from stacker.bench.timing import ROUGH, Ratio, digits, ratio
from stacker.bench.train import SYNTHETIC
from stacker.errors import plural
from stacker.files import publish, write_json

if TYPE_CHECKING:
    from stacker.bench.gpu import Report
    from stacker.bench.loops import LoopCost

UNKNOWN = "unknown"


def write_report(out: Path, report: Report) -> None:
    """Publish what is known so far as JSON and as Markdown."""
    write_json(out / "report.json", asdict(report))
    with publish(out / "report.md") as temporary:
        temporary.write_text(markdown(report), encoding="utf-8")


def markdown(report: Report) -> str:
    """Return the report for people."""
    machine, size = report.machine, report.size
    about = [f"{machine['device']}"]
    about += [f"{machine['memory_gb']} GB"] if "memory_gb" in machine else []
    about += [f"CUDA {machine['cuda']}"] if "cuda" in machine else []
    about += [f"{name} {machine['versions'][name]}" for name in ("torch", "timm", "stacker")]
    about += [f"Python {machine['python']}", plural(machine["cores"], "core"), machine["precision"]]
    blocks = [
        "# What was measured on this device",
        ", ".join(about) + ".",
        f"Generated images of {size.size}x{size.size}, batches of {size.batch_size}, random weights.",
        "Figures are medians, with the lowest and the highest repeat in brackets.",
    ]
    if report.tests is not None:
        blocks.append(f"Tests: {report.tests['result']}.")
    blocks += [_loops(report.loops)] if report.loops else []
    blocks += [_cache(report)] if report.cache else []
    blocks += [_listed("Failed", report.failures), _listed("Left out", report.notes)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _loops(costs: Sequence[LoopCost]) -> str:
    """Return the table of training."""
    headings = ("backbone", "loop", "images/s", "of the synthetic rate", "memory, GB", "GPU busy")
    synthetic = {cost.backbone: cost for cost in costs if cost.loop == SYNTHETIC}
    rows = []
    for cost in costs:
        share = share_of(cost, synthetic.get(cost.backbone))
        busy = UNKNOWN if cost.utilisation is None else f"{cost.utilisation:.0f} %"
        peak = UNKNOWN if cost.peak_gb is None else f"{cost.peak_gb:.1f}"
        rate = _spread(cost.repeats) + (", rough" if cost.rough else "")
        rows.append((cost.backbone, cost.loop, rate, str(share or "-"), peak, busy))
    lines = ["## Training", _table(headings, rows)]
    return "\n\n".join(lines + ([f"{ROUGH}."] if any(cost.rough for cost in costs) else []))


def share_of(cost: LoopCost, synthetic: LoopCost | None) -> Ratio | None:
    """Return a loop's rate as a share of the synthetic one."""
    if synthetic is None or cost is synthetic:
        return None
    return ratio(cost.repeats, synthetic.repeats, cost.rough or synthetic.rough)


def _cache(report: Report) -> str:
    """Return the table of stage two."""
    cache: Mapping[str, Any] = report.cache or {}
    ways = (OURS, BARE, BATCHED, LOOP)
    taken = {(cost.of, cost.way): cost for cost in cache["costs"]}
    rows = []
    for ratios in cache["ratios"]:
        costs = [taken.get((ratios.of, way)) for way in ways]
        compared = [str(r) if r else "-" for r in (ratios.bare, ratios.batched, ratios.loop)]
        rows.append((ratios.of, *(_spread(c.repeats) if c else "-" for c in costs), *compared))
    headings = ("ms per image", *ways, "of a forward", "batched takes", "loop takes")
    used = [
        f"{name} {UNKNOWN if value is None else f'{value:g} {unit}'}"
        for name, value, unit in (
            ("peak memory", report.cache_usage.get("peak_gb"), "GB"),
            ("GPU busy", report.cache_usage.get("utilisation"), "%"),
        )
    ]
    based = f"{plural(cache['images'], 'image')}, {plural(cache['repeats'], 'repeat')}"
    return "\n\n".join(["## Stage two", _table(headings, rows), f"{based}; {', '.join(used)}."])


def describe_loop(cost: LoopCost) -> str:
    """Return one line with what was measured of a loop."""
    rate = statistics.median(cost.repeats)
    peak = "" if cost.peak_gb is None else f", {cost.peak_gb:.1f} GB"
    return f"{cost.backbone}, {cost.loop}: {digits(rate)} images/s{peak}"


def _spread(values: Sequence[float]) -> str:
    middle = digits(statistics.median(values))
    return f"{middle} ({digits(min(values))}-{digits(max(values))})" if len(values) > 1 else middle


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _listed(title: str, items: Sequence[str]) -> str:
    return "\n".join([f"{title}:", "", *(f"- {item}" for item in items)]) if items else ""
