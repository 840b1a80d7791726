"""The meta-learners by name: how each is built, what decides its result, how it is stored.

All have scikit-learn's fit and predict_proba, take an array or a `Matrix` and weights of its rows, and
are written in a format that cannot run code when it is read: skops
for scikit-learn and its like, UBJSON for XGBoost, safetensors for the networks, JSON for the rules. What
a meta-learner is made of is imported when it is asked for: only the networks load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacker.config.learners import RULES, CustomConfig
from stacker.config.stacking import StackConfig
from stacker.errors import StackError
from stacker.files import publish
from stacker.stacking.learners.contract import MetaLearner


@dataclass(frozen=True)
class Order:
    """What a meta-learner is built from."""

    name: str
    config: StackConfig
    seed: int
    columns: tuple[str, ...]
    device: str


@dataclass(frozen=True)
class Kind:
    """How a meta-learner is built, whether the seed changes it, whether it wants scaled columns."""

    build: Callable[[Order], Any]
    seeded: bool
    scaled: bool


def _logistic(order: Order) -> Any:
    from sklearn.linear_model import LogisticRegression

    from stacker.stacking.learners.whole_table import WholeTable

    config = order.config
    model = LogisticRegression(C=config.logistic.C, max_iter=2000)
    return WholeTable(model, order.name, config.memory_gb, columns=len(order.columns))


def _svm(order: Order) -> Any:
    from stacker.stacking.learners.svm import SupportVectors

    config = order.config
    return SupportVectors(config.svm, config.memory_gb, len(order.columns))


def _random_forest(order: Order) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    from stacker.stacking.learners.whole_table import WholeTable

    config = order.config
    model = RandomForestClassifier(**config.random_forest.model_dump(), random_state=order.seed)
    return WholeTable(model, order.name, config.memory_gb, parallel=True, columns=len(order.columns))


def _xgboost(order: Order) -> Any:
    from stacker.stacking.learners.boosting import BoostedTrees

    config = order.config
    return BoostedTrees(config.xgboost, order.columns, config.memory_gb, order.seed, order.device)


def _mlp(order: Order) -> Any:
    from stacker.stacking.learners.networks import MlpClassifier

    config = order.config
    return MlpClassifier(config.mlp, order.columns, config.memory_gb, order.seed, order.device)


def _convnet(order: Order) -> Any:
    from stacker.stacking.learners.convnet import ConvnetClassifier

    config = order.config
    return ConvnetClassifier(config.convnet, order.columns, config.memory_gb, order.seed, order.device)


def _rule(order: Order) -> Any:
    from stacker.stacking.learners.rules import Rule

    return Rule(order.name, order.columns)


META: dict[str, Kind] = {
    "logistic": Kind(_logistic, seeded=False, scaled=True),
    "mlp": Kind(_mlp, seeded=True, scaled=True),
    "xgboost": Kind(_xgboost, seeded=True, scaled=False),
    "svm": Kind(_svm, seeded=False, scaled=True),
    "random_forest": Kind(_random_forest, seeded=True, scaled=False),
    "convnet": Kind(
        _convnet, seeded=True, scaled=False
    ),  # by whole maps, not by cells: it does so itself
    **dict.fromkeys(RULES, Kind(_rule, seeded=False, scaled=False)),
}


def build(
    name: str, config: StackConfig, seed: int, columns: Sequence[str], device: str = "auto"
) -> MetaLearner:
    """Return a meta-learner that has learnt nothing yet; raise StackError when it cannot be built."""
    custom = _custom(name, config)
    if custom is None:
        ours: MetaLearner = META[name].build(Order(name, config, seed, tuple(columns), device))
        return ours
    from stacker.stacking.learners.custom import build_estimator
    from stacker.stacking.learners.whole_table import WholeTable

    estimator = build_estimator(name, custom, seed)
    found: MetaLearner = WholeTable(estimator, name, config.memory_gb, path=custom.estimator)
    return found


def _custom(name: str, config: StackConfig) -> CustomConfig | None:
    """Return how one that is not ours is built; raise StackError for a name that nobody knows."""
    try:
        return config.custom_of(name)
    except ValueError as error:
        raise StackError(str(error)) from error


def is_seeded(name: str, config: StackConfig) -> bool:
    """Say whether the seed changes what a meta-learner learns."""
    custom = _custom(name, config)
    if custom is None:
        return META[name].seeded
    from stacker.stacking.learners.custom import draws_lots

    return draws_lots(custom)


def is_scaled(name: str, config: StackConfig) -> bool:
    """Say whether the columns should be standardised before a meta-learner sees them."""
    custom = _custom(name, config)
    return META[name].scaled if custom is None else custom.scale


def features_of(name: str, features: Sequence[str]) -> tuple[str, ...]:
    """Return which feature blocks a meta-learner looks at, of those that were asked for."""
    return ("probabilities",) if name in RULES else tuple(features)


def parameters(name: str, config: StackConfig) -> dict[str, Any]:
    """Return the plain data that decides what a meta-learner learns from a table, beside the seed."""
    if name in RULES:
        return {}
    custom = _custom(name, config)
    section = getattr(config, name) if custom is None else custom
    return {**section.model_dump(mode="json"), "balance": config.balance}


def save_meta(model: MetaLearner, stem: Path) -> Path:
    """Publish a fitted meta-learner under a stem and the suffix of its format; return the path."""
    path = _file(model, stem)
    with publish(path) as temporary:
        model.save(temporary)
    return path


def load_meta(
    name: str, config: StackConfig, stem: Path, columns: Sequence[str], trusted: Sequence[str] = ()
) -> MetaLearner:
    """Read a fitted meta-learner; raise StackError when it is missing, strange or of untrusted types.

    A class that is not ours is not imported before the types in the file were compared with `trusted`.
    """
    model: Any
    custom = _custom(name, config)
    if custom is None:
        model = build(name, config, 0, columns)
    else:
        from stacker.stacking.learners.whole_table import WholeTable

        model = WholeTable(None, name, config.memory_gb, path=custom.estimator)
    path = _file(model, stem)
    if not path.exists():
        raise StackError(f"{path}: no such meta-learner; run 'stacker stack CONFIG --meta {name}' first")
    found: MetaLearner = model.restore(path, trusted)
    if custom is not None and custom.estimator.rpartition(".")[2] != type(model.estimator_).__name__:
        raise StackError(
            f"{path} holds an {type(model.estimator_).__name__}, expected {custom.estimator}; run "
            f"'stacker stack CONFIG --meta {name}' again"
        )
    return found


def _file(model: MetaLearner, stem: Path) -> Path:
    return stem.with_name(stem.name + model.suffix)
