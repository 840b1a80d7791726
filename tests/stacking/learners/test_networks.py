"""The networks: how batches are drawn, when learning stops, and what the convolutional one looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from stacker.caches.format import areas
from stacker.config.learners import ConvnetConfig, MlpConfig
from stacker.data.cuts import validation_rows
from stacker.errors import StackError
from stacker.stacking.learners import networks
from stacker.stacking.learners.convnet import ConvnetClassifier, MapNetwork, lay_out
from stacker.stacking.learners.networks import MlpClassifier, NetworkClassifier
from tests.learning import Lazy, Learnt, standardised, table

MLP = MlpConfig(hidden=[16], epochs=30)
CONVNET = ConvnetConfig(channels=[8, 8], epochs=60, lr=0.01, dropout=0.1, grid=6)


def mlp(rows: Learnt, settings: MlpConfig = MLP, memory_gb: float = 2.0) -> MlpClassifier:
    """Return a perceptron for some rows."""
    return MlpClassifier(settings, rows.columns, memory_gb=memory_gb, device="cpu")


def test_a_batch_never_has_one_row() -> None:
    """Every row is drawn once, and a row left over joins the last batch."""
    for number in (2, 3, 8, 9, 10, 16, 17):
        batches = networks.cut_batches(np.arange(number), 8)
        assert np.array_equal(np.concatenate(batches), np.arange(number))
        assert all(2 <= len(batch) <= 9 for batch in batches)


@pytest.mark.parametrize("number", [9, 65, 200])
def test_a_large_table_is_read_in_blocks(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks side by side, some of them pooled: each row once, no lone row, mixed beyond its block."""
    monkeypatch.setattr(networks, "BLOCK_BYTES", 5 * 4)
    monkeypatch.setattr(networks, "POOL", 4)
    lazy = Lazy(np.arange(number, dtype=np.float32)[:, None])
    batches = list(networks.pooled(lazy, 8, np.random.default_rng(0)))
    assert max(lazy.read_rows) <= 5
    for values, places in batches:
        assert np.array_equal(values[:, 0], places)
        assert 2 <= len(places) <= 9
    drawn = np.concatenate([places for _, places in batches])
    assert np.array_equal(np.sort(drawn), np.arange(number))
    if number == 200:
        assert len({int(place) // 5 for place in batches[0][1]}) > 2


def test_a_table_beyond_the_limit_teaches_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in blocks it is another draw of the same model, as good on unseen cases."""
    rows, unseen = standardised(table()), standardised(table(seed=1))
    monkeypatch.setattr(networks, "BLOCK_BYTES", 10 * 4 * rows.values.shape[1])
    lazy = Lazy(rows.values)
    model = mlp(rows, memory_gb=1e-6).fit(lazy, rows.labels, rows.cases)
    assert max(lazy.read_rows) < len(rows.labels) / 2
    assert (model.predict(unseen.values) == unseen.labels).mean() > 0.85
    again = mlp(rows, memory_gb=1e-6).fit(rows.values, rows.labels, rows.cases)
    assert np.array_equal(again.predict_proba(unseen.values), model.predict_proba(unseen.values))


@pytest.mark.parametrize("memory_gb", [2.0, 1e-6])
def test_a_weight_is_so_many_rows(memory_gb: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without BatchNorm, all rows in a batch, weights of 1 to 3 teach what repeated rows teach.

    So it is for rows in memory and for those that are read in blocks.
    """
    rows = standardised(table(cases=20))
    monkeypatch.setattr(networks, "BLOCK_BYTES", 7 * 4 * rows.values.shape[1])
    weights = np.random.default_rng(0).integers(1, 4, len(rows.labels))
    copies = np.repeat(np.arange(len(weights)), weights)
    one = np.zeros(len(copies))  # of one group: no inner split
    how = MlpConfig(hidden=[], epochs=20, batch_size=1000, lr=0.01)
    weighed, repeated, plain = (mlp(rows, how, memory_gb) for _ in range(3))
    weighed.fit(Lazy(rows.values), rows.labels, one[: len(weights)], weights)
    repeated.fit(Lazy(rows.values[copies]), rows.labels[copies], one)
    plain.fit(Lazy(rows.values), rows.labels, one[: len(weights)])
    expected = repeated.predict_proba(rows.values)
    np.testing.assert_allclose(weighed.predict_proba(rows.values), expected, atol=1e-5)
    assert np.abs(plain.predict_proba(rows.values) - expected).max() > 1e-3


def test_the_validation_loss_is_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which state is kept is decided by weighed rows, the same in memory as read in blocks."""
    rows = standardised(table(cases=20))
    monkeypatch.setattr(networks, "BLOCK_BYTES", 7 * 4 * rows.values.shape[1])
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(len(rows.labels)) < 0.3, 1 - rows.labels, rows.labels)
    how = MlpConfig(hidden=[], epochs=60, batch_size=1000, validation=0.4, patience=60)
    apart = validation_rows(labels, rows.cases, how.validation, 0)
    assert apart is not None
    weights = np.where(apart & (labels == 1), 8.0, 1.0)  # what is learnt from weighs the same
    held, read, plain = (mlp(rows, how, limit) for limit in (2.0, 1e-6, 2.0))
    held.fit(rows.values, labels, rows.cases, weights)
    read.fit(Lazy(rows.values), labels, rows.cases, weights)
    plain.fit(rows.values, labels, rows.cases)
    assert held.epochs_ == read.epochs_ != plain.epochs_
    expected = held.predict_proba(rows.values)
    np.testing.assert_allclose(read.predict_proba(rows.values), expected, atol=1e-5)


def test_it_stops_by_whole_cases_and_keeps_the_best_state() -> None:
    """Where columns tell the case but hardly the class, unseen cases say early that it is enough."""
    rng = np.random.default_rng(0)
    cases = np.repeat(np.arange(40), 10)
    labels = cases % 2
    values = rng.normal(size=(40, 30))[cases] + 0.05 * rng.normal(size=(400, 30))
    values[:, 0] += 0.5 * labels
    rows = Learnt(values.astype(np.float32), labels, cases, tuple(map(str, range(30))))
    how = MlpConfig(hidden=[16], epochs=60, patience=3, dropout=0)
    by_case = mlp(rows, how).fit(rows.values, labels, cases)
    by_row = mlp(rows, how).fit(rows.values, labels)
    assert by_case.epochs_ < by_row.epochs_
    assert by_case.epochs_ + how.patience < how.epochs
    short = mlp(rows, how.model_copy(update={"epochs": by_case.epochs_})).fit(rows.values, labels, cases)
    assert np.array_equal(short.predict_proba(rows.values), by_case.predict_proba(rows.values))


def test_nobody_elses_random_numbers_are_touched() -> None:
    """Fitting draws from its own seed, and leaves those of torch and numpy as they were."""
    rows = standardised(table())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002  # the global one
    mlp(rows, MlpConfig(epochs=1)).fit(rows.values, rows.labels, rows.cases)
    assert torch.equal(torch.rand(3), expected)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002


def test_a_loss_that_is_no_number_is_told() -> None:
    """A value that is not a number is not learnt from in silence."""
    rows = standardised(table())
    rows.values[:] = np.nan
    with pytest.raises(StackError, match=r"lower stack\.mlp\.lr"):
        mlp(rows).fit(rows.values, rows.labels, rows.cases)


def blobs(cases: int, seed: int) -> Learnt:
    """Return maps with a blob to the left or to the right; what it looks like says nothing."""
    rng = np.random.default_rng(seed)
    case = np.repeat(np.arange(cases), 4)
    labels = case % 2
    side, number = 6, len(labels)
    maps = 0.2 * rng.normal(size=(number, side, side))
    row, column = rng.integers(1, side, number), rng.integers(0, 2, number) + 1 + 3 * labels
    maps[np.arange(number), row, column] += rng.uniform(2, 4, number)
    maps[np.arange(number), row - 1, column] += 2
    names = tuple(f"a/maps/x/r{r}c{c}" for r in range(side) for c in range(side))
    return Learnt(maps.reshape(number, -1).astype(np.float32), labels, case, names)


def test_the_convnet_sees_the_place() -> None:
    """A class that is nothing but the side of a blob is learnt; sums over the map cannot tell it."""
    rows, unseen = blobs(80, 0), blobs(40, 1)
    model = ConvnetClassifier(CONVNET, rows.columns, device="cpu")
    model.fit(rows.values, rows.labels, rows.cases)
    assert (model.predict(unseen.values) == unseen.labels).mean() > 0.9

    def summed(some: Learnt) -> np.ndarray:
        return np.stack([some.values.mean(axis=1), some.values.max(axis=1), some.values.std(axis=1)], 1)

    told = LogisticRegression().fit(summed(rows), rows.labels).score(summed(unseen), unseen.labels)
    assert told < 0.65
    moved = unseen.values[:, np.random.default_rng(0).permutation(unseen.values.shape[1])]
    assert (model.predict(moved) == unseen.labels).mean() < 0.75


def test_cells_are_found_by_their_names() -> None:
    """The order of the columns does not matter, and any block whose columns are cells is a map."""
    rows = table()
    layout = lay_out(rows.columns)
    assert list(layout.maps) == [f"{b}/maps/{k}" for b in ("resnet50", "vgg16") for k in range(2)]
    order = np.random.default_rng(0).permutation(len(rows.columns))
    mixed = lay_out([rows.columns[number] for number in order])
    network, other = (MapNetwork(found, CONVNET, 2) for found in (layout, mixed))
    values = torch.from_numpy(rows.values)
    expected = network.channels(values)
    places = [list(layout.maps).index(name) for name in mixed.maps]
    torch.testing.assert_close(other.channels(values[:, order]), expected[:, places])
    assert rows.columns[layout.others[0]] == "resnet50/probabilities/0"
    assert lay_out(["a+b/own_block/x/r0c0"]).maps.keys() == {"a+b/own_block/x"}


@pytest.mark.parametrize(("cells", "wanted"), [(7, 7), (14, 7), (7, 14), (5, 3), (1, 4)])
def test_resampling_keeps_the_mean(cells: int, wanted: int) -> None:
    """Every target cell is a mean of what it covers, and the mean of all is what it was."""
    matrix = areas(cells, wanted)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(matrix.mean(axis=0), 1 / cells, rtol=1e-6)
    if cells == wanted:
        np.testing.assert_allclose(matrix, np.eye(cells), atol=1e-12)
    if (cells, wanted) == (14, 7):
        np.testing.assert_allclose(matrix[0, :4], [0.5, 0.5, 0, 0], atol=1e-12)


def test_the_convnet_scales_by_the_map() -> None:
    """A channel has mean nought and spread one over rows and cells; cells keep their differences."""
    rows = table()
    values = rows.values.copy()
    values[:, 0] += 50
    model = ConvnetClassifier(CONVNET, rows.columns, device="cpu")
    network = MapNetwork(lay_out(rows.columns), CONVNET.model_copy(update={"grid": 3}), 2)
    model.prepare(network, Lazy(values))
    found = network.channels(torch.from_numpy(values))[:, :2]  # those that have the common grid already
    torch.testing.assert_close(found.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std(dim=(0, 2, 3), correction=0), torch.ones(2), atol=1e-4, rtol=0)
    assert found[:, 0, 0, 0].mean() > 2


def test_the_convnet_uses_the_columns_that_are_no_maps() -> None:
    """Where the maps are noise, what joins before the last layer is learnt."""
    rows = table()
    cells = [number for number, name in enumerate(rows.columns) if "/maps/" in name]
    values = rows.values.copy()
    values[:, cells] = np.random.default_rng(1).normal(size=(len(values), len(cells)))
    model = ConvnetClassifier(CONVNET, rows.columns, device="cpu").fit(values, rows.labels, rows.cases)
    assert (model.predict(values) == rows.labels).mean() > 0.85


def test_the_convnet_wants_whole_maps() -> None:
    """Without maps, or with a part of one, it says what to do."""
    rows = table()
    few = [number for number, name in enumerate(rows.columns) if "/maps/" not in name]
    for chosen, reason in ((few, "or take the mlp"), (range(1, 9), "8 of 3 x 3 cells")):
        columns = [rows.columns[number] for number in chosen]
        model = ConvnetClassifier(CONVNET, columns, device="cpu")
        with pytest.raises(StackError, match=reason):
            model.fit(rows.values[:, list(chosen)], rows.labels, rows.cases)


@pytest.mark.parametrize("kind", [MlpClassifier, ConvnetClassifier])
def test_a_file_says_what_it_was_built_from(kind: type[NetworkClassifier], tmp_path: Path) -> None:
    """The shape of a network comes from its file: a config that was changed since does not matter."""
    rows = table()
    settings = {MlpClassifier: MLP, ConvnetClassifier: CONVNET.model_copy(update={"epochs": 2})}[kind]
    model = kind(settings, rows.columns, device="cpu").fit(rows.values, rows.labels, rows.cases)
    model.save(tmp_path / "model")
    other = {MlpClassifier: MlpConfig(), ConvnetClassifier: ConvnetConfig()}[kind]
    loaded = kind(other, rows.columns).restore(tmp_path / "model")
    assert loaded.settings == settings
    assert loaded.epochs_ == model.epochs_
    assert np.array_equal(loaded.predict_proba(rows.values), model.predict_proba(rows.values))
    another = ConvnetClassifier if kind is MlpClassifier else MlpClassifier
    with pytest.raises(StackError, match="expected a"):
        another(settings, rows.columns).restore(tmp_path / "model")
