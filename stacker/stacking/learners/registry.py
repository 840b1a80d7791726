"""The meta-learners by name: how each is built, what decides its result, how it is stored.

All take an array or a `Matrix`, class indices, groups and weights of the rows, and are written in a
format that cannot run code when it is read: skops for scikit-learn's estimators, UBJSON for XGBoost,
safetensors for the networks and the logistic regression, JSON for the rules. What a meta-learner is
made of is imported when it is asked for: only the networks load torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacker.config.learners import RULES, CustomConfig
from stacker.config.stacking import StackConfig
from stacker.errors import StackError
from stacker.files import publish
from stacker.stacking.learners.contract import MetaLearner
from stacker.stacking.learners.custom import (
    build_estimator,
    draws_lots,
    find_class,
    named_package,
)
from stacker.stacking.learners.rules import Rule


@dataclass(frozen=True)
class Kind:
    """The path of a class, whether the seed changes what it learns, whether it wants scaled columns.

    The class is a `MetaLearner`, or an estimator that gets its table as a whole; a `parallel` one is
    fitted on all cores.
    """

    path: str
    seeded: bool
    scaled: bool
    parallel: bool = False


OURS = __name__.rpartition(".")[0]
META: dict[str, Kind] = {
    "logistic": Kind(f"{OURS}.logistic.Logistic", seeded=False, scaled=True),
    "mlp": Kind(f"{OURS}.networks.MlpClassifier", seeded=True, scaled=True),
    "xgboost": Kind(f"{OURS}.boosting.BoostedTrees", seeded=True, scaled=False),
    "svm": Kind(f"{OURS}.whole_table.SupportVectors", seeded=False, scaled=True),
    "random_forest": Kind("sklearn.ensemble.RandomForestClassifier", True, False, parallel=True),
    # The convnet scales by whole maps, not by cells: it does so itself.
    "convnet": Kind(f"{OURS}.convnet.ConvnetClassifier", seeded=True, scaled=False),
    **dict.fromkeys(RULES, Kind(f"{OURS}.rules.Rule", seeded=False, scaled=False)),
}


def build(
    name: str, config: StackConfig, seed: int, columns: Sequence[str], device: str = "auto"
) -> MetaLearner:
    """Return a meta-learner that has learnt nothing yet; raise StackError when it cannot be built."""
    custom, columns = _custom(name, config), tuple(columns)
    if custom is not None:
        return _whole(build_estimator(name, custom, seed), name, config, path=custom.estimator)
    if name in RULES:
        return Rule(name, columns)
    kind, settings = META[name], getattr(config, name)
    made_of: Any = find_class(kind.path)
    if issubclass(made_of, MetaLearner):
        learner: MetaLearner = made_of(settings, columns, config.memory_gb, seed, device)
        return learner
    estimator = made_of(**settings.model_dump(), **({"random_state": seed} if kind.seeded else {}))
    return _whole(estimator, name, config, parallel=kind.parallel, columns=columns)


def _whole(estimator: Any, name: str, config: StackConfig, **how: Any) -> MetaLearner:
    """Return an estimator that gets its table as a whole as a meta-learner."""
    from stacker.stacking.learners.whole_table import WholeTable

    return WholeTable(estimator, name, config.memory_gb, **how)


def _custom(name: str, config: StackConfig) -> CustomConfig | None:
    """Return how one that is not ours is built; raise StackError for a name that nobody knows."""
    try:
        return config.custom_of(name)
    except ValueError as error:
        raise StackError(str(error)) from error


def trusted_by_config(name: str, config: StackConfig) -> tuple[str, ...]:
    """Return the packages whose classes a config lets a meta-learner be made of, by naming it.

    A stack that was copied into a run is not named there. Only installed packages: a class of Python's
    own modules is no meta-learner.
    """
    named = {*config.meta, *(config.compare.meta or ()), *config.custom}
    custom = _custom(name, config) if name in named else None
    package = None if custom is None else named_package(custom.estimator)
    return () if package is None else (package,)


def is_seeded(name: str, config: StackConfig) -> bool:
    """Say whether the seed changes what a meta-learner learns."""
    custom = _custom(name, config)
    return META[name].seeded if custom is None else draws_lots(custom)


def is_scaled(name: str, config: StackConfig) -> bool:
    """Say whether the columns should be standardised before a meta-learner sees them."""
    custom = _custom(name, config)
    return META[name].scaled if custom is None else custom.scale


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
    custom = _custom(name, config)
    model: Any = (
        build(name, config, 0, columns)
        if custom is None
        else _whole(None, name, config, path=custom.estimator)
    )
    path, again = _file(model, stem), f"run 'stacker stack CONFIG --meta {name}'"
    if not path.exists():
        raise StackError(f"{path}: no such meta-learner", f"{again} first")
    loaded: MetaLearner = model.restore(path, trusted)
    if custom is not None:
        kind = type(model.estimator_)
        stored = f"{kind.__module__}.{kind.__qualname__}"
        if _root_and_name(stored) != _root_and_name(custom.estimator):
            raise StackError(f"{path} holds {stored}, expected {custom.estimator}", f"{again} again")
    return loaded


def _root_and_name(path: str) -> tuple[str, str]:
    """Return package and name of a class: a package may offer it elsewhere than where it is defined."""
    return path.partition(".")[0], path.rpartition(".")[2]


def _file(model: MetaLearner, stem: Path) -> Path:
    return stem.with_name(stem.name + model.suffix)
