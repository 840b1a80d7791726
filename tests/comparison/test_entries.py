"""The comparison: what is in it, that it goes on where it stood, and what leaking splits pretend."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer

from stacker.cli.main import main
from stacker.cli.tables.common import LEAK_STYLE
from stacker.cli.tables.comparison import (
    headlines,
    inflation_table,
    leaderboard_table,
    shown_models,
    verdicts,
)
from stacker.comparison.entries import grid, slug
from stacker.comparison.inflation import measure_inflation, time_of, work_to_do
from stacker.config.root import Config
from stacker.config.stacking import StackConfig
from stacker.errors import ConfigError
from stacker.figures.canvas import LEAK_COLOUR
from stacker.figures.scores import inflation_figure
from stacker.run import open_run
from stacker.scores.multiplicity import at_chance
from stacker.scores.significance import TESTS
from stacker.stacking.fitting import Design
from tests.docs.pages import PAGE, spans

SMALL = {
    "stack.compare.meta": "[logistic]",
    "stack.compare.features": "[[logits],[maps,logits]]",
    "stack.compare.permutations": "5",
}


def compare(run: Path, *options: str, **changes: str) -> Result:
    """Call the command on one process."""
    settings = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
    pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return CliRunner().invoke(main, ["compare", str(run), "--jobs", "1", *pairs, *options])


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def described(heading: str) -> set[str]:
    """Return the names in the first column of a table of docs/statistics.md."""
    (table,) = PAGE["docs/statistics.md"].tables(heading)
    names = {name for row in table[1:] for name in spans(row[0])}
    patterns = {name for name in names if name.startswith("<test>")}
    return names - patterns | {name.replace("<test>", test) for name in patterns for test in TESTS}


@pytest.fixture
def crossed(crossed_artifacts: Path, tmp_path: Path) -> Path:
    """Return a run by crossfit of the test's own."""
    shutil.copytree(crossed_artifacts, tmp_path / "crossed")
    return tmp_path / "crossed" / "small"


def test_the_leaderboard_has_everything_that_was_promised(crossed: Path) -> None:
    """Entries, rules and base models, on both parts, with intervals, nulls, tests and a picture."""
    run = crossed
    done = compare(run)
    assert done.exit_code == 0, done.output
    rows = read_rows(run / "compare" / "leaderboard.csv")
    whole = {(row["part"], row["model"]): row for row in rows if row["subset"] == "all"}
    expected = {"constant", "test_resnet", "test_efficientnet", "mean", "vote", "best_base"}
    expected |= {"logistic: logits", "logistic: maps + logits"}
    for part in ("development", "test"):
        assert {model for of, model in whole if of == part} == expected
    for score in ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "f1", "brier"):
        low, value, high = (
            float(whole["development", "mean"][f"image_{score}{end}"]) for end in ("_low", "", "_high")
        )
        assert low <= value <= high, score
    assert "auc: 3 cases of benign, 5 are needed" in whole["test", "mean"]["image_withheld"]
    for model in expected - {"constant"}:
        row = whole["development", model]
        assert 1 / 6 - 1e-3 <= float(row["null_p"]) <= float(row["null_p_of_many"]) <= 1
    controls = {(r["model"], r["control"]) for r in read_rows(run / "compare" / "controls.csv")}
    assert controls == {(model, "permuted labels") for model in expected - {"constant"}} | {
        ("logistic: maps + logits", "shuffled maps")
    }
    assert {
        "image_ece",
        "image_average_precision",
        "image_auc_pooled",
        "case_auc",
        "case_recognition_rate",
    } <= set(rows[0])
    subsets = {row["subset"] for row in rows}
    assert any(name.startswith("subtype ") for name in subsets)
    assert any(name.startswith("magnification ") for name in subsets)
    assert float(whole["test", "logistic: logits"]["columns"]) == 2
    assert {row["split"] for row in rows} == {"crossfit split by case"}
    gains = read_rows(run / "compare" / "differences.csv")
    board = json.loads((run / "compare" / "leaderboard.json").read_text())
    assert {row["rival"] for row in gains} == {"mean", board["best_base"]}
    assert {"auc_difference", "auc_low", "delong_p", "clustered_delong_holm", "mcnemar_p"} <= set(
        gains[0]
    )
    assert described("key of `leaderboard") == set(board)
    assert described("column of `differences") == set(gains[0])
    answers = {row["part"]: row for row in read_rows(run / "compare" / "answers.csv")}
    for row in answers.values():
        assert (row["added"], row["to"], row["meta"]) == ("maps", "logits", "logistic")
    (own, none) = answers["development"], answers["test"]
    assert float(own["auc_low"]) <= float(own["auc_low_alone"]) <= float(own["auc_difference"])
    assert float(own["auc_detectable"]) > 0
    assert own["auc_negligible"] == str(float(own["auc_high"]) < 0.01)
    assert (none["auc_low"], none["auc_withheld"]) == ("", "3 cases of benign, 5 are needed")
    (row,) = [
        r for r in board["rows"] if (r["part"], r["subset"], r["model"]) == ("test", "all", "mean")
    ]
    assert row["image_withheld"]["auc"] == none["auc_withheld"]
    assert board["positive"] == "malignant"
    assert done.output.index("significantly better than the mean") < done.output.index("image AUC")
    assert board["best_stack"]["model"] in expected
    said = " ".join(done.output.split())
    assert "corrected for choosing the best" in said
    assert "maps add significantly to the other features in 0 of 1 comparisons" in said
    assert (run / "figures" / "leaderboard.png").read_bytes().startswith(b"\x89PNG")
    assert "independent, which images of one case are not" in said


