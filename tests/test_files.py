"""Files appear whole under their names, and what dead processes left is swept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stacker.errors import RunError
from stacker.files import publish, require_space, sweep


def test_publish_shows_a_file_only_when_it_is_complete(tmp_path: Path) -> None:
    """Until the block ends the name is free; after a failure nothing is left."""
    path = tmp_path / "deep" / "result.txt"
    with publish(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    with pytest.raises(TypeError), publish(path) as temporary:
        temporary.write_text(None)  # type: ignore[arg-type]
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_sweep_removes_what_dead_processes_left(tmp_path: Path) -> None:
    """A temporary file of a process that is gone is removed, one of a living process stays."""
    dead, alive = tmp_path / ".a.npy.999999999.tmp", tmp_path / ".a.npy.1.tmp"
    dead.touch()
    alive.touch()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [alive]


def test_a_number_that_is_used_again_does_not_keep_a_leftover(tmp_path: Path) -> None:
    """A process that began after a file was last written has not written it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        kept, stale = (tmp_path / f".{name}.{other.pid}.tmp" for name in ("now", "before"))
        for path in (kept, stale):
            path.touch()
        os.utime(stale, (1, 1))
        sweep(tmp_path)
        assert kept.exists()
        assert not stale.exists()
        other.communicate(b"\n")


def test_space_is_asked_for_before_work_starts(tmp_path: Path) -> None:
    """More than the disk holds is refused with both numbers."""
    require_space(tmp_path, 1)
    with pytest.raises(RunError, match="MB are needed"):
        require_space(tmp_path, 10**18)
