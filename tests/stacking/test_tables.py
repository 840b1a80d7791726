"""Tables have named columns and an origin for every row; leaked rows are refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stacker import pipeline
from stacker.caches.format import Rows, fixed_text, part_file
from stacker.caches.reader import open_cache
from stacker.caches.rows import refuse_leaks
from stacker.caches.writer import write_index, write_part
from stacker.config.root import Config
from stacker.config.stacking import BlockConfig, StackConfig
from stacker.errors import CacheError, ConfigError, LeakError
from stacker.maps.verify import verify
from stacker.run import Run, reopen
from stacker.stacking.blocks import assemble, probabilities, resolve
from stacker.stacking.learners.matrix import whole
from stacker.stacking.preparation import fit_centres
from stacker.stacking.tables import Table
from stacker.training.begin import begin
from tests.cached import ORIGIN, some_rows
from tests.conftest import MakeConfig, tables_of

CLASSES = ("benign", "malignant")


def rewrite(folder: Path, rows: Rows | None = None, **origin: Any) -> None:
    """Write a cache again with other rows or another provenance, as one part."""
    cache = open_cache(folder)
    arrays = {name: cache.read(name) for name in ("maps", "features", "logits")}
    for path in folder.glob("*.h5"):
        path.unlink()
    changed = replace(cache.provenance, **origin)
    write_part(part_file(folder, 0), arrays, rows or cache.rows, changed)
    write_index(folder, [part_file(folder, 0)])


def smuggle(run: Run, column: str) -> str:
    """Give the first row of a cache the name of a case or image that trained its model; return it."""
    folder = run.cache_folder("test_resnet", "holdout")
    rows = open_cache(folder).rows
    stolen = run.folds.folds[0].train[0]
    names = [name.decode() for name in getattr(rows, column)]
    names[0] = stolen
    rewrite(folder, replace(rows, **{column: fixed_text(names)}))
    return stolen


def test_columns_say_what_they_are() -> None:
    """Backbone, block, class and place on the grid; embeddings are numbered."""
    arrays = {
        "vgg16": {
            "maps": np.arange(12.0).reshape(1, 2, 2, 3),
            "logits": np.array([[1.0, 2.0]]),
            "features": np.zeros((1, 3)),
        }
    }
    arrays["vgg16"]["maps"][0, 1, 1, 2] = 20
    config = StackConfig(blocks={"every": BlockConfig(of="maps", classes="all")})
    values, columns = assemble(
        arrays, CLASSES, resolve(["maps", "every", "logits", "embeddings"], config)
    )
    assert values.shape == (1, 6 + 12 + 1 + 3)
    assert values.dtype == np.float32
    table = dict(zip(columns, values[0], strict=True))
    assert table["vgg16/maps/malignant-benign/r1c2"] == 20 - 5
    assert table["vgg16/maps/malignant-benign/r0c1"] == 7 - 1
    assert table["vgg16/every/malignant/r1c2"] == 20
    assert table["vgg16/every/benign/r0c1"] == 1
    assert table["vgg16/logits/malignant-benign"] == 1
    assert "vgg16/embeddings/0002" in table


def test_maps_are_rounded_as_the_cache_rounds_them() -> None:
    """A new image's features equal those that went through the cache."""
    values = np.random.default_rng(0).normal(size=(4, 2, 3, 3))
    direct, _ = assemble({"a": {"maps": values}}, CLASSES, {"maps": BlockConfig(of="maps")})
    cached, _ = assemble(
        {"a": {"maps": values.astype(np.float16)}}, CLASSES, {"maps": BlockConfig(of="maps")}
    )
    assert np.array_equal(direct, cached)


def test_probabilities_are_the_softmax() -> None:
    """Large logits do not overflow."""
    shares = probabilities(np.array([[1000.0, 1000.0], [0.0, np.log(3.0)]]))
    np.testing.assert_allclose(shares, [[0.5, 0.5], [0.25, 0.75]])


def test_a_class_that_does_not_exist_is_named(finished: Config) -> None:
    """A block of some classes is compared with those of the run."""
    block = BlockConfig(of="maps", classes=["malign"])
    stack = finished.stack.model_copy(update={"blocks": {"mine": block}})
    run = reopen(finished.model_copy(update={"stack": stack}))
    with pytest.raises(ConfigError, match=r"no class of stack.blocks.mine 'malign'; did you mean"):
        tables_of(run, ["mine"])


