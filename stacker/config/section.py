"""The part of the config that is stage one's: where a backbone starts, how it is trained and tuned.

Every field is a setting of the `train`, `backbones` or `tune` section, with its bounds and its default.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """What all sections share: unknown keys are faults and values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


T = TypeVar("T")


def _each_once(what: str, names: list[T]) -> list[T]:
    if any(name in names[:place] for place, name in enumerate(names)):
        raise ValueError(f"{what} {names} names one twice")
    return names
