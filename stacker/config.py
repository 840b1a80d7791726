"""The config: pydantic models, YAML in, resolved YAML out.

Every setting of the three stages is a field here with a type, a bound and a default, so that a config
file is checked whole before anything runs: unknown keys are rejected with the nearest known name and
all faults are reported at once. `Config.results()` is the part that decides what is trained; a run keeps
it frozen, while other settings (`cam`, `stack`, the device) may change between two calls.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from stacker.errors import ConfigError

MetaName = Literal["logistic", "mlp", "xgboost"]
BlockName = Literal["maps", "logits", "embeddings"]
Share = Annotated[float, Field(gt=0, lt=1)]
Channels = tuple[float, float, float]


class Section(BaseModel):
    """What all sections share: unknown keys are faults and values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """Which images, and what is to be told apart."""

    format: Literal["breakhis"] = "breakhis"
    path: Path
    task: Literal["binary", "subtype"] = "binary"
    magnifications: list[int] | None = Field(None, min_length=1)
    masks: Path | None = None
    on_error: Literal["stop", "skip"] = "stop"

    @field_validator("path", "masks")
    @classmethod
    def _found_from_anywhere(cls, path: Path | None) -> Path | None:
        """Make paths absolute: a run's stored config is read from other working directories."""
        return None if path is None else path.expanduser().absolute()


class ImagesConfig(Section):
    """How an image becomes a square of pixels."""

    size: int = Field(224, ge=32, le=2048)
    resize: Literal["squash", "crop"] = "squash"


class FoldsConfig(Section):
    """Who is held out from whom."""

    protocol: Literal["crossfit", "holdout"] = "crossfit"
    group: Literal["case", "slide", "image"] = "case"
    test: Share = 0.2
    stack: Share = 0.25
    k: int = Field(5, ge=2)
    validation: Share = 0.15

    @model_validator(mode="after")
    def _some_cases_are_left_to_train_on(self) -> FoldsConfig:
        if self.protocol == "holdout" and self.test + self.stack > 0.9:
            taken = self.test + self.stack
            raise ValueError(f"test + stack take {taken:.0%} of the cases; leave 10% to train on")
        return self


class BackboneConfig(Section):
    """Where a backbone starts from, and what it does differently from `train`."""

    weights: str = "hub"
    partial: bool = False
    mean: Channels | None = None
    std: Channels | None = None
    lr: float | None = Field(None, gt=0)
    epochs: int | None = Field(None, ge=1)


class TrainConfig(Section):
    """The fine-tuning recipe of stage one."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(32, ge=2)
    lr: float = Field(3e-4, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup: float = Field(0.25, ge=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["balanced", "none"] = "balanced"
    flips: bool = True
    colour_jitter: float = Field(0.1, ge=0, le=1)
    clip_norm: float | None = Field(1.0, gt=0)
    patience: int | None = Field(None, ge=1)


class CamConfig(Section):
    """What stage two caches, and in what portions."""

    method: Literal["gradcam", "hirescam", "layercam"] = "gradcam"
    batch_size: int = Field(32, ge=1)
    part_rows: int = Field(1024, ge=1)


class LogisticConfig(Section):
    """L2-regularised logistic regression on standardised features."""

    C: float = Field(0.01, gt=0)


class MlpConfig(Section):
    """A BatchNorm/Dropout multi-layer perceptron on standardised features."""

    hidden: list[Annotated[int, Field(ge=1)]] = [64]
    dropout: float = Field(0.5, ge=0, lt=1)
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(64, ge=2)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)


class XgboostConfig(Section):
    """Gradient-boosted trees."""

    n_estimators: int = Field(200, ge=1)
    max_depth: int = Field(3, ge=1)
    learning_rate: float = Field(0.05, gt=0)
    subsample: float = Field(0.8, gt=0, le=1)
    colsample_bytree: float = Field(0.3, gt=0, le=1)
    min_child_weight: float = Field(2.0, ge=0)
    reg_lambda: float = Field(5.0, ge=0)


class StackConfig(Section):
    """Which features stage three sees, which meta-learners it trains, and how it scores them."""

    features: list[BlockName] = Field(["maps", "logits"], min_length=1)
    meta: list[MetaName] = Field(["logistic"], min_length=1)
    logistic: LogisticConfig = LogisticConfig()
    mlp: MlpConfig = MlpConfig()
    xgboost: XgboostConfig = XgboostConfig()
    bootstrap: int = Field(2000, ge=100)


class Config(Section):
    """One run: everything that decides its result."""

    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    artifacts: Path = Path("artifacts")
    seed: int = Field(0, ge=0, lt=2**31)
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    data: DataConfig
    images: ImagesConfig = ImagesConfig()
    folds: FoldsConfig = FoldsConfig()
    backbones: dict[str, BackboneConfig] = Field(min_length=1)
    train: TrainConfig = TrainConfig()
    cam: CamConfig = CamConfig()
    stack: StackConfig = StackConfig()

    @field_validator("backbones", mode="before")
    @classmethod
    def _a_bare_name_means_the_defaults(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            return {name: {} if settings is None else settings for name, settings in raw.items()}
        return raw

    @model_validator(mode="after")
    def _embeddings_are_not_mixed(self) -> Config:
        if self.folds.protocol == "crossfit" and "embeddings" in self.stack.features:
            raise ValueError(
                "stack.features: embeddings of different fold models live in different bases and "
                "cannot share a table; use folds.protocol=holdout, or drop 'embeddings'"
            )
        return self

    @property
    def run_path(self) -> Path:
        """The run directory."""
        return self.artifacts / self.run

    def results(self) -> dict[str, Any]:
        """Return the settings that decide what is trained, as plain data.

        What is cached is decided by `cam` too; the caches say themselves how they were made.
        """
        free = dict.fromkeys(("run", "artifacts", "device", "precision", "cam", "stack"), True)
        return self.model_dump(mode="json", exclude={**free, "data": {"masks", "on_error"}})

    def to_yaml(self) -> str:
        """Return the resolved config as YAML that loads to an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML config and apply `a.b=c` overrides; raise ConfigError with every fault in it."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"no config file at {path}; give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        faults = [_explain(dict(fault)) for fault in error.errors()]
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise ConfigError("\n  ".join([f"{path}: {count} in the config", *faults])) from None


def _override(raw: dict[str, Any], override: str) -> None:
    """Set `a.b=c` in the raw mapping, creating the sections on the way."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected section.key=value, e.g. train.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: '{text}' is not a YAML value") from None
    section = raw
    for key in keys[:-1]:
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: '{key}' is a value, not a section")
    section[keys[-1]] = value


def _explain(fault: dict[str, Any]) -> str:
    """Say one pydantic fault in a line: where, what is wrong, what was found or what is near."""
    location: tuple[str | int, ...] = fault["loc"]
    where = ".".join(str(part) for part in location)
    if fault["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{where}: required, but not given"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not location or fault["type"] == "value_error":
        return f"{where}: {message}" if where else message
    if fault["type"] == "literal_error":
        choices = [c.strip("'") for c in fault["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        near = difflib.get_close_matches(str(fault["input"]), choices, n=1, cutoff=0.5)
        message += f"; did you mean '{near[0]}'?" if near else ""
    return f"{where}: {message}; found {fault['input']!r}"


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    """Return the names that the section at `location` knows."""
    model: type[BaseModel] = Config
    keys = iter(location)
    for key in keys:
        annotation = model.model_fields[str(key)].annotation
        if get_origin(annotation) is dict:
            next(keys)
            annotation = get_args(annotation)[1]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
