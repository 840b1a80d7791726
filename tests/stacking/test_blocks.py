"""Views of maps and what they come to, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacker.caches.format import column_names, resample
from stacker.config.stacking import BlockConfig, StackConfig
from stacker.stacking.blocks import STATS, agreement, assemble, describe, resolve, view

CLASSES = ("benign", "malignant")
THREE = ("a", "b", "c")


def some_maps(classes: int = 2, side: int = 4, rows: int = 5) -> np.ndarray:
    """Return random signed maps as the cache keeps them."""
    found = np.random.default_rng(classes).normal(size=(rows, classes, side, side))
    return found.astype(np.float16)


def test_relu_and_normalised_views() -> None:
    """ReLU takes what speaks against the class away; normalised maps reach from 0 to 1 each."""
    maps = some_maps()
    apart = maps[:, 1:].astype(np.float32) - maps[:, :1]
    for classes, expected in (("all", maps.astype(np.float32)), ("difference", apart)):
        relu, _ = view(maps, CLASSES, BlockConfig(of="maps", view="relu", classes=classes))
        np.testing.assert_array_equal(relu, expected.clip(min=0))
        block = BlockConfig(of="maps", view="normalised", classes=classes)
        normalised, _ = view(maps, CLASSES, block)
        np.testing.assert_allclose(normalised.max(axis=(2, 3)), 1, rtol=1e-6)
        assert normalised.min() == 0
        np.testing.assert_allclose(normalised * relu.max(axis=(2, 3), keepdims=True), relu, rtol=1e-5)
    below = -np.abs(maps)
    nothing, _ = view(below, CLASSES, BlockConfig(of="maps", view="normalised", classes="all"))
    assert not nothing.any()
    below[:, 0] = 0
    nothing, _ = view(below, CLASSES, BlockConfig(of="maps", view="normalised"))
    assert not nothing.any()


def test_chosen_classes_and_differences() -> None:
    """A class by its name, the difference of two, and of each of three against the others."""
    maps = some_maps()
    one, names = view(maps, CLASSES, BlockConfig(of="maps", classes=["malignant"]))
    assert names == ["malignant"]
    np.testing.assert_array_equal(one[:, 0], maps[:, 1])
    for block in (BlockConfig(of="maps"), BlockConfig(of="maps", classes="difference")):
        apart, names = view(maps, CLASSES, block)
        assert names == ["malignant-benign"]
        np.testing.assert_allclose(apart[:, 0], maps[:, 1].astype(np.float32) - maps[:, 0], rtol=1e-6)
    every, names = view(maps, CLASSES, BlockConfig(of="maps", classes="all"))
    assert names == list(CLASSES)
    np.testing.assert_array_equal(every, maps)
    swapped, names = view(maps, CLASSES, BlockConfig(of="maps", classes=["malignant", "benign"]))
    assert names == ["malignant", "benign"]
    np.testing.assert_array_equal(swapped, maps[:, ::-1])
    three = some_maps(3).astype(np.float32)
    apart, names = view(three, THREE, BlockConfig(of="maps", classes="difference"))
    assert names == ["a-rest", "b-rest", "c-rest"]
    np.testing.assert_allclose(apart[:, 1], three[:, 1] - (three[:, 0] + three[:, 2]) / 2, atol=1e-6)


def test_maps_that_know_no_class_are_taken_whatever_is_wanted() -> None:
    """Methods like eigencam have one map for all classes."""
    maps = some_maps(1)
    for classes in ("all", ["malignant"], "difference"):
        block = BlockConfig.model_validate({"of": "maps_eigencam", "classes": classes})
        found, names = view(maps, CLASSES, block)
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
            "features": ["maps", "map_stats", "logits", "probabilities", "mine", "every"],
            "blocks": {
                "mine": {"of": "maps", "view": "relu", "grid": 2, "classes": ["malignant"]},
                "every": {"of": "maps", "classes": "all"},
            },
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
    assert table["a/every/malignant/r2c3"] == arrays["a"]["maps"][0, 1, 2, 3]
    apart = arrays["a"]["maps"][0, 1].astype(np.float32) - arrays["a"]["maps"][0, 0]
    assert table["a/maps/malignant-benign/r2c3"] == apart[2, 3]
    assert table["b/probabilities/malignant"] == pytest.approx(0.75)
    assert table["b/logits/malignant-benign"] == pytest.approx(np.log(3))
    assert table["a/map_stats/malignant-benign/peak"] == apart.max()
    assert table["a/map_stats/malignant-benign/sum"] == pytest.approx(apart.sum(), rel=1e-5)
    assert {name.split("/")[2] for name in columns if "/every/" in name} == set(CLASSES)
    for block in ("maps", "map_stats", "logits"):
        named = {name.split("/")[2] for name in columns if f"/{block}/" in name}
        assert named == {"malignant-benign"}, block
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


def test_logits_are_log_odds() -> None:
    """Of two classes one column, that of the second; of three, each less the mean of all."""
    two = np.array([[1.0, 4.0], [-2.0, -2.5]])
    values, columns = assemble({"a": {"logits": two}}, CLASSES, {"logits": None})
    assert columns == ("a/logits/malignant-benign",)
    np.testing.assert_array_equal(values, [[3], [-0.5]])
    three = np.array([[1.0, 4.0, 1.0], [0.0, 0.0, 3.0]])
    values, columns = assemble({"a": {"logits": three}}, THREE, {"logits": None})
    assert columns == ("a/logits/a", "a/logits/b", "a/logits/c")
    np.testing.assert_array_equal(values, [[-1, 2, -1], [-1, -1, 2]])


@pytest.mark.parametrize("classes", [CLASSES, THREE])
def test_what_all_classes_have_in_common_is_in_no_column(classes: tuple[str, ...]) -> None:
    """A model is free to add a constant to all logits, or a map to all maps: no block lets it through.

    Of blocks of all classes, or of chosen ones, that cannot be said.
    """
    config = StackConfig.model_validate(
        {
            "features": ["maps", "map_stats", "logits", "probabilities", "relu", "coarse"],
            "blocks": {
                "relu": {"of": "maps", "view": "relu"},
                "coarse": {"of": "maps", "view": "normalised", "grid": 2},
                "every": {"of": "maps", "classes": "all"},
                "some": {"of": "maps", "classes": [classes[-1]]},
            },
        }
    )
    rng, rows, number = np.random.default_rng(0), 6, len(classes)

    def eighths(*shape: int) -> np.ndarray:
        """Return numbers of which sums and thirds are exact, or nearly so."""
        return 3 * rng.integers(-40, 40, shape) / 8

    arrays = {
        name: {"maps": eighths(rows, number, side, side), "logits": eighths(rows, number)}
        for name, side in (("a", 4), ("b", 3))
    }
    moved = {
        name: {
            "maps": found["maps"] + 12 + eighths(rows, 1, *found["maps"].shape[2:]),
            "logits": found["logits"] - 7.5 + eighths(rows, 1),
        }
        for name, found in arrays.items()
    }
    before, columns = assemble(arrays, classes, resolve(config.features, config))
    after, _ = assemble(moved, classes, resolve(config.features, config))
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert {name.split("/")[1] for name in columns} == set(config.features)
    for block in ("every", "some"):
        (one, _), (other, _) = (
            assemble(each, classes, resolve([block], config)) for each in (arrays, moved)
        )
        assert not np.isclose(one, other).all(axis=0).any(), block


@pytest.mark.parametrize("classes", [CLASSES, THREE])
def test_the_free_direction_of_a_fold_does_not_tell_it(classes: tuple[str, ...]) -> None:
    """Rows of two folds whose models differ in a constant alone have the same columns to the bit."""
    config = StackConfig()
    logits = np.random.default_rng(0).integers(-9, 9, (8, len(classes))).astype(np.float32) * 3
    maps = np.random.default_rng(1).integers(-9, 9, (8, len(classes), 3, 3)).astype(np.float16) * 6
    blocks = resolve([*config.features, "maps"], config)
    fold = [
        assemble({"a": {"logits": logits + shift, "maps": maps + shift}}, classes, blocks)[0]
        for shift in (np.float16(0), np.float16(6), np.float16(-30))
    ]
    assert np.array_equal(fold[0], fold[1])
    assert np.array_equal(fold[0], fold[2])


def test_names_of_arrays_as_they_are_cached() -> None:
    """An export names its columns by all classes that are cached, one map for all included."""
    assert column_names("maps", (2, 1, 2), CLASSES) == [
        *("maps/benign/r0c0", "maps/benign/r0c1", "maps/malignant/r0c0", "maps/malignant/r0c1")
    ]
    assert column_names("maps_eigencam", (1, 1, 2), CLASSES) == [
        "maps_eigencam/all/r0c0",
        "maps_eigencam/all/r0c1",
    ]
    assert column_names("logits", (2,), CLASSES) == ["logits/benign", "logits/malignant"]
    assert column_names("features", (2,), CLASSES) == ["features/0000", "features/0001"]
