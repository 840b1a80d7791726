"""The tables and sentences of a comparison, and of what fitting costs, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from stacker.leaderboard import PARTS
from stacker.terminal import LEAK_STYLE, title_of

if TYPE_CHECKING:
    from stacker.bench_stack import StackBench

TOP = 12
WIDE = 150  # characters that all columns need
COLUMNS = (
    ("image_auc", "AUC", True),
    ("image_accuracy", "accuracy", True),
    ("image_sensitivity", "sens.", False),
    ("image_specificity", "spec.", False),
    ("image_brier", "Brier", False),
    ("image_ece", "ECE", False),
    ("case_auc", "case AUC", False),
    ("case_accuracy", "case accuracy", True),
    ("case_recognition_rate", "recognition", False),
)


def shown_models(board: Mapping[str, Any], everything: bool) -> list[str]:
    """Return the models of a table, best first: all, or all but the stacks beyond the best few."""
    part = "development" if any(r["part"] == "development" for r in board["rows"]) else "test"
    rows = [row for row in board["rows"] if row["part"] == part and row["subset"] == "all"]
    rows.sort(key=lambda row: -(row["image_auc"] or 0))
    found, stacks = [], 0
    for row in rows:
        stacks += row["kind"] == "meta"
        if everything or row["kind"] != "meta" or stacks <= TOP:
            found.append(row["model"])
    return found


def leaderboard_table(
    board: Mapping[str, Any], part: str, shown: Sequence[str], width: int = WIDE
) -> Table:
    """Return the scores of some models on a part of the cases; fewer of them where it is narrow."""
    rows = {r["model"]: r for r in board["rows"] if r["part"] == part and r["subset"] == "all"}
    size = board["sizes"][part]
    title = f"{PARTS[part]}: {size['images']} images, {size['cases']} {board['unit']}s; "
    table = Table(title=title_of(title, board["split"]), title_justify="left")
    table.add_column("model", overflow="fold")
    unit = board["unit"]
    columns = [
        (key.replace("case_", f"{unit}_"), name.replace("case", unit), bounds)
        for key, name, bounds in COLUMNS
    ]
    columns = [c for c in columns if any(c[0] in row for row in rows.values())]
    wide = width >= WIDE
    columns = columns if wide else [c for c in columns if c[2]]
    for _, heading, _ in columns:
        table.add_column(heading)
    for heading in ("columns", "fit s") if wide else ():
        table.add_column(heading, justify="right")
    for name in shown:
        if name not in rows:
            continue
        row = rows[name]
        mark = " *" if name == board["best_base"] else ""
        mark += " (!)" if row.get("one_class_only") else ""
        cells = [_cell(row, key, bounds) for key, _, bounds in columns]
        seconds, number = row.get("fit_seconds"), row.get("columns")
        if wide:
            cells += ["" if number is None else str(number), f"{seconds:.2f}" if seconds else ""]
        style = {"base": "cyan", "control": "dim", "rule": "green"}.get(row["kind"])
        table.add_row(escape(name + mark), *cells, style=style)
    left = len({r["model"] for r in board["rows"]} - set(shown))
    more = f" {left} more in compare/leaderboard.csv (--all)." if left else ""
    table.caption = f"Intervals: {board['intervals']}; of controls, 95% of their draws. {MARKS}{more}"
    table.caption_justify = "left"
    return table


FEW = 30  # cases, below which large-sample tests and percentile intervals promise too much
BELOW = "; what is estimated out of fold lies below chance where there is nothing to learn."
MARKS = "* best base model; (!) predicts one class; dim: controls."


def _cell(row: Mapping[str, Any], key: str, bounds: bool) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return f"{value:.3f}" + (f" [{low:.2f}, {high:.2f}]" if bounds and low is not None else "")


def answers_table(board: Mapping[str, Any]) -> Table:
    """Return what each block adds to others, meta-learner by meta-learner."""
    part = next(part for part in PARTS if any(row["part"] == part for row in board["answers"]))
    rows = [row for row in board["answers"] if row["part"] == part]
    title = f"What a block adds to the AUC by image, paired by case. {PARTS[part]}"
    table = Table(title=title, title_justify="left")
    metas = list(dict.fromkeys(row["meta"] for row in rows))
    for heading in ("added", "to", *metas):
        table.add_column(heading)
    found = {(row["added"], row["to"], row["meta"]): row for row in rows}
    for added, to in dict.fromkeys((row["added"], row["to"]) for row in rows):
        gains = (_gain(found.get((added, to, meta))).replace(" ", "\n", 1) for meta in metas)
        table.add_row(added, to, *gains)
    return table


def _gain(row: Mapping[str, Any] | None) -> str:
    if row is None or row["auc_difference"] is None:
        return "-"
    bounds = "" if row["auc_low"] is None else f" [{row['auc_low']:+.2f}, {row['auc_high']:+.2f}]"
    return f"{row['auc_difference']:+.3f}{bounds}"


def verdicts(board: Mapping[str, Any]) -> list[str]:
    """Return the outcome in sentences: against the mean, against the best base model, the controls."""
    lines = []
    for part, named in PARTS.items():
        for rival in ("mean", board["best_base"]):
            rows = [r for r in board["differences"] if r["part"] == part and r["rival"] == rival]
            rows = [r for r in rows if r["auc_difference"] is not None]
            if rows:
                lines.append(f"{named}: {_against(rival, rows)}")
    for part, size in board["sizes"].items():
        if size["cases"] < FEW:
            lines.append(
                f"{PARTS[part]}: {size['cases']} {board['unit']}s are few. Intervals are too short "
                "then, and the p-values of large samples too small"
                + (BELOW if part == "development" else ".")
            )
    lines += [
        f"{row['control']}, {PARTS[row['part']]}: a mean AUC of {row['auc']:.3f} in {row['draws']} "
        "draws is above chance. Something tells the classes that should not."
        for row in board["controls"]
        if row["leaks"]
    ]
    lines.append(board["caveat"])
    return lines


def _against(rival: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many stacks are better than a rival, by their intervals and by the test by case."""
    best = max(rows, key=lambda row: row["auc_difference"])
    sure = sum(row["auc_low"] is not None and row["auc_low"] > 0 for row in rows)
    tested = [row for row in rows if row["clustered_delong_holm"] is not None]
    passed = sum(row["clustered_delong_holm"] < 0.05 and row["auc_difference"] > 0 for row in tested)
    after = f"{passed} by the test with its variance by case, adjusted by Holm's method (p < 0.05)"
    after = after if tested else "none was tested"
    what = "the mean of the probabilities" if rival == "mean" else f"the best base model, {rival}"
    return (
        f"of {len(rows)} stacks, {sure} have an AUC above that of {what} by an interval that leaves "
        f"out 0, {after}. The largest gain is {_gain(best)} ({best['model']})."
    )


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


