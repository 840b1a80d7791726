"""One meta-learner: who sees which rows, what is calibrated by what, and bases that may not mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stacker import fitting, meta
from stacker.cache import Rows
from stacker.calibration import fit_calibrator
from stacker.controls import list_controls, permute_labels, run_control, shuffle_columns, within
from stacker.errors import StackError
from stacker.features import Source, Table, Tables
from stacker.fitting import Design, conclude, fit
from stacker.leaderboard import at_chance
from stacker.metrics import area_under_curve
from stacker.settings import StackConfig

CONFIG = StackConfig.model_validate(
    {"logistic": {"C": 1.0}, "parts": 4, "seeds": 2, "threshold": "youden"}
)


def some_tables(mixed: bool = False, cases: int = 24, strength: float = 1.0, seed: int = 0) -> Tables:
    """Return tables of two folds, five images a case, one column in six telling the class."""
    rng = np.random.default_rng(seed)
    sources = (Source("fold0", {}, {}), Source("fold1", {}, {}))

    def table(case_of_row: np.ndarray, source: np.ndarray, part: bytes) -> Table:
        labels = case_of_row % 2
        values = rng.normal(size=(len(labels), 6)).astype(np.float32)
        values[:, 0] += strength * labels
        if mixed:  # the second fold's basis is turned: what spoke for a class speaks against it
            values[source == 1] *= -1
        names = np.array([f"case{case}".encode() for case in case_of_row])
        images = np.array([f"{part.decode()}{i}".encode() for i in range(len(labels))])
        rows = Rows(labels, images, names, np.full(len(labels), part))
        columns = tuple(f"a/logits/{i}" for i in range(6))
        place = np.arange(len(labels))
        return Table(sources, source, place, rows, {}, ("benign", "malignant"), columns, values)

    case_of_row = np.repeat(np.arange(cases), 5)
    development = table(case_of_row, (case_of_row >= cases // 2).astype(int), b"dev")
    test_cases = np.repeat(np.arange(100, 110), 5)
    tests = {f"fold{i}": table(test_cases, np.full(len(test_cases), i), b"test") for i in range(2)}
    return Tables(development, tests, case_of_row, mixed)


def design(name: str = "logistic", **changes: Any) -> Design:
    """Return a design on logits."""
    return Design.of(name, ["logits"], CONFIG.model_copy(update=changes), 0, "cpu")


def test_what_is_said_out_of_fold_saw_nothing_of_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever predicts a row was fitted on other cases, and every row is predicted once per seed."""
    tables = some_tables()
    image_of = {value.tobytes(): i for i, value in enumerate(tables.development.values)}  # type: ignore[arg-type]
    seen: list[tuple[set[int], set[int]]] = []

    class Spy:
        def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> Spy:
            self.own = {int(tables.groups[image_of[row.tobytes()]]) for row in X}
            assert groups is not None
            assert set(groups) == self.own
            assert list(y) == [tables.development.rows.label[image_of[row.tobytes()]] for row in X]
            return self

        def predict_proba(self, X: Any) -> np.ndarray:
            values = X.read(0, X.shape[0])
            rows = [image_of.get(row.tobytes()) for row in values]
            if None not in rows:
                seen.append((self.own, {int(tables.groups[row]) for row in rows}))
            return np.full((len(values), 2), 0.5)

    monkeypatch.setattr(meta, "build", lambda *_: Spy())
    monkeypatch.setattr(meta, "is_scaled", lambda *_: False)
    monkeypatch.setattr(meta, "is_seeded", lambda *_: True)
    fit(design(), tables)
    assert len(seen) == 4 * 2
    for fitted, predicted in seen:
        assert not fitted & predicted
        assert fitted | predicted == set(tables.groups)


def test_a_signal_is_found_and_the_estimate_agrees_with_the_test() -> None:
    """Out of fold and on test cases the AUC is that of the one column that tells."""
    found = fit(design(), some_tables(strength=1.5, cases=60))
    assert found.says.development is not None
    for part in (found.says.development, found.says.test):  # the mean over two folds has less noise
        assert 0.75 < area_under_curve(part.labels, part.probabilities) < 0.99
    assert found.columns == 6
    assert set(found.members) == {"all"}


