"""One meta-learner: who sees which rows, what is calibrated by what, and bases that may not mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stacker.caches.format import Rows
from stacker.comparison.controls import (
    LABELS,
    MAPS,
    list_controls,
    permute_labels,
    run_control,
    shuffle_columns,
)
from stacker.comparison.controls import within as fitting_into
from stacker.config.stacking import StackConfig
from stacker.errors import StackError
from stacker.scores.metrics import area_within
from stacker.scores.multiplicity import at_chance
from stacker.scores.predictions import Predictions, by_case
from stacker.stacking import fitting
from stacker.stacking.finish import conclude, fit_calibrator, unfinished
from stacker.stacking.fitting import Design, fit
from stacker.stacking.tables import Source, Table, Tables

CONFIG = StackConfig.model_validate(
    {"logistic": {"C": 1.0}, "parts": 4, "seeds": 2, "threshold": "youden", "centre": False}
)


def some_tables(
    mixed: bool = False, cases: int = 24, strength: float = 1.0, seed: int = 0, folds: int = 2
) -> Tables:
    """Return tables of some folds, five images a case, one column in six telling the class."""
    rng = np.random.default_rng(seed)
    sources = tuple(Source(f"fold{number}", {}, {}) for number in range(folds))

    def table(case_of_row: np.ndarray, source: np.ndarray, part: bytes) -> Table:
        labels = case_of_row % 2
        values = rng.normal(size=(len(labels), 6)).astype(np.float32)
        values[:, 0] += strength * labels
        if mixed:  # the second fold's basis is turned: what spoke for a class speaks against it
            values[source == 1] *= -1
        names = np.array([f"case{case}".encode() for case in case_of_row])
        images = np.array([f"{part.decode()}{i}".encode() for i in range(len(labels))])
        rows = Rows(labels, images, names, names, np.full(len(labels), part))
        columns = tuple(f"a/logits/{i}" for i in range(6))
        place = np.arange(len(labels))
        return Table(sources, source, place, rows, {}, ("benign", "malignant"), columns, values)

    case_of_row = np.repeat(np.arange(cases), 5)
    development = table(case_of_row, case_of_row * folds // cases, b"dev")
    test_cases = np.repeat(np.arange(100, 110), 5)
    tests = {f"fold{i}": table(test_cases, np.full(len(test_cases), i), b"test") for i in range(folds)}
    return Tables(development, tests, case_of_row, mixed)


def design(name: str = "logistic", **changes: Any) -> Design:
    """Return a design on logits."""
    return Design.of(name, ["logits"], CONFIG.model_copy(update=changes), 0, "cpu")


@pytest.mark.parametrize(("folds", "mixed"), [(1, False), (2, False), (4, False), (2, True)])
def test_what_is_said_out_of_fold_saw_nothing_of_its_case(
    folds: int, mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever predicts a row was fitted on other cases; of several folds, on other folds, too.

    What is cut inside a fit follows the folds where it has rows of several, else the cases.
    """
    tables = some_tables(folds=folds, mixed=mixed)
    image_of = {value.tobytes(): i for i, value in enumerate(tables.development.values)}  # type: ignore[arg-type]
    source = tables.development.source
    seen: list[tuple[set[int], set[int]]] = []

    class Spy:
        weighs = True

        def fit(self, X: np.ndarray, y: np.ndarray, groups: Any = None, weights: Any = None) -> Spy:
            rows = [image_of[row.tobytes()] for row in X]
            self.own = {int(tables.groups[row]) for row in rows}
            several = len({int(source[row]) for row in rows}) > 1
            assert list(groups) == [int((source if several else tables.groups)[row]) for row in rows]
            assert list(y) == [tables.development.rows.label[row] for row in rows]
            assert weights.sum() == pytest.approx(len(rows))
            return self

        def predict_proba(self, X: Any) -> np.ndarray:
            values = X.read(0, X.shape[0])
            rows = [image_of.get(row.tobytes()) for row in values]
            if None not in rows:
                seen.append((self.own, {int(tables.groups[row]) for row in rows}))
            return np.full((len(values), 2), 0.5)

    monkeypatch.setattr(fitting, "build", lambda *_: Spy())
    monkeypatch.setattr(fitting, "is_scaled", lambda *_: False)
    monkeypatch.setattr(fitting, "is_seeded", lambda *_: True)
    fit(design(), tables)
    parts = {(1, False): 4, (2, False): 2, (4, False): 4, (2, True): 8}[folds, mixed]
    assert len(seen) == parts * 2  # seeds
    home = dict(zip(tables.groups.tolist(), source.tolist(), strict=True))
    for fitted, predicted in seen:
        assert not fitted & predicted
        if folds > 1 and not mixed:
            assert {home[case] for case in predicted}.isdisjoint({home[case] for case in fitted})
        whole = {case for case in home if not mixed or home[case] == home[next(iter(predicted))]}
        assert fitted | predicted == whole


