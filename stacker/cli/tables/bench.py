"""Tables for the terminal: plain results in, rich renderables out; only the CLI prints them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from stacker.bench.cache import CacheBench
    from stacker.bench.images import Timing
    from stacker.bench.stack import StackBench
    from stacker.bench.timing import Deviation


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


def fits_table(found: StackBench) -> Table:
    """Return what each way of fitting takes."""
    title = f"{found.rows} rows x {found.columns} columns ({found.table_gib} GiB as float32), "
    title += f"{found.rounds} trees, {found.threads} threads"
    table = Table(title=title, title_justify="left")
    for heading in ("way", "read s", "fit s", "rows/s", "peak GiB", "log loss, unseen rows"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for cost in found.costs:
        read = f"{cost.reading_seconds:.2f}" if cost.reading_seconds else "-"
        seconds = (read, f"{cost.seconds:.2f}", f"{cost.rows_per_second:.0f}")
        table.add_row(cost.way, *seconds, f"{cost.peak_gib:.2f}", f"{cost.loss:.4f}")
    return table
