"""timm and torchvision, imported without torch's compiler.

Importing them loads `torch._dynamo` and sympy, which take as long as torch itself and serve nothing but
`torch.compile`: torchvision's RoI align takes one small name from `torch._dynamo.utils`, and both mark
some functions by `torch.compiler.disable`. While they are imported, a stand-in lies in the place of that
module, and functions are marked as torch marks those of its optimizers, which loads the compiler when
one is called. The stand-in gives way as soon as anything else is asked of the compiler. Where all this
fails with another version of torch, timm or torchvision, they are imported as usual, with the compiler.
Every other file takes timm from here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from inspect import signature
from types import ModuleType
from typing import Any

import torch

log = logging.getLogger(__name__)
COMPILER = "torch._dynamo"
UTILS = f"{COMPILER}.utils"
LATER: Any = getattr(torch, "_disable_dynamo", None)  # how torch marks its own functions
HEAVY = ("timm", "torchvision.models")


class _StandIn(ModuleType):
    """`torch._dynamo.utils` as far as torchvision needs it in order to be imported."""

    def is_compile_supported(self, device_type: str) -> bool:
        """Ask the real function."""
        return bool(_real_utils().is_compile_supported(device_type))

    def __getattr__(self, name: str) -> Any:
        """Give what is not here from the real module."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real_utils(), name)


class _GivesWay(MetaPathFinder):
    """Removes the stand-in as soon as the compiler itself is imported; finds nothing."""

    def find_spec(self, fullname: str, *_: object) -> None:
        """Look at the name alone."""
        if fullname == COMPILER:
            _give_way()


def _give_way() -> None:
    if isinstance(sys.modules.get(UTILS), _StandIn):
        del sys.modules[UTILS]


def _real_utils() -> ModuleType:
    _give_way()
    return import_module(UTILS)


def _disable_later(fn: Callable[..., Any] | None = None, recursive: bool = True, **_: Any) -> Any:
    """Do what `torch.compiler.disable` does, when the function is called for the first time."""
    return LATER(fn, recursive)


def _knows_later() -> bool:
    """Say whether torch marks functions in the way that is known here."""
    try:
        signature(LATER).bind(len, True)
    except (TypeError, ValueError):
        return False
    return True


@contextmanager
def without_compiler() -> Iterator[None]:
    """Keep torch's compiler out of what is imported in the block, where it is not loaded yet."""
    if COMPILER in sys.modules or not _knows_later():
        yield
        return
    watch = _GivesWay()
    sys.modules[UTILS] = _StandIn(UTILS)
    sys.meta_path.insert(0, watch)
    disable, torch.compiler.disable = torch.compiler.disable, _disable_later
    try:
        yield
    finally:
        torch.compiler.disable = disable
        sys.meta_path.remove(watch)
        _give_way()


def _import_lightly() -> None:
    """Import what is heavy without the compiler; what fails is left to the plain imports below."""
    try:
        with without_compiler():
            for name in HEAVY:
                import_module(name)
    except Exception:  # whatever other versions raise
        log.debug("timm and torchvision are imported with torch's compiler", exc_info=True)


_import_lightly()

import timm  # noqa: E402
from timm.data.loader import PrefetchLoader, fast_collate  # noqa: E402
from timm.models import (  # noqa: E402
    build_model_with_cfg,
    generate_default_cfgs,
    group_parameters,
    register_model,
)
from timm.models.vgg import VGG  # noqa: E402
from timm.utils import ModelEmaV3  # noqa: E402
from torchvision.models import AlexNet as TorchvisionAlexNet  # noqa: E402


def optimizers() -> Any:
    """Return timm's module of optimizers; they load the compiler, which a prediction can do without."""
    return import_module("timm.optim")


__all__ = [
    "VGG",
    "ModelEmaV3",
    "PrefetchLoader",
    "TorchvisionAlexNet",
    "build_model_with_cfg",
    "fast_collate",
    "generate_default_cfgs",
    "group_parameters",
    "optimizers",
    "register_model",
    "timm",
    "without_compiler",
]
