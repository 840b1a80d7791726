"""Figures of scores name the part, the positive class and the split, and say what is left out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from scipy.special import expit

from stacker.figures.canvas import LEAK_COLOUR
from stacker.figures.scores import (
    confusion_figure,
    leaderboard_figure,
    reliability_figure,
    roc_figure,
)
from stacker.scores.bootstrap import Resampling
from stacker.scores.predictions import Predictions
from tests.predictions import random_predictions, two

HOW = Resampling(60, 0, ("benign", "malignant"))
SPLIT = "crossfit split by case", False
LEAKING = "crossfit split by image, leaks across cases", True


def models(benign: int = 8, malignant: int = 8) -> dict[str, Predictions]:
    """Return what a constant and two models say of some cases of ten images."""
    rng = np.random.default_rng(0)
    cases = np.repeat(np.arange(benign + malignant), 10)
    labels = (cases >= benign).astype(np.int64)
    said = {"constant": np.full(len(labels), 0.5)}
    for name in ("resnet50", "mean"):
        said[name] = expit(labels + rng.normal(size=benign + malignant)[cases])
    return {name: Predictions(labels, cases, two(share)) for name, share in said.items()}


def title_of(figure: Figure) -> str:
    """Return a figure's title."""
    return figure.get_suptitle()


