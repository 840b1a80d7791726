"""Scales and components are those of the rows they were fitted on; tables are read in pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from stacker import grouping, matrix
from stacker.errors import StackError
from stacker.matrix import Changed, InMemory, chunks, whole
from stacker.preparation import Preparation, fit_preparation

COLUMNS = (*(f"a/deep/{i:04d}" for i in range(6)), "a/logits/x", *(f"b/deep/{i:04d}" for i in range(5)))


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
