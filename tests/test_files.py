"""Files appear whole under their names, what dead processes left is swept, and not on Linux alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from stacker.errors import RunError
from stacker.files import held, publish, require_space, sweep

# What Windows and macOS lack. Its locks are played by POSIX's, which are of bytes and of a process, too.
ELSEWHERE = """
    import asyncio, os, subprocess, sys, types  # the library itself asks which system this is
    from pathlib import Path
    for name in ("fcntl", "resource", "termios", "pwd", "grp"):
        sys.modules[name] = None
    del os.sched_getaffinity, os.sysconf, os.fork
    def locking(number, how, size):
        os.lockf(number, os.F_TLOCK, size)
    sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
    exists = Path.exists
    Path.exists = lambda path: not str(path).startswith("/proc") and exists(path)
"""


def elsewhere(code: str, folder: Path) -> subprocess.Popen[str]:
    """Run code in a process of its own, in a folder, without what Linux alone has."""
    return start(textwrap.dedent(ELSEWHERE) + textwrap.dedent(code), folder)


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    """Run code in a process of its own, in a folder."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def answer(process: subprocess.Popen[str], said: str = "") -> str:
    """Return what a process prints to the end, once it is told something."""
    out, errors = process.communicate(said, timeout=600)
    assert process.returncode == 0, errors
    return out


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


def test_a_lock_is_of_one_process(tmp_path: Path) -> None:
    """A second process does not get it, waits if it wants to, and has it when the first one is done."""
    code = "from stacker.files import held\nfrom pathlib import Path\n"
    code += "with held(Path('lock')) as mine: print(mine, flush=True); input()"
    first = start(code, tmp_path)
    assert first.stdout is not None
    assert first.stdout.readline() == "True\n"
    with held(tmp_path / "lock") as mine:
        assert not mine
    with held(tmp_path / "lock", wait=True, on_wait=lambda: first.communicate("\n")) as mine:
        assert mine


def test_locks_are_kept_without_fcntl(tmp_path: Path) -> None:
    """As on Windows: the same answers from locks of bytes, and the locked file can be written."""
    code = """
        from stacker.files import held, publish
        with publish(Path("result")) as temporary:
            temporary.write_text("whole")
        with held(Path("result")) as mine:
            Path("result").write_text("written under the lock")
            print(mine, flush=True)
            input()
    """
    first = elsewhere(code, tmp_path)
    assert first.stdout is not None
    assert first.stdout.readline() == "True\n"
    second = elsewhere(code, tmp_path)
    assert second.stdout is not None
    assert second.stdout.readline() == "False\n"
    waiting = """
        from stacker.files import held
        with held(Path("result"), wait=True, on_wait=lambda: print("waits", flush=True)) as mine:
            print(mine)
    """
    third = elsewhere(waiting, tmp_path)
    assert third.stdout is not None
    assert third.stdout.readline() == "waits\n"
    answer(second, "\n")
    answer(first, "\n")
    assert answer(third) == "True\n"
    assert (tmp_path / "result").read_text() == "written under the lock"


def test_where_processes_are_not_listed_only_old_files_are_swept(tmp_path: Path) -> None:
    """Nobody can say whether the writer lives: a file of today stays, one of last week goes."""
    new, old = (tmp_path / f".{name}.npy.999999999.tmp" for name in ("new", "old"))
    for path in (new, old):
        path.touch()
    week = time.time() - 7 * 86400
    os.utime(old, (week, week))
    answer(elsewhere("from stacker.files import sweep\nsweep(Path())", tmp_path))
    assert list(tmp_path.iterdir()) == [new]


def test_what_linux_alone_has_is_not_needed_to_begin(tmp_path: Path) -> None:
    """Every module is imported and every command shows its help without fcntl and the like."""
    code = """
        import pkgutil
        from importlib import import_module
        import click, stacker
        from stacker.cli.main import main
        for module in pkgutil.walk_packages(stacker.__path__, "stacker."):
            if module.name != "stacker.__main__":
                import_module(module.name)
        def show(command, words):
            try:
                main([*words, "--help"], prog_name="stacker")
            except SystemExit as end:
                assert not end.code, words
            for name in getattr(command, "commands", {}):
                show(command.commands[name], [*words, name])
        show(main, [])
    """
    shown = answer(elsewhere(code, tmp_path))
    assert shown.count("Usage: stacker") > 20
