"""Every meta-learner learns, repeats itself, and comes back from its file the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stacker.errors import RunError
from stacker.meta import META, load_meta, model_file, save_meta
from stacker.settings import StackConfig

CONFIG = StackConfig.model_validate({"mlp": {"epochs": 40}, "logistic": {"C": 1.0}})


def table(classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return 240 rows of 12 columns, one column per class being shifted."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=240)
    values = rng.normal(size=(240, 12)).astype(np.float32)
    values[np.arange(240), labels] += 2.5
    return values * 7 + 3, labels


@pytest.mark.parametrize("name", META)
@pytest.mark.parametrize("classes", [2, 3])
def test_it_learns(name: str, classes: int) -> None:
    """On rows it has not seen it is right far more often than chance, for two classes and for three."""
    model = META[name].build(CONFIG, 0)
    model.fit(*table(classes))
    values, labels = table(classes, seed=1)
    shares = model.predict_proba(values)
    assert shares.shape == (240, classes)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    assert (shares.argmax(axis=1) == labels).mean() > 0.8


@pytest.mark.parametrize("name", META)
def test_it_repeats_itself_and_survives_its_file(name: str, tmp_path: Path) -> None:
    """Same seed, same probabilities; stored and read again, the same to the bit."""
    values, labels = table()
    first, second = META[name].build(CONFIG, 3), META[name].build(CONFIG, 3)
    first.fit(values, labels)
    second.fit(values, labels)
    assert np.array_equal(first.predict_proba(values), second.predict_proba(values))
    save_meta(name, first, tmp_path)
    assert np.array_equal(load_meta(name, tmp_path).predict_proba(values), first.predict_proba(values))


@pytest.mark.parametrize("name", META)
def test_a_rare_class_is_not_drowned(name: str) -> None:
    """With one malignant row in twelve, classes weigh the same: sensitivity stays above a half."""
    values, labels = table()
    kept = np.flatnonzero((labels == 0) | (np.cumsum(labels) % 10 == 0))
    model = META[name].build(CONFIG, 0)
    model.fit(values[kept], labels[kept])
    values, labels = table(seed=2)
    assert (model.predict_proba(values).argmax(axis=1)[labels == 1] == 1).mean() > 0.5


def test_nothing_stored_is_a_pickle(tmp_path: Path) -> None:
    """Files are a zip of skops JSON and arrays, safetensors, UBJSON."""
    for name in META:
        model = META[name].build(CONFIG, 0)
        model.fit(*table())
        save_meta(name, model, tmp_path)
        head = model_file(name, tmp_path).read_bytes()[:2]
        assert not head.startswith(b"\x80"), name
    assert {path.suffix for path in tmp_path.iterdir()} == {".skops", ".safetensors", ".ubj"}


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    """Loading what was never fitted says how to fit it."""
    with pytest.raises(RunError, match="--meta mlp"):
        load_meta("mlp", tmp_path)


@pytest.mark.parametrize("name", ["logistic", "xgboost"])
def test_stage_three_does_not_load_torch(name: str, finished_artifacts: Path) -> None:
    """Only the MLP needs torch: the others read caches and fit without it."""
    code = f"""
import sys
from pathlib import Path
from stacker import pipeline, studies
study = studies.open_study(Path({str(finished_artifacts)!r}) / "small")
import stacker.features, stacker.stack
tables = stacker.features.load_tables(study.run, study.manifest, study.folds, ["maps"])
model = stacker.stack.META[{name!r}].build(study.run.config.stack, 0)
model.fit(tables.development.values, tables.development.rows.label)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
