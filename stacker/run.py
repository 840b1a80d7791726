"""The run directory: where everything lies, how a file is published, what a run refuses.

    artifacts/<run>/config.yaml run.json manifest.csv folds.json
                    models/<backbone>/<fold>/model.safetensors metrics.jsonl curves.png tensorboard/
                    cache/<backbone>/<fold>/part-00000.h5 ... index.h5
                    stack/<meta-learner>/...
                    metrics.json predictions.csv figures/*.png

A file appears under its name only when it is complete: it is written beside it under a temporary name,
synced and renamed. That is why a process killed at any moment leaves nothing that could be mistaken
for a result, and why "done" can be decided by what a file says of its origin.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from stacker import __version__
from stacker.config import Config
from stacker.configfile import load_config
from stacker.errors import RunError, StackError

CLOCKS_APART = 2.0  # seconds that the start of a process may be misjudged by
UMASK = os.umask(0)
os.umask(UMASK)
FROZEN = "frozen"  # what stands for a fold where nothing was trained
PACKAGES = ("torch", "torchvision", "timm", "scikit-learn", "xgboost", "numpy", "h5py")


@dataclass(frozen=True)
class Run:
    """One run directory and the config that produced it."""

    path: Path
    config: Config

    @property
    def manifest_file(self) -> Path:
        """The table of images."""
        return self.path / "manifest.csv"

    @property
    def folds_file(self) -> Path:
        """Which case is held out from which model."""
        return self.path / "folds.json"

    @property
    def figures(self) -> Path:
        """The folder of the run's figures."""
        return self.path / "figures"

    def model_file(self, backbone: str, fold: str) -> Path:
        """The checkpoint of one base model."""
        return self.path / "models" / backbone / fold / "model.safetensors"

    def cache_folder(self, backbone: str, fold: str) -> Path:
        """The folder of one base model's cache."""
        return self.path / "cache" / backbone / fold

    def stack_folder(self, meta: str) -> Path:
        """The folder of one meta-learner."""
        return self.path / "stack" / meta

    def record(self, section: str, entry: dict[str, Any]) -> None:
        """Merge an entry into a section of run.json, the run's logbook."""
        with held(self.path / ".run.lock", wait=True):
            book = read_json(self.path / "run.json")
            book.setdefault(section, {}).update(entry)
            write_json(self.path / "run.json", book)


def create_run(config: Config, store: bool = True) -> Run:
    """Make or reopen the run directory; raise RunError when it was made by another config.

    Without `store` an existing run keeps the config that it has, until `store_config`. The manifest is
    the last thing that a starting run writes: before it, nothing is frozen yet.
    """
    path = config.run_path
    if (path / "manifest.csv").exists():
        _refuse_another_config(path, load_config(path / "config.yaml"), config)
    elif not (path / "config.yaml").exists() and _strangers(path):
        raise RunError(f"{path} is not empty and holds no config.yaml; choose another 'run' name")
    path.mkdir(parents=True, exist_ok=True)
    if not (path / "run.json").exists():
        created = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(path / "run.json", {"stacker": __version__, "created": created})
    run = Run(path, config)
    if store or not (path / "config.yaml").exists():
        store_config(run)
    return run


def store_config(run: Run) -> None:
    """Publish the config that a run goes by from now on."""
    with publish(run.path / "config.yaml") as temporary:
        temporary.write_text(run.config.to_yaml(), encoding="utf-8")


def _strangers(path: Path) -> bool:
    """Say whether a folder holds anything that a look at the data does not leave behind."""
    known = {"audit.json", "audit.md", "figures", "run.json", ".run.lock"}
    return path.exists() and any(
        entry.name not in known and entry.suffix != ".tmp" for entry in path.iterdir()
    )


def open_run(path: Path, overrides: tuple[str, ...] = ()) -> Run:
    """Open an existing run; raise RunError when there is none."""
    if not (path / "manifest.csv").exists():
        hint = "give the folder of a run, e.g. artifacts/demo"
        raise RunError(f"{path} is not a run directory; {hint}")
    return Run(path, load_config(path / "config.yaml", overrides))


def _refuse_another_config(path: Path, before: Config, now: Config) -> None:
    """Raise RunError for a change of what results stand on: the data, the split, what trained a model.

    A backbone that has no base model yet may change: what went wrong can be mended and run again.
    """
    models = path.glob("models/*/*/model.safetensors")
    trained = {model.parent.parent.name for model in models if model.parent.name != FROZEN}
    old, new = ({**config.results()} for config in (before, now))
    for results in (old, new):
        backbones = results["backbones"]
        results["backbones"] = {name: backbones.get(name) for name in trained}
    old, new = _flat(old), _flat(new)
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if changed:
        key = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise RunError(
            f"{path} was made by another config: {key} was {old.get(key)!r}, is {new.get(key)!r}"
            f"{more}; give this config another 'run' name (--set run=NAME) or delete the folder"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


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
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """Say whether a lock file is this process's own while the block runs; a killed process lets go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def sweep(folder: Path) -> None:
    """Remove the temporary files that dead processes left in a folder."""
    for leftover in folder.glob(".*.tmp"):
        owner = leftover.name.split(".")[-2]
        if owner == str(os.getpid()) or not _may_own(owner, leftover):
            leftover.unlink(missing_ok=True)


def _may_own(process: str, file: Path) -> bool:
    """Say whether a process lives that was there when a file was written: numbers are used again."""
    try:
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


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read arrays that were written so; raise StackError when they are missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StackError(
            f"{path} is missing or damaged ({error}); delete {path.parent} and run 'stacker stack "
            "CONFIG' again"
        ) from None


def digest(content: Any) -> str:
    """Return 16 hex digits that stand for plain data."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; one that has not changed since is not read again."""
    found = path.stat()
    return _sha256(path, found.st_size, found.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, modified: int) -> str:  # noqa: ARG001  # parts of the key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide a result."""
    found = {"stacker": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # xgboost is also distributed as xgboost-cpu
            found[package] = "absent"
    return found


def require_space(folder: Path, needed: int) -> None:
    """Raise RunError before work starts that the disk cannot hold."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"{folder}: {needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free; make room "
            "or point 'artifacts' at another disk, then run the same command again"
        )
