"""The meta-learners: scikit-learn's fit and predict_proba, stored without pickle.

Each entry of META builds an estimator from its section of the config. All of them standardise what
needs it inside the fit, weigh the classes equally, and write themselves in a format that cannot run
code when it is read: skops for scikit-learn, UBJSON for XGBoost, safetensors for the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stacker.errors import RunError
from stacker.run import publish
from stacker.settings import StackConfig


class MetaLearner(Protocol):
    """What stage three needs of an estimator."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Any:
        """Learn from features (N, F) and class indices (N,)."""

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return class probabilities (N, K)."""


@dataclass(frozen=True)
class Kind:
    """How a meta-learner is built, and how it is written to and read from a file."""

    build: Callable[[StackConfig, int], MetaLearner]
    save: Callable[[Any, Path], None]
    load: Callable[[Path], MetaLearner]
    suffix: str


def _build_logistic(config: StackConfig, seed: int) -> MetaLearner:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model: MetaLearner = make_pipeline(
        StandardScaler(),
        LogisticRegression(
            C=config.logistic.C, class_weight="balanced", max_iter=2000, random_state=seed
        ),
    )
    return model


def _save_skops(model: Any, path: Path) -> None:
    import skops.io

    skops.io.dump(model, path)


def _load_skops(path: Path) -> MetaLearner:
    import skops.io

    strange = skops.io.get_untrusted_types(file=path)
    if strange:
        raise RunError(f"{path} holds types that are not scikit-learn's: {', '.join(strange)}")
    model: MetaLearner = skops.io.load(path)
    return model


class BoostedTrees:
    """XGBoost's histogram trees with equal class weights; `booster_` is the fitted model."""

    def __init__(self, seed: int = 0, **parameters: Any) -> None:
        self.seed = seed
        self.parameters = parameters

    def fit(self, X: np.ndarray, y: np.ndarray) -> BoostedTrees:
        """Learn from features (N, F) and class indices (N,)."""
        import xgboost

        classes = int(y.max()) + 1
        weights = len(y) / (classes * np.bincount(y, minlength=classes))
        parameters = dict(self.parameters)
        rounds = parameters.pop("n_estimators")
        goal = {"objective": "multi:softprob", "num_class": classes, "tree_method": "hist"}
        data = xgboost.DMatrix(X, y, weight=weights[y])
        self.booster_ = xgboost.train({**parameters, **goal, "seed": self.seed}, data, rounds)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return class probabilities (N, K)."""
        import xgboost

        found: np.ndarray = self.booster_.predict(xgboost.DMatrix(X))
        return found


def _build_xgboost(config: StackConfig, seed: int) -> MetaLearner:
    return BoostedTrees(seed, **config.xgboost.model_dump())


def _save_xgboost(model: BoostedTrees, path: Path) -> None:
    path.write_bytes(model.booster_.save_raw("ubj"))


def _load_xgboost(path: Path) -> MetaLearner:
    import xgboost

    model = BoostedTrees()
    model.booster_ = xgboost.Booster()
    model.booster_.load_model(bytearray(path.read_bytes()))
    return model


def _build_mlp(config: StackConfig, seed: int) -> MetaLearner:
    from stacker.mlp import MlpClassifier

    return MlpClassifier(seed=seed, **config.mlp.model_dump())


def _save_mlp(model: Any, path: Path) -> None:
    model.save(path)


def _load_mlp(path: Path) -> MetaLearner:
    from stacker.mlp import MlpClassifier

    return MlpClassifier.load(path)


META: dict[str, Kind] = {
    "logistic": Kind(_build_logistic, _save_skops, _load_skops, ".skops"),
    "mlp": Kind(_build_mlp, _save_mlp, _load_mlp, ".safetensors"),
    "xgboost": Kind(_build_xgboost, _save_xgboost, _load_xgboost, ".ubj"),
}


def model_file(name: str, folder: Path) -> Path:
    """Return the path of a stored meta-learner."""
    return folder / f"model{META[name].suffix}"


def save_meta(name: str, model: MetaLearner, folder: Path) -> None:
    """Publish a fitted meta-learner."""
    with publish(model_file(name, folder)) as temporary:
        META[name].save(model, temporary)


def load_meta(name: str, folder: Path) -> MetaLearner:
    """Read a fitted meta-learner; raise RunError when there is none."""
    path = model_file(name, folder)
    if not path.exists():
        raise RunError(f"{path}: no such meta-learner; run 'stacker stack CONFIG --meta {name}' first")
    return META[name].load(path)
