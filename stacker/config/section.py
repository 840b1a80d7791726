"""What all sections of the config share."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

T = TypeVar("T")
Share = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A section: unknown keys are faults and values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def once(what: str, names: list[T]) -> list[T]:
    """Return names of which each is there once; raise ValueError otherwise."""
    if any(name in names[:place] for place, name in enumerate(names)):
        raise ValueError(f"{what} {names} names one twice")
    return names


def _field_once(names: list[T], info: ValidationInfo) -> list[T]:
    return once(str(info.field_name), names)


Names = Annotated[list[T], AfterValidator(_field_once)]
