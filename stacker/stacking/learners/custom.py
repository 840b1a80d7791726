"""Any classifier by the dotted path of its class: imported, checked against the contract, and built."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from stacker.config.learners import CustomConfig
from stacker.errors import StackError

CONTRACT = ("fit", "predict_proba")


def find_class(path: str) -> type:
    """Import a class by its dotted path; raise StackError when there is none."""
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module_name), name)
    except ModuleNotFoundError as error:
        package = (error.name or module_name).split(".")[0]
        raise StackError(
            f"{path} cannot be imported: there is no module {error.name}; install the package that has "
            f"it (often: pip install {package}) into the environment of stacker, or mend the path"
        ) from error
    except ImportError as error:
        raise StackError(f"{path} cannot be imported: {error}; mend its installation") from error
    except AttributeError as error:
        raise StackError(f"{module_name} has no {name}; mend the path {path}") from error
    if not isinstance(found, type):
        raise StackError(f"{path} is a {type(found).__name__}, expected the class of a classifier")
    return found


def takes(kind: type, name: str) -> bool:
    """Say whether a class takes a parameter by this name."""
    return name in inspect.signature(kind).parameters or name in _defaults(kind)


def _defaults(kind: type) -> dict[str, Any]:
    """Return the parameters that an estimator says it has: some take theirs as **kwargs."""
    try:
        found: dict[str, Any] = kind().get_params()
    except (AttributeError, TypeError):
        return {}
    return found


def draws_lots(custom: CustomConfig) -> bool:
    """Say whether the seed changes what is learnt."""
    return "random_state" not in custom.parameters and takes(
        find_class(custom.estimator), "random_state"
    )


def build_estimator(name: str, custom: CustomConfig, seed: int) -> Any:
    """Return the estimator; raise StackError when it cannot be built or lacks a method."""
    kind = find_class(custom.estimator)
    parameters = dict(custom.parameters)
    if draws_lots(custom):
        parameters["random_state"] = seed
    try:
        found = kind(**parameters)
    except (TypeError, ValueError) as error:
        given = ", ".join(custom.parameters) or "none"
        raise StackError(
            f"{name}: {custom.estimator} does not take its parameters ({error}); given are {given}, it "
            f"has {', '.join(inspect.signature(kind).parameters)}"
        ) from error
    lacking = [method for method in CONTRACT if not callable(getattr(found, method, None))]
    if lacking:
        raise StackError(
            f"{name}: {custom.estimator} has no {' and no '.join(lacking)}, a meta-learner needs fit "
            "and predict_proba; take a classifier that gives probabilities, or change its parameters"
        )
    return found
