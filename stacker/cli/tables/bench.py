"""Tables of what was measured: rates, costs by image, deviations and fits."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from stacker.bench.timing import ROUGH, digits, ratio
from stacker.cli.tables.common import make_table

if TYPE_CHECKING:
    from stacker.bench.timing import Timing


def describe_size(bench: Mapping[str, Any]) -> str:
    """Return the size of the images and, where they are known, batch, precision and device."""
    height, width = bench["size"]
    known = [f"{height}x{width}"]
    if "batch_size" in bench:
        known += [f"batches of {bench['batch_size']}", bench["precision"], bench["device"]]
    return ", ".join(known).replace("torch.", "")


def timings_table(
    timings: Sequence[Timing], reference: str, title: str, apart: Container[str] = ()
) -> Table:
    """Return how fast each way is, and how many times faster one of them; some are not compared."""
    title = f"Images per second, median (lowest-highest): {title}"
    table = make_table(title, ("way", "images/s", "repeats", "images", f"{reference} is faster by"))
    table.min_width = len(title)
    (ours,) = (timing for timing in timings if timing.way == reference)
    for timing in timings:
        rate = f"{digits(timing.images_per_second)}{_range(timing.repeats)}"
        faster = ratio(ours.repeats, timing.repeats, ours.rough or timing.rough)
        counts = (str(len(timing.repeats)), str(timing.images))
        table.add_row(
            timing.way, rate, *counts, "-" if timing is ours or timing.way in apart else str(faster)
        )
    table.caption = ROUGH if any(timing.rough for timing in timings) else None
    return table


def costs_table(bench: Mapping[str, Any]) -> Table:
    """Return what an image costs in every way, for each base model and for all."""
    title = f"Milliseconds per image, median (lowest-highest): {describe_size(bench)}"
    ways = list(dict.fromkeys(cost.way for cost in bench["costs"]))
    table = make_table(
        title, ("base model", *ways, "of a bare forward", "batched takes", "naive loop takes")
    )
    table.min_width = len(title)
    taken = {(cost.of, cost.way): cost for cost in bench["costs"]}
    for ratios in bench["ratios"]:
        costs = [taken.get((ratios.of, way)) for way in ways]
        cells = (f"{digits(c.milliseconds)}{_range(c.repeats)}" if c else "-" for c in costs)
        compared = (ratios.bare, ratios.batched, ratios.loop)
        table.add_row(ratios.of, *cells, *("-" if r is None else str(r) for r in compared))
    lines = [
        f"{s['backbone']}: {s['start']}; {s['bytes_per_image'] / 1e3:.2f} kB per image; grad-cam at "
        f"{s['peer_layer'] or '-'}, batches of {s['peer_batch_size'] or '-'}, {s['peer_layout'] or '-'}"
        for s in bench["subjects"]
        if s["bytes_per_image"] is not None
    ]
    lines += [ROUGH] if any(cost.rough for cost in bench["costs"]) else []
    table.caption = "\n".join(lines)
    return table


def _range(values: Sequence[float]) -> str:
    return f" ({digits(min(values))}-{digits(max(values))})" if len(values) > 1 else ""


def deviations_table(deviations: Sequence[Mapping[str, Any]]) -> Table:
    """Return how far bfloat16 is from float32, for each base model."""
    images = deviations[0]["images"]
    title = (
        f"bfloat16 against float32 on {images} images (maps, embeddings: shares of the largest value)"
    )
    table = make_table(title, ("base model", "what", "at most", "on average", "changed predictions"))
    table.min_width = len(title)
    for deviation in deviations:
        gaps = {key: deviation[key] for key in ("logits", "embeddings")} | deviation["maps"]
        for what, gap in gaps.items():
            changed = str(deviation["changed_predictions"]) if what == "logits" else ""
            numbers = (f"{gap['maximum']:.2g}", f"{gap['mean']:.2g}")
            table.add_row(deviation["backbone"], what, *numbers, changed)
    return table


def fits_table(bench: Mapping[str, Any]) -> Table:
    """Return what each way of fitting takes; each is fitted once."""
    title = f"{bench['rows']} rows x {bench['columns']} columns ({bench['table_gib']} GiB as float32), "
    title += f"{bench['rounds']} trees, {bench['threads']} threads"
    table = make_table(
        title, ("way", "read, s", "fit, s", "rows/s", "peak, GiB", "log loss, unseen rows")
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for cost in bench["costs"]:
        read = f"{cost.reading_seconds:.2f}" if cost.reading_seconds else "-"
        seconds = (read, f"{cost.seconds:.2f}", f"{cost.rows_per_second:.0f}")
        table.add_row(cost.way, *seconds, f"{cost.peak_gib:.2f}", f"{cost.loss:.4f}")
    return table
