"""Where there is nothing to learn, nothing is learnt: no meta-learner reads the fold for the class.

The models of two folds differ in ways that say nothing of the class, and folds are stratified: what is
left of a fold when one of its cases is held out is mostly of the other class. A learner that is cut
across the folds recognises the fold and says the opposite of the truth. Each test has a planted signal
beside it, so that it cannot pass by finding nothing at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from stacker import pipeline
from stacker.caches.format import Rows
from stacker.comparison.controls import permuted
from stacker.config.root import Config
from stacker.config.stacking import StackConfig
from stacker.run import open_run
from stacker.scores.metrics import area_within
from stacker.scores.predictions import Predictions
from stacker.stacking.admission import open_caches
from stacker.stacking.blocks import assemble, resolve
from stacker.stacking.fitting import Design, fit
from stacker.stacking.tables import Source, Table, Tables
from stacker.synthetic.breakhis import write_breakhis
from stacker.training.begin import begin
from tests.conftest import small_settings
from tests.learning import CONFIG
from tests.pictures import write_table

FOLDS, BENIGN, MALIGNANT, IMAGES = 5, 1, 3, 8  # cases in a fold, images of a case
DRAWS = 6
SETTINGS = CONFIG.model_dump() | {
    "seeds": 1,
    "calibration": "none",
    "mlp": {"epochs": 10, "hidden": [8], "lr": 0.02},
    "convnet": {"epochs": 8, "channels": [4], "grid": 3},
    "xgboost": {"n_estimators": 30, "learning_rate": 0.2, "patience": 10},
}
LEARNERS = ("logistic", "svm", "random_forest", "xgboost", "mlp", "convnet", "extra_trees")
BLOCKS = ("logits", "probabilities", "maps", "map_stats", "embeddings")
CLASSES = ("benign", "malignant")


class World(NamedTuple):
    """Rows of a data set: their labels, cases and folds."""

    labels: np.ndarray
    cases: np.ndarray
    folds: np.ndarray

    def rows(self, part: str) -> Rows:
        """Return them as a table has them."""
        images = np.array([f"{part}{i}".encode() for i in range(len(self.labels))])
        cases = np.array([f"{part}{case}".encode() for case in self.cases])
        return Rows(self.labels, images, cases, cases, np.full(len(images), part.encode()))


def make_world() -> World:
    """Return one benign and three malignant cases in each fold."""
    cases = np.repeat(np.arange(FOLDS * (BENIGN + MALIGNANT)), IMAGES)
    return World((cases % (BENIGN + MALIGNANT) >= BENIGN).astype(int), cases, cases // 4)


def tables_of(world: World, values: list[np.ndarray], columns: tuple[str, ...], mixed: bool) -> Tables:
    """Return tables of values (N, F) by each fold's models, the same images being test images, too."""
    sources = tuple(Source(f"fold{fold}", {}, {}) for fold in range(FOLDS))

    def table(rows: np.ndarray, source: np.ndarray, part: str) -> Table:
        found = np.stack([values[s][row] for row, s in zip(rows, source, strict=True)])
        some = World(world.labels[rows], world.cases[rows], source)
        place = np.arange(len(rows))
        return Table(sources, source, place, some.rows(part), {}, CLASSES, columns, found)

    every = np.arange(len(world.labels))
    tests = {f"fold{f}": table(every, np.full(len(every), f), "t") for f in range(FOLDS)}
    return Tables(table(every, world.folds, "d"), tests, world.cases, mixed)


def cells(seed: int, signal: float) -> Tables:
    """Return columns that say which fold's model made a row, and perhaps a little of its class."""
    rng, world = np.random.default_rng(seed), make_world()
    columns = tuple(f"a/maps/malignant-benign/r{r}c{c}" for r in range(3) for c in range(3))
    offsets = 3 * rng.normal(size=(FOLDS, 9))
    told = signal * (world.labels[:, None] - 0.5) + rng.normal(size=(len(world.labels), 9))
    return tables_of(world, [(told + row).astype(np.float32) for row in offsets], columns, mixed=False)


def area(name: str, tables: Tables, features: tuple[str, ...], **changes: object) -> float:
    """Return the AUC out of fold of a meta-learner on some tables."""
    config = StackConfig.model_validate(SETTINGS | changes)
    found = fit(Design.of(name, features, config, 0, "cpu"), tables).says.development
    assert found is not None
    return area_within(found)


