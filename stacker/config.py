"""The config: pydantic models, resolved YAML out (`configfile` reads it in).

Every setting of the three stages is a field here with a type, a bound and a default, so that a config
file is checked whole before anything runs. `Config.results()` is the part that decides what is trained;
a run keeps it frozen, while other settings (`cam`, `stack`, the device) may change between two calls.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from stacker.recipe import BackboneConfig, Section, Share, TrainConfig, TuneConfig, WeightsConfig
from stacker.settings import CamConfig, StackConfig


def _share_or_official(value: Any) -> Any:
    """Speak for both halves of the union at once: pydantic alone would report two faults."""
    if value != "official" and not (isinstance(value, int | float) and 0 < value < 1):
        raise ValueError(f"expected a share between 0 and 1, or 'official'; found {value!r}")
    return value


Part = Annotated[float | Literal["official"], BeforeValidator(_share_or_official)]


class DataConfig(Section):
    """Which images, and what is to be told apart.

    `classes` says which classes are wanted and puts them in order, the last being the one that
    sensitivity is about; without it they are all there, sorted. `case_pattern` finds the case in a
    file's path, `fold_list` is BreakHis's own split.
    """

    format: Literal["breakhis", "pcam", "idc", "folder", "csv"] = "breakhis"
    path: Path
    task: Literal["binary", "subtype"] = "binary"
    classes: list[str] | None = Field(None, min_length=2)
    magnifications: list[int] | None = Field(None, min_length=1)
    case_pattern: str | None = None
    fold_list: Path | None = None
    masks: Path | None = None
    on_error: Literal["stop", "skip"] = "stop"

    @field_validator("path", "fold_list", "masks")
    @classmethod
    def _found_from_anywhere(cls, path: Path | None) -> Path | None:
        """Make paths absolute: a run's stored config is read from other working directories."""
        return None if path is None else path.expanduser().absolute()

    @field_validator("case_pattern")
    @classmethod
    def _names_the_case(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groupindex
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
            if "case" not in groups or not groups.keys() <= {"case", "slide"}:
                raise ValueError(
                    f"{pattern!r} needs a group (?P<case>...), may have (?P<slide>...) and no other name"
                )
        return pattern

    @model_validator(mode="after")
    def _settings_fit_the_format(self) -> DataConfig:
        if self.case_pattern is not None and self.format not in ("folder", "csv"):
            raise ValueError(f"case_pattern is for folder and csv; {self.format} names its cases itself")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {self.classes} names one twice")
        if self.fold_list is not None and self.format != "breakhis":
            raise ValueError(f"fold_list is for breakhis; {self.format} has none")
        return self


Side = Annotated[int, Field(ge=32, le=2048)]


class ImagesConfig(Section):
    """How an image becomes a rectangle of pixels: `size` is a side, or [height, width]."""

    size: Side | tuple[Side, Side] = 224
    resize: Literal["squash", "crop", "pad"] = "squash"

    @field_validator("size", mode="before")
    @classmethod
    def _one_side_or_two(cls, raw: Any) -> Any:
        """Speak for both halves of the union at once, and write squares as one number."""
        sides = list(raw) if isinstance(raw, list | tuple) else [raw]
        whole = all(isinstance(side, int) and 32 <= side <= 2048 for side in sides)
        if not whole or len(sides) not in (1, 2):
            raise ValueError(f"expected a side or [height, width], each from 32 to 2048; found {raw!r}")
        return sides[0] if len(set(sides)) == 1 else tuple(sides)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)


class FoldsConfig(Section):
    """Who is held out from whom. `official` takes a part as the data set itself has it."""

    protocol: Literal["crossfit", "holdout"] = "crossfit"
    group: Literal["case", "slide", "image"] = "case"
    test: Part = 0.2
    stack: Part = 0.25
    k: int = Field(5, ge=2)
    validation: Share = 0.15

    @model_validator(mode="after")
    def _some_cases_are_left_to_train_on(self) -> FoldsConfig:
        taken = sum(share for share in (self.test, self.stack) if share != "official")
        if self.protocol == "holdout" and taken > 0.9:
            raise ValueError(f"test + stack take {taken:.0%} of the cases; leave 10% to train on")
        if self.protocol == "crossfit" and self.stack == "official":
            raise ValueError("stack: official is for holdout; crossfit stacks on its folds")
        if self.stack == "official" != self.test:
            raise ValueError("stack: official (the data set's valid part) needs test: official too")
        return self


