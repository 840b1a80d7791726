"""What the tests share: a small synthetic BreakHis, a small config, and one finished run."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: threads of two workers wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "160"  # tables as they are in a file

from stacker import pipeline
from stacker.config.load import load_config
from stacker.config.root import Config
from stacker.files import held
from stacker.run import Run
from stacker.stacking.admission import open_caches
from stacker.stacking.tables import Tables
from stacker.synthetic.breakhis import write_breakhis

MakeConfig = Callable[..., Config]


def small_settings(artifacts: Path, data: Path) -> dict[str, Any]:
    """Return the settings of a run that takes seconds: timm's test models on tiny images."""
    return {
        "run": "small",
        "artifacts": str(artifacts),
        "data": {"path": str(data), "masks": str(data / "masks")},
        "images": {"size": 32},
        "folds": {"protocol": "holdout", "test": 0.25, "stack": 0.25, "validation": 0.25},
        "backbones": {
            "test_resnet": {"weights": "random", "train": {"lr": 1e-3}},
            "test_efficientnet": {"weights": "random", "train": {"lr": 1e-3}},
        },
        "train": {"epochs": 2, "batch_size": 16},
        "cam": {"part_rows": 10},
        "stack": {
            "features": ["maps", "logits"],
            "threshold": "youden",
            "meta": ["logistic", "mlp", "xgboost"],
            "mlp": {"epochs": 5},
            "xgboost": {"n_estimators": 50},
            "seeds": 2,
            "parts": 3,
            "bootstrap": 100,
        },
    }


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that is made once for all workers of a session."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    folder = (factory.getbasetemp().parent if parallel else factory.getbasetemp()) / name
    with held(folder.with_name(f".{name}.lock"), wait=True):
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a synthetic BreakHis of 24 cases and 72 images."""

    def make(folder: Path) -> None:
        root = folder / "breakhis"
        write_breakhis(root, cases=24, images_per_case=3, size=(70, 46), seed=3, workers=1)

    return shared(tmp_path_factory, "data", make) / "breakhis"


@pytest.fixture
def write_config(tmp_path: Path, data: Path) -> Callable[..., Path]:
    """Return a function that writes the small config as YAML, with some sections changed."""

    def write(**changes: Any) -> Path:
        settings = small_settings(tmp_path / "artifacts", data)
        for section, change in changes.items():
            old = settings.get(section)
            if isinstance(old, dict) and section != "backbones":
                settings[section] = {**old, **change}
            else:
                settings[section] = change
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        return path

    return write


@pytest.fixture
def make_config(write_config: Callable[..., Path]) -> MakeConfig:
    """Return a function that makes the small config, with some sections changed."""
    return lambda **changes: load_config(write_config(**changes))


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Undo what the command line does to the package's logger, so that `caplog` hears it."""
    logger = logging.getLogger("stacker")
    before = (logger.handlers, logger.level, logger.propagate)
    yield
    logger.handlers, logger.level, logger.propagate = before


def tables_of(run: Run, features: list[str]) -> Tables:
    """Return the tables of a run as stage three reads them."""
    caches = open_caches(run, bool(run.config.frozen))
    return caches.tables(features, run.config.stack)


@pytest.fixture(scope="session")
def finished_artifacts(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Return an artifacts folder that holds one finished run, `small`. Do not write into it."""

    def make(folder: Path) -> None:
        pipeline.run_all(Config.model_validate(small_settings(folder / "artifacts", data)))

    return shared(tmp_path_factory, "finished", make) / "artifacts"


@pytest.fixture(scope="session")
def crossed_artifacts(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Return an artifacts folder with one finished run by crossfit, `small`. Do not write into it."""

    def make(folder: Path) -> None:
        settings = small_settings(folder / "artifacts", data)
        settings["folds"] = {"protocol": "crossfit", "k": 3, "test": 0.25, "validation": 0.25}
        settings["stack"] |= {"meta": ["logistic", "xgboost"], "calibration": "platt"}
        pipeline.run_all(Config.model_validate(settings))

    return shared(tmp_path_factory, "crossed", make) / "artifacts"


@pytest.fixture
def finished(finished_artifacts: Path, tmp_path: Path, data: Path) -> Config:
    """Return the config of a finished run of the test's own, which it may damage."""
    shutil.copytree(finished_artifacts, tmp_path / "artifacts")
    config = Config.model_validate(small_settings(tmp_path / "artifacts", data))
    (config.run_path / "config.yaml").write_text(config.to_yaml())
    return config
