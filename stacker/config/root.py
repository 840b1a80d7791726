"""The whole config: pydantic models in, resolved YAML out (`load` reads YAML in).

Every setting of the three stages is a field here with a type, a bound and a default, so that a config
file is checked whole before anything runs. `Config.results()` is the part that decides what is trained;
a run keeps it frozen, while other settings (`cam`, `stack`, the device) may change between two calls.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from stacker.config.data import DataConfig, FoldsConfig, ImagesConfig
from stacker.config.maps import CamConfig
from stacker.config.section import DEVICE, Section
from stacker.config.stacking import StackConfig
from stacker.config.training import BackboneConfig, TrainConfig, TuneConfig, WeightsConfig


class Config(Section):
    """One run: everything that decides its result."""

    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    artifacts: Path = Path("artifacts")
    seed: int = Field(0, ge=0, lt=2**31)
    device: str = Field("auto", pattern=DEVICE)
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
        results = self.model_dump(mode="json", exclude={**free, "data": {"masks", "on_error"}})
        for name, settings in results["backbones"].items():
            settings["train"] = self.recipe(name).model_dump(mode="json")
        return results

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
