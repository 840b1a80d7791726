"""Simulated worlds: what is true is said, and nothing is made of nothing."""

from __future__ import annotations

import numpy as np
import pytest

from stacker.config.stacking import StackConfig
from tests.worlds import KINDS, areas, held, many
from tests.worlds import Kind as World

CONFIG = StackConfig.model_validate({"seeds": 1, "calibration": "none"})
WORLDS = 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_says_what_is_true_of_a_world(kind: str) -> None:
    """Nothing where there is nothing, and no less than the mean where there is something.

    Within parts; pooled, the same but for the difference in scale between the fits of parts.
    """
    found = np.array([areas("logistic", KINDS[kind], seed, CONFIG) for seed in range(WORLDS)])
    error = found.std(axis=0, ddof=1) / np.sqrt(WORLDS)
    pooled, within, _, mean, test = found.mean(axis=0)
    if "null" in kind:
        assert abs(within - 0.5) < 4 * error[1]
        assert abs(pooled - 0.5) < 4 * error[0] + 0.03
        assert abs(test - 0.5) < 4 * error[4]
    else:
        assert within > 0.7
        assert within > mean - 0.03
        assert pooled > within - 0.05
        assert abs(test - within) < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("cases", [12, 44])
def test_intervals_of_fitted_stacks_hold_the_truth(cases: int) -> None:
    """The cases that are left out in turn bear the interval, fits of the others included."""
    kind = World(sizes=many(cases), signal=1.5, folds=5)
    found = np.array([held(kind, seed, CONFIG) for seed in range(60)], dtype=float).mean(axis=0)
    assert found[0] > 0.86
    assert found[3] > 0.88