def test_holdout_tables(finished: Config) -> None:
    """The meta-learner's rows are the stack cases, the test table holds the test cases."""
    run = reopen(finished)
    tables = tables_of(run, ["maps", "embeddings"])
    (fold,) = run.folds.folds
    assert {case.decode() for case in tables.development.rows.case_id} == set(fold.held_out)
    assert {case.decode() for case in tables.tests["holdout"].rows.case_id} == set(run.folds.test)
    assert set(tables.development.made_by) == {"holdout"}
    assert not tables.crossed
    assert tables.development.shape == (
        len(tables.development.rows),
        len(tables.development.columns),
    )


def test_crossfit_rows_come_from_the_model_that_never_saw_them(make_config: MakeConfig) -> None:
    """Every development case appears once, made by its own fold; test cases appear in every fold."""
    config = make_config(
        folds={"protocol": "crossfit", "k": 3},
        backbones={"test_resnet": {"weights": "random"}},
        train={"epochs": 1},
        stack={"meta": ["logistic"]},
    )
    metrics = pipeline.run_all(config)
    run = reopen(config)
    tables = tables_of(run, ["maps", "logits"])
    assert tables.crossed
    assert not tables_of(run, ["maps", "embeddings"]).crossed  # each fold has fits of its own
    rows = tables.development.rows
    made_by = dict(
        zip((case.decode() for case in rows.case_id), tables.development.made_by, strict=True)
    )
    assert made_by == {case: fold.name for fold in run.folds.folds for case in fold.held_out}
    assert (
        len(rows)
        == len(set(rows.image_id))
        == len(run.manifest.images) - len(tables.tests["fold0"].rows)
    )
    assert set(tables.tests) == {"fold0", "fold1", "fold2"}
    assert set(metrics["test"]) == {"constant", "test_resnet", "mean", "logistic"}
    centres = fit_centres(tables.development)
    assert_centred(tables.development, centres)
    for number, (fold, table) in enumerate(tables.tests.items()):
        assert np.array_equal(table.rows.image_id, tables.tests["fold0"].rows.image_id), fold
        assert set(table.made_by) == {fold}
        apart = whole(table, 1, "a test") - whole(table.centred(centres), 1, "a test")
        np.testing.assert_allclose(apart, np.tile(centres[number], (len(apart), 1)), atol=1e-5)


def assert_centred(table: Table, centres: np.ndarray) -> None:
    """Compare a table of a run that is read and centred with one that is held and centred."""
    lazy, held = table.centred(centres), table.hold(1).centred(centres)
    values = whole(lazy, 1, "a test")
    assert held.values is not None
    assert np.array_equal(whole(held, 1, "a test"), values)
    case_means = {
        (fold, case): values[(table.made_by == fold) & (table.rows.case_id == case)].mean(axis=0)
        for fold, case in set(zip(table.made_by.tolist(), table.rows.case_id.tolist(), strict=True))
    }
    for fold in np.unique(table.made_by):
        own = [mean for (made_by, _), mean in case_means.items() if made_by == fold]
        np.testing.assert_allclose(np.mean(own, axis=0), 0, atol=1e-5)


@pytest.fixture
def crossfit(make_config: MakeConfig) -> Run:
    """Return a small crossfit run with its caches."""
    config = make_config(
        folds={"protocol": "crossfit", "k": 2},
        backbones={"test_resnet": {"weights": "random"}},
        train={"epochs": 1},
    )
    pipeline.train(begin(config))
    run = reopen(config)
    pipeline.cache(run)
    return run


def test_a_row_of_another_fold_is_refused(crossfit: Run) -> None:
    """What fold 1 holds out has trained fold 0's model, however well the file that has it is made."""
    first, second = (crossfit.cache_folder("test_resnet", name) for name in ("fold0", "fold1"))
    ours, theirs = open_cache(first).rows, open_cache(second).rows
    planted = {name: getattr(ours, name).copy() for name in ("image_id", "case_id")}
    for name, column in planted.items():
        column[0] = getattr(theirs, name)[0]
    rewrite(first, replace(ours, **planted))
    with pytest.raises(
        LeakError, match="test_resnet/fold0 leaks: 1 of its cases trained the base model"
    ):
        tables_of(crossfit, ["maps"])


def test_another_folds_cache_is_refused(crossfit: Run) -> None:
    """A folder under another fold's name says whose it is."""
    first, second = (crossfit.cache_folder("test_resnet", name) for name in ("fold0", "fold1"))
    shutil.rmtree(first)
    shutil.copytree(second, first)
    with pytest.raises(CacheError, match="made with model_fold fold1, this run uses fold0"):
        tables_of(crossfit, ["maps"])


def test_a_strangers_view_of_crossfit(crossfit: Run) -> None:
    """The index shows whole names, although those of the parts differ in length."""
    with h5py.File(crossfit.cache_folder("test_resnet", "fold0") / "index.h5") as file:
        assert list(dict.fromkeys(file["fold"].asstr()[:])) == ["fold0", "test"]
        ids = {image.id for image in crossfit.manifest.images}
        assert set(file["image_id"].asstr()[:]) <= ids
    assert all(not verdict.problems for verdict in verify(crossfit))


