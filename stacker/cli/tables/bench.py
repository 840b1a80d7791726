"""Tables of what was measured: rates, costs by image, deviations and fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from stacker.cli.tables.common import make_table

if TYPE_CHECKING:
    from stacker.bench.timing import Timing


def timings_table(timings: Sequence[Timing], reference: str, title: str = "") -> Table:
    """Return how fast each way is, and how many times faster one of them."""
    title = ": ".join(filter(None, ["Images per second (median of the repeats)", title]))
    table = make_table(title, ("way", "images/s", "repeats", f"{reference} is faster by"))
    (ours,) = (timing.images_per_second for timing in timings if timing.way == reference)
    for timing in timings:
        rate, repeats = timing.images_per_second, " ".join(f"{rate:.0f}" for rate in timing.repeats)
        table.add_row(timing.way, f"{rate:.0f}", repeats, f"{ours / rate:.2f}x")
    return table


def costs_table(bench: Mapping[str, Any]) -> Table:
    """Return what an image costs in every way, for each base model and for all."""
    height, width = bench["size"]
    how = f"{height}x{width}, batches of {bench['batch_size']}, {bench['precision']}, {bench['device']}"
    title = f"Milliseconds per image (median of the repeats, least to most): {how}"
    ways = list(dict.fromkeys(cost.way for cost in bench["costs"]))
    table = make_table(
        title, ("base model", *ways, "of a bare forward", "batched takes", "naive loop takes")
    )
    table.min_width = len(title)
    taken = {(cost.of, cost.way): cost for cost in bench["costs"]}
    for ratio in bench["ratios"]:
        costs = [taken.get((ratio.of, way)) for way in ways]
        cells = (f"{c.milliseconds:.3g}{_range(c.repeats)}" if c else "-" for c in costs)
        longer = ("-" if r is None else f"{r:.1f}x" for r in (ratio.batched, ratio.loop))
        table.add_row(ratio.of, *cells, f"{ratio.bare:.2f}x", *longer)
    table.caption = "\n".join(
        f"{s['backbone']}: {s['start']}; {s['bytes_per_image'] / 1e3:.2f} kB per image; grad-cam at "
        f"{s['peer_layer'] or '-'}, batches of {s['peer_batch_size'] or '-'}, {s['peer_layout'] or '-'}"
        for s in bench["subjects"]
    )
    return table


def _range(values: Sequence[float]) -> str:
    return f" ({min(values):.3g}-{max(values):.3g})" if len(values) > 1 else ""


def deviations_table(deviations: Sequence[Mapping[str, Any]]) -> Table:
    """Return how far bfloat16 is from float32, for each base model."""
    title = "bfloat16 against float32 (maps and embeddings: shares of the largest value)"
    table = make_table(title, ("base model", "what", "at most", "on average", "other predictions"))
    table.min_width = len(title)
    for deviation in deviations:
        gaps = {key: deviation[key] for key in ("logits", "embeddings")} | deviation["maps"]
        for what, gap in gaps.items():
            changed = str(deviation["changed_predictions"]) if what == "logits" else ""
            numbers = (f"{gap['maximum']:.2g}", f"{gap['mean']:.2g}")
            table.add_row(deviation["backbone"], what, *numbers, changed)
    return table


def fits_table(bench: Mapping[str, Any]) -> Table:
    """Return what each way of fitting takes."""
    title = f"{bench['rows']} rows x {bench['columns']} columns ({bench['table_gib']} GiB as float32), "
    title += f"{bench['rounds']} trees, {bench['threads']} threads"
    table = make_table(title, ("way", "read s", "fit s", "rows/s", "peak GiB", "log loss, unseen rows"))
    for column in table.columns[1:]:
        column.justify = "right"
    for cost in bench["costs"]:
        read = f"{cost.reading_seconds:.2f}" if cost.reading_seconds else "-"
        seconds = (read, f"{cost.seconds:.2f}", f"{cost.rows_per_second:.0f}")
        table.add_row(cost.way, *seconds, f"{cost.peak_gib:.2f}", f"{cost.loss:.4f}")
    return table
