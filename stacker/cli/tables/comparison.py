"""The tables and sentences of a comparison for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

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
from stacker.cli.tables.models import ModelsTable, Score
from stacker.cli.tables.scores import NAMES, SHORT, USUAL, marks, minor_of, signs
from stacker.comparison.controls import MAPS
from stacker.errors import plural
from stacker.scores.predictions import PARTS

TOP = 12
STYLES = {"base": "cyan", "rule": "green"}
NULLS = {"null_p": "p", "null_p_of_many": "p of many"}


def shown_models(board: Mapping[str, Any], everything: bool) -> list[str]:
    """Return the models of a table, best first: all, or all but the stacks beyond the best few."""
    part = "development" if any(r["part"] == "development" for r in board["rows"]) else "test"
    rows = [row for row in board["rows"] if row["part"] == part and row["subset"] == "all"]
    rows.sort(key=lambda row: -(row["image_auc"] or 0))
    stacks = [row["model"] for row in rows if row["kind"] == "meta"]
    hidden = () if everything else stacks[TOP:]
    return [row["model"] for row in rows if row["model"] not in hidden]


def leaderboard_tables(board: Mapping[str, Any], shown: Sequence[str], full: bool) -> list[ModelsTable]:
    """Return the tables of all parts: AUC and accuracy, or every score by image and by case."""
    units = [None] if not full else list(dict.fromkeys(("image", board["unit"])))
    parts = dict.fromkeys(row["part"] for row in board["rows"])
    return [leaderboard_table(board, part, shown, unit) for part in parts for unit in units]


def leaderboard_table(
    board: Mapping[str, Any], part: str, shown: Sequence[str], every_score_of: str | None = None
) -> ModelsTable:
    """Return the scores of some models on a part of the cases: AUC and accuracy, or all of a unit."""
    parts = [row["part"] for row in board["rows"]]
    of_part = {r["model"]: r for r in board["rows"] if r["part"] == part and r["subset"] == "all"}
    rows = {name: of_part[name] for name in shown if name in of_part}
    size, unit = board["sizes"][part], board["unit"]
    if every_score_of is None:
        by, units = "", dict.fromkeys(("image", unit))
        columns = {f"{of} {SHORT[score]}": f"{of}_{score}" for of in units for score in USUAL}
    else:
        by, of = f", by {every_score_of}", every_score_of
        columns = {NAMES[score]: f"{of}_{score}" for score in NAMES}
    cells: dict[str, Sequence[Score | str]] = {
        heading: [_score(row, key) for row in rows.values()]
        for heading, key in columns.items()
        if any(key in row for row in rows.values())
    }
    if every_score_of == "image":
        cells |= _facts(rows.values())
    groups = "cases not known" if unit == "image" else f"{size['cases']} {unit}s"
    return ModelsTable(
        title_of(f"{PARTS[part]}{by}: {size['images']} images, {groups}; ", board),
        list(rows),
        cells,
        list(_notes(board, rows, shown, every_score_of, last=part == parts[-1])),
        minor=() if every_score_of else minor_of(columns),
        signs=signs(board["best_base"], rows),
        styles={name: STYLES.get(row["kind"], "") for name, row in rows.items()},
    )


def _score(row: Mapping[str, Any], key: str) -> Score:
    """Return a score of a row with its interval, or the reason why it has none."""
    unit, _, score = key.partition("_")
    why = (row.get(f"{unit}_withheld") or {}).get(score)
    return Score(row.get(key), bounds_of(row, key), why)


def _facts(rows: Collection[Mapping[str, Any]]) -> dict[str, Sequence[Score | str]]:
    """Return what else a leaderboard knows of its entries: p-values, columns, seconds."""
    cells: dict[str, Sequence[Score | str]] = {
        heading: ["" if row.get(key) is None else f"{row[key]:.3f}" for row in rows]
        for key, heading in NULLS.items()
    }
    cells["columns"] = ["" if row.get("columns") is None else str(row["columns"]) for row in rows]
    seconds = [row.get("fit_seconds") for row in rows]
    return cells | {"fit s": [f"{value:.2f}" if value else "" for value in seconds]}


def _notes(
    board: Mapping[str, Any],
    rows: Mapping[str, Mapping[str, Any]],
    shown: Sequence[str],
    every_score_of: str | None,
    last: bool,
) -> Iterator[str]:
    """Yield what stands below a leaderboard, and below the last one what concerns all of them."""
    yield from marks(board["best_base"], rows, board["unit"])
    if every_score_of == "image" and any(row.get("null_p") is not None for row in rows.values()):
        yield (
            "p: how often the same entry is as good on permuted labels; p of many: how often the best "
            "of all entries is."
        )
    if not last or every_score_of == "image" != board["unit"]:
        return
    yield f"Intervals: {board['intervals']}."
    left = len({row["model"] for row in board["rows"]} - set(shown))
    if left:
        yield f"{left} more entries: --all, or compare/leaderboard.csv."


def answers_table(board: Mapping[str, Any]) -> ModelsTable:
    """Return what each block adds to others, meta-learner by meta-learner; intervals hold together."""
    part = next(part for part in PARTS if any(row["part"] == part for row in board["answers"]))
    rows = [row for row in board["answers"] if row["part"] == part]
    by_pair = {(row["added"], row["to"], row["meta"]): row for row in rows}
    added = list(dict.fromkeys((row["added"], row["to"]) for row in rows))
    return ModelsTable(
        f"{PARTS[part]}: what a feature block adds to the image AUC",
        [f"{block} to {rest}" for block, rest in added],
        {
            meta: [_gain(by_pair.get((*pair, meta))) for pair in added]
            for meta in dict.fromkeys(row["meta"] for row in rows)
        },
        ["Intervals: 95 % for all of these gains together. One that includes 0: no significant gain."],
        first="added",
        sign="+",
    )


def _gain(row: Mapping[str, Any] | None) -> Score:
    """Return a gain with its interval as one of many."""
    if row is None:
        return Score(None)
    return Score(row["auc_difference"], bounds_of(row, "auc"), row["auc_withheld"])


def headlines(board: Mapping[str, Any]) -> list[str]:
    """Return, for each part of the cases, whether any stack is better than the mean."""
    return [f"{PARTS[part]}: {said}" for part, said in _against_rival(board, "mean")]


def verdicts(board: Mapping[str, Any]) -> list[str]:
    """Return the rest in sentences: against the best base model, what maps add, the controls."""
    lines = [f"{PARTS[part]}: {said}" for part, said in _against_rival(board, board["best_base"])]
    if board["best_stack"] is not None:
        lines.append(_best(board["best_stack"]))
    of_maps = [row for row in board["answers"] if row["maps_alone"]]
    of_maps = [row for row in of_maps if row["auc_difference"] is not None]
    lines += [
        _maps(part, [row for row in of_maps if row["part"] == part])
        for part in dict.fromkeys(row["part"] for row in of_maps)
    ]
    if board["at_chance"]:
        lines += _controls(board["at_chance"])
    return [*lines, board["caveat"]]


def _against_rival(board: Mapping[str, Any], rival: str) -> Iterator[tuple[str, str]]:
    """Yield for each part what the stacks gain over a rival."""
    for part in PARTS:
        rows = [r for r in board["differences"] if r["part"] == part and r["rival"] == rival]
        rows = [row for row in rows if row["auc_difference"] is not None]
        if rows:
            yield part, _against(rival, rows)


def _against(rival: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return which stacks are better than a rival, by their intervals and by the test by case."""
    what = "the mean" if rival == "mean" else f"{rival}, the best base model"
    best = max(rows, key=lambda row: row["auc_difference"])
    gain = with_bounds(best["auc_difference"], bounds_of(best, "auc"), sign="+")
    largest = f"Largest gain in image AUC: {gain} ({best['model']})."
    known = [row for row in rows if row["auc_low"] is not None]
    if not known:
        why = rows[0]["auc_withheld"]
        return f"it cannot be said whether a stack is better than {what}: {why}. {largest}"
    known.sort(key=lambda row: -row["auc_difference"])
    better = [row["model"] for row in known if row["auc_low"] > 0]
    tested = [row for row in rows if row["clustered_delong_holm"] is not None]
    passed = sum(row["clustered_delong_holm"] < 0.05 and row["auc_difference"] > 0 for row in tested)
    test = f" By the clustered DeLong test, Holm-adjusted: {passed} of {len(tested)}." if tested else ""
    return f"{_how_many(better, len(rows), what)} {largest}{test}"