def labels_of(figure: Figure) -> list[tuple[str, str]]:
    """Return the labels of all axes that are seen."""
    return [(axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes if axis.get_visible()]


def bands(figure: Figure) -> int:
    """Return how many bands a figure has."""
    return sum(
        isinstance(item, FillBetweenPolyCollection) for axis in figure.axes for item in axis.collections
    )


def test_roc_says_what_it_is_of() -> None:
    """The part with its size, the positive class and the split; a panel and a band for each model."""
    figure = roc_figure(models(), HOW, "malignant", "development", *SPLIT)
    title = title_of(figure)
    assert "positive class: malignant; crossfit split by case" in title
    assert "Development cases, out of fold: 160 images, 16 cases" in title
    assert [axis.get_title() for axis in figure.axes] == ["resnet50", "mean"]
    assert bands(figure) == 2
    assert set(labels_of(figure)) == {("false positive rate", "true positive rate")}


def test_the_positive_class_may_be_the_first() -> None:
    """The curve is of the class that is named, mirrored at the other diagonal."""
    areas = []
    for name in HOW.classes:
        figure = roc_figure(models(), HOW, name, "test", *SPLIT)
        assert f"positive class: {name}" in title_of(figure)
        areas.append(figure.axes[0].get_legend_handles_labels()[1][0].split()[0])
    assert areas[0] == areas[1]


def test_a_band_of_too_few_cases_is_withheld_with_the_reason() -> None:
    """Three malignant cases: the curve is drawn, a band is not, and the title says why."""
    figure = roc_figure(models(8, 3), HOW, "malignant", "test", *SPLIT)
    assert bands(figure) == 0
    assert "No interval: 3 cases of malignant, 5 are needed" in title_of(figure)
    (label,) = figure.axes[0].get_legend_handles_labels()[1]
    assert "[" not in label


def test_the_reason_of_any_model_is_given() -> None:
    """The second model is perfect: it alone has no band, and the title says so beside the bands."""
    both = models()
    mean = both["mean"]
    perfect = Predictions(mean.labels, mean.cases, two(0.2 + 0.6 * mean.labels))
    figure = roc_figure(both | {"mean": perfect}, HOW, "malignant", "test", *SPLIT)
    assert bands(figure) == 1
    assert "Band: 95 %" in title_of(figure)
    assert "No interval: no variation between cases" in title_of(figure)


def test_roc_of_three_classes_has_a_curve_for_each() -> None:
    """No class is the positive one: the legend has each against the others."""
    three = Resampling(60, 0, ("a", "b", "c"))
    figure = roc_figure({"mlp": random_predictions(3, 0)}, three, None, "test", *SPLIT)
    assert "each class against the others" in title_of(figure)
    named = figure.axes[0].get_legend_handles_labels()[1]
    assert [label.split()[0] for label in named] == ["a", "b", "c"]


def test_reliability_counts_every_image() -> None:
    """Below each diagram stand the numbers of images in its bins."""
    figure = reliability_figure(models(), HOW, "malignant", "test", *SPLIT)
    assert ("", "share that is malignant") in labels_of(figure)
    assert ("probability of malignant", "images") in labels_of(figure)
    counts = [axis for axis in figure.axes if axis.get_ylabel() == "images"]
    assert len(counts) == 2
    for axis in counts:
        assert sum(int(text.get_text()) for text in axis.texts) == 160


def test_confusion_has_counts_and_shares() -> None:
    """Rows are true classes, columns predicted ones, and each row's shares add up to one."""
    figure = confusion_figure(models(), HOW, "test", *SPLIT)
    cells = [text.get_text().split("\n") for text in figure.axes[0].texts]
    assert sum(int(count) for count, _ in cells) == 160
    assert sum(int(share.rstrip("%")) for _, share in cells) == pytest.approx(200, abs=2)
    assert set(labels_of(figure)) == {("predicted class", "true class")}


def test_every_figure_of_a_leaking_split_is_red_and_says_so() -> None:
    """Whatever the figure, a reader sees that its scores are no results."""
    figures = [
        confusion_figure(models(), HOW, "test", *LEAKING),
        roc_figure(models(), HOW, "malignant", "test", *LEAKING),
        reliability_figure(models(), HOW, "malignant", "test", *LEAKING),
        leaderboard_figure(board(leaks=True), ["mlp", "constant"]),
    ]
    for figure in figures:
        assert "leaks across cases" in title_of(figure)
        assert figure.texts[0].get_color() == LEAK_COLOUR


def board(leaks: bool = False) -> dict[str, Any]:
    """Return a leaderboard of one entry of each kind, on both parts."""
    kinds = {"constant": "base", "resnet50": "base", "mean": "base", "vote": "rule", "mlp": "meta"}
    rows = [
        {
            "part": part,
            "subset": "all",
            "model": name,
            "kind": kind,
            "image_auc": 0.5 + k / 10,
            "image_auc_low": None if k == 0 else 0.4,
            "image_auc_high": None if k == 0 else 0.95,
        }
        for part in ("development", "test")
        for k, (name, kind) in enumerate(kinds.items())
    ]
    size = {"images": 160, "cases": 16}
    return {
        "rows": rows,
        "sizes": {"development": size, "test": size},
        "split": LEAKING[0] if leaks else SPLIT[0],
        "leaks": leaks,
        "unit": "case",
        "intervals": "95 %",
    }


def test_a_leaderboard_has_a_legend_of_its_kinds() -> None:
    """Constant, base models, their mean, rules and stacks differ, and both parts have one scale."""
    names = ["mlp", "vote", "mean", "resnet50", "constant"]
    figure = leaderboard_figure(board(), names)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "constant (control)",
        "base model",
        "mean of base models",
        "rule",
        "stack",
        "AUC of the mean",
    ]
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim()
    looks = {
        (line.get_color(), line.get_marker()) for line in first.lines if line.get_marker() != "None"
    }
    assert len(looks) == len(names)
    without = leaderboard_figure(board(), ["mlp", "mean"]).legends[0]
    assert "rule" not in [text.get_text() for text in without.get_texts()]


@pytest.mark.parametrize(
    ("count", "lines"), [(1, [1]), (4, [4]), (5, [3, 2]), (6, [3, 3]), (9, [3, 3, 3]), (10, [4, 4, 2])]
)
def test_panels_fill_their_lines_evenly(count: int, lines: list[int]) -> None:
    """Five are three and two, not four and one."""
    one = models()["mean"]
    shown = {f"model{n}": one for n in range(count)}
    figures = [
        (confusion_figure(shown, HOW, "test", *SPLIT), 1),
        (roc_figure(shown, HOW, "malignant", "test", *SPLIT), 1),
        (reliability_figure(shown, HOW, "malignant", "test", *SPLIT), 2),
    ]
    for figure, axes_per_panel in figures:
        rows: Counter[int] = Counter()
        for axis in figure.axes:
            place = axis.get_subplotspec()
            assert place is not None
            rows[place.rowspan.start // axes_per_panel] += axis.get_visible()
        assert [rows[line] // axes_per_panel for line in sorted(rows)] == lines