def test_scores_are_those_of_stage_three(finished: Config) -> None:
    """A design that is the run's own stack has the scores that metrics.json has."""
    run = finished.run_path
    assert compare(run).exit_code == 0
    metrics = json.loads((run / "metrics.json").read_text())
    rows = read_rows(run / "compare" / "leaderboard.csv")
    for part in ("test", "development"):
        for model, entry in (("mean", "mean"), ("logistic", "logistic: maps + logits")):
            (row,) = [r for r in rows if (r["part"], r["subset"], r["model"]) == (part, "all", entry)]
            for score in ("auc", "accuracy", "brier"):
                assert float(row[f"image_{score}"]) == metrics[part][model]["image"][score]


def test_what_is_fitted_is_kept_and_what_changed_is_fitted_again(finished: Config) -> None:
    """A comparison that was stopped goes on; another setting touches what it is about, and no more."""
    run = finished.run_path
    assert compare(run).exit_code == 0
    files = sorted(run.glob("compare/*/stack.json"))
    before = {path: path.stat().st_mtime_ns for path in files}
    (run / "compare" / slug("logistic: logits") / "stack.json").unlink()  # as if stopped before it
    assert compare(run).exit_code == 0
    again = {path: path.stat().st_mtime_ns for path in files}
    changed = {path.parent.name for path in files if again[path] != before[path]}
    assert changed == {"logistic@logits"}
    assert compare(run, stack__logistic__C="2.0").exit_code == 0
    last = {path: path.stat().st_mtime_ns for path in files}
    changed = {path.parent.name for path in files if last[path] != again[path]}
    assert changed == {"logistic@logits", "logistic@maps+logits"}
    assert yaml.safe_load((run / "config.yaml").read_text())["stack"]["logistic"]["C"] == 0.01


def test_processes_side_by_side_say_the_same(finished: Config) -> None:
    """Two processes or one, the leaderboard is the same but for the time it took."""
    run = finished.run_path
    boards = []
    for jobs in ("1", "2"):
        for path in run.glob("compare/*/*.json"):
            path.unlink()
        done = compare(run, "--jobs", jobs)
        assert done.exit_code == 0, done.output
        rows = json.loads((run / "compare" / "leaderboard.json").read_text())["rows"]
        boards.append([{k: v for k, v in row.items() if "seconds" not in k} for row in rows])
    assert boards[0] == boards[1]


def test_the_time_left_is_said_and_the_longest_come_first(finished: Config) -> None:
    """Before the controls and after each task; nothing is said of time where all is already there."""
    run = finished.run_path
    done = compare(run)
    lines = [line for line in done.stderr.splitlines() if line.startswith("controls")]
    assert lines[0].startswith("controls: 5 of 5 to fit, about ")
    assert lines[1].endswith(" left")
    assert not lines[-1].endswith(" left")
    again = compare(run)
    assert "about" not in again.stderr
    assert "controls 5 of 5" in again.stderr
    path = run / "compare" / slug("logistic: maps + logits") / "stack.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fit_seconds": 1000.0}))
    for file in (f for f in run.glob("compare/*/*.json") if f.name != "stack.json"):
        file.unlink()
    lines = [line for line in compare(run).stderr.splitlines() if line.startswith("controls ")]
    assert all("logistic: maps + logits" in line for line in lines[:2])