def _how_many(better: Sequence[str], number_of_stacks: int, what: str) -> str:
    """Return the headline: how many stacks are better than a rival, and which."""
    if not better:
        return f"No stack is significantly better than {what} (0 of {number_of_stacks})."
    are = "stacks is" if len(better) == 1 else "stacks are"
    count = f"{len(better)} of {number_of_stacks} {are}"
    return f"{count} significantly better than {what} ({', '.join(better)})."


def _best(best: Mapping[str, Any]) -> str:
    """Return what is left of the best AUC once the choice is made again in every draw of cases."""
    corrected = best["auc_corrected"]
    left = "" if corrected is None else f", or {corrected:.3f} corrected for choosing the best"
    return (
        f"Best of {best['of']} stacks out of fold: {best['model']}, image AUC {best['auc']:.3f}{left}. "
        f"It is the best in {100 * best['chosen']:.0f} % of the bootstrap draws."
    )


def _maps(part: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what is shown of the gain by maps: that there is one, that there is none, or neither."""
    known = [row for row in rows if row["auc_low"] is not None]
    if not known:
        return f"{PARTS[part]}: it cannot be said whether maps add anything: {rows[0]['auc_withheld']}."
    more = sum(row["auc_low"] > 0 for row in known)
    less = sum(bool(row["auc_negligible"]) for row in known)
    finest = min(row["auc_detectable"] for row in known)
    return (
        f"{PARTS[part]}: maps add significantly to the other features in {more} of {len(rows)} "
        f"comparisons; in {less} a gain of 0.01 AUC or more is ruled out. The most precise comparison "
        f"detects a gain of {finest:.3f} with 80 % power."
    )


def _controls(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the controls with nothing to learn come to: those that are off, or that none is."""
    off = [row for row in rows if row["leaks"]]
    if off:
        return [
            f"{PARTS[row['part']]}: {row['control']}: the mean AUC of {row['draws']} draws is "
            f"{row['auc']:.3f}, more than {row['limit']:.3f} away from 0.5. Something other than the "
            "tissue tells the classes apart: look for a leak."
            for row in off
        ]
    low, high = (end(row["auc"] for row in rows) for end in (min, max))
    checked = " and ".join(_checked(kind, rows) for kind in dict.fromkeys(row["kind"] for row in rows))
    said = f"Controls with nothing to learn: {checked}. "
    return [f"{said}Their mean AUC lies from {low:.3f} to {high:.3f}; all are near 0.5."]


def _checked(kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many models a kind of control was tried on."""
    fitted = {row["model"]: row["fitted"] for row in rows if row["kind"] == kind}
    of = plural(len(fitted), "model")
    if kind == MAPS:  # beside other columns there is something left to learn
        return f"{kind} of {of} on maps alone"
    unfitted = len(fitted) - sum(fitted.values())
    return f"{kind} of {of}" + (f" ({unfitted} of them without a fit)" if unfitted else "")


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
        "The same run, split by other units: image AUC",
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
