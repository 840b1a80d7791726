"""The sections of stages two and three: what is cached, and what is learnt from it."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from stacker.config.learners import (
    CLASS_PATH,
    META_NAMES,
    ConvnetConfig,
    CustomConfig,
    LogisticConfig,
    MlpConfig,
    RandomForestConfig,
    SvmConfig,
    XgboostConfig,
)
from stacker.config.section import Names, Section, once
from stacker.errors import ConfigError, require_one_of

BLOCKS = ("map_stats", "logits", "probabilities", "embeddings", "frozen")  # beside the datasets of maps


class BlockConfig(Section):
    """A feature block of one's own: a view of something that is cached.

    `of` is a dataset of maps, `embeddings` or `frozen`. Maps are taken signed, cut off below zero
    (relu), scaled to reach from 0 to 1 each (normalised), or summed up (stats); at their own grid or
    brought to a common one of `grid` x `grid` cells; as the difference that speaks for a class and
    against the others (of two classes, one map), of all classes, or of some. What the maps of all
    classes have in common tells the fold's model and nothing of the class. `pca` puts so many principal
    components in the place of the columns, for each backbone by itself, fitted on the rows that the
    meta-learner learns from.
    """

    of: str
    view: Literal["signed", "relu", "normalised", "stats"] = "signed"
    grid: int | None = Field(None, ge=1, le=64)
    classes: Annotated[list[str], Field(min_length=1)] | Literal["difference", "all"] = "difference"
    pca: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _settings_fit_what_it_is_of(self) -> BlockConfig:
        if not self.of.startswith("maps"):
            if self.of not in ("embeddings", "frozen"):
                raise ValueError(f"of: {self.of!r} has no views; choose maps, embeddings or frozen")
            usual = {"view": "signed", "grid": None, "classes": "difference"}
            changed = [name for name, value in usual.items() if getattr(self, name) != value]
            if changed:
                raise ValueError(f"{', '.join(changed)}: only for maps, not for {self.of}")
        if self.view == "stats" and self.grid is not None:
            raise ValueError("grid: not with view=stats, which uses the maps' own grid")
        if isinstance(self.classes, list):
            once("classes", self.classes)
        return self


class CompareConfig(Section):
    """What `stacker compare` puts side by side; without lists, all that can be had from the caches."""

    meta: Names[str] | None = Field(None, min_length=1)
    features: list[Annotated[list[str], Field(min_length=1)]] | None = Field(None, min_length=1)
    permutations: int = Field(20, ge=5)

    @field_validator("features")
    @classmethod
    def _each_choice_once(cls, choices: list[list[str]] | None) -> list[list[str]] | None:
        if choices is not None:
            once("features", [sorted(once("features", names)) for names in choices])
        return choices


class StackConfig(Section):
    """Which features stage three sees, which meta-learners it trains, and how it scores them.

    A meta-learner is one of ours, a name under `custom`, or the dotted path of a class. Those that draw
    lots are fitted `seeds` times and averaged. The out-of-fold estimate, which calibration and threshold
    come from, leaves out one base fold after the other; under `holdout` the rows are cut by case into
    `parts`, `seeds` times. The threshold `none` is the more probable class, `youden` the best sum of
    sensitivity and specificity, `sensitivity` the wanted one. `centre` takes off each column's mean
    within a base fold. `balance` lets all classes weigh the same and within them all cases (`cases`), or
    all images (`classes`); what that does to the probabilities is taken back. `abstain`: below this
    confidence `predict` does not decide. `memory_gb` bounds what of a table is held at once.
    """

    features: Names[str] = Field(["map_stats", "logits"], min_length=1)
    blocks: dict[Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")], BlockConfig] = Field(default={})
    meta: Names[str] = Field(["logistic"], min_length=1)
    custom: dict[Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")], CustomConfig] = Field(default={})
    logistic: LogisticConfig = LogisticConfig()
    svm: SvmConfig = SvmConfig()
    random_forest: RandomForestConfig = RandomForestConfig()
    mlp: MlpConfig = MlpConfig()
    convnet: ConvnetConfig = ConvnetConfig()
    xgboost: XgboostConfig = XgboostConfig()
    centre: bool = True
    balance: Literal["cases", "classes", "none"] = "cases"
    seeds: int = Field(3, ge=1)
    parts: int = Field(5, ge=2)
    calibration: Literal["none", "temperature", "platt"] = "temperature"
    threshold: Literal["none", "youden", "sensitivity"] = "none"
    sensitivity: float = Field(0.95, gt=0, le=1)
    abstain: float = Field(0.0, ge=0, lt=1)
    memory_gb: float = Field(2.0, gt=0)
    bootstrap: int = Field(2000, ge=100)
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="after")
    def _names_are_free(self) -> StackConfig:
        """A name of one's own may not be one that has a meaning already."""
        for name in self.blocks:
            if name.startswith("maps") or name in BLOCKS:
                raise ValueError(f"blocks: {name!r} is a built-in block; choose another name")
        for name in self.custom:
            if name in META_NAMES:
                raise ValueError(f"custom: {name!r} is a built-in meta-learner; choose another name")
        return self

    @model_validator(mode="after")
    def _meta_learners_are_known(self) -> StackConfig:
        faults = []
        for name in dict.fromkeys([*self.meta, *(self.compare.meta or [])]):
            try:
                self.custom_of(name)
            except ValueError as error:
                faults.append(str(error))
        if faults:
            raise ValueError("\n  ".join(faults))
        return self

    @property
    def names(self) -> list[str]:
        """The names of all meta-learners, those of the config's own among them."""
        return [*META_NAMES, *self.custom]

    def knows(self, meta: str) -> bool:
        """Say whether a name is that of a meta-learner, or might be the path of a class."""
        return meta in self.names or re.match(CLASS_PATH, meta) is not None

    def require(self, *metas: str) -> None:
        """Raise ConfigError for the names that no meta-learner has, with the nearest that one has."""
        faults = []
        for meta in (meta for meta in metas if not self.knows(meta)):
            try:
                require_one_of("meta-learner", [meta], self.names)
            except ConfigError as error:
                faults.append(str(error))
        if faults:
            raise ConfigError("\n  ".join(faults))

    def custom_of(self, meta: str) -> CustomConfig | None:
        """Return how a meta-learner is built that is not one of ours; raise ValueError for neither."""
        if meta in META_NAMES:
            return None
        if meta in self.custom:
            return self.custom[meta]
        if self.knows(meta):
            return CustomConfig(estimator=meta)
        near = get_close_matches(meta, self.names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(self.names)}"
        raise ValueError(f"no meta-learner '{meta}', and not the dotted path of a class; {hint}")