def test_the_time_left_counts_what_is_out_of_date(finished: Config) -> None:
    """With another setting everything is fitted again, and that is what the estimate is of."""
    run = finished.run_path
    compare(run)
    again = compare(run, stack__logistic__C="2.0").stderr
    assert "controls: 3 of 5 to fit, about " in again  # the rules do not depend on it
    assert any(line.endswith(" left") for line in again.splitlines() if line.startswith("compare 1 "))


def test_one_entry_that_fails_stops_no_other(finished: Config) -> None:
    """It is named with the reason, the exit code is 1, and the rest is there."""
    run = finished.run_path
    done = compare(run, stack__compare__meta="[logistic,nowhere.Classifier]")
    assert done.exit_code == 1
    assert "2 entries could not be fitted" in done.output  # and their controls are not tried
    assert "nowhere" in done.output
    rows = read_rows(run / "compare" / "leaderboard.csv")
    assert "logistic: maps + logits" in {row["model"] for row in rows}


def test_only_stage_three_can_be_changed(finished: Config) -> None:
    """The data, the split and the base models are what they were."""
    done = compare(finished.run_path, seed="3")
    assert done.exit_code == 2
    assert "only settings of 'stack'" in done.output


def test_the_grid() -> None:
    """Convolutions need cells, rules come once, and what the config defines is in it."""
    config = StackConfig.model_validate(
        {
            "features": ["map_stats", "probabilities"],
            "blocks": {"small": {"of": "maps", "grid": 2}, "few": {"of": "maps", "pca": 3}},
            "custom": {"mine": {"estimator": "sklearn.neighbors.KNeighborsClassifier"}},
        }
    )
    names = [
        str(Design.of(meta, features, config, 0, "cpu").name)
        for meta, features in grid(config, ["maps", "maps_layercam"], frozen=True)
    ]
    assert len(names) == len(set(names))
    assert {"convnet: maps_layercam", "convnet: maps + logits", "convnet: small"} <= set(names)
    assert not {"convnet: map_stats", "convnet: few", "convnet: logits"} & set(names)
    assert {"mine: frozen", "mlp: embeddings", "logistic: map_stats + probabilities"} <= set(names)
    assert [name for name in names if ":" not in name] == ["vote", "best_base"]
    assert "svm: frozen" not in {
        str(Design.of(meta, features, config, 0, "cpu").name)
        for meta, features in grid(config, ["maps"], frozen=False)
    }


def board_of(**changes: Any) -> dict[str, Any]:
    """Return a leaderboard without anything, but for some changes."""
    empty: dict[str, Any] = {"differences": [], "answers": [], "at_chance": [], "best_stack": None}
    return {**empty, "caveat": "", "best_base": "b", "sizes": {}, "unit": "case", **changes}


def test_a_control_away_from_chance_is_called_out() -> None:
    """Draws around a half pass; draws that find something, or its opposite, are a finding."""
    for centre, leaks in ((0.5, False), (0.4, True), (0.7, True)):
        draws = (centre + np.random.default_rng(0).normal(0, 0.05, 20)).tolist()
        row = at_chance("x, permuted labels", "test", draws)
        assert row is not None
        assert row["leaks"] is leaks
        rows = [{"model": "x", "kind": "permuted labels", "fitted": True, **row}]
        said = "\n".join(verdicts(board_of(at_chance=rows)))
        assert ("look for a leak" in said) is leaks
        assert ("all are near 0.5" in said) is not leaks


