"""Scales and components are those of the rows they were fitted on; tables are read in pieces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from stacker.caches.format import Rows, fixed_text
from stacker.config.stacking import StackConfig
from stacker.data import cuts as grouping
from stacker.errors import StackError
from stacker.stacking.blocks import Arrays, assemble, resolve
from stacker.stacking.learners import matrix
from stacker.stacking.learners.matrix import Changed, InMemory, chunks, whole
from stacker.stacking.preparation import Preparation, fit_centres, fit_preparation
from stacker.stacking.tables import Source, Table

COLUMNS = (*(f"a/deep/{i:04d}" for i in range(6)), "a/logits/x", *(f"b/deep/{i:04d}" for i in range(5)))


CLASSES = ("benign", "malignant")
CONFIG = StackConfig.model_validate(
    {
        "features": ["maps", "map_stats", "logits", "frozen", "still"],
        "blocks": {"still": {"of": "frozen"}},
    }
)
FOLDS = ("fold0", "fold1", "fold2")


@dataclass(frozen=True)
class Held(Source):
    """A source whose arrays are in memory; two backbones, the second one frozen, too."""

    arrays: dict[str, Arrays]

    def read(self, wanted: set[str], places: np.ndarray) -> dict[str, Arrays]:
        """Return the wanted arrays of some rows, by backbone."""
        return {
            name: {array: values[places] for array, values in found.items() if array in wanted}
            for name, found in self.arrays.items()
        }


def some_table(shift: float = 0.0, seed: int = 0) -> Table:
    """Return the rows of three folds whose models differ by a multiple of `shift` in all they say.

    Cases have one to six images, those of fold 2 no order; what nobody trained does not differ.
    """
    rng = np.random.default_rng(seed)
    sources, places, pieces = [], [], []
    for number, fold in enumerate(FOLDS):
        case = np.repeat(np.arange(5), rng.permutation([1, 2, 3, 4, 6]))
        count = len(case)
        apart = np.array([0, number * shift])
        own = {
            name: {
                "maps": rng.normal(size=(count, 2, 2, 2)) + apart[:, None, None],
                "logits": (rng.normal(size=(count, 2)) + apart).astype(np.float32),
            }
            for name in ("a", "b")
        }
        own["b"]["frozen"] = rng.normal(size=(count, 3)).astype(np.float32) + 5
        sources.append(Held(fold, {}, {}, dict(own)))
        names = fixed_text([f"{fold}-{each}" for each in case])
        images = fixed_text([f"{fold}-image{each}" for each in range(count)])
        pieces.append(Rows(case % 2, images, names, names, fixed_text([fold] * count)))
        places.append(rng.permutation(count) if number == 2 else np.arange(count))
    blocks = resolve(CONFIG.features, CONFIG)
    rows = Rows.join(piece.take(place) for piece, place in zip(pieces, places, strict=True))
    _, columns = assemble(sources[0].arrays, CLASSES, blocks)
    source = np.repeat(np.arange(3), [len(place) for place in places])
    return Table(tuple(sources), source, np.concatenate(places), rows, blocks, CLASSES, columns)


def is_frozen(table: Table) -> np.ndarray:
    """Say which columns are of backbones that nobody trained."""
    return np.array([name.split("/")[1] in ("frozen", "still") for name in table.columns])


def test_centres_are_means_of_case_means() -> None:
    """Of each fold, each column: the mean over cases of the mean over the case's images."""
    table = some_table(2.0)
    values, found = whole(table, 1, "a test"), fit_centres(table)
    assert found.shape == (3, len(table.columns))
    assert found.dtype == np.float32
    for number in range(3):
        mine = table.source == number
        names = table.rows.case_id
        means = [values[mine & (names == name)].mean(axis=0) for name in np.unique(names[mine])]
        expected = np.where(is_frozen(table), 0, np.mean(means, axis=0))
        np.testing.assert_allclose(found[number], expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[0], values[table.source == 0].mean(axis=0), atol=0.01)


def test_a_case_in_two_folds_counts_in_each() -> None:
    """Where a split lets cases straddle, the rows of each fold are weighed among themselves."""
    table = some_table(2.0)
    short = fixed_text([name.decode().split("-")[1] for name in table.rows.case_id])
    shared = replace(table, rows=replace(table.rows, case_id=short))
    assert np.array_equal(fit_centres(shared), fit_centres(table))


