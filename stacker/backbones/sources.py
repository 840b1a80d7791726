"""What is known of a backbone's weights without loading them: which file, and what it says of itself.

Nothing here needs torch: whether a base model is up to date is asked far more often than one is trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stacker.config.training import WeightsConfig
from stacker.errors import BackboneError
from stacker.files import file_sha256, read_metadata

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def weights_file(name: str, settings: WeightsConfig) -> Path | None:
    """Return the file that a backbone starts from; None for the hub and for random initialisation.

    Raise BackboneError when there is none at the path, or not for this backbone in the folder.
    """
    if settings.weights in ("hub", "random"):
        return None
    path = Path(settings.weights).expanduser()
    if path.is_dir():
        files = [path / f"{name}{suffix}" for suffix in SUFFIXES if (path / f"{name}{suffix}").is_file()]
        if not files:
            raise BackboneError(
                f"backbones.{name}.weights: the folder {path} has no {name}.safetensors or {name}.pth"
            )
        return files[0]
    if not path.is_file():
        raise BackboneError(
            f"backbones.{name}.weights: no file at {settings.weights}; "
            "expected 'hub', 'random', a file, or a folder of files named after backbones"
        )
    return path


def weights_sha256(name: str, settings: WeightsConfig) -> str | None:
    """Return what stands for the file that a backbone starts from, if it starts from one."""
    path = weights_file(name, settings)
    return file_sha256(path) if path else None


def trained_on(name: str, settings: WeightsConfig) -> list[str]:
    """Return the cases that trained the base model whose file a backbone starts from, if it is one.

    Files of other programs, and base models that were exported, do not say.
    """
    path = weights_file(name, settings)
    if path is None or path.suffix != ".safetensors":
        return []
    try:
        return list(json.loads(read_metadata(path).get("stacker", "{}")).get("training_cases", []))
    except (OSError, ValueError, TypeError, AttributeError):
        return []  # whoever loads it will say so


def read_facts(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself, without reading its tensors."""
    try:
        facts: dict[str, Any] = json.loads(read_metadata(path)["stacker"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BackboneError(
            f"{path} is not a base model that stacker wrote ({error}); delete it and train again"
        ) from None
    return facts
