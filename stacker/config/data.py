"""The sections that say which images there are, how they become pixels, and who is held out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from stacker.config.section import Names, Section, Share


def _share_or_official(value: Any) -> Any:
    """Speak for both halves of the union at once: pydantic alone would report two faults."""
    if value != "official" and not (isinstance(value, int | float) and 0 < value < 1):
        raise ValueError(f"expected a share between 0 and 1, or 'official'; found {value!r}")
    return value


Part = Annotated[float | Literal["official"], BeforeValidator(_share_or_official)]


class DataConfig(Section):
    """Which images, and what is to be told apart; data.formats knows what each `format` takes.

    `classes` says which classes are wanted and puts them in order; without it they are all there,
    sorted. Of two, the last is the positive one, which sensitivity, ROC curve, average precision and
    threshold are about; `positive` puts another one last. `case_pattern` finds the case in a file's
    path, `fold_list` is BreakHis's own split.
    """

    format: str = "breakhis"
    path: Path
    task: Literal["binary", "subtype"] = "binary"
    classes: Names[str] | None = Field(None, min_length=2)
    positive: str | None = None
    magnifications: list[int] | None = Field(None, min_length=1)
    case_pattern: str | None = None
    fold_list: Path | None = None
    masks: Path | None = None
    on_error: Literal["stop", "skip"] = "stop"

    @field_validator("path", "fold_list", "masks")
    @classmethod
    def _found_from_anywhere(cls, path: Path | None) -> Path | None:
        """Make paths absolute: a run's stored config is read from other working directories."""
        return None if path is None else path.expanduser().absolute()

    @field_validator("case_pattern")
    @classmethod
    def _names_the_case(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groupindex
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
            if "case" not in groups or not groups.keys() <= {"case", "slide"}:
                raise ValueError(
                    f"{pattern!r} needs a group (?P<case>...), may have (?P<slide>...) and no other name"
                )
        return pattern

    @model_validator(mode="after")
    def _one_positive_class(self) -> DataConfig:
        """Refuse a positive class that `classes` contradicts; what else is one, the images tell."""
        if self.positive is None or self.classes is None:
            return self
        listed = ", ".join(self.classes)
        if self.positive not in self.classes:
            raise ValueError(f"positive: {self.positive!r} is not one of the classes {listed}")
        if len(self.classes) > 2:
            raise ValueError(
                f"positive: {self.positive!r} is for two classes; classes has {len(self.classes)}: "
                f"{listed}"
            )
        if self.classes[-1] != self.positive:
            raise ValueError(
                f"positive is {self.positive!r} but classes ends with {self.classes[-1]!r}, and the "
                f"last of two classes is the positive one; put {self.positive!r} last, or leave out one "
                "of the two settings"
            )
        return self


Side = Annotated[int, Field(ge=32, le=2048)]


class ImagesConfig(Section):
    """How an image becomes a rectangle of pixels: `size` is a side, or [height, width]."""

    size: Side | tuple[Side, Side] = 224
    resize: Literal["squash", "crop", "pad"] = "squash"

    @field_validator("size", mode="before")
    @classmethod
    def _one_side_or_two(cls, raw: Any) -> Any:
        """Speak for both halves of the union at once, and write squares as one number."""
        sides = list(raw) if isinstance(raw, list | tuple) else [raw]
        whole = all(isinstance(side, int) and 32 <= side <= 2048 for side in sides)
        if not whole or len(sides) not in (1, 2):
            raise ValueError(f"expected a side or [height, width], each from 32 to 2048; found {raw!r}")
        return sides[0] if len(set(sides)) == 1 else tuple(sides)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)


class FoldsConfig(Section):
    """Who is held out from whom. `official` takes a part as the data set itself has it."""

    protocol: Literal["crossfit", "holdout"] = "crossfit"
    group: Literal["case", "slide", "image"] = "case"
    test: Part = 0.2
    stack: Part = 0.25
    k: int = Field(5, ge=2)
    validation: Share = 0.15

    @model_validator(mode="after")
    def _some_cases_are_left_to_train_on(self) -> FoldsConfig:
        taken = sum(share for share in (self.test, self.stack) if share != "official")
        if self.protocol == "holdout" and taken > 0.9:
            raise ValueError(
                f"test + stack take {100 * taken:.0f} % of the cases; leave 10 % to train on"
            )
        if self.protocol == "crossfit" and self.stack == "official":
            raise ValueError("stack: official is for holdout; crossfit stacks on its folds")
        if self.stack == "official" != self.test:
            raise ValueError("stack: official (the data set's valid part) needs test: official too")
        return self