def test_more_images_of_a_case_do_not_move_the_centre() -> None:
    """A case of which every image is there five times weighs what it weighed before."""
    table = some_table(1.0)
    first = table.rows.case_id == table.rows.case_id[0]
    more = table.take(np.sort(np.r_[np.arange(len(first)), np.repeat(np.flatnonzero(first), 4)]))
    np.testing.assert_allclose(fit_centres(more), fit_centres(table), atol=1e-5)


def test_centres_know_no_labels() -> None:
    """They are the same whatever the rows are labelled as: the rows of a test part may be centred."""
    table = some_table(2.0)
    for labels in (1 - table.rows.label, np.zeros_like(table.rows.label)):
        other = replace(table, rows=replace(table.rows, label=labels))
        assert np.array_equal(fit_centres(other), fit_centres(table))


def test_what_nobody_trained_is_not_centred() -> None:
    """Frozen columns have a centre of nought, by whatever name a block calls them; no other has."""
    table = some_table(2.0)
    centres, frozen = fit_centres(table), is_frozen(table)
    assert frozen.sum() == 6
    assert not centres[:, frozen].any()
    assert centres[:, ~frozen].all()
    before, after = whole(table, 1, "a test"), whole(table.centred(centres), 1, "a test")
    assert np.array_equal(before[:, frozen], after[:, frozen])


def test_a_table_in_memory_is_centred_as_one_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held or read in pieces, the whole of it or some rows: the same centres, the same bits."""
    table = some_table(2.0)
    expected = fit_centres(table)
    monkeypatch.setattr(matrix, "CHUNK_BYTES", 4 * len(table.columns) * 7)
    held = table.hold(1)
    assert held.values is not None
    for one in (table, held):
        np.testing.assert_allclose(fit_centres(one), expected, atol=1e-6)
    lazy, other, late = table.centred(expected), held.centred(expected), table.centred(expected).hold(1)
    values = whole(lazy, 1, "a test")
    assert values.dtype == np.float32
    some = np.array([0, 3, 17, 30, 40])
    for one in (lazy, other, late):
        assert np.array_equal(whole(one, 1, "a test"), values)
        assert np.array_equal(one.take(some).read(1, 4), values[some[1:4]])
        assert np.array_equal(one.take(table.source == 1).read(0, 99), values[table.source == 1])


def test_centring_makes_what_folds_differ_by_vanish() -> None:
    """Folds that differ by a constant have the columns, once centred, of folds that do not."""
    plain, moved = some_table(), some_table(8.0)
    plain, moved = (replace(each, blocks=resolve(["maps", "logits"], CONFIG)) for each in (plain, moved))
    _, columns = assemble(
        plain.sources[0].read({"maps", "logits"}, plain.place[:0]), CLASSES, plain.blocks
    )
    plain, moved = (replace(each, columns=columns) for each in (plain, moved))
    apart = whole(moved, 1, "a test") - whole(plain, 1, "a test")
    np.testing.assert_allclose(apart, np.repeat(8.0 * moved.source[:, None], len(columns), 1), atol=0.02)
    first, second = (whole(each.centred(fit_centres(each)), 1, "a test") for each in (plain, moved))
    np.testing.assert_allclose(first, second, atol=0.02)  # maps are kept in half precision
    for number in range(3):
        assert np.abs(fit_centres(moved.centred(fit_centres(moved)))[number]).max() < 1e-5


def some_values(rows: int = 50, seed: int = 0) -> np.ndarray:
    """Return correlated columns of different size."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, 12)) @ rng.normal(size=(12, 12))
    return (mixed * np.arange(1, 13) + 5).astype(np.float32)


