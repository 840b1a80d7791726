"""What all sections of the config share."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from stacker.errors import ConfigError

T = TypeVar("T")
Share = Annotated[float, Field(gt=0, lt=1)]

DEVICE = r"^(auto|cpu|mps|cuda(:\d+)?)$"


class Section(BaseModel):
    """A section: unknown keys are faults and values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def once(what: str, names: list[T]) -> list[T]:
    """Return names of which each is there once; raise ValueError otherwise."""
    if any(name in names[:place] for place, name in enumerate(names)):
        raise ValueError(f"{what} lists a name twice: {names}")
    return names


def _field_once(names: list[T], info: ValidationInfo) -> list[T]:
    return once(str(info.field_name), names)


Names = Annotated[list[T], AfterValidator(_field_once)]


def require_device(name: str) -> None:
    """Raise ConfigError for what no device is called."""
    if re.match(DEVICE, name) is None:
        raise ConfigError(
            f"device: unknown device {name!r}", "choose auto, cpu, cuda, e.g. cuda:1, or mps"
        )
