"""scikit-learn's estimators as meta-learners, and whatever keeps to the same contract.

They need their whole table at once, so the memory is asked for first. They are stored with skops, which
builds the objects of known types from a description of their parts: unlike a pickle it runs nothing of
the file's choosing. Types that skops does not know are loaded only where their package is trusted. It is
imported when something is stored, for it imports all of scikit-learn, and torch with it where that is.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils._param_validation import InvalidParameterError

from stacker.errors import StackerError, StackError
from stacker.stacking.learners.contract import count_classes
from stacker.stacking.learners.matrix import Rows2D, predict_in_pieces, whole

log = logging.getLogger(__name__)
PLAIN = {"collections.OrderedDict", "collections.defaultdict"}  # containers that packages keep things in
TREE = "sklearn.tree._tree.Tree"  # skops does not know it: what its numbers point at is never checked


class WholeTable(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator that gets its table as one array; `estimator_` is the fitted copy.

    `parallel` lets a fit take all cores; never a prediction, whose sums would come out in another order
    each time. `columns` is how many a stored one must have. `path` is that of a class which is not ours:
    what it raises is not a bug of this program.
    """

    suffix: ClassVar[str] = ".skops"

    def __init__(
        self,
        estimator: Any,
        name: str,
        memory_gb: float = 2.0,
        parallel: bool = False,
        columns: int | None = None,
        path: str | None = None,
    ) -> None:
        self.estimator = estimator
        self.name = name
        self.memory_gb = memory_gb
        self.parallel = parallel
        self.columns = columns
        self.path = path

    @property
    def weighs(self) -> bool:
        """Say whether the estimator's `fit` takes weights."""
        return "sample_weight" in inspect.signature(self.estimator.fit).parameters

    def fit(
        self,
        X: Rows2D,
        y: np.ndarray,
        groups: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Self:
        """Learn from rows (N, F) and class indices (N,); an estimator gets what its `fit` takes."""
        labels = np.asarray(y).astype(np.int64)
        classes = count_classes(labels)
        values = whole(X, self.memory_gb, self.name)
        model = clone(self.estimator, safe=False)
        extra, taken = {}, inspect.signature(model.fit).parameters
        if groups is not None and "groups" in taken:
            extra["groups"] = groups
        if weights is not None and self.weighs:
            extra["sample_weight"] = weights
        elif weights is not None and np.ptp(weights) > 0:
            say_once(f"{self.name} takes no weights: a rare class may be drowned")
        if self.parallel:
            model.set_params(n_jobs=-1)
        with self._named("learn from", values):
            model.fit(values, labels, **extra)
        found = np.asarray(getattr(model, "classes_", np.arange(classes)))
        if not np.array_equal(found, np.arange(classes)):
            raise StackError(
                f"{self.name} has the classes {found.tolist()}, expected 0 to {classes - 1}"
            )
        if self.parallel:
            model.set_params(n_jobs=None)
        self.estimator_, self.classes_ = model, np.arange(classes)
        return self

    def predict_proba(self, X: Rows2D) -> np.ndarray:
        """Return class probabilities (N, K)."""
        return predict_in_pieces(self._shares, X)

    def _shares(self, rows: np.ndarray) -> Any:
        with self._named("answer for", rows):
            return self.estimator_.predict_proba(rows)

    @contextmanager
    def _named(self, what: str, rows: np.ndarray) -> Iterator[None]:
        """Raise StackError for wrong parameters, and for whatever one that is not ours raises."""
        try:
            yield
        except InvalidParameterError as error:
            raise StackError(f"{self.name}: {error}; mend its parameters in the config") from error
        except StackerError:
            raise
        except Exception as error:
            if self.path is None:
                raise
            log.debug("%s failed", self.path, exc_info=True)
            who = self.path if self.path == self.name else f"{self.name} ({self.path})"
            said = f"{type(error).__name__}: {error}"
            raise StackError(
                f"{who} cannot {what} {rows.shape[0]} rows x {rows.shape[1]} columns: it raised "
                f"{' '.join(said.split())}; change its parameters or scale under stack.custom, give it "
                "other features, or leave it out"
            ) from error

    def predict(self, X: Rows2D) -> np.ndarray:
        """Return class indices (N,)."""
        likeliest: np.ndarray = self.predict_proba(X).argmax(axis=1)
        return likeliest

    def save(self, path: Path) -> None:
        """Write the fitted estimator with skops."""
        import skops.io

        skops.io.dump({"estimator": self.estimator_, "classes": len(self.classes_)}, path)

    def restore(self, path: Path, trusted: Sequence[str] = ()) -> Self:
        """Take the estimator that `save` wrote; raise StackError for types that are not trusted."""
        forest = isinstance(self.estimator, RandomForestClassifier) and self.path is None
        found = load_skops(path, self.name, trusted, (TREE,) if forest else ())
        self.estimator_, self.classes_ = found.get("estimator"), np.arange(found["classes"])
        if self.path is None:
            require(self.estimator_, type(self.estimator), self.columns, path)
        for tree in self.estimator_.estimators_ if forest else []:
            require(tree, DecisionTreeClassifier, self.columns, path)
            _check_tree(tree.tree_, self.estimator_.n_features_in_, path)
        return self


@cache
def say_once(message: str) -> None:
    """Warn of what is so for every fit of an estimator."""
    log.warning(message)


def load_skops(path: Path, name: str, trusted: Sequence[str], types: Sequence[str]) -> dict[str, Any]:
    """Read a file of skops; raise StackError when it is none or holds types that nobody vouches for."""
    import skops.io

    again = f"run 'stacker stack' again with --meta {name}"
    packages = {*trusted, "sklearn"} if trusted else set()
    try:
        unknown = set(skops.io.get_untrusted_types(file=path))
        vouched = {t for t in unknown if t in PLAIN or t in types or t.split(".")[0] in packages}
        if unknown == vouched:
            found: dict[str, Any] = skops.io.load(path, trusted=sorted(vouched))
            return found
    except Exception as error:  # a damaged file can raise anything at all
        raise StackError(f"{path} cannot be read as skops ({error}); {again}") from error
    strange = sorted(unknown - vouched)
    needed = ", ".join(dict.fromkeys(each.split(".")[0] for each in strange))
    raise StackError(
        f"{path} holds types that are not trusted: {', '.join(strange)}; if the file is your own and "
        f"you trust what is installed as {needed}, say so (--trust {needed}), else {again}"
    )


def require(found: Any, kind: type, columns: int | None, path: Path) -> None:
    """Raise StackError for a stored estimator of another type, or of another number of columns."""
    if type(found) is not kind:
        raise StackError(
            f"{path} holds a {type(found).__name__}, expected a {kind.__name__}; run 'stacker stack' "
            "again"
        )
    has = getattr(found, "n_features_in_", None)
    if columns is not None and has != columns:
        raise StackError(
            f"{path} holds a {kind.__name__} of {has} columns, expected {columns}; run 'stacker stack' "
            "again"
        )


def _check_tree(tree: Any, columns: int, path: Path) -> None:
    """Raise StackError when a stored tree points outside itself or its rows: it would read anywhere."""
    left, right, feature = tree.children_left, tree.children_right, tree.feature
    own = np.arange(tree.node_count)
    inner = left != -1
    fine = all(
        ((side[inner] > own[inner]) & (side[inner] < tree.node_count)).all() for side in (left, right)
    )
    fine = fine and tree.n_features == columns
    if not fine or not ((feature[inner] >= 0) & (feature[inner] < columns)).all():
        raise StackError(f"{path} is damaged: a tree points outside itself; run 'stacker stack' again")