def test_scales_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in pieces of seven rows, the columns have the mean and deviation of the whole."""
    monkeypatch.setattr(matrix, "CHUNK_BYTES", 4 * 12 * 7)
    values = some_values()
    values[:, 3] = 2  # says nothing, and must not be divided by 0
    table = InMemory(values)
    assert len(list(chunks(table))) == 8
    prepared = fit_preparation(table, COLUMNS, {}, scaled=True, seed=0).of(table)
    expected = StandardScaler().fit_transform(values.astype(np.float64))
    np.testing.assert_allclose(whole(prepared, 1, "a test"), expected, atol=1e-4)


def test_components_are_scikit_learns_block_by_block() -> None:
    """Each backbone's block gets its own components; the other columns stay in their place."""
    values = some_values()
    found = fit_preparation(InMemory(values), COLUMNS, {"deep": 3}, scaled=False, seed=0)
    expected_names = [f"a/deep/pc{i:03d}" for i in range(3)], [f"b/deep/pc{i:03d}" for i in range(3)]
    assert list(found.columns) == [*expected_names[0], "a/logits/x", *expected_names[1]]
    changed = found.change(some_values(seed=1))
    for block, place in ((slice(0, 6), slice(0, 3)), (slice(7, 12), slice(4, 7))):
        expected = PCA(3, random_state=0).fit(values[:, block]).transform(some_values(seed=1)[:, block])
        np.testing.assert_allclose(changed[:, place], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(changed[:, 3], some_values(seed=1)[:, 6])


def test_more_components_than_rows_can_have() -> None:
    """Four rows have three components, however many are wanted."""
    found = fit_preparation(InMemory(some_values(4)), COLUMNS, {"deep": 5}, scaled=True, seed=0)
    assert len(found.columns) == 3 + 1 + 3
    assert np.isfinite(found.change(some_values())).all()


def test_it_survives_its_file(tmp_path: Path) -> None:
    """Read again, it changes rows to the same bits; there is no pickle in the file."""
    found = fit_preparation(InMemory(some_values()), COLUMNS, {"deep": 2}, scaled=True, seed=0)
    found.save(tmp_path / "p.npz")
    again = Preparation.load(tmp_path / "p.npz")
    np.testing.assert_array_equal(again.change(some_values()), found.change(some_values()))
    assert (again.columns, again.given) == (found.columns, found.given)


def test_damage_and_other_columns_are_refused(tmp_path: Path) -> None:
    """A file that was cut off, and a table of another width, say what to do."""
    found = fit_preparation(InMemory(some_values()), COLUMNS, {}, scaled=True, seed=0)
    found.save(tmp_path / "p.npz")
    content = (tmp_path / "p.npz").read_bytes()
    (tmp_path / "p.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(StackError, match="missing or damaged"):
        Preparation.load(tmp_path / "p.npz")
    with pytest.raises(StackError, match="fitted on 12 columns, found 11"):
        found.of(InMemory(some_values()[:, :11]))


def test_a_table_that_does_not_fit_is_not_read_whole() -> None:
    """The message says how large it is, what is allowed, and the ways out."""
    table = Changed(InMemory(np.zeros((1000, 10), np.float32)), lambda values: values, 10)
    with pytest.raises(
        StackError, match=r"svm needs its whole table.*1000 rows x 10 columns.*memory_gb"
    ):
        whole(table, 1e-6, "svm")
    assert whole(table.take(np.arange(5)), 1, "svm").shape == (5, 10)


def test_cuts_keep_cases_together() -> None:
    """Every part has every class, and no case is in two; few cases make fewer parts, or none."""
    rng = np.random.default_rng(0)
    groups = rng.integers(12, size=200)
    labels = (groups % 3 == 0).astype(int)
    parts = grouping.cut(labels, groups, 5, seed=0)
    assert parts is not None
    assert set(parts) == {0, 1, 2, 3}  # the rarer class has four cases
    for group in range(12):
        assert len(set(parts[groups == group])) == 1
    for part in range(4):
        assert set(labels[parts == part]) == {0, 1}
    assert grouping.cut((groups == 0).astype(int), groups, 5, seed=0) is None
    held = grouping.validation_rows(labels, groups, 0.25, seed=0)
    assert held is not None
    assert not set(groups[held]) & set(groups[~held])
    assert set(labels[held]) == set(labels[~held]) == {0, 1}


def test_cuts_repeat_themselves_and_cannot_be_changed() -> None:
    """Equal rows are cut alike by equal seeds; what is remembered is read-only."""
    labels, groups = np.arange(40) % 2, np.arange(40) // 2
    labels = groups % 2
    first, second = (grouping.cut(labels, groups, 4, seed) for seed in (3, 3))
    assert first is not None
    assert second is not None
    assert np.array_equal(first, second)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 9
