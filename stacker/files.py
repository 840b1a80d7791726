"""How files are written, locked and compared.

A file appears under its name only when it is complete: it is written under a temporary name in the same
folder, synced and renamed. So a process that is killed at any moment leaves nothing that could be taken
for a result, and whether a step is done can be decided by what its files say of their origin.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import numpy as np

from stacker import __version__
from stacker.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MOST_HEADER_BYTES = 100_000_000  # as much as safetensors itself reads
CLOCKS_APART = 2.0  # seconds by which the start of a process may be misjudged
LEFT_BEHIND = 24 * 3600.0  # seconds after which a temporary file is old where processes are not listed
PAUSE = 0.1  # seconds between two attempts to get a lock that cannot be waited for
UMASK = os.umask(0)
os.umask(UMASK)
PACKAGES = ("torch", "torchvision", "timm", "scikit-learn", "xgboost", "numpy", "h5py")


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success sync and rename it, on failure remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise RunError(f"{path} is a folder where a file belongs; move it away and run this again")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~UMASK)  # some libraries write for the owner alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def held(path: Path, wait: bool = False, on_wait: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Lock a file while the block runs; yield whether this process has the lock.

    With `wait` it has it in the end; `on_wait` is called where another process holds it first. The
    system releases the lock of a process that ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Windows would keep the holder itself from writing to a locked byte: a file beside it is locked.
    lock = path if fcntl is not None else path.with_name(f"{path.name}.lock")
    with lock.open("a") as file:
        mine = _lock(file, wait=False)
        if wait and not mine:
            on_wait()
            mine = _lock(file, wait=True)
        yield mine


def _lock(file: IO[str], wait: bool) -> bool:
    """Lock an open file; say whether it could be done."""
    if fcntl is None:
        return _lock_byte(file, wait)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _lock_byte(file: IO[str], wait: bool) -> bool:
    """Do the same on Windows, which locks bytes and gives up waiting after ten seconds."""
    msvcrt: Any = import_module("msvcrt")
    while True:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            if not wait:
                return False
            time.sleep(PAUSE)
        else:
            return True


def sweep(folder: Path) -> None:
    """Remove the temporary files that processes which have ended left in a folder."""
    for leftover in folder.glob(".*.tmp"):
        owner = leftover.name.split(".")[-2]
        if owner == str(os.getpid()) or not _may_own(owner, leftover):
            leftover.unlink(missing_ok=True)


def _may_own(process: str, file: Path) -> bool:
    """Say whether a living process may have written a file.

    A process that started later has not: process numbers are used again. Systems without /proc do not
    list their processes; there, a file may be in use until it is a day old.
    """
    try:
        if not Path("/proc/stat").exists():
            return time.time() - file.stat().st_mtime < LEFT_BEHIND
        ticks = int(Path("/proc", process, "stat").read_text().rsplit(")", 1)[1].split()[19])
        boot = Path("/proc/stat").read_text().split("btime ")[1].split()[0]
        started = int(boot) + ticks / os.sysconf("SC_CLK_TCK")
        return started <= file.stat().st_mtime + CLOCKS_APART
    except (OSError, IndexError, ValueError):
        return False


def write_json(path: Path, content: Any) -> None:
    """Publish JSON that a person can read."""
    with publish(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Publish arrays as .npz."""
    with publish(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **dict[str, Any](arrays))


def read_metadata(path: Path) -> dict[str, str]:
    """Return the text entries in the header of a safetensors file, without torch or its tensors.

    Raise ValueError for what is no such file. It begins with the length of its header, which is JSON.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MOST_HEADER_BYTES:
            raise ValueError("it does not begin like a safetensors file")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no table of tensors")  # noqa: TRY004  # the file's fault
    return dict(header.get("__metadata__") or {})


def digest(content: Any) -> str:
    """Return 16 hex digits that stand for plain data."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; one that has not changed since is not read again."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, modified: int) -> str:  # noqa: ARG001  # parts of the key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide a result."""
    numbers = {"stacker": __version__}
    for package in PACKAGES:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:  # xgboost is also distributed as xgboost-cpu
            numbers[package] = "absent"
    return numbers


def require_space(folder: Path, needed: int) -> None:
    """Raise RunError before work starts that the disk cannot hold."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"{folder}: {needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free; make room "
            "or point 'artifacts' at another disk, then run the same command again"
        )