def test_sentences_claim_no_test_that_was_not_made() -> None:
    """Beyond two classes there is no DeLong's test, and an underflowed p-value counts."""
    row: dict[str, Any] = {
        "part": "test",
        "rival": "mean",
        "model": "a",
        "auc_difference": 0.1,
        "auc_low": 0.05,
        "auc_withheld": None,
    }
    row |= {"auc_high": 0.2, "clustered_delong_holm": None}
    worse = {**row, "model": "b", "auc_difference": 0.02, "auc_low": -0.1}
    (said,) = headlines(board_of(differences=[worse, row]))
    assert said.startswith("Test cases: 1 of 2 stacks is significantly better than the mean (a).")
    assert "Largest gain in image AUC: +0.100 [+0.05, +0.20] (a)." in said
    assert "DeLong" not in said
    both = [{**row, "model": "c", "auc_difference": 0.2}, row]
    (said,) = headlines(board_of(differences=both[::-1]))
    assert "2 of 2 stacks are significantly better than the mean (c, a)." in said
    (said,) = headlines(board_of(differences=[{**worse, "clustered_delong_holm": 0.0}]))
    assert "No stack is significantly better than the mean (0 of 1)." in said
    assert "By the clustered DeLong test, Holm-adjusted: 1 of 1." in said
    few = {**row, "auc_low": None, "auc_high": None, "auc_withheld": "2 cases of benign"}
    (said,) = headlines(board_of(differences=[few]))
    assert "cannot be said whether a stack is better than the mean: 2 cases of benign." in said


def test_what_maps_add_is_said_with_what_could_have_been_seen() -> None:
    """A gain that is shown, one that is shown to be negligible, and one that nobody can tell."""
    row: dict[str, Any] = {"part": "test", "added": "maps", "to": "logits", "meta": "a"}
    row |= {"auc_difference": 0.0, "auc_low": -0.005, "auc_high": 0.005, "auc_withheld": None}
    row |= {"auc_negligible": True, "auc_detectable": 0.004, "maps_alone": True}
    more = {**row, "auc_low": 0.02, "auc_high": 0.2, "auc_negligible": False, "auc_detectable": 0.1}
    said = "\n".join(verdicts(board_of(answers=[row, more])))
    assert "maps add significantly to the other features in 1 of 2 comparisons" in said
    assert "in 1 a gain of 0.01 AUC or more is ruled out" in said
    assert "detects a gain of 0.004 with 80 % power" in said
    none = {**row, "auc_low": None, "auc_withheld": "4 cases of benign"}
    said = "\n".join(verdicts(board_of(answers=[none])))
    assert "cannot be said whether maps add anything: 4 cases of benign." in said


def test_controls_are_counted_by_what_was_tried() -> None:
    """Models, not draws or fits: those that need no fit are told apart."""
    values = np.linspace(0.49, 0.51, 5).tolist()
    control: dict[str, Any] = {"kind": "permuted labels", "fitted": True}
    rows = [
        {**control, "model": "a", **(at_chance("a", "development", values) or {})},
        {**control, "model": "a", **(at_chance("a", "test", values) or {})},
        {**control, "model": "mean", "fitted": False, **(at_chance("mean", "test", values) or {})},
        {**control, "model": "a", "kind": "shuffled maps", **(at_chance("a", "test", values) or {})},
    ]
    said = "\n".join(verdicts(board_of(at_chance=rows)))
    assert "permuted labels of 2 models (1 of them without a fit)" in said
    assert "and shuffled maps of 1 model on maps alone" in said
    assert "from 0.500 to 0.500; all are near 0.5" in said


@pytest.fixture
def inflated(finished: Config) -> dict[str, Any]:
    """Return a small run repeated with a split by image."""
    run = open_run(finished.run_path)
    return measure_inflation(run, ["image", "case"])


def test_inflation_is_measured_and_red_everywhere(inflated: dict[str, Any], finished: Config) -> None:
    """The leaking run says what it is in its files, its tables and its pictures."""
    leaking = finished.artifacts / "small-by-image"
    assert inflated["labels"] == {
        "image": "holdout split by image, leaks across cases",
        "case": "holdout split by case",
    }
    metrics = json.loads((leaking / "metrics.json").read_text())
    assert metrics["split"].endswith("leaks across cases")
    for name in ("predictions.csv", "out_of_fold.csv"):
        assert {row["split"] for row in read_rows(leaking / name)} == {metrics["split"]}
    rows = {(r["part"], r["model"], r["split_by"]): r for r in inflated["rows"]}
    by_image, by_case = (rows["test", "mean", unit] for unit in ("image", "case"))
    assert by_image["auc_inflation"] == pytest.approx(by_image["auc"] - by_case["auc"], abs=1e-4)
    assert by_case["auc_inflation"] == 0
    written = read_rows(finished.run_path / "compare" / "inflation.csv")
    assert {row["split"] for row in written} == set(inflated["labels"].values())
    table = inflation_table(inflated)
    styles = {str(column.header): column.style for column in table.columns}
    assert styles["holdout split by image, leaks across cases"] == "red"
    assert styles["holdout split by case"] == ""
    done = compare(leaking)
    assert done.exit_code == 0, done.output
    board = json.loads((leaking / "compare" / "leaderboard.json").read_text())
    shown = leaderboard_table(board, "test", shown_models(board, everything=False))
    (label,) = [span for span in shown.title.spans if span.style == LEAK_STYLE]  # type: ignore[union-attr]
    assert str(shown.title)[label.start :].endswith("leaks across cases")
    assert list(shown.columns) == ["image AUC", "image acc.", "case AUC", "case acc."]
    every = leaderboard_table(board, "development", ["mean"], "image")
    assert {"AUC pooled", "sensitivity", "Brier", "p of many", "fit s"} <= set(every.columns)


