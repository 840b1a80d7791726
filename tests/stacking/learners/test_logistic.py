"""The logistic regression says what scikit-learn's says, and is read back without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from stacker.config.stacking import StackConfig
from stacker.errors import StackError
from stacker.stacking.learners.registry import build, load_meta, save_meta
from tests.learning import CONFIG, standardised, table


@pytest.mark.parametrize("classes", [2, 3])
def test_it_says_what_scikit_learn_says(classes: int) -> None:
    """For two classes and for more, with the weights of rows."""
    rows = standardised(table(classes))
    weights = np.where(rows.labels == 1, 3.0, 1.0)
    ours = build("logistic", StackConfig(), 0, rows.columns).fit(rows.values, rows.labels, None, weights)
    theirs = LogisticRegression(C=0.01, max_iter=2000).fit(rows.values, rows.labels, weights)
    expected = theirs.predict_proba(rows.values)
    np.testing.assert_allclose(ours.predict_proba(rows.values), expected, rtol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_it_comes_back_to_the_bit(classes: int, tmp_path: Path) -> None:
    """What was stored says what was fitted, in a process that loads no scikit-learn and no skops."""
    rows = standardised(table(classes))
    model = build("logistic", CONFIG, 0, rows.columns).fit(rows.values, rows.labels)
    save_meta(model, tmp_path / "model")
    np.savez(tmp_path / "rows.npz", values=rows.values, said=model.predict_proba(rows.values))
    code = f"""
import sys, numpy as np
from pathlib import Path
from stacker.config.stacking import StackConfig
from stacker.stacking.learners.registry import load_meta
folder = Path({str(tmp_path)!r})
rows = np.load(folder / "rows.npz")
model = load_meta("logistic", StackConfig(), folder / "model", {rows.columns!r})
assert np.array_equal(model.predict_proba(rows["values"]), rows["said"])
assert not {{"torch", "sklearn", "skops", "scipy.stats"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_file_is_refused(tmp_path: Path) -> None:
    """A network's weights, and coefficients that are not of so many classes."""
    rows = standardised(table())
    mlp = build("mlp", CONFIG, 0, rows.columns, "cpu").fit(rows.values, rows.labels, rows.cases)
    save_meta(mlp, tmp_path / "model")
    with pytest.raises(StackError, match="is not a stored logistic regression"):
        load_meta("logistic", CONFIG, tmp_path / "model", rows.columns)
    model: Any = build("logistic", CONFIG, 0, rows.columns).fit(rows.values, rows.labels)
    model.classes_ = np.arange(3)
    save_meta(model, tmp_path / "model")
    with pytest.raises(StackError, match=r"holds coefficients \(1, .* of 3 classes, expected \(3, "):
        load_meta("logistic", CONFIG, tmp_path / "model", rows.columns)