def test_a_signal_is_found_and_the_estimate_agrees_with_the_test() -> None:
    """Out of fold and on test cases the AUC is that of the one column that tells."""
    found = fit(design(), some_tables(strength=1.5, cases=60))
    assert found.says.development is not None
    for part in (found.says.development, found.says.test):  # the mean over two folds has less noise
        assert 0.75 < area_within(replace(part, raw=None)) < 0.99
    assert found.columns == 6
    assert set(found.members) == {"all"}


def test_bases_that_differ_get_fits_of_their_own() -> None:
    """A pooled fit of two folds' turned columns learns nothing; one fit per fold learns all."""
    tables = some_tables(mixed=True, strength=3, cases=40)
    apart = fit(design(), tables)
    assert set(apart.members) == {"fold0", "fold1"}
    pooled = fit(design(), replace(tables, mixed=False))
    scores = [area_within(replace(f.says.test, raw=None)) for f in (apart, pooled)]
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
    assert found.says.case_finish is None
    assert np.isfinite(found.says.test.probabilities).all()


def test_seeds_are_fitted_and_averaged() -> None:
    """A forest draws lots: two members whose mean is what is said; a regression has one."""
    tables = some_tables()
    small = CONFIG.random_forest.model_copy(update={"n_estimators": 5})
    forest = design("random_forest", random_forest=small, calibration="none")
    found = fit(forest, tables)
    assert len(found.members["all"]) == len(found.says.areas) == 2
    test = tables.tests["fold0"]
    each = [member.predict_proba(test) for member in found.members["all"]]
    assert not np.array_equal(each[0], each[1])
    np.testing.assert_allclose(fitting.say(found.members["all"], test), np.mean(each, axis=0))
    assert len(fit(design(), tables).members["all"]) == 1


def test_test_probabilities_are_calibrated_means_over_folds() -> None:
    """Each fold's features give log-odds, these are averaged, and then calibrated."""
    tables = some_tables()
    found = fit(design(calibration="platt"), tables)
    calibrator = found.says.finish.calibrator
    assert calibrator.kind == "platt"
    each = [found.members["all"][0].predict_proba(table) for table in tables.tests.values()]
    mean = np.exp(np.mean([np.log(shares) for shares in each], axis=0))
    raw = mean / mean.sum(axis=1, keepdims=True)
    assert found.says.test.raw is not None
    np.testing.assert_allclose(found.says.test.raw[0], raw)
    np.testing.assert_allclose(found.says.test.probabilities, calibrator.apply(raw))
    assert found.says.test.threshold == found.says.finish.threshold


def some_shares(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return raw probabilities (1, N, 2), labels, three parts (1, N) and cases of two images."""
    rng = np.random.default_rng(seed)
    cases = np.arange(120) // 2
    labels, parts = cases // 3 % 2, cases[None] % 3
    shares = 1 / (1 + np.exp(-4 * (labels + rng.normal(size=120) - 0.5)))
    return np.stack([1 - shares, shares], axis=1)[None], labels, parts, cases


def test_finish_comes_from_other_parts_alone() -> None:
    """What is reported of a part, by image and by case, does not change with the part's own labels."""
    raw, labels, parts, cases = some_shares()
    test = Predictions(labels[:4], cases[:4], raw[0, :4])

    def said(labels: np.ndarray) -> Sequence[np.ndarray]:
        found = conclude(CONFIG, unfinished((labels, cases), raw, parts), test).development
        assert found is not None
        of_cases = by_case(found)
        assert of_cases is not None
        own, own_cases = parts[0] == 0, np.arange(60) % 3 == 0
        return (
            found.probabilities[own],
            np.asarray(found.threshold)[own],
            of_cases.probabilities[own_cases],
            np.asarray(of_cases.threshold)[own_cases],
        )

    other = labels.copy()
    other[parts[0] == 0] = 1 - other[parts[0] == 0]
    for first, second in zip(said(labels), said(other), strict=True):
        np.testing.assert_array_equal(first, second)
    found = conclude(CONFIG, unfinished((labels, cases), raw, parts), test)
    assert found.finish.calibrator == fit_calibrator("temperature", raw[0], labels)


def test_cases_have_a_calibration_and_a_threshold_of_their_own() -> None:
    """The mean of a case's images is another quantity than one image: it is finished as such."""
    raw, labels, parts, cases = some_shares()
    test = Predictions(labels[:6], cases[:6], raw[0, :6])
    found = conclude(CONFIG, unfinished((labels, cases), raw, parts), test)
    assert found.case_finish is not None
    means, of_case = raw[0].reshape(60, 2, 2).mean(axis=1), labels[::2]
    assert found.case_finish.calibrator == fit_calibrator("platt", means.round(12), of_case)
    assert found.case_finish != found.finish
    tested = by_case(found.test)
    assert tested is not None
    np.testing.assert_allclose(
        tested.probabilities, found.case_finish.calibrator.apply(means[:3]), atol=1e-9
    )
    assert tested.threshold == found.case_finish.threshold


def test_fold_offsets_are_taken_off_without_a_look_at_labels() -> None:
    """Columns moved by fold give the same fit and the same answers; the constants are kept."""
    tables = some_tables(folds=4)
    offsets = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32) * 5

    def move(table: Table) -> Table:
        assert table.values is not None
        return replace(table, values=table.values + offsets[table.source])

    tests = {fold: move(table) for fold, table in tables.tests.items()}
    moved = replace(tables, development=move(tables.development), tests=tests)
    centred = design(centre=True)
    plain, found = fit(centred, tables), fit(centred, moved)
    assert plain.says.development is not None
    assert found.says.development is not None
    np.testing.assert_allclose(
        found.says.development.probabilities, plain.says.development.probabilities, atol=1e-5
    )
    np.testing.assert_allclose(found.says.test.probabilities, plain.says.test.probabilities, atol=1e-5)
    for number, fold in enumerate(tables.tests):
        np.testing.assert_allclose(found.centres[fold] - plain.centres[fold], offsets[number], atol=1e-4)
    assert not fit(design(centre=False), moved).centres