def test_bases_that_differ_get_fits_of_their_own() -> None:
    """A pooled fit of two folds' turned columns learns nothing; one fit per fold learns all."""
    tables = some_tables(mixed=True, strength=3, cases=40)
    apart = fit(design(), tables)
    assert set(apart.members) == {"fold0", "fold1"}
    pooled = fit(design(), replace(tables, mixed=False))
    scores = [area_under_curve(f.says.test.labels, f.says.test.probabilities) for f in (apart, pooled)]
    assert scores[0] > 0.9
    assert scores[1] < 0.7


def test_a_fold_without_some_class_cannot_have_a_fit_of_its_own() -> None:
    """It is named, with what to do."""
    tables = some_tables(mixed=True)
    labels = (tables.development.source == 1).astype(np.int64)
    rows = replace(tables.development.rows, label=labels)
    with pytest.raises(StackError, match="fold0 holds out no image of some class"):
        fit(design(), replace(tables, development=replace(tables.development, rows=rows)))


def test_too_few_cases_have_no_estimate_and_no_calibration() -> None:
    """With one malignant case nothing can be cut: the test rows are predicted all the same."""
    tables = some_tables()
    labels = (tables.groups == 3).astype(np.int64)
    rows = replace(tables.development.rows, label=labels)
    found = fit(design(), replace(tables, development=replace(tables.development, rows=rows)))
    assert found.says.development is None
    assert found.says.finish.calibrator.kind == "none"
    assert found.says.finish.threshold is None
    assert np.isfinite(found.says.test.probabilities).all()


def test_seeds_are_fitted_and_averaged() -> None:
    """A forest draws lots: two members whose mean is what is said; a regression has one."""
    tables = some_tables()
    small = CONFIG.random_forest.model_copy(update={"n_estimators": 5})
    forest = design("random_forest", random_forest=small, calibration="none")
    found = fit(forest, tables)
    assert len(found.members["all"]) == len(found.says.seeds) == 2
    test = tables.tests["fold0"]
    each = [member.predict_proba(test) for member in found.members["all"]]
    assert not np.array_equal(each[0], each[1])
    np.testing.assert_allclose(fitting.say(found.members["all"], test), np.mean(each, axis=0))
    assert len(fit(design(), tables).members["all"]) == 1


def test_test_probabilities_are_the_calibrated_mean_over_folds() -> None:
    """Each fold's features give a probability, it is calibrated, and then they are averaged."""
    tables = some_tables()
    found = fit(design(calibration="platt"), tables)
    calibrator = found.says.finish.calibrator
    assert calibrator.kind == "platt"
    each = [calibrator.apply(found.members["all"][0].predict_proba(t)) for t in tables.tests.values()]
    np.testing.assert_allclose(found.says.test.probabilities, np.mean(each, axis=0))
    assert found.says.test.threshold == found.says.finish.threshold


def test_finish_comes_from_other_parts_alone() -> None:
    """On development rows, what is reported of a part does not change with the part's own labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=120)
    shares = 1 / (1 + np.exp(-4 * (labels + rng.normal(size=120) - 0.5)))
    shares = np.stack([1 - shares, shares], axis=1)
    parts, cases, test = np.arange(120) % 3, np.arange(120), shares[None, :4]

    def said(labels: np.ndarray) -> Sequence[np.ndarray]:
        found = conclude(CONFIG, shares, parts, (labels, cases), test, (labels[:4], cases[:4]))
        assert found.development is not None
        own = parts == 0
        return found.development.probabilities[own], np.asarray(found.development.threshold)[own]

    other = labels.copy()
    other[parts == 0] = 1 - other[parts == 0]
    for first, second in zip(said(labels), said(other), strict=True):
        np.testing.assert_array_equal(first, second)
    found = conclude(CONFIG, shares, parts, (labels, cases), test, (labels[:4], cases[:4]))
    assert found.finish.calibrator == fit_calibrator("temperature", shares, labels)


def test_shuffled_maps_keep_everything_but_the_maps() -> None:
    """Chosen columns go to other rows, on all folds' test rows alike; the rest stays."""
    tables = some_tables()
    chosen = np.array([True, True, False, False, False, False])
    found = shuffle_columns(tables, chosen, np.random.default_rng(0))
    before, after = tables.development.values, found.development.values
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(after[:, 2:], before[:, 2:])
    assert not np.array_equal(after[:, :2], before[:, :2])
    np.testing.assert_array_equal(np.sort(after[:, 0]), np.sort(before[:, 0]))
    orders = []
    for fold, table in found.tests.items():
        old, new = tables.tests[fold].values, table.values
        assert old is not None
        assert new is not None
        orders.append([int(np.flatnonzero(old[:, 0] == value)[0]) for value in new[:, 0]])
    assert orders[0] == orders[1]


