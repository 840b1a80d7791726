"""Whatever happens to stage two, its caches are whole or known not to be, and end up the same."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stacker import pipeline
from stacker.caches.format import part_file
from stacker.config.root import Config
from stacker.files import file_sha256, held
from stacker.maps.verify import verify
from stacker.run import reopen
from tests.commands import call, expect_refusal

TRIALS = 30


def contents(config: Config) -> dict[Path, str]:
    """Return the SHA-256 of every file of the caches."""
    return {path: file_sha256(path) for path in sorted(config.run_path.glob("cache/*/*/*.h5"))}


def test_killed_at_thirty_random_moments(write_config: Callable[..., Path]) -> None:
    """What is visible after a kill is whole; the next call ends with the undisturbed bytes."""
    config = write_config(cam={"part_rows": 4})
    assert call("train", config).exit_code == 0
    script = Path(__file__).parents[1] / "killing.py"
    done = subprocess.run(
        [sys.executable, str(script), str(config), str(TRIALS), "7"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report["trials"]) == TRIALS
    for trial in report["trials"]:
        assert all(trial["equal"])
        assert trial["early_indices"] == []
        assert trial["resumed"] == 0
        assert trial["same"]
        assert trial["left_over"] == []
    assert report["verified"] == 0
    midway = [t for t in report["trials"] if t["killed"] and 0 < t["parts"] < report["files"] - 2]
    assert midway, "no kill came while parts were written"


def test_a_full_disk_is_said_and_costs_nothing(
    finished: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third part does not fit: what is written stays, and the same command goes on from there."""
    before = contents(finished)
    for path in before:
        path.unlink()
    written: list[Path] = []
    original = Path.write_bytes

    def fills_up(path: Path, content: Any) -> int:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        return original(path, content)

    monkeypatch.setattr(Path, "write_bytes", fills_up)
    config = finished.run_path / "config.yaml"
    expect_refusal(call("cache", config), 1, "the disk is full", "what is finished is kept")
    monkeypatch.undo()
    kept = contents(finished)
    assert len(kept) == 2
    assert kept.items() <= before.items()
    assert call("cache", config).exit_code == 0
    assert contents(finished) == before
    assert not list(finished.run_path.rglob("*.tmp"))


def test_a_kill_while_the_index_was_written_leaves_nothing(finished: Config) -> None:
    """All parts are there and only the index is missing: what was left of it goes as well."""
    folder = finished.run_path / "cache" / "test_resnet" / "holdout"
    (folder / "index.h5").unlink()
    leftover = folder / ".index.h5.99999999.tmp"  # of no process that lives
    leftover.write_bytes(b"half an index")
    pipeline.cache(reopen(finished))
    assert (folder / "index.h5").exists()
    assert not leftover.exists()


def test_two_writers_at_once(finished: Config) -> None:
    """Two processes with the same command share the work or wait, and both end well."""
    before = contents(finished)
    for path in before:
        path.unlink()
    command = [sys.executable, "-m", "stacker", "cache", str(finished.run_path / "config.yaml")]
    with ThreadPoolExecutor(2) as pool:
        done = list(
            pool.map(
                lambda _: subprocess.run(command, capture_output=True, text=True, check=False), "ab"
            )
        )
    assert [process.returncode for process in done] == [0, 0], [process.stderr for process in done]
    assert contents(finished) == before


def test_a_cache_in_other_hands_is_waited_for(finished: Config, caplog: Any) -> None:
    """The others are filled first; the held one when its holder lets go."""
    run = reopen(finished)
    before = contents(finished)
    for path in before:
        path.unlink()
    folder = run.cache_folder("test_resnet", "holdout")
    with ThreadPoolExecutor(1) as pool, caplog.at_level("INFO", "stacker"):
        with held(folder.with_name(".holdout.lock")) as locked:
            assert locked
            going_on = pool.submit(pipeline.cache, run)
            other = run.cache_folder("test_efficientnet", "holdout") / "index.h5"
            while not other.exists() and not going_on.done():
                pass
            assert other.exists()
            assert not part_file(folder, 0).exists()
        going_on.result(timeout=60)
    assert "cache test_resnet/holdout: waiting for another process that is filling it" in caplog.text
    assert contents(finished) == before
    assert all(not verdict.problems for verdict in verify(run))
