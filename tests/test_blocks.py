"""Views of maps and what they come to, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacker.blocks import (
    STATS,
    agreement,
    assemble,
    column_names,
    describe,
    resample,
    resolve,
    view,
)
from stacker.settings import BlockConfig, StackConfig

CLASSES = ("benign", "malignant")
THREE = ("a", "b", "c")


def some_maps(classes: int = 2, side: int = 4, rows: int = 5) -> np.ndarray:
    """Return random signed maps as the cache keeps them."""
    found = np.random.default_rng(classes).normal(size=(rows, classes, side, side))
    return found.astype(np.float16)


def test_relu_and_normalised_views() -> None:
    """ReLU takes what speaks against the class away; normalised maps reach from 0 to 1 each."""
    maps = some_maps()
    relu, _ = view(maps, CLASSES, BlockConfig(of="maps", view="relu"))
    np.testing.assert_array_equal(relu, maps.astype(np.float32).clip(min=0))
    normalised, _ = view(maps, CLASSES, BlockConfig(of="maps", view="normalised"))
    np.testing.assert_allclose(normalised.max(axis=(2, 3)), 1, rtol=1e-6)
    assert normalised.min() == 0
    np.testing.assert_allclose(normalised * relu.max(axis=(2, 3), keepdims=True), relu, rtol=1e-5)
    nothing, _ = view(-np.abs(maps), CLASSES, BlockConfig(of="maps", view="normalised"))
    assert not nothing.any()


def test_chosen_classes_and_differences() -> None:
    """A class by its name, the difference of two, and of each of three against the others."""
    maps = some_maps()
    one, names = view(maps, CLASSES, BlockConfig(of="maps", classes=["malignant"]))
    assert names == ["malignant"]
    np.testing.assert_array_equal(one[:, 0], maps[:, 1])
    apart, names = view(maps, CLASSES, BlockConfig(of="maps", classes="difference"))
    assert names == ["malignant-benign"]
    np.testing.assert_allclose(apart[:, 0], maps[:, 1].astype(np.float32) - maps[:, 0], rtol=1e-6)
    three = some_maps(3).astype(np.float32)
    apart, names = view(three, THREE, BlockConfig(of="maps", classes="difference"))
    assert names == ["a-rest", "b-rest", "c-rest"]
    np.testing.assert_allclose(apart[:, 1], three[:, 1] - (three[:, 0] + three[:, 2]) / 2, atol=1e-6)


def test_maps_that_know_no_class_are_taken_whatever_is_wanted() -> None:
    """Methods like eigencam have one map for all classes."""
    maps = some_maps(1)
    for classes in (None, ["malignant"], "difference"):
        found, names = view(maps, CLASSES, BlockConfig(of="maps_eigencam", classes=classes))
        assert names == ["all"]
        assert found.shape == maps.shape


@given(st.integers(1, 14), st.integers(1, 14))
def test_a_common_grid_keeps_the_mean(old: int, new: int) -> None:
    """Whatever the grids, the mean over the area stays what it was, and a flat map stays flat."""
    maps = np.random.default_rng(old * 20 + new).normal(size=(2, 3, old, old + 1)).astype(np.float32)
    found = resample(maps, new)
    assert found.shape == (2, 3, new, new)
    np.testing.assert_allclose(found.mean(axis=(2, 3)), maps.mean(axis=(2, 3)), atol=1e-5)
    np.testing.assert_allclose(resample(np.ones_like(maps), new), 1, rtol=1e-5)


def test_a_coarser_grid_is_the_mean_of_blocks() -> None:
    """From 4 x 4 to 2 x 2, each new cell is the mean of four old ones."""
    maps = some_maps(side=4).astype(np.float32)
    expected = maps.reshape(5, 2, 2, 2, 2, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(resample(maps, 2), expected, atol=1e-6)
    np.testing.assert_allclose(resample(maps, 4), maps, atol=1e-6)


def test_statistics_worked_out_by_hand() -> None:
    """One hot cell, an even map, an empty one, and two cells of unequal weight."""
    maps = np.zeros((1, 4, 4, 4), dtype=np.float32)
    maps[0, 0, 1, 2] = 8
    maps[0, 1] = 2
    maps[0, 2] = -1
    maps[0, 3, 0, 0], maps[0, 3, 0, 2] = 3, 1
    found = {name: describe(maps)[0, :, i] for i, name in enumerate(STATS)}
    np.testing.assert_allclose(found["peak"], [8, 2, 0, 3])
    np.testing.assert_allclose(found["mass"], [0.5, 2, 0, 0.25])
    two = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(16)
    np.testing.assert_allclose(found["entropy"], [0, 1, 0, two], atol=1e-6)
    np.testing.assert_allclose(found["row"], [0.375, 0.5, 0.5, 0.125])
    np.testing.assert_allclose(found["column"], [0.625, 0.5, 0.5, 0.125 + 0.25 * 0.5])
    assert found["spread"][0] == 0
    np.testing.assert_allclose(found["spread"][3], 0.75 * 0.125 + 0.25 * 0.375, atol=1e-6)
    np.testing.assert_allclose(found["sum"], [8, 32, -16, 4])


def test_agreement_of_two_backbones() -> None:
    """Equal maps overlap wholly, opposite ones correlate at -1, flat ones at 0."""
    maps = some_maps(side=6).astype(np.float32)
    same = agreement(maps, maps * 3)
    np.testing.assert_allclose(same, 1, atol=1e-5)
    np.testing.assert_allclose(agreement(maps, -maps)[..., 1], -1, atol=1e-5)
    np.testing.assert_allclose(agreement(maps, -maps)[..., 0], 0, atol=1e-6)
    np.testing.assert_allclose(agreement(maps, np.ones_like(maps))[..., 1], 0)
    assert not agreement(maps, np.zeros_like(maps))[..., 0].any()


def test_agreement_across_grids() -> None:
    """A 7 x 7 map and the same on 14 x 14 agree: they are laid on the finer grid."""
    coarse = some_maps(side=7).astype(np.float32)
    fine = coarse.repeat(2, axis=2).repeat(2, axis=3)
    np.testing.assert_allclose(agreement(coarse, fine), 1, atol=1e-5)


def test_all_blocks_side_by_side() -> None:
    """Every column of every block has a name of its own, in the order of its values."""
    config = StackConfig.model_validate(
        {
            "features": ["maps", "map_stats", "logits", "probabilities", "mine"],
            "blocks": {"mine": {"of": "maps", "view": "relu", "grid": 2, "classes": ["malignant"]}},
        }
    )
    logits = np.array([[0.0, np.log(3.0)]], dtype=np.float32)
    arrays = {
        name: {"maps": some_maps(side=side, rows=1), "logits": logits}
        for name, side in (("a", 4), ("b", 3))
    }
    values, columns = assemble(arrays, CLASSES, resolve(config.features, config))
    assert len(columns) == len(set(columns)) == values.shape[1]
    table = dict(zip(columns, values[0], strict=True))
    assert table["a/maps/malignant/r2c3"] == arrays["a"]["maps"][0, 1, 2, 3]
    assert table["b/probabilities/malignant"] == pytest.approx(0.75)
    assert table["a/map_stats/benign/peak"] == arrays["a"]["maps"][0, 0].max()
    assert {name for name in columns if name.startswith("a/mine/")} == {
        f"a/mine/malignant/r{r}c{c}" for r in range(2) for c in range(2)
    }
    assert {name.split("/")[-1] for name in columns if name.startswith("a+b/map_stats/")} == {
        "overlap",
        "correlation",
    }
    empty = {b: {k: v[:0] for k, v in found.items()} for b, found in arrays.items()}
    nothing, same = assemble(empty, CLASSES, resolve(config.features, config))
    assert nothing.shape == (0, len(columns))
    assert same == columns


def test_names_of_arrays_as_they_are_cached() -> None:
    """An export names its columns as stage three does, one map for all classes included."""
    assert column_names("maps_eigencam", (1, 1, 2), CLASSES) == [
        "maps_eigencam/all/r0c0",
        "maps_eigencam/all/r0c1",
    ]
    assert column_names("logits", (2,), CLASSES) == ["logits/benign", "logits/malignant"]
    assert column_names("features", (2,), CLASSES) == ["features/0000", "features/0001"]