def inflation_table(found: Mapping[str, Any]) -> Table:
    """Return the scores under each split side by side, those of leaking splits in red."""
    table = Table(title="The same run, split by other units: AUC by image", title_justify="left")
    table.add_column("part")
    table.add_column("model")
    for unit in found["units"]:
        leaks = "leaks" in found["labels"][unit]
        table.add_column(
            Text(found["labels"][unit], LEAK_STYLE if leaks else ""), style="red" if leaks else ""
        )
    for unit in found["units"]:
        if unit != "case" and "case" in found["units"]:
            table.add_column(f"inflation by {unit}", justify="right")
    rows = {(r["part"], r["model"], r["split_by"]): r for r in found["rows"]}
    for part, model in dict.fromkeys((r["part"], r["model"]) for r in found["rows"]):
        mine = [rows.get((part, model, unit)) for unit in found["units"]]
        cells = ["-" if row is None else _cell(row, "auc", True) for row in mine]
        gains = [
            "-" if row is None or row["auc_inflation"] is None else f"{row['auc_inflation']:+.3f}"
            for row, unit in zip(mine, found["units"], strict=True)
            if unit != "case" and "case" in found["units"]
        ]
        table.add_row("test" if part == "test" else "out of fold", model, *cells, *gains)
    table.caption = "Red: cases straddle the split. These scores are not results."
    table.caption_style = LEAK_STYLE
    table.caption_justify = "left"
    return table