def test_one_fold_is_cut_by_case_again_and_again() -> None:
    """Under holdout every seed has a cut of its own, and images are compared within its parts."""
    found = fit(design(), some_tables(folds=1, cases=40, strength=2)).says
    assert found.development is not None
    assert found.development.raw is not None
    assert found.development.parts is not None
    assert found.development.raw.shape == (2, 200, 2)
    assert not np.array_equal(*found.development.parts)
    assert area_within(found.development) == pytest.approx(np.mean(found.areas), abs=0.02)


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
    found = fitting_into(tables, 4 * 6 * 41 / 1e9, seed=0)
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
    assert fitting_into(tables, 1, seed=0) is tables


def test_permuted_labels_belong_to_whole_cases() -> None:
    """Every case has one label, as many have each as before, and some have another than before."""
    tables = some_tables()
    labels = permute_labels(tables, np.random.default_rng(0)).development.rows.label
    by_case = [set(labels[tables.groups == case].tolist()) for case in range(24)]
    assert all(len(found) == 1 for found in by_case)
    assert sum(found == {1} for found in by_case) == 12
    assert not np.array_equal(labels, tables.development.rows.label)


def test_every_entry_has_its_controls() -> None:
    """Labels are permuted for all, maps are shuffled where there are some; one seed each."""
    full = Design.of("xgboost", ["maps", "map_stats", "logits"], CONFIG, 0, "cpu")
    assert [control.kind for control in list_controls("x", full)] == [LABELS, MAPS]
    assert [control.kind for control in list_controls("y", design())] == [LABELS]
    assert all(control.design.seeds == [0] for control in list_controls("x", full))
    assert all(control.design.features == full.features for control in list_controls("x", full))


def tables_of_maps(tables: Tables) -> Tables:
    """Return the tables, their columns being called cells of maps."""
    columns = tuple(f"a/maps/malignant/r0c{number}" for number in range(6))
    return replace(
        tables,
        development=replace(tables.development, columns=columns),
        tests={fold: replace(table, columns=columns) for fold, table in tables.tests.items()},
    )


@pytest.mark.parametrize("folds", [1, 4])
def test_controls_land_at_chance_and_find_a_planted_leak(
    folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shuffled maps that do tell, and permuted labels, tell nothing; maps left in place do."""
    tables = tables_of_maps(some_tables(strength=3, cases=40, folds=folds))
    config = CONFIG.model_copy(update={"seeds": 1, "parts": 3, "centre": True})
    controls = list_controls("x", Design.of("logistic", ["maps"], config, 0, "cpu"))
    for control in controls:
        draws = run_control(control, tables, 12)
        row = at_chance(control.name, "development", [float(draw["image"]) for draw in draws])
        assert row is not None
        assert not row["leaks"], row
        assert abs(row["auc"] - 0.5) < 0.12, row
    monkeypatch.setattr("stacker.comparison.controls.shuffle_columns", lambda tables, *_: tables)
    leaking = [float(draw["image"]) for draw in run_control(controls[1], tables, 5)]
    row = at_chance("x", "development", leaking)
    assert row is not None
    assert row["leaks"]


@pytest.mark.parametrize("mixed", [False, True])
def test_controls_permute_within_folds(mixed: bool) -> None:
    """Labels stay in the fold of their case, maps in the fold of their image, at every draw."""
    tables = some_tables(mixed=mixed)
    before = tables.development
    assert before.values is not None
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = permute_labels(tables, rng).development
        shuffled = shuffle_columns(tables, np.ones(6, dtype=bool), rng).development.values
        assert shuffled is not None
        for fold in ("fold0", "fold1"):
            mine = before.made_by == fold
            assert found.rows.label[mine].sum() == before.rows.label[mine].sum()
            np.testing.assert_array_equal(
                np.sort(shuffled[mine], axis=0), np.sort(before.values[mine], axis=0)
            )
