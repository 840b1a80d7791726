"""Grad-CAM ensemble stacking for breast histopathology, split by case.

What `import stacker` offers is imported when it is first asked for, so that the import itself costs
nothing: `docs/python.md` shows it at work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stacker.config.load import load_config
    from stacker.errors import StackerError
    from stacker.maps.in_memory import cam
    from stacker.notebook import compare, heatmaps, open_cache, predict
    from stacker.pipeline import cache, stack, train
    from stacker.run import Run, open_run
    from stacker.stacking.estimator import meta_learner
    from stacker.stacking.feature_table import table
    from stacker.training.begin import begin

__version__ = "0.1.0"
__all__ = [
    "Run",
    "StackerError",
    "__version__",
    "begin",
    "cache",
    "cam",
    "compare",
    "heatmaps",
    "load_config",
    "meta_learner",
    "open_cache",
    "open_run",
    "predict",
    "stack",
    "table",
    "train",
]
HOMES = {
    "Run": "run",
    "StackerError": "errors",
    "begin": "training.begin",
    "cache": "pipeline",
    "cam": "maps.in_memory",
    "compare": "notebook",
    "heatmaps": "notebook",
    "load_config": "config.load",
    "meta_learner": "stacking.estimator",
    "open_cache": "notebook",
    "open_run": "run",
    "predict": "notebook",
    "stack": "pipeline",
    "table": "stacking.feature_table",
    "train": "pipeline",
}


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        """Import what is asked for, once (PEP 562)."""
        if name not in HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    """Name what is offered, before it is imported."""
    return sorted(__all__)
