"""The tables of a run say the unit, the part and the split of what they show, and mark one class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stacker.cli.tables.common import LEAK_STYLE, shortened
from stacker.cli.tables.scores import score_tables, scores_table
from tests.cli.tables.test_models import printed


@pytest.fixture
def metrics(finished_artifacts: Path) -> dict[str, Any]:
    """Return the scores of a finished run."""
    content: dict[str, Any] = json.loads((finished_artifacts / "small" / "metrics.json").read_text())
    return content


def test_the_title_says_part_size_positive_class_and_split(metrics: dict[str, Any]) -> None:
    """A reader of one table needs no other; a split that leaks is red."""
    title = scores_table(metrics, "test").title
    assert str(title) == (
        "Test cases: 18 images, 6 cases; positive class: malignant; holdout split by case"
    )
    leaking = scores_table({**metrics, "leaks": True}, "test").title
    assert [str(leaking)[s.start : s.end] for s in leaking.spans if s.style == LEAK_STYLE] == [  # type: ignore[union-attr]
        "holdout split by case"
    ]


def test_usual_scores_or_every_score(metrics: dict[str, Any]) -> None:
    """AUC and accuracy by image and case fit into 80 columns; --full has all, unit by unit."""
    usual, every = (
        "\n".join(line for table in score_tables(metrics, full) for line in printed(table, 80))
        for full in (False, True)
    )
    assert max(map(len, [*usual.splitlines(), *every.splitlines()])) <= 80
    assert "image AUC" in usual
    assert "case acc." in usual
    assert "sensitivity" not in usual
    for name in ("AUC pooled", "sensitivity", "Brier", "recognition rate", ", by case: 18 images"):
        assert name in every.replace("\n", " ")


def test_a_model_that_predicts_one_class_is_marked_by_image_and_by_case(metrics: dict[str, Any]) -> None:
    """The sign is explained below, for images and for cases; without such a model it is not."""
    for name, scores in metrics["test"].items():
        scores["constant_prediction"] = name == "constant"
        scores["constant_case_prediction"] = name in ("constant", "mlp")
    lines = printed(scores_table(metrics), 120)
    assert (
        "(!) predicts the same class for all images (constant); for all cases (constant, mlp)." in lines
    )
    assert [line.split(" (!)")[0] for line in lines if " (!) " in line] == ["constant", "mlp"]
    for scores in metrics["test"].values():
        scores["constant_prediction"] = scores["constant_case_prediction"] = False
    assert "(!)" not in "\n".join(printed(scores_table(metrics), 120))


def test_intervals_are_explained_where_there_are_some(metrics: dict[str, Any]) -> None:
    """Once, below the last table of gains that has one; below tables without any, not at all."""
    row = {"score": "auc", "difference": 0.1, "interval": None, "withheld": "few cases"}
    rows = [row | {"part": part, "first": "mlp", "second": "mean"} for part in ("development", "test")]
    rows = [each | {"score": score} for each in rows for score in ("auc", "accuracy")]

    def shown() -> str:
        tables = score_tables({**metrics, "differences": rows})
        return "\n".join(line for table in tables for line in printed(table, 120))

    assert "includes 0" not in shown()
    rows[0]["interval"] = (-0.1, 0.3)
    before, _, after = shown().partition("An interval that includes 0")
    assert "out of fold: gain by image" in before
    assert "Test cases: gain by image" in after
    assert "includes 0" not in after[1:]


def test_long_names_lose_their_middle() -> None:
    """Both ends stay, and short names are as they were."""
    assert shortened("logistic", 8) == "logistic"
    assert shortened("logistic: maps + logits", 11) == "logis…ogits"
    assert shortened("ab", 1) == "…"
