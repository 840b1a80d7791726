"""A run that is killed in any stage and started again ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stacker.files import file_sha256
from tests.processes import start

COMPARED = (
    "manifest.csv",
    "folds.json",
    "metrics.json",
    "predictions.csv",
    "out_of_fold.csv",
    "models/*/*/model.safetensors",
    "cache/*/*/*.h5",
    "stack/*/predictions.npz",
    "stack/*/centres.npz",
    "stack/*/*.safetensors",
    "stack/*/*.ubj",  # a .skops file carries the time: its predictions.npz stands for it
)
# What must be there when the kill comes, so that it comes in the middle of a stage.
MOMENTS = {
    "stage one": "models/test_efficientnet/holdout/metrics.jsonl",
    "stage two": "cache/test_resnet/holdout/part-00001.h5",
    "stage three": "stack/logistic@maps+logits/stack.json",
}


def contents(run: Path) -> dict[str, str]:
    """Return the digest of every file that makes up the result of a run."""
    files = sorted(path for pattern in COMPARED for path in run.glob(pattern))
    return {str(path.relative_to(run)): file_sha256(path) for path in files}


@pytest.fixture
def undisturbed(finished_artifacts: Path) -> dict[str, str]:
    """Return the contents of a run that nothing happened to."""
    return contents(finished_artifacts / "small")


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_and_resume(
    moment: str, write_config: Callable[..., Path], tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """SIGKILL as soon as a stage has made its first result, then the same command again."""
    config = write_config()
    run = tmp_path / "artifacts" / "small"
    process = start(config)
    deadline = time.monotonic() + 120
    while not (run / MOMENTS[moment]).exists():
        assert process.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert contents(run) != undisturbed
    assert start(config).wait() == 0
    assert contents(run) == undisturbed
    assert not list(run.rglob(".*.tmp"))


def test_ctrl_c_and_resume(
    write_config: Callable[..., Path], tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """An interrupt during training ends with exit code 130, and the run goes on from there."""
    config = write_config()
    run = tmp_path / "artifacts" / "small"
    process = start(config)
    while not (run / "models/test_resnet/holdout/metrics.jsonl").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert start(config).wait() == 0
    assert contents(run) == undisturbed