def require_chance(areas: list[float]) -> None:
    """Ask for a mean of a half, as near as so many draws can tell, and near enough to tell anything."""
    error = np.std(areas, ddof=1) / np.sqrt(len(areas))
    assert error < 0.06, areas
    assert abs(np.mean(areas) - 0.5) < max(0.05, 4 * error), areas


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("name", LEARNERS)
def test_no_learner_reads_the_fold(name: str, centre: bool) -> None:
    """Columns that hold nothing but the fold give an AUC of a half; a little signal is found."""
    draws = range(DRAWS)
    require_chance([area(name, cells(seed, 0), ("maps",), centre=centre) for seed in draws])
    if centre:
        told = [area(name, cells(seed, 1.0), ("maps",)) for seed in range(2)]
        assert np.mean(told) > 0.75, told


def blocks_of(block: str, seed: int, signal: float) -> Tables:
    """Return a block made of what two backbones would say, with offsets of logits, maps, embeddings."""
    rng, world = np.random.default_rng(seed), make_world()
    number = len(world.labels)
    told = signal * (world.labels - 0.5)
    says = {
        name: {
            "logits": rng.normal(size=(number, 2)) + np.stack([-told, told], axis=1),
            "maps": rng.normal(size=(number, 2, 3, 3))
            + np.stack([-told, told], axis=1)[..., None, None],
            "features": rng.normal(size=(number, 6)) + told[:, None],
        }
        for name in ("a", "b")
    }
    blocks = resolve([block], StackConfig())
    values: list[np.ndarray] = []
    columns: tuple[str, ...] = ()
    for _ in range(FOLDS):
        moved = {
            name: {
                array: (each + 2 * rng.normal(size=each.shape[1:])).astype(np.float32)
                for array, each in arrays.items()
            }
            for name, arrays in says.items()
        }
        found, columns = assemble(moved, CLASSES, blocks)
        values.append(found)
    return tables_of(world, values, columns, mixed=False)


@pytest.mark.parametrize("block", BLOCKS)
def test_no_block_tells_the_class_by_the_fold(block: str) -> None:
    """Each block, made of arrays that differ by fold and not by class, is at chance; signal is found."""
    for centre in (True, False):
        areas = [area("logistic", blocks_of(block, s, 0), (block,), centre=centre) for s in range(8)]
        require_chance(areas)
    assert area("logistic", blocks_of(block, 0, 1.5), (block,)) > 0.7


@pytest.fixture(scope="module")
def permuted_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return runs of tiny backbones whose cases had exchanged their labels before stage one."""
    root = tmp_path_factory.mktemp("null")
    write_breakhis(root / "data", cases=24, images_per_case=3, size=(48, 32), seed=5, workers=1)
    images = sorted((root / "data" / "histology_slides").rglob("*.png"))
    cases = np.array(["-".join(path.stem.split("-")[1:3]).rstrip("ABCDEFG") for path in images])
    labels = np.array([int("_M_" in path.name) for path in images])
    runs = []
    for seed in range(4):
        said = permuted(labels, cases, np.zeros(len(labels)), np.random.default_rng(seed))
        rows = [(str(p), CLASSES[k], case) for p, k, case in zip(images, said, cases, strict=True)]
        table = write_table(root / f"set{seed}.csv", "path,label,case", rows)
        settings = small_settings(root / "artifacts", root / "data") | {
            "run": f"null{seed}",
            "data": {"path": str(table), "format": "csv"},
            "folds": {"protocol": "crossfit", "k": 3, "test": 0.2, "validation": 0.2},
            "backbones": {"test_resnet": {"weights": "random", "train": {"lr": 1e-3}}},
            "frozen": {"test_resnet": {"weights": "random"}},
            "train": {"epochs": 1, "batch_size": 16},
        }
        config = Config.model_validate(settings)
        run = begin(config)
        pipeline.train(run)
        pipeline.cache(run)
        runs.append(config.run_path)
    return runs


@pytest.mark.slow
def test_labels_that_were_permuted_before_stage_one_are_not_learnt(permuted_runs: list[Path]) -> None:
    """From the training to the stack, on every block: the mean AUC of all is a half.

    Four runs tell no single block from chance, but all of them do: cut across the folds, they would lie
    far below a half together.
    """
    found = []
    for path in permuted_runs:
        run = open_run(path)
        caches = open_caches(run, frozen=True)
        for block in (*BLOCKS[:4], "frozen"):
            config = StackConfig.model_validate(SETTINGS)
            tables = caches.tables([block], config)
            says = fit(Design.of("logistic", [block], config, 0, "cpu"), tables).says.development
            assert isinstance(says, Predictions)
            found.append(area_within(says))
    assert abs(np.mean(found) - 0.5) < 0.12, found
