"""The out-of-fold table as arrays: the rows that stage three fits on, and what is refused."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from stacker.errors import CacheError, ConfigError, StackerError, StackError
from stacker.run import Run, open_run
from stacker.stacking.feature_table import table
from stacker.stacking.fitting import Design, ready
from tests.conftest import tables_of


@pytest.fixture
def crossed(crossed_artifacts: Path) -> Run:
    """Return a finished run by crossfit. Do not write into it."""
    return open_run(crossed_artifacts / "small")


@pytest.fixture
def held(finished_artifacts: Path) -> Run:
    """Return a finished run by holdout. Do not write into it."""
    return open_run(finished_artifacts / "small")


def test_it_is_what_stage_three_fits_on(crossed: Run) -> None:
    """Every development image once, centred fold by fold, with its case, its label and its fold."""
    features = crossed.config.stack.features
    rows = table(crossed)
    design = Design.of("logistic", features, crossed.config.stack, 0, "cpu")
    fitted, _ = ready(design, tables_of(crossed, features))
    np.testing.assert_array_equal(rows.X, fitted.development.read(0, len(rows.y)))
    assert rows.X.dtype == np.float32
    assert rows.columns == fitted.development.columns
    images = {image.id: image for image in crossed.manifest.images}
    assert len(set(rows.images)) == len(rows.images) == len(rows.y)
    homes = {case: fold.name for fold in crossed.folds.folds for case in fold.held_out}
    for image, case, label, fold in zip(rows.images, rows.cases, rows.y, rows.folds, strict=True):
        assert (images[image].case, images[image].label) == (case, rows.classes[label])
        assert homes[case] == fold
    assert not set(rows.cases) & set(crossed.folds.test)
    assert repr(rows).startswith(f"{len(rows.y)} images of {len(homes)} cases (27 benign, 27 malignant)")


def test_centres_are_a_choice(crossed: Run) -> None:
    """Without them probabilities are probabilities; with them every fold's mean is nought."""
    plain, centred = (table(crossed, "probabilities", centre=centre) for centre in (False, True))
    np.testing.assert_allclose(plain.X.reshape(len(plain.y), -1, 2).sum(axis=2), 1, rtol=1e-6)
    for fold in np.unique(centred.folds):
        np.testing.assert_allclose(centred.X[centred.folds == fold].mean(axis=0), 0, atol=1e-6)
    assert np.abs(plain.X).min() > 0.01


def test_groups_are_what_cuts_follow(crossed: Run, held: Run) -> None:
    """The folds, where several made the rows; the cases, where all are of one."""
    rows = table(crossed)
    np.testing.assert_array_equal(rows.groups, rows.folds)
    for of_one in (table(crossed, fold="fold1"), table(held)):
        assert len(set(of_one.folds)) == 1
        np.testing.assert_array_equal(of_one.groups, of_one.cases)


def test_embeddings_of_several_folds_are_no_table(crossed: Run, held: Run) -> None:
    """They are refused together, and there fold by fold, or where one model made all."""
    with pytest.raises(StackError, match=r"different bases.*fold='fold0'.*'frozen'.*holdout"):
        table(crossed, ["logits", "embeddings"])
    pieces = [table(crossed, "embeddings", fold=fold.name) for fold in crossed.folds.folds]
    assert sum(len(piece.y) for piece in pieces) == len(table(crossed).y)
    assert all("embeddings" in column for column in pieces[0].columns)
    assert table(held, ["embeddings"]).X.shape[1] == len(pieces[0].columns)


def test_what_is_not_there_is_said(crossed: Run) -> None:
    """A fold or a feature that the run does not have, and a table larger than the memory allowed."""
    with pytest.raises(ConfigError, match="no fold 'fold9'; did you mean"):
        table(crossed, fold="fold9")
    with pytest.raises(ConfigError, match="no feature block 'logit'; did you mean 'logits'"):
        table(crossed, "logit")
    with pytest.raises(CacheError, match="has no maps_layercam"):
        table(crossed, ["maps_layercam"])
    small = open_run(crossed.path, ["stack.memory_gb=1e-9"])
    with pytest.raises(StackError, match=r"stacker\.table needs its whole table in memory"):
        table(small)


def test_a_data_frame_has_named_columns(crossed: Run) -> None:
    """First who the rows are, then the features, in the types that they have."""
    pytest.importorskip("pandas")
    rows = table(crossed)
    frame = rows.frame()
    assert list(frame.columns) == ["image", "case", "fold", "label", *rows.columns]
    np.testing.assert_array_equal(frame[list(rows.columns)].to_numpy(), rows.X)
    np.testing.assert_array_equal(frame["label"], np.array(rows.classes)[rows.y])
    np.testing.assert_array_equal(frame["fold"], rows.folds)


def test_without_pandas_there_is_advice(crossed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays need no pandas, and who asks for a DataFrame is told what does."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(StackerError, match="pip install pandas"):
        table(crossed).frame()


def test_it_is_written_for_other_tools(crossed: Run, tmp_path: Path) -> None:
    """As CSV, whose numbers come back to the bit, and as arrays."""
    rows = table(crossed)
    rows.save(tmp_path / "table.csv", "csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    assert header == ["image", "case", "fold", "label", "group", *rows.columns]
    assert [line[0] for line in lines] == rows.images.tolist()
    assert [line[4] for line in lines] == rows.groups.tolist()
    np.testing.assert_array_equal(np.array([line[5:] for line in lines], np.float32), rows.X)
    rows.save(tmp_path / "table.npz", "npz")
    with np.load(tmp_path / "table.npz", allow_pickle=False) as stored:
        for name in ("X", "y", "columns", "classes", "images", "cases", "folds", "groups"):
            np.testing.assert_array_equal(stored[name], getattr(rows, name))


def test_parquet_needs_pyarrow(crossed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the error says how to install it, and nothing is written."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StackerError, match="pip install pyarrow, or write --csv or --npz"):
        table(crossed).save(tmp_path / "table.parquet", "parquet")
    assert not list(tmp_path.iterdir())


def test_parquet_holds_the_same(crossed: Run, tmp_path: Path) -> None:
    """Where pyarrow is installed, it reads back who the rows are, and their values."""
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = table(crossed)
    rows.save(tmp_path / "table.parquet", "parquet")
    read = parquet.read_table(tmp_path / "table.parquet")
    assert read.column_names == [*rows.who(), *rows.columns]
    assert read["image"].to_pylist() == rows.images.tolist()
    values = np.stack([read[name].to_numpy() for name in rows.columns], axis=1)
    np.testing.assert_array_equal(values, rows.X)
