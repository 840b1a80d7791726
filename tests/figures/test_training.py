"""Figures of a training and of a search say what is on their axes, and how much to make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stacker.figures.training import draw_curves, draw_importance

SCORES = ("accuracy", "balanced_accuracy", "auc", "precision", "recall", "f1")


def epoch(number: int) -> dict[str, Any]:
    """Return an epoch of ten steps, each learnt a little slower than the one before."""
    steps = range(10 * (number - 1), 10 * number)
    return {
        "epoch": number,
        "train_loss": 1 / number,
        "val_loss": 1.2 / number,
        **{f"val_{name}": 0.5 + 0.1 * number for name in SCORES},
        "lr_by_step": [[step, 1e-3 * 0.9**step] for step in steps],
    }


def test_every_axis_has_a_label() -> None:
    """What is counted and in what unit; the learning rate goes by step, all else by epoch."""
    figure = draw_curves([epoch(1), epoch(2), epoch(3)], 2, "resnet50/fold0")
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == [
        *("Loss", "Accuracy", "AUC", "Precision and recall", "F1", "Learning rate"),
    ]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in panels.values())
    assert panels["Loss"].get_ylabel() == "cross-entropy (nats)"
    assert panels["Loss"].get_xlabel() == "epoch"
    assert panels["Learning rate"].get_xlabel() == "step (one batch each)"
    steps, rates = map(np.asarray, panels["Learning rate"].lines[0].get_data())
    assert steps.tolist() == list(range(30))
    assert rates[29] == pytest.approx(1e-3 * 0.9**29)
    assert "resnet50/fold0" in figure.get_suptitle()
    assert "epoch 2, which was kept" in figure.get_suptitle()


def test_the_kept_epoch_is_marked_in_every_panel() -> None:
    """By its number, and where steps are counted by its last step."""
    figure = draw_curves([epoch(1), epoch(2), epoch(3)], 2, "resnet50/fold0")
    marks = [np.asarray(axes.lines[-1].get_xdata())[0] for axes in figure.axes]
    assert marks == [2, 2, 2, 2, 2, 19]


@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_few_epochs_have_whole_numbers_and_no_point_is_cut(count: int) -> None:
    """Nobody trains half an epoch; a loss that hardly moves keeps its distance from the frame."""
    epochs = [epoch(number) | {"train_loss": 0.7, "val_loss": 0.701} for number in range(1, count + 1)]
    *panels, last = draw_curves(epochs, 1, "resnet50/fold0").axes
    for axes in panels:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(float(tick).is_integer() for tick in ticks)
        assert (low, high) == (0.5, count + 0.5)
    for axes in (panels[0], last):
        assert axes.get_ylim()[1] >= 1.04 * axes.dataLim.ymax
    unknown = [epoch(1) | {"train_loss": np.nan, "val_loss": np.nan}]
    assert draw_curves(unknown, 1, "resnet50/fold0").axes[0].get_ylim() == (0, 1)


@pytest.mark.parametrize(
    ("trials", "caution"),
    [(4, "4 complete trials: too few to rank settings"), (40, "40 complete trials")],
)
def test_importance_of_few_trials_carries_its_caution(trials: int, caution: str) -> None:
    """An analysis of a few trials ranks noise."""
    figure = draw_importance({"lr": 0.7, "dropout": 0.3}, trials)
    (axes,) = figure.axes
    title = axes.get_title()
    assert title.startswith("Hyperparameter importance (fANOVA)")
    assert caution in title
    assert ("too few" in title) == (trials == 4)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dropout", "lr"]
