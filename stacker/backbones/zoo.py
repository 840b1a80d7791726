"""timm and torchvision, imported without torch's compiler.

Importing them loads `torch._dynamo` and sympy, which take as long as torch itself and serve nothing but
`torch.compile`: torchvision's RoI align takes one small name from `torch._dynamo.utils`, and both mark
some functions by `torch.compiler.disable`. While they are imported, a stand-in lies in the place of that
module, and functions are marked as torch marks those of its optimizers, which loads the compiler when
one is called. The stand-in gives way as soon as anything else is asked of the compiler, so that at worst
nothing is gained.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

import torch

COMPILER = "torch._dynamo"
UTILS = f"{COMPILER}.utils"
LATER: Any = getattr(torch, "_disable_dynamo", None)  # how torch marks its own functions


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


@contextmanager
def without_compiler() -> Iterator[None]:
    """Keep torch's compiler out of what is imported in the block, where it is not loaded yet."""
    if COMPILER in sys.modules or LATER is None:
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


with without_compiler():
    import timm
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models.vgg import VGG
    from torchvision.models import AlexNet as TorchvisionAlexNet

__all__ = [
    "VGG",
    "TorchvisionAlexNet",
    "build_model_with_cfg",
    "generate_default_cfgs",
    "register_model",
    "timm",
    "without_compiler",
]
