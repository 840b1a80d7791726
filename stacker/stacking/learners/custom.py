"""Any classifier by the dotted path of its class: imported, checked against the contract, and built."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from importlib.metadata import packages_distributions
from typing import Any

from stacker.config.learners import CustomConfig
from stacker.errors import StackError

CONTRACT = ("fit", "predict_proba")


def find_class(path: str) -> type:
    """Import a class by its dotted path; raise StackError when there is none."""
    module_name, _, name = path.rpartition(".")
    try:
        kind = getattr(import_module(module_name), name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        package = missing.split(".")[0]
        what = f"{path} cannot be imported: there is no module {missing}"
        if package in sys.modules:  # it was imported on the way to its part
            raise StackError(f"{what}, though {package} is installed; fix the path") from error
        raise StackError(
            f"{what}; install the package that has it (often: pip install {package}) into the "
            "environment of stacker, or fix the path"
        ) from error
    except ImportError as error:
        raise StackError(f"{path} cannot be imported: {error}; fix its installation") from error
    except AttributeError as error:
        raise StackError(f"{module_name} has no {name}; fix the path {path}") from error
    if not isinstance(kind, type):
        raise StackError(f"{path} is a {type(kind).__name__}, expected the class of a classifier")
    return kind


def named_package(path: str) -> str | None:
    """Return the installed package that a class's path names; None for Python's own modules."""
    package = path.split(".", maxsplit=1)[0]
    return package if package in packages_distributions() else None


def draws_lots(custom: CustomConfig) -> bool:
    """Say whether the seed changes what is learnt: some classes take their parameters as **kwargs."""
    if "random_state" in custom.parameters:
        return False
    kind = find_class(custom.estimator)
    if "random_state" in inspect.signature(kind).parameters:
        return True
    try:
        return "random_state" in kind().get_params()
    except (AttributeError, TypeError):
        return False


def build_estimator(name: str, custom: CustomConfig, seed: int) -> Any:
    """Return the estimator; raise StackError when it cannot be built or lacks a method."""
    kind = find_class(custom.estimator)
    parameters = dict(custom.parameters)
    if draws_lots(custom):
        parameters["random_state"] = seed
    try:
        estimator = kind(**parameters)
    except (TypeError, ValueError) as error:
        given = ", ".join(custom.parameters) or "none"
        raise StackError(
            f"{name}: {custom.estimator} does not take its parameters ({error}); given are {given}, it "
            f"has {', '.join(inspect.signature(kind).parameters)}"
        ) from error
    lacking = [method for method in CONTRACT if not callable(getattr(estimator, method, None))]
    if lacking:
        raise StackError(
            f"{name}: {custom.estimator} has no {' and no '.join(lacking)}, a meta-learner needs fit "
            "and predict_proba; use a classifier that predicts probabilities, or change its parameters"
        )
    return estimator
