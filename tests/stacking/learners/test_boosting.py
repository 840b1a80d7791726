"""Boosted trees over tables beyond memory: what is read, when they stop, how bins are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xgboost

from stacker.config.learners import XgboostConfig
from stacker.data.cuts import validation_rows
from stacker.errors import ConfigError, StackError
from stacker.stacking.learners import boosting
from stacker.stacking.learners.boosting import BoostedTrees, quantiles
from stacker.stacking.learners.matrix import InMemory
from tests.learning import Lazy, table

SETTINGS = XgboostConfig(n_estimators=200, learning_rate=0.2, patience=5)


def test_a_table_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table beyond the memory limit is never read whole, and teaches what it teaches in memory."""
    rows = table()
    row_bytes = 4 * rows.values.shape[1]
    monkeypatch.setattr("stacker.stacking.learners.matrix.CHUNK_BYTES", 16 * row_bytes)
    lazy = Lazy(rows.values)
    model = BoostedTrees(SETTINGS, rows.columns, memory_gb=1e-6, device="cpu")
    model.fit(lazy, rows.labels, rows.cases)
    assert max(lazy.read_rows) <= 16
    assert sum(lazy.read_rows) <= 9 * len(rows.labels)
    held = BoostedTrees(SETTINGS, rows.columns, device="cpu").fit(rows.values, rows.labels, rows.cases)
    expected = held.predict_proba(rows.values)
    assert np.array_equal(model.predict_proba(rows.values), expected)


def test_it_stops_by_whole_cases() -> None:
    """Where columns tell the case but hardly the class, unseen cases say early that it is enough."""
    rng = np.random.default_rng(0)
    cases = np.repeat(np.arange(40), 10)
    labels = cases % 2
    values = rng.normal(size=(40, 30))[cases] + 0.05 * rng.normal(size=(400, 30))
    values[:, 0] += 0.5 * labels
    values = values.astype(np.float32)
    columns = [f"column {number}" for number in range(30)]
    by_case, by_row = (
        BoostedTrees(SETTINGS, columns, device="cpu").fit(values, labels, groups).booster_
        for groups in (cases, None)
    )
    assert by_case.num_boosted_rounds() == by_case.best_iteration + 1
    assert by_case.num_boosted_rounds() < SETTINGS.n_estimators / 4
    assert by_row.num_boosted_rounds() > 3 * by_case.num_boosted_rounds()


def test_the_number_of_rounds_is_chosen_on_unseen_cases_and_all_rows_are_learnt() -> None:
    """What is kept apart says how long; the trees then grow from all rows, in proportion longer."""
    rows = table()
    apart = validation_rows(rows.labels, rows.cases, 0.2, 0)
    assert apart is not None
    model = BoostedTrees(SETTINGS, rows.columns, device="cpu")
    best = model.best_rounds(InMemory(rows.values), rows.labels, np.ones(len(rows.labels)), apart)
    model.fit(rows.values, rows.labels, rows.cases)
    assert model.booster_.num_boosted_rounds() == round(best * len(rows.labels) / (~apart).sum())
    same = SETTINGS.model_copy(update={"n_estimators": model.booster_.num_boosted_rounds()})
    whole = BoostedTrees(same, rows.columns, device="cpu")
    whole.fit(rows.values, rows.labels, np.zeros(len(rows.labels)))
    assert np.array_equal(whole.predict_proba(rows.values), model.predict_proba(rows.values))


def test_the_rounds_are_chosen_by_weight() -> None:
    """On either side of the inner split, a row of weight three is as three rows."""
    rows = table(cases=30)
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(len(rows.labels)) < 0.3, 1 - rows.labels, rows.labels)
    apart = validation_rows(labels, rows.cases, 0.3, 0)
    assert apart is not None
    weights = np.where(rows.cases < 8, 3, 1)
    copies = np.repeat(np.arange(len(weights)), weights)
    how = SETTINGS.model_copy(update={"subsample": 1, "colsample_bytree": 1})
    model = BoostedTrees(how, rows.columns, device="cpu")
    ones, values = np.ones(len(weights)), rows.values
    found = model.best_rounds(InMemory(values), labels, weights.astype(float), apart)
    same = np.ones(len(copies)), apart[copies]
    assert found == model.best_rounds(InMemory(values[copies]), labels[copies], *same)
    assert found != model.best_rounds(InMemory(values), labels, ones, apart)


