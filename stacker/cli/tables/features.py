"""What a stack relies on, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from stacker.cli.tables.common import make_table, number
from stacker.stacking.importances import BlockShare


def importance_table(shares: Sequence[BlockShare], meta: str, kind: str) -> Table:
    """Return the share of every block in what a meta-learner relies on, beside its share of columns."""
    return make_table(
        f"What {meta} relies on, by block ({kind}, mean over its fits)",
        ["backbone", "block", number("columns"), number("share"), number("share of columns")],
        [
            (
                s.backbone,
                s.block,
                str(s.columns),
                f"{100 * s.share:.1f} %",
                f"{100 * s.of_columns:.1f} %",
            )
            for s in shares
        ],
        caption="Share of the sum of absolute values over all columns. It describes the model, not the "
        "tissue: columns that carry the same information divide it among them.",
    )