class Config(Section):
    """One run: everything that decides its result."""

    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    artifacts: Path = Path("artifacts")
    seed: int = Field(0, ge=0, lt=2**31)
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    deterministic: bool = False
    compile: bool = False
    data: DataConfig
    images: ImagesConfig = ImagesConfig()
    folds: FoldsConfig = FoldsConfig()
    backbones: dict[str, BackboneConfig] = Field(min_length=1)
    frozen: dict[str, WeightsConfig] = Field(default={})
    train: TrainConfig = TrainConfig()
    tune: TuneConfig | None = None
    cam: CamConfig = CamConfig()
    stack: StackConfig = StackConfig()

    @field_validator("backbones", "frozen", mode="before")
    @classmethod
    def _a_bare_name_means_the_defaults(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            return {name: {} if settings is None else settings for name, settings in raw.items()}
        return raw

    @model_validator(mode="after")
    def _features_are_cached(self) -> Config:
        cached = [*self.cam.maps, "embeddings", *(["frozen"] if self.frozen else [])]
        usual = [*cached, "map_stats", "logits", "probabilities"]
        hint = "see cam.methods, cam.lower; 'frozen' needs a backbone under frozen"
        for name, block in self.stack.blocks.items():
            if block.of not in cached:
                raise ValueError(
                    f"stack.blocks.{name}.of: {block.of!r} is not cached; {', '.join(cached)} "
                    f"are ({hint})"
                )
        for name in self.stack.custom:
            if name in ("constant", *self.backbones):
                raise ValueError(
                    f"stack.custom: {name!r} has a row of scores already; take another name"
                )
        wanted = [self.stack.features, *(self.stack.compare.features or [])]
        for name in (name for names in wanted for name in names):
            if name not in usual and name not in self.stack.blocks:
                known = ", ".join([*usual, *self.stack.blocks])
                raise ValueError(
                    f"stack.features: {name!r} is neither cached nor one of stack.blocks; known are "
                    f"{known} ({hint})"
                )
        return self

    @model_validator(mode="after")
    def _every_backbone_has_a_recipe(self) -> Config:
        """Find the faults in what a backbone changes of `train` before anything runs."""
        for name in self.backbones:
            try:
                self.recipe(name)
            except ValidationError as error:
                raise ValidationError.from_exception_data(
                    "Config", [_below(("backbones", name, "train"), fault) for fault in error.errors()]
                ) from None
        return self

    def recipe(self, backbone: str) -> TrainConfig:
        """Return the training recipe of a backbone: `train`, with what its own section changes."""
        changes = self.backbones[backbone].train
        return TrainConfig.model_validate(_merge(self.train.model_dump(), changes))

    @property
    def run_path(self) -> Path:
        """The run directory."""
        return self.artifacts / self.run

    def results(self) -> dict[str, Any]:
        """Return the settings that decide what is trained, as plain data.

        Each backbone stands there with its whole recipe. What is cached is decided by `cam` too; the
        caches say themselves how they were made.
        """
        how = ("device", "precision", "deterministic", "compile")
        free = dict.fromkeys(("run", "artifacts", *how, "tune", "frozen", "cam", "stack", "train"), True)
        found = self.model_dump(mode="json", exclude={**free, "data": {"masks", "on_error"}})
        for name, settings in found["backbones"].items():
            settings["train"] = self.recipe(name).model_dump(mode="json")
        return found

    def to_yaml(self) -> str:
        """Return the resolved config as YAML that loads to an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping with changes put in, sections within sections."""
    merged = dict(base)
    for key, value in changes.items():
        section = merged.get(key)
        # `unfreeze` is a plan, not a section: another one replaces it
        both = isinstance(value, dict) and isinstance(section, dict) and key != "unfreeze"
        merged[key] = _merge(section, value) if both and section is not None else value
    return merged


def _below(where: tuple[str, ...], fault: Any) -> InitErrorDetails:
    """Return a fault of a section with its place in the whole config."""
    details = InitErrorDetails(type=fault["type"], loc=(*where, *fault["loc"]), input=fault["input"])
    if "ctx" in fault:
        details["ctx"] = fault["ctx"]
    return details