def test_weights_are_read_with_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever pieces a table is read, every row keeps the weight that is its own."""
    rows = table()
    weights = np.random.default_rng(0).uniform(0.2, 5, len(rows.labels))
    held = BoostedTrees(SETTINGS, rows.columns, device="cpu")
    expected = held.fit(rows.values, rows.labels, rows.cases, weights).predict_proba(rows.values)
    monkeypatch.setattr("stacker.stacking.learners.matrix.CHUNK_BYTES", 16 * 4 * rows.values.shape[1])
    model = BoostedTrees(SETTINGS, rows.columns, memory_gb=1e-6, device="cpu")
    model.fit(Lazy(rows.values), rows.labels, rows.cases, weights)
    assert np.array_equal(model.predict_proba(rows.values), expected)
    unweighed = held.fit(rows.values, rows.labels, rows.cases).predict_proba(rows.values)
    assert not np.array_equal(unweighed, expected)


def test_bins_are_cut_at_quantiles() -> None:
    """With few rows these are all values; with many they part the rows evenly, as XGBoost's own do."""
    values = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    assert np.array_equal(quantiles(InMemory(values), 512), np.sort(values, axis=0))
    found = quantiles(InMemory(values), 4)
    ranks = (values[:, :, None] < found.T).sum(axis=0)
    np.testing.assert_allclose(ranks, [[0, 100, 199, 299]] * 2, atol=1)


def test_quantiles_of_many_rows_come_from_all_over_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample takes every so-manieth row, across the borders of the pieces that are read."""
    values = np.arange(1000, dtype=np.float32)[:, None] * [1, -1]
    monkeypatch.setattr("stacker.stacking.learners.matrix.CHUNK_BYTES", 37 * 8)
    monkeypatch.setattr(boosting, "SAMPLE_BYTES", 8 * 150)
    found = quantiles(Lazy(values.astype(np.float32)), 143)
    assert np.array_equal(found[:, 0], np.arange(0, 1000, 7))
    assert np.array_equal(found[:, 1], -np.arange(0, 1000, 7)[::-1])


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_as_good_as_xgboost_on_an_array(classes: int) -> None:
    """Equal rounds and parameters on equal rows give probabilities like those of XGBoost itself."""
    rows, unseen = table(classes), table(classes, seed=1)
    how = XgboostConfig(n_estimators=40, learning_rate=0.2, subsample=1, colsample_bytree=1)
    ours = BoostedTrees(how, rows.columns, device="cpu")
    ours.fit(rows.values, rows.labels, np.zeros(len(rows.labels)))  # one case: nothing is kept apart
    theirs = xgboost.XGBClassifier(**how.model_dump(exclude={"patience", "validation"}))
    theirs.fit(rows.values, rows.labels)
    gap = np.abs(ours.predict_proba(unseen.values) - theirs.predict_proba(unseen.values))
    assert gap.mean() < 1e-3


def test_a_file_keeps_the_best_round(tmp_path: Path) -> None:
    """The stored booster says which round was the best one: its last."""
    rows = table(3)
    model = BoostedTrees(SETTINGS, rows.columns, device="cpu").fit(rows.values, rows.labels, rows.cases)
    model.save(tmp_path / "model.ubj")
    loaded = BoostedTrees(SETTINGS, rows.columns).restore(tmp_path / "model.ubj")
    assert loaded.booster_.best_iteration == model.booster_.best_iteration
    assert loaded.booster_.num_boosted_rounds() == loaded.booster_.best_iteration + 1
    assert loaded.classes_.tolist() == [0, 1, 2]
    with pytest.raises(StackError, match="this table has 31"):
        BoostedTrees(SETTINGS, ["column"] * 31).restore(tmp_path / "model.ubj")


def test_the_best_device_is_none_that_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself XGBoost takes no card that is hidden; one that is named has to be there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    rows = table(cases=10)
    model = BoostedTrees(SETTINGS, rows.columns).fit(rows.values, rows.labels)
    assert model.predict_proba(rows.values).shape == (len(rows.labels), 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match="device: cuda is not here"):
        BoostedTrees(SETTINGS, rows.columns, device="cuda").fit(rows.values, rows.labels)
