"""The tables and sentences of a comparison, and of what fitting costs, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from stacker.cli.tables.common import LEAK_STYLE, title_of
from stacker.scores.predictions import PARTS

TOP = 12
WIDE = 150  # characters that all columns need
COLUMNS = (
    ("image_auc", "AUC", True),
    ("image_auc_pooled", "pooled", False),
    ("null_p", "p", False),
    ("null_p_of_many", "p of many", False),
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
    table = Table(title=title_of(title, board), title_justify="left")
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
        style = {"base": "cyan", "rule": "green"}.get(row["kind"])
        table.add_row(escape(name + mark), *cells, style=style)
    left = len({r["model"] for r in board["rows"]} - set(shown))
    more = f" {left} more in compare/leaderboard.csv (--all)." if left else ""
    table.caption = f"Intervals: {board['intervals']}. {MARKS}{more}"
    table.caption_justify = "left"
    return table


MARKS = (
    "* best base model; (!) predicts one class. AUC: pairs of images of one part; pooled: all pairs. p: "
    "permuted labels as good; p of many: the best of all entries with permuted labels as good."
)


def _cell(row: Mapping[str, Any], key: str, bounds: bool) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if bounds and low is None:
        unit, _, score = key.partition("_")
        reasons = str(row.get(f"{unit}_withheld") or "").split("; ")
        why = [
            reason.removeprefix(f"{score}: ") for reason in reasons if reason.startswith(f"{score}: ")
        ]
        return f"{value:.3f}" + (f" ({why[0]})" if why else "")
    return f"{value:.3f}" + (f" [{low:.2f}, {high:.2f}]" if bounds else "")


def answers_table(board: Mapping[str, Any]) -> Table:
    """Return what each block adds to others, meta-learner by meta-learner; intervals hold together."""
    part = next(part for part in PARTS if any(row["part"] == part for row in board["answers"]))
    rows = [row for row in board["answers"] if row["part"] == part]
    title = f"What a block adds to the AUC by image, intervals of all together 95%. {PARTS[part]}"
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
    """Return a gain with its interval as one of many."""
    if row is None or row["auc_difference"] is None:
        return "-"
    bounds = "" if row["auc_low"] is None else f" [{row['auc_low']:+.2f}, {row['auc_high']:+.2f}]"
    return f"{row['auc_difference']:+.3f}{bounds}"


def verdicts(board: Mapping[str, Any]) -> list[str]:
    """Return the outcome in sentences: against the mean and the best base model, maps, the controls."""
    lines = []
    for part, named in PARTS.items():
        for rival in ("mean", board["best_base"]):
            rows = [r for r in board["differences"] if r["part"] == part and r["rival"] == rival]
            rows = [r for r in rows if r["auc_difference"] is not None]
            if rows:
                lines.append(f"{named}: {_against(rival, rows)}")
    if board["best_stack"] is not None:
        lines.append(_best(board["best_stack"]))
    lines += [_maps(part, rows) for part, rows in _answers_of_maps(board).items()]
    off = [row for row in board["at_chance"] if row["leaks"]]
    lines += [
        f"{row['control']}, {PARTS[row['part']]}: a mean AUC of {row['auc']:.3f} in {row['draws']} "
        f"draws is more than {row['limit']:.3f} away from a half. Something tells the classes that "
        "should not."
        for row in off
    ]
    if board["at_chance"] and not off:
        values = [row["auc"] for row in board["at_chance"]]
        lines.append(
            f"Controls: {len(values)} with nothing to learn, their mean AUC from {min(values):.3f} to "
            f"{max(values):.3f}; none is off."
        )
    lines.append(board["caveat"])
    return lines


def _against(rival: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many stacks are better than a rival, by their intervals and by the test by case."""
    what = "the mean of the probabilities" if rival == "mean" else f"the best base model, {rival}"
    best = max(rows, key=lambda row: row["auc_difference"])
    largest = f"The largest gain is {_gain(best)} ({best['model']})."
    known = [row for row in rows if row["auc_low"] is not None]
    if not known:
        return (
            f"whether a stack is better than {what} cannot be said: {rows[0]['auc_withheld']}. {largest}"
        )
    sure = sum(row["auc_low"] > 0 for row in known)
    tested = [row for row in rows if row["clustered_delong_holm"] is not None]
    passed = sum(row["clustered_delong_holm"] < 0.05 and row["auc_difference"] > 0 for row in tested)
    after = f"{passed} by the test with its variance by case, adjusted by Holm's method (p < 0.05)"
    return (
        f"of {len(rows)} stacks, {sure} have an AUC above that of {what} by an interval (of all "
        f"together) that leaves out 0, {after if tested else 'none was tested'}. {largest}"
    )


def _best(found: Mapping[str, Any]) -> str:
    """Return what is left of the best AUC once the choice is made anew in every draw of cases."""
    corrected = found["auc_corrected"]
    left = (
        "" if corrected is None else f", {corrected:.3f} when the choice is made in every draw of cases"
    )
    return (
        f"The best of {found['of']} stacks out of fold, {found['model']}: AUC {found['auc']:.3f}{left} "
        f"(it is chosen in {found['chosen']:.0%} of them)."
    )


def _answers_of_maps(board: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return what maps add to something without maps, by part."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in board["answers"]:
        if (
            row["added"].startswith("map")
            and "map" not in row["to"]
            and row["auc_difference"] is not None
        ):
            found.setdefault(row["part"], []).append(row)
    return found


def _maps(part: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what is shown of the gain by maps: that there is one, that there is none, or neither."""
    known = [row for row in rows if row["auc_low"] is not None]
    if not known:
        return f"{PARTS[part]}: what maps add cannot be said: {rows[0]['auc_withheld']}."
    more = sum(row["auc_low"] > 0 for row in known)
    less = sum(bool(row["auc_negligible"]) for row in known)
    finest = min(row["auc_detectable"] for row in known)
    return (
        f"{PARTS[part]}: in {len(rows)} comparisons, maps are shown to add to the rest in {more}; that "
        f"they add less than 0.01 AUC is shown in {less}. A gain of {finest:.3f} or more would have "
        "been seen four times of five in the sharpest of them."
    )


def inflation_table(found: Mapping[str, Any]) -> Table:
    """Return the scores under each split side by side, those of leaking splits in red."""
    table = Table(title="The same run, split by other units: AUC by image", title_justify="left")
    table.add_column("part")
    table.add_column("model")
    for unit in found["units"]:
        leaks = found["leaks"][unit]
        table.add_column(
            Text(found["labels"][unit], LEAK_STYLE if leaks else ""), style="red" if leaks else ""
        )
    for unit in found["units"]:
        if unit != "case" and "case" in found["units"]:
            table.add_column(f"inflation by {unit}", justify="right")
    rows = {(r["part"], r["model"], r["split_by"]): r for r in found["rows"]}
    for part, model in dict.fromkeys((r["part"], r["model"]) for r in found["rows"]):
        mine = [rows.get((part, model, unit)) for unit in found["units"]]
        cells = ["-" if row is None else _scored(row) for row in mine]
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


def _scored(row: Mapping[str, Any]) -> str:
    """Return an AUC with its interval, or with the reason why it has none."""
    if row["auc"] is None:
        return "-"
    why = f" ({row['auc_withheld']})" if row["auc_withheld"] else ""
    bounds = "" if row["auc_low"] is None else f" [{row['auc_low']:.2f}, {row['auc_high']:.2f}]"
    return f"{row['auc']:.3f}{bounds}{why}"