def test_maps_that_are_no_numbers_are_not_stacked(finished: Config) -> None:
    """A flagged NaN stops the features that it is in, and no others."""
    run = reopen(finished)
    folder = run.cache_folder("test_resnet", "holdout")
    cache = open_cache(folder)
    arrays = {name: cache.read(name).astype(np.float32) for name in ("maps", "features", "logits")}
    arrays["maps"][3, 0] = np.nan
    for path in folder.glob("*.h5"):
        path.unlink()
    write_part(part_file(folder, 0), arrays, cache.rows, cache.provenance)
    write_index(folder, [part_file(folder, 0)])
    with pytest.raises(CacheError, match="maps of 1 images are not numbers"):
        tables_of(run, ["maps"])
    assert tables_of(run, ["logits"]).development.columns


def test_planted_leak_in_the_rows_is_refused(finished: Config) -> None:
    """A row of a training case smuggled into a cache stops stage three and is named."""
    run = reopen(finished)
    stolen = smuggle(run, "case_id")
    with pytest.raises(LeakError, match=f"test_resnet/holdout leaks: 1 of its cases trained.*{stolen}"):
        pipeline.stack(run, ["logistic"])


def test_planted_leak_in_the_provenance_is_refused(finished: Config) -> None:
    """A model that was trained on a held-out case gives rows that cannot be stacked."""
    run = reopen(finished)
    fold = run.folds.folds[0]
    folder = run.cache_folder("test_efficientnet", "holdout")
    rewrite(folder, training_cases=(*fold.train, *fold.validation, run.folds.test[0]))
    with pytest.raises(LeakError, match=run.folds.test[0]):
        tables_of(run, ["logits"])


def test_a_training_image_among_the_rows_is_refused_however_the_split_goes(
    make_config: MakeConfig,
) -> None:
    """A split by image may have a case on two sides; an image on two sides it may not have."""
    config = make_config(folds={"group": "image"}, stack={"meta": ["logistic"]})
    pipeline.run_all(config)
    run = reopen(config)
    stolen = smuggle(run, "image_id")
    with pytest.raises(LeakError, match=f"test_resnet/holdout leaks: 1 of its images trained.*{stolen}"):
        pipeline.stack(run, ["logistic"])


def test_a_split_by_slide_was_asked_for() -> None:
    """Only a split by case promises that no case straddles."""
    leaky = replace(ORIGIN, training_cases=("15-0",))
    with pytest.raises(LeakError):
        refuse_leaks(some_rows(3), leaky, "x")
    refuse_leaks(some_rows(3), replace(leaky, group="slide"), "x")


@pytest.mark.parametrize(
    "change", [{"manifest_digest": "3f2a"}, {"folds_digest": "3f2a"}, {"model_fold": "fold9"}]
)
def test_a_cache_of_another_run_is_refused(finished: Config, change: dict[str, Any]) -> None:
    """The message gives what was found and what this run uses."""
    run = reopen(finished)
    rewrite(run.cache_folder("test_resnet", "holdout"), **change)
    with pytest.raises(
        CacheError, match=f"was made with {next(iter(change))} {next(iter(change.values()))}"
    ):
        tables_of(run, ["logits"])


def test_caches_of_different_images_are_not_joined(finished: Config) -> None:
    """Side by side columns must be of the same image."""
    run = reopen(finished)
    folder = run.cache_folder("test_resnet", "holdout")
    rows = open_cache(folder).rows
    order = np.arange(len(rows))[::-1]
    rewrite(folder, rows.take(order))
    with pytest.raises(CacheError, match="holds other images than the split"):
        tables_of(run, ["logits"])


def promote(rows: Rows) -> Rows:
    """Call the last test row a row to stack on."""
    parts = rows.fold.copy()
    parts[-1] = b"stack"
    return replace(rows, fold=parts)


def relabel(rows: Rows) -> Rows:
    """Swap the classes."""
    return replace(rows, label=1 - rows.label)


@pytest.mark.parametrize(
    "change", [promote, relabel, lambda rows: rows.take(np.arange(len(rows))[::-1])]
)
def test_rows_must_be_those_of_the_split(finished: Config, change: Any) -> None:
    """Test rows among those to stack on, other labels, another order: in all caches alike."""
    run = reopen(finished)
    for name in finished.backbones:
        folder = run.cache_folder(name, "holdout")
        rewrite(folder, change(open_cache(folder).rows))
    with pytest.raises(CacheError, match="holds other images than the split of this run says"):
        tables_of(run, ["logits"])