def test_a_control_takes_as_many_cases_as_fit() -> None:
    """Whole cases are drawn by lot, and as many test rows of every fold alike."""
    tables = some_tables()
    found = within(tables, 4 * 6 * 41 / 1e9, seed=0)
    assert found.development.shape == (40, 6)
    names, counts = np.unique(found.groups, return_counts=True)
    assert len(names) == 8
    assert set(counts) == {5}
    np.testing.assert_array_equal(
        found.development.rows.case_id, [f"case{group}".encode() for group in found.groups]
    )
    first, second = found.tests.values()
    assert len(first.rows) == 20
    np.testing.assert_array_equal(first.rows.image_id, second.rows.image_id)
    assert within(tables, 1, seed=0) is tables


def test_permuted_labels_belong_to_whole_cases() -> None:
    """Every case has one label, as many have each as before, and some have another than before."""
    tables = some_tables()
    labels = permute_labels(tables, np.random.default_rng(0)).development.rows.label
    by_case = [set(labels[tables.groups == case].tolist()) for case in range(24)]
    assert all(len(found) == 1 for found in by_case)
    assert sum(found == {1} for found in by_case) == 12
    assert not np.array_equal(labels, tables.development.rows.label)


def test_controls_of_a_stack() -> None:
    """Maps are shuffled alone, and beside the rest; labels are permuted; one seed each."""
    full = Design.of("xgboost", ["maps", "map_stats", "logits"], CONFIG, 0, "cpu")
    found = {control.name: control for control in list_controls(full)}
    assert list(found) == ["shuffled maps", "logits + shuffled maps", "permuted labels"]
    assert found["shuffled maps"].design.features == ("maps", "map_stats")
    assert found["permuted labels"].design.features == full.features
    assert all(control.design.seeds == [0] for control in found.values())


class Made:
    """Stands for caches, whose tables are made here."""

    def __init__(self, tables: Tables) -> None:
        columns = tuple(f"a/maps/malignant/r0c{number}" for number in range(6))
        self.made = replace(
            tables,
            development=replace(tables.development, columns=columns),
            tests={fold: replace(table, columns=columns) for fold, table in tables.tests.items()},
        )

    def tables(self, *_: object) -> Tables:
        """Return the tables, whatever is asked for."""
        return self.made


def test_controls_land_at_chance_and_find_a_planted_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shuffled maps that do tell, and permuted labels, tell nothing; maps left in place do."""
    caches: Any = Made(some_tables(strength=3, cases=40))
    config = CONFIG.model_copy(update={"seeds": 1, "parts": 3})
    controls = list_controls(Design.of("logistic", ["maps"], config, 0, "cpu"))
    draws = {control.name: run_control(control, caches, 12) for control in controls}
    for row in at_chance(draws):
        assert not row["leaks"], row
        assert abs(row["auc"] - 0.5) < 0.12, row
    monkeypatch.setattr("stacker.controls.shuffle_columns", lambda tables, *_: tables)
    leaking = run_control(controls[0], caches, 5)
    assert all(row["leaks"] for row in at_chance({"shuffled maps": leaking}))


def test_permuted_labels_leave_every_fold_its_classes() -> None:
    """Where each fold has a fit of its own, no draw can leave one without a class."""
    tables = some_tables(mixed=True)
    for seed in range(20):
        found = permute_labels(tables, np.random.default_rng(seed)).development
        for fold in ("fold0", "fold1"):
            mine, before = found.rows.label[found.made_by == fold], tables.development
            assert mine.sum() == before.rows.label[before.made_by == fold].sum()
