"""The tables and sentences of a comparison for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from stacker.cli.tables.common import (
    LEAK_STYLE,
    bounds_of,
    make_table,
    number,
    title_of,
    with_bounds,
)
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
MARKS = (
    "* best base model; (!) predicts one class. AUC: pairs of images of one part; pooled: all pairs. p: "
    "permuted labels as good; p of many: the best of all entries with permuted labels as good."
)


def shown_models(board: Mapping[str, Any], everything: bool) -> list[str]:
    """Return the models of a table, best first: all, or all but the stacks beyond the best few."""
    part = "development" if any(r["part"] == "development" for r in board["rows"]) else "test"
    rows = [row for row in board["rows"] if row["part"] == part and row["subset"] == "all"]
    rows.sort(key=lambda row: -(row["image_auc"] or 0))
    stacks = [row["model"] for row in rows if row["kind"] == "meta"]
    hidden = () if everything else stacks[TOP:]
    return [row["model"] for row in rows if row["model"] not in hidden]


def leaderboard_table(
    board: Mapping[str, Any], part: str, shown: Sequence[str], width: int = WIDE
) -> Table:
    """Return the scores of some models on a part of the cases; fewer of them where it is narrow."""
    rows = {r["model"]: r for r in board["rows"] if r["part"] == part and r["subset"] == "all"}
    size, unit, wide = board["sizes"][part], board["unit"], width >= WIDE
    columns = [
        (key.replace("case_", f"{unit}_"), heading.replace("case", unit), bounds)
        for key, heading, bounds in COLUMNS
        if wide or bounds
    ]
    columns = [c for c in columns if any(c[0] in row for row in rows.values())]
    left = len({r["model"] for r in board["rows"]} - set(shown))
    more = f" {left} more in compare/leaderboard.csv (--all)." if left else ""
    more_headings = [number("columns"), number("fit s")] if wide else []
    table = make_table(
        title_of(f"{PARTS[part]}: {size['images']} images, {size['cases']} {unit}s; ", board),
        ["model", *(Column(heading) for _, heading, _ in columns), *more_headings],
        caption=f"Intervals: {board['intervals']}. {MARKS}{more}",
    )
    for name in (name for name in shown if name in rows):
        row = rows[name]
        mark = " *" if name == board["best_base"] else ""
        mark += " (!)" if row.get("one_class_only") else ""
        cells = [_cell(row, key, bounds) for key, _, bounds in columns]
        seconds, count = row.get("fit_seconds"), row.get("columns")
        if wide:
            cells += ["" if count is None else str(count), f"{seconds:.2f}" if seconds else ""]
        style = {"base": "cyan", "rule": "green"}.get(row["kind"])
        table.add_row(escape(name + mark), *cells, style=style)
    return table


def _cell(row: Mapping[str, Any], key: str, with_interval: bool) -> str:
    """Return a score of a row, with its interval or the reason why it has none, if that is wanted."""
    if not with_interval:
        return with_bounds(row.get(key), None)
    unit, _, score = key.partition("_")
    reasons = str(row.get(f"{unit}_withheld") or "").split("; ")
    why = dict(reason.partition(": ")[::2] for reason in reasons).get(score)
    return with_bounds(row.get(key), bounds_of(row, key), why)


def answers_table(board: Mapping[str, Any]) -> Table:
    """Return what each block adds to others, meta-learner by meta-learner; intervals hold together."""
    part = next(part for part in PARTS if any(row["part"] == part for row in board["answers"]))
    rows = [row for row in board["answers"] if row["part"] == part]
    by_pair = {(row["added"], row["to"], row["meta"]): row for row in rows}
    metas = list(dict.fromkeys(row["meta"] for row in rows))
    table = make_table(
        f"What a block adds to the AUC by image, intervals of all together 95%. {PARTS[part]}",
        ["added", "to", *metas],
    )
    for added, to in dict.fromkeys((row["added"], row["to"]) for row in rows):
        gains = (_gain(by_pair.get((added, to, meta))).replace(" ", "\n", 1) for meta in metas)
        table.add_row(added, to, *gains)
    return table


def _gain(row: Mapping[str, Any] | None) -> str:
    """Return a gain with its interval as one of many."""
    if row is None or row["auc_difference"] is None:
        return "-"
    return with_bounds(row["auc_difference"], bounds_of(row, "auc"), sign="+")


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
    of_maps = [row for row in board["answers"] if row["maps_alone"]]
    of_maps = [row for row in of_maps if row["auc_difference"] is not None]
    lines += [
        _maps(part, [row for row in of_maps if row["part"] == part])
        for part in dict.fromkeys(row["part"] for row in of_maps)
    ]
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


def _best(best: Mapping[str, Any]) -> str:
    """Return what is left of the best AUC once the choice is made again in every draw of cases."""
    corrected = best["auc_corrected"]
    left = (
        "" if corrected is None else f", {corrected:.3f} when the choice is made in every draw of cases"
    )
    return (
        f"The best of {best['of']} stacks out of fold, {best['model']}: AUC {best['auc']:.3f}{left} "
        f"(it is chosen in {best['chosen']:.0%} of them)."
    )


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


def inflation_table(inflation: Mapping[str, Any]) -> Table:
    """Return the scores under each split side by side, those of leaking splits in red."""
    units = inflation["units"]
    inflated = [unit for unit in units if unit != "case" and "case" in units]
    leaking = {unit: inflation["leaks"][unit] for unit in units}
    labels = (
        Column(
            Text(inflation["labels"][unit], LEAK_STYLE if leaks else ""), style="red" if leaks else ""
        )
        for unit, leaks in leaking.items()
    )
    table = make_table(
        "The same run, split by other units: AUC by image",
        ["part", "model", *labels, *(number(f"inflation by {unit}") for unit in inflated)],
        caption="Red: cases straddle the split. These scores are not results.",
        caption_style=LEAK_STYLE,
    )
    rows = {(r["part"], r["model"], r["split_by"]): r for r in inflation["rows"]}
    for part, model in dict.fromkeys((r["part"], r["model"]) for r in inflation["rows"]):
        by_unit = {unit: rows.get((part, model, unit), {}) for unit in units}
        cells = (
            with_bounds(row.get("auc"), bounds_of(row, "auc"), row.get("auc_withheld"))
            for row in by_unit.values()
        )
        gains = (by_unit[unit].get("auc_inflation") for unit in inflated)
        inflations = ("-" if gain is None else f"{gain:+.3f}" for gain in gains)
        table.add_row("test" if part == "test" else "out of fold", model, *cells, *inflations)
    return table
