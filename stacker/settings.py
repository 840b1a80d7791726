"""The part of the config that is stage two's and three's: what is cached, and what is learnt from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from stacker.recipe import Section

T = TypeVar("T")
MetaName = Literal["logistic", "mlp", "xgboost"]
MethodName = Literal[
    "gradcam",
    "gradcam++",
    "xgradcam",
    "hirescam",
    "layercam",
    "gradcamelementwise",
    "shapleycam",
    "eigencam",
    "eigengradcam",
    "segeigencam",
    "fem",
    "kpcacam",
    "scorecam",
    "ablationcam",
]
PERTURBING = ("scorecam", "ablationcam")  # a pass per channel: they cost what they cost


def _each_once(what: str, names: list[T]) -> list[T]:
    if len(set(names)) < len(names):
        raise ValueError(f"{what} {names} names one twice")
    return names


class CamConfig(Section):
    """What stage two caches, and in what portions.

    The maps of the first method at the last grid are `maps`; others have their method and level behind
    them, as in `maps_layercam` or `maps_lower1`. `lower` takes maps of so many stages below the last
    grid, too. `memory_gb` bounds the base models that are held at once, fed by one read of an image.
    """

    methods: list[MethodName] = Field(["gradcam"], min_length=1)
    lower: int = Field(0, ge=0, le=4)
    batch_size: int = Field(32, ge=1)
    part_rows: int = Field(1024, ge=1)
    memory_gb: float = Field(4.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _one_method_of_older_runs(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "method" in raw and "methods" not in raw:
            rest = {key: value for key, value in raw.items() if key != "method"}
            return {**rest, "methods": [raw["method"]]}
        return raw

    @field_validator("methods")
    @classmethod
    def _each_method_once(cls, methods: list[MethodName]) -> list[MethodName]:
        return _each_once("methods", methods)

    @property
    def maps(self) -> dict[str, tuple[str, int]]:
        """The datasets of maps: their names, with the method and the level (0: the last grid)."""
        return name_maps(self.methods, self.lower)


def name_maps(methods: Sequence[str], lower: int) -> dict[str, tuple[str, int]]:
    """Return the names of all maps, with the method and the level below the last grid."""
    return {
        "maps" + (f"_{method}" if number else "") + (f"_lower{level}" if level else ""): (method, level)
        for number, method in enumerate(methods)
        for level in range(1 if method in PERTURBING else lower + 1)
    }


class LogisticConfig(Section):
    """L2-regularised logistic regression on standardised features."""

    C: float = Field(0.01, gt=0)


class MlpConfig(Section):
    """A BatchNorm/Dropout multi-layer perceptron on standardised features."""

    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[64])
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

    features: list[str] = Field(["maps", "logits"], min_length=1)
    meta: list[MetaName] = Field(["logistic"], min_length=1)
    logistic: LogisticConfig = LogisticConfig()
    mlp: MlpConfig = MlpConfig()
    xgboost: XgboostConfig = XgboostConfig()
    bootstrap: int = Field(2000, ge=100)

    @field_validator("features")
    @classmethod
    def _each_block_once(cls, features: list[str]) -> list[str]:
        return _each_once("features", features)
