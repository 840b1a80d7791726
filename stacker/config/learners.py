"""The sections of the meta-learners: what decides how each learns, with its bounds and its default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from stacker.config.section import Section, Share

RULES = ("mean", "vote", "best_base")  # they look at the base models' probabilities alone
META_NAMES = ("logistic", "mlp", "xgboost", "svm", "random_forest", "convnet", *RULES)
CLASS_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$"


class LogisticConfig(Section):
    """L2-regularised logistic regression on standardised features."""

    C: float = Field(0.01, gt=0)


class SvmConfig(Section):
    """A support vector machine on standardised features; its distances become probabilities inside."""

    C: float = Field(1.0, gt=0)
    kernel: Literal["linear", "rbf"] = "rbf"


class RandomForestConfig(Section):
    """A forest of randomised trees."""

    n_estimators: int = Field(500, ge=1)
    max_depth: int | None = Field(None, ge=1)
    min_samples_leaf: int = Field(3, ge=1)
    max_features: float | Literal["sqrt", "log2"] = "sqrt"


class NetworkConfig(Section):
    """How the networks learn: at most so many epochs, chosen on an inner split by case."""

    dropout: float = Field(0.5, ge=0, lt=1)
    epochs: int = Field(100, ge=1)
    patience: int = Field(15, ge=1)
    validation: Share = 0.2
    batch_size: int = Field(64, ge=2)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)


class MlpConfig(NetworkConfig):
    """A BatchNorm/Dropout multi-layer perceptron on standardised features."""

    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[64])


class ConvnetConfig(NetworkConfig):
    """A small convolutional network over the maps of all backbones, stacked as channels on one grid."""

    channels: list[Annotated[int, Field(ge=1)]] = Field(default=[16, 32], min_length=1)
    grid: int = Field(7, ge=2, le=64)


class XgboostConfig(Section):
    """Gradient-boosted trees; how many is chosen on an inner split by case, `n_estimators` at most."""

    n_estimators: int = Field(500, ge=1)
    patience: int = Field(30, ge=1)
    validation: Share = 0.2
    max_depth: int = Field(3, ge=1)
    max_bin: int = Field(256, ge=2)
    learning_rate: float = Field(0.05, gt=0)
    subsample: float = Field(0.8, gt=0, le=1)
    colsample_bytree: float = Field(0.3, gt=0, le=1)
    min_child_weight: float = Field(2.0, ge=0)
    reg_lambda: float = Field(5.0, ge=0)


class CustomConfig(Section):
    """Any classifier with fit and predict_proba, by the dotted path of its class."""

    estimator: str = Field(pattern=CLASS_PATH)
    parameters: dict[str, Any] = Field(default={})
    scale: bool = True