def test_inflation_is_of_the_run_that_was_named(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was moved is not trained again somewhere else, and its settings stay."""
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    finished.run_path.rename(moved)
    text = (moved / "config.yaml").read_text()
    monkeypatch.chdir(tmp_path / "elsewhere")
    refused = CliRunner().invoke(
        main, ["compare", "moved", "--protocols", "image,case", "--set", "stack.parts=2"]
    )
    assert refused.exit_code == 2
    measure_inflation(open_run(Path("moved")), ["image", "case"])
    assert {path.name for path in moved.parent.iterdir() if path.name[0] != "."} == {
        "moved",
        "moved-by-image",
    }
    assert not finished.run_path.exists()
    assert (moved / "config.yaml").read_text() == text


def test_leaking_bars_are_red(inflated: dict[str, Any]) -> None:
    """In the figure as in the table."""
    figure = inflation_figure(inflated)
    colours = {
        container.get_label(): to_hex(container.patches[0].get_facecolor())
        for axis in figure.axes
        for container in axis.containers
        if isinstance(container, BarContainer)
    }
    assert colours == {
        "holdout split by image, leaks across cases": LEAK_COLOUR,
        "holdout split by case": to_hex("0.25"),
    }


def test_what_will_be_trained_is_said_first(finished: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many base models and caches, where, and how long; what is finished is not counted."""
    run, other = open_run(finished.run_path), finished.artifacts / "small-by-image"
    (work,) = work_to_do(run, ["image", "case"])
    assert (work.path, work.models, work.caches) == (other, 2, 2)
    book = json.loads((run.path / "run.json").read_text())
    times = [book["train"][f"{name}/holdout"]["seconds"] for name in run.config.backbones]
    caches = [book["cache"][f"{name}/holdout"]["seconds"] for name in run.config.backbones]
    assert work.seconds == pytest.approx(sum(times) + sum(caches) / 2)
    assert time_of([work]).startswith("About ")
    assert "unknown" in time_of([replace(work, seconds=None)])
    said = {0.2: "1 second", 45: "45 seconds", 150: "2.5 minutes", 3600: "60 minutes", 9000: "2.5 hours"}
    for seconds, text in said.items():
        assert f"About {text}," in time_of([replace(work, seconds=seconds)])
    monkeypatch.setattr("stacker.comparison.inflation.measure_inflation", lambda *_: sys.exit(3))
    arguments = ["compare", str(run.path), "--protocols", "image,case"]
    done = CliRunner().invoke(main, arguments)  # no terminal: nobody is asked
    assert done.exit_code == 3
    assert f"{other}: 2 base models to train, 2 caches to fill" in done.stderr
    monkeypatch.setattr("stacker.cli.compare.somebody_answers", lambda: True)
    assert CliRunner().invoke(main, arguments, input="n\n").exit_code == 1
    assert CliRunner().invoke(main, arguments, input="y\n").exit_code == 3
    assert CliRunner().invoke(main, [*arguments, "--yes"]).exit_code == 3
    shutil.copytree(run.path, other)
    assert work_to_do(run, ["image", "case"]) == []
    assert "to train" not in CliRunner().invoke(main, arguments).stderr


def test_units_that_cannot_be_compared(finished: Config) -> None:
    """Unknown units, and one alone, are refused before anything is trained."""
    run = open_run(finished.run_path)
    with pytest.raises(ConfigError, match="unknown unit 'patient'; choose from image, slide, case"):
        measure_inflation(run, ["image", "patient"])
    with pytest.raises(ConfigError, match="at least two units"):
        measure_inflation(run, ["case"])
    assert not (finished.artifacts / "small-by-image").exists()
