"""A run: one directory, begun once with its images and its split, and reopened by every later command.

`docs/files.md` lists its files. The images and the split are frozen, and so is the recipe of every base
model that is there: a config of the same name that says otherwise is refused, and so is a run whose
files another version of the program laid out. Backbones and meta-learners may come and go with the
config: what is there is kept, what is no longer in the config is ignored.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from stacker import __version__
from stacker.config.changes import changes, listed
from stacker.config.learners import RULES
from stacker.config.load import load_config
from stacker.config.root import Config
from stacker.data.folds import Fold, Folds, fold_name, load_folds
from stacker.data.manifest import Manifest, load_manifest
from stacker.data.store import Pixels, open_store
from stacker.errors import RunError, plural
from stacker.files import digest, held, publish, read_json, read_metadata, write_json

log = logging.getLogger(__name__)
LAYOUT = 3  # of the files of a run; another number for every change that old runs do not survive
FROZEN = "frozen"  # what stands for a fold where nothing was trained
LONGEST = 180  # characters of a folder's name; file systems take 255 bytes


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


class StackName(NamedTuple):
    """What a stack is known by: its meta-learner and the feature blocks that this looks at."""

    meta: str
    features: tuple[str, ...]

    def __str__(self) -> str:
        """Return its full name, as in `logistic: map_stats + logits`; of a rule, that of the rule."""
        return self.meta if self.meta in RULES else f"{self.meta}: {' + '.join(self.features)}"

    @property
    def folder(self) -> str:
        """The name of its folder, as in `logistic@map_stats+logits`."""
        name = str(self).replace(": ", "@").replace(" + ", "+")
        return name if len(name) <= LONGEST else f"{name[: LONGEST - 17]}-{digest(name)}"

    @classmethod
    def of(cls, meta: str, features: Sequence[str]) -> StackName:
        """Return the name of a meta-learner on some features; rules look at probabilities alone."""
        return cls(meta, ("probabilities",) if meta in RULES else tuple(features))

    @classmethod
    def parse(cls, text: str, features: Sequence[str]) -> StackName:
        """Return what a text names: a full name, a folder's, or a meta-learner on these features."""
        meta, _, blocks = text.replace("@", ":", 1).partition(":")
        named = [block.strip() for block in blocks.split("+") if block.strip()]
        return cls.of(meta.strip(), named or features)


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory and the config that produced it; `packed` for a pack, which may be anybody's."""

    path: Path
    config: Config
    packed: bool = False

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
        models, caches = len(self.kept_models()), len(self.kept_caches())
        folders = [file.parent.name for file in self.path.glob("stack/*/stack.json")]
        stacks = sorted(self.stack_label(self.stack_name(folder)) for folder in folders)
        done = f"{plural(models, 'base model')}, {plural(caches, 'cache')}"
        lines.append(f"{done}, stacks: {', '.join(stacks) or 'none'}")
        return "\n  ".join(lines)

    def takes_part(self, base: BaseModel) -> bool:
        """Say whether the config has the backbone of a base model that may lie on disk."""
        return base.backbone in (self.config.frozen if base.is_frozen else self.config.backbones)

    def kept_models(self) -> list[BaseModel]:
        """Return the base models on disk that take part."""
        return self._kept("models/*/*/model.safetensors")

    def kept_caches(self) -> list[BaseModel]:
        """Return the base models that take part and whose caches are complete."""
        return self._kept("cache/*/*/index.h5")

    def _kept(self, pattern: str) -> list[BaseModel]:
        places = (file.parent for file in sorted(self.path.glob(pattern)))
        bases = (BaseModel(place.parent.name, place.name) for place in places)
        return [base for base in bases if self.takes_part(base)]

    def with_split(self, manifest: Manifest, folds: Folds) -> Run:
        """Return the run with other images and another split in memory; nothing on disk changes."""
        run = replace(self)
        vars(run).update(manifest=manifest, folds=folds)
        return run

    def jobs(self) -> list[tuple[str, Fold]]:
        """Return the base models of the run: every backbone in every fold."""
        return [(name, fold) for name in self.config.backbones for fold in self.folds.folds]

    def planned(self) -> list[BaseModel]:
        """Return the base models of the run by its config alone, without a look at its split."""
        folds = self.config.folds
        names = ["holdout"] if folds.protocol == "holdout" else map(fold_name, map(str, range(folds.k)))
        return [BaseModel(*pair) for pair in product(self.config.backbones, names)]

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

    def stack_name(self, text: str) -> StackName:
        """Return the stack that a text names; a meta-learner alone is that on `stack.features`."""
        return StackName.parse(text, self.config.stack.features)

    def stack_label(self, name: StackName) -> str:
        """Return what a stack is called in tables: its meta-learner, where it is on `stack.features`."""
        return name.meta if name == self.stack_name(name.meta) else str(name)

    def stack_folder(self, name: str) -> Path:
        """The folder of one stack, by its full name or that of its meta-learner."""
        return self.path / "stack" / self.stack_name(name).folder

    def has_scored(self, label: str, metrics: Mapping[str, Any]) -> bool:
        """Say whether the scores that metrics.json has of a label are of the stack that lies there."""
        scored = metrics.get("stacks", {}).get(label)
        file = self.stack_folder(label) / "stack.json"
        try:
            stated = read_json(file).get("digest")
        except (OSError, ValueError):  # missing or damaged
            return False
        if scored is None or stated != scored["digest"]:
            return False
        return self.stack_name(label) == StackName.of(scored["meta"], scored["features"])

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
    """Publish the config that a run goes by from now on; mention what is ignored from now on."""
    path = run.path / "config.yaml"
    if run.manifest_file.exists() and path.exists():
        before = load_config(path)
        for name in (name for name in before.backbones if name not in run.config.backbones):
            if list(run.path.glob(f"models/{name}/*/model.safetensors")):
                log.info("models/%s is ignored: it is not in this config", name)
    with publish(path) as temporary:
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
        _refuse_changes(path, load_config(path / "config.yaml").results(), config.results())
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
    """Raise RunError for a change of what is already there: of data and split, or of a base model.

    Each base model is compared with its own file: a backbone may come or go, and one that has no base
    model yet may change.
    """
    old, new = before.results(), now.results()
    _refuse_changes(path, *({**results, "backbones": {}} for results in (old, new)))
    changed = {
        name: [line for recipe in _recipes(path / "models" / name) for line in changes(recipe, settings)]
        for name, settings in new["backbones"].items()
    }
    lines = [f"backbones.{name}.{line}" for name, found in changed.items() for line in found]
    if lines:
        folders = " and ".join(f"models/{name}" for name, found in changed.items() if found)
        raise RunError(
            f"{path} has base models that were trained with other settings; set these back, choose "
            f"another name for the run (--set run=NAME), or delete {folders} to train again:"
            f"{listed(list(dict.fromkeys(lines)))}"
        )


def _recipes(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the settings that a backbone's base models say they were trained with.

    What cannot be read is left to whoever needs it.
    """
    for file in sorted(folder.glob("*/model.safetensors")):
        if file.parent.name == FROZEN:
            continue
        try:
            facts = json.loads(read_metadata(file)["stacker"])
            yield facts["config"]["backbones"][folder.name]
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _refuse_changes(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise RunError for settings of one tree that are others in the other."""
    lines = changes(before, now)
    if lines:
        raise RunError(
            f"{path} was made with other settings; set these back, choose another name for the run "
            f"(--set run=NAME), or delete the folder:{listed(lines)}"
        )


def _strangers(path: Path) -> bool:
    """Say whether a folder holds anything that a look at the data does not leave behind."""
    known = {"audit.json", "audit.md", "figures", "run.json", ".run.lock", ".run.lock.lock"}
    return path.exists() and any(
        entry.name not in known and entry.suffix != ".tmp" for entry in path.iterdir()
    )
