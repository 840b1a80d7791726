"""A run: one directory, begun once with its images and its split, and reopened by every later command.

    artifacts/<run>/config.yaml run.json manifest.csv folds.json
                    models/<backbone>/<fold>/model.safetensors metrics.jsonl curves.png tensorboard/
                    cache/<backbone>/<fold>/part-00000.h5 ... index.h5
                    stack/<meta-learner>/...
                    metrics.json predictions.csv figures/*.png

The images, the split and the settings that trained a model are frozen: another config of the same name
is refused, and so is a run whose files another version of the program laid out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from stacker import __version__
from stacker.config.load import load_config
from stacker.config.root import Config
from stacker.data.folds import Fold, Folds, load_folds
from stacker.data.manifest import Manifest, load_manifest
from stacker.data.store import Pixels, open_store
from stacker.errors import RunError, plural
from stacker.files import held, publish, read_json, write_json

LAYOUT = 3  # of the files of a run; another number for every change that old runs do not survive
FROZEN = "frozen"  # what stands for a fold where nothing was trained


class BaseModel(NamedTuple):
    """A base model: a backbone and the fold that it never saw, `frozen` where nothing was trained."""

    backbone: str
    fold: str

    def __str__(self) -> str:
        """Return what it is called in files and messages."""
        return f"{self.backbone}/{self.fold}"

    @classmethod
    def named(cls, name: str) -> BaseModel:
        """Return the base model of a name."""
        return cls(*name.rsplit("/", 1))

    @property
    def is_frozen(self) -> bool:
        """Say whether nothing of it was trained."""
        return self.fold == FROZEN


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory and the config that produced it."""

    path: Path
    config: Config

    @cached_property
    def manifest(self) -> Manifest:
        """The images."""
        data = self.config.data
        return load_manifest(self.manifest_file, data.classes, data.positive)

    @cached_property
    def folds(self) -> Folds:
        """The split."""
        return load_folds(self.folds_file, self.manifest)

    def __repr__(self) -> str:
        """Say where it lies, what is in it, how it is split and what is done."""
        lines = [f"Run {self.path}"]
        if self.manifest_file.exists():  # a pack has no images, and a run that begins has none yet
            lines += [self.manifest.describe(), self.folds.label]
        models = len(list(self.path.glob("models/*/*/model.safetensors")))
        caches = len(list(self.path.glob("cache/*/*/index.h5")))
        stacks = sorted(file.parent.name for file in self.path.glob("stack/*/stack.json"))
        done = f"{plural(models, 'base model')}, {plural(caches, 'cache')}"
        lines.append(f"{done}, stacks: {', '.join(stacks) or 'none'}")
        return "\n  ".join(lines)

    def with_split(self, manifest: Manifest, folds: Folds) -> Run:
        """Return the run with other images and another split in memory; nothing on disk changes."""
        run = Run(self.path, self.config)
        vars(run).update(manifest=manifest, folds=folds)
        return run

    def jobs(self) -> list[tuple[str, Fold]]:
        """Return the base models of the run: every backbone in every fold."""
        return [(name, fold) for name in self.config.backbones for fold in self.folds.folds]

    def pixels(self) -> Pixels:
        """Return the decoded images in the manifest's order."""
        return open_store(self.config.artifacts / ".images", self.manifest, self.config.images)

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


def has_begun(config: Config) -> bool:
    """Say whether the config's run has its images and its split already."""
    return (config.run_path / "manifest.csv").exists()


def create_run(config: Config, store: bool = True) -> Run:
    """Make or reopen the run directory; raise RunError when it was made by another config.

    Without `store` an existing run keeps the config that it has, until `store_config`. The manifest is
    the last thing that a starting run writes: before it, nothing is frozen yet.
    """
    path = config.run_path
    if has_begun(config):
        _refuse_another_layout(path)
        _refuse_another_config(path, load_config(path / "config.yaml"), config)
    elif not (path / "config.yaml").exists() and _strangers(path):
        raise RunError(f"{path} is not empty and holds no config.yaml; choose another 'run' name")
    path.mkdir(parents=True, exist_ok=True)
    if _layout(path) != LAYOUT:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        book = {"stacker": __version__, "layout": LAYOUT, "created": created}
        write_json(path / "run.json", book)
    run = Run(path, config)
    if store or not (path / "config.yaml").exists():
        store_config(run)
    return run


def store_config(run: Run) -> None:
    """Publish the config that a run goes by from now on."""
    with publish(run.path / "config.yaml") as temporary:
        temporary.write_text(run.config.to_yaml(), encoding="utf-8")


def reopen(config: Config, store: bool = True) -> Run:
    """Reopen a run that has been started; raise RunError when it has not, or by another config.

    Without `store` the run keeps the config that it has.
    """
    if not has_begun(config):
        raise RunError(f"{config.run_path}: nothing is here yet; run 'stacker train CONFIG' first")
    return create_run(config, store)


def open_run(path: Path | str, overrides: Sequence[str] = ()) -> Run:
    """Open an existing run; raise RunError when there is none, or one of another layout.

    `overrides` change nothing on disk, and may not change what the run's results stand on.
    """
    path = Path(path)
    if not (path / "manifest.csv").exists():
        raise RunError(f"{path} is not a run directory", "give the folder of one, e.g. artifacts/demo")
    _refuse_another_layout(path)
    config = load_config(path / "config.yaml", overrides)
    if overrides:
        _refuse_change(path, load_config(path / "config.yaml").results(), config.results())
    return Run(path, config)


def _layout(path: Path) -> Any:
    """Return the layout that a run states in its logbook; None where it states none."""
    try:
        return read_json(path / "run.json")["layout"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_another_layout(path: Path) -> None:
    """Raise RunError for a run whose files lie or look otherwise than this version expects."""
    layout = _layout(path)
    if layout != LAYOUT:
        stated = "states no layout" if layout is None else f"is of layout {layout!r}"
        raise RunError(
            f"{path} {stated}, and this version of stacker reads runs of layout {LAYOUT} only",
            "start a new run (--set run=NAME) or delete the folder",
        )


def _refuse_another_config(path: Path, before: Config, now: Config) -> None:
    """Raise RunError for a change of what results stand on: the data, the split, what trained a model.

    A backbone that has no base model yet may change: what went wrong can be fixed and run again.
    """
    models = path.glob("models/*/*/model.safetensors")
    trained = {model.parent.parent.name for model in models if model.parent.name != FROZEN}
    old, new = ({**config.results()} for config in (before, now))
    for results in (old, new):
        backbones = results["backbones"]
        results["backbones"] = {name: backbones.get(name) for name in trained}
    _refuse_change(path, old, new)


def _refuse_change(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise RunError for a setting of one tree that is another one in the other."""
    old, new = _flat(before), _flat(now)
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if changed:
        key = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise RunError(
            f"{path} was made by another config: {key} was {old.get(key)!r}, is {new.get(key)!r}{more}",
            "give this config another 'run' name (--set run=NAME) or delete the folder",
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _strangers(path: Path) -> bool:
    """Say whether a folder holds anything that a look at the data does not leave behind."""
    known = {"audit.json", "audit.md", "figures", "run.json", ".run.lock"}
    return path.exists() and any(
        entry.name not in known and entry.suffix != ".tmp" for entry in path.iterdir()
    )
