"""Estimators in files of skops: what is read is looked over before it is run.

skops builds the objects of known types from a description of their parts: unlike a pickle it runs
nothing of the file's choosing. Types that it does not know are loaded only where their package is
trusted. It is imported when something is stored, for it imports all of scikit-learn, and torch with it
where that is. Trees and support vectors go to compiled code that believes every length and place, so
these are compared first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from stacker.errors import StackError

PLAIN = {"collections.OrderedDict", "collections.defaultdict"}  # containers that packages keep things in
AGAIN = "run 'stacker stack' again"


def load_skops(path: Path, name: str, trusted: Sequence[str], types: Collection[str]) -> dict[str, Any]:
    """Read a file of skops; raise StackError when it is none or holds types that nobody vouches for."""
    import skops.io

    again = f"{AGAIN} with --meta {name}"
    packages = {*trusted, "sklearn"} if trusted else set()
    try:
        unknown = set(skops.io.get_untrusted_types(file=path))
        vouched = {t for t in unknown if t in PLAIN or t in types or t.split(".")[0] in packages}
        if unknown == vouched:
            _require_installed(path, vouched)
            content: dict[str, Any] = skops.io.load(path, trusted=sorted(vouched))
            return content
    except StackError:
        raise
    except Exception as error:  # a damaged file can raise anything at all
        raise StackError(f"{path} cannot be read as skops ({error})", again) from error
    strange = sorted(unknown - vouched)
    needed = _packages(strange)
    options = " ".join(f"--trust {package}" for package in needed)
    raise StackError(
        f"{path} holds types that are not trusted: {', '.join(strange)}",
        f"if you trust whoever made the file, and the installed {' and '.join(needed)}, add {options} "
        f"to the command (in Python: trusted={needed})",
    )


def _packages(types: Iterable[str]) -> list[str]:
    """Return the packages that types are of, each once."""
    return list(dict.fromkeys(kind.split(".")[0] for kind in types))


def _require_installed(path: Path, types: Collection[str]) -> None:
    """Raise StackError where a package that a file needs is not installed."""
    missing = [package for package in _packages(sorted(types)) if find_spec(package) is None]
    if missing:
        listed = " ".join(missing)
        raise StackError(
            f"{path} needs {' and '.join(missing)}, which is not installed",
            f"install the package that has it (often: pip install {listed}), and run this again",
        )


def require(stored: Any, kind: type, columns: int, path: Path) -> None:
    """Raise StackError for a stored estimator of another type, or of another number of columns."""
    if type(stored) is not kind:
        raise StackError(f"{path} holds a {type(stored).__name__}, expected a {kind.__name__}", AGAIN)
    width = getattr(stored, "n_features_in_", None)
    if width != columns:
        raise StackError(f"{path} holds a {kind.__name__} of {width} columns, expected {columns}", AGAIN)


def check_forest(forest: Any, path: Path) -> None:
    """Raise StackError when a stored tree points outside itself or its rows: it would read anywhere."""
    columns = forest.n_features_in_
    for member in forest.estimators_:
        require(member, DecisionTreeClassifier, columns, path)
        tree = member.tree_
        node, inner = np.arange(tree.node_count), tree.children_left != -1
        below = [side[inner] for side in (tree.children_left, tree.children_right)]
        feature = tree.feature[inner]
        sound = tree.n_features == columns and ((feature >= 0) & (feature < columns)).all()
        if not sound or not all(
            ((side > node[inner]) & (side < tree.node_count)).all() for side in below
        ):
            raise StackError(f"{path} is damaged: a tree points outside itself", AGAIN)


def check_machine(vectors: Any, kernel: str, classes: int, path: Path) -> None:
    """Raise StackError when a stored machine lacks sigmoids, or its arrays do not fit each other."""
    machine: Any = getattr(vectors, "machine_", None)
    sigmoids = 1 if classes == 2 else classes
    require(machine, SVC, vectors.n_features_in_, path)
    if any(len(getattr(vectors, name, None) or ()) != sigmoids for name in ("slopes_", "intercepts_")):
        raise StackError(f"{path} is damaged: it lacks sigmoids", AGAIN)
    number, by_class = len(machine.support_vectors_), machine.n_support_
    sound = (
        machine.kernel == kernel
        and machine.support_vectors_.shape == (number, machine.n_features_in_)
        and machine._dual_coef_.shape == (classes - 1, number)
        and machine._intercept_.shape == (classes * (classes - 1) // 2,)
        and by_class.shape == (classes,)
        and by_class.min() >= 0
        and by_class.sum() == number
    )
    if not sound:
        raise StackError(f"{path} is damaged: its parts do not fit", AGAIN)
