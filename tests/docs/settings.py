"""Every setting by its dotted name, and the page of all defaults: `python -m tests.docs.settings`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from stacker.config.root import Config
from stacker.config.training import TrainConfig

NAME = "<name>"  # a key that the user chooses: a backbone, a block
KEYS = {  # examples of what the user names
    "backbones": "resnet50",
    "frozen": "vit_small_patch16_dinov3",
    "tune.space": "train.lr",
    "stack.blocks": "relu4",
    "stack.custom": "trees",
}
GIVEN = {  # examples of what has no default, or would say nothing by it
    "run": "myrun",
    "data.path": "data/images",
    f"tune.space.{NAME}.low": 1e-5,
    f"tune.space.{NAME}.high": 1e-3,
    f"stack.blocks.{NAME}.of": "maps",
    f"stack.custom.{NAME}.estimator": "sklearn.ensemble.ExtraTreesClassifier",
}
LEAST: dict[str, Any] = {
    "run": "docs",
    "data": {"path": "."},
    "backbones": {"resnet50": {}},
    "frozen": {"resnet50": {}},
}


def walk(model: type[BaseModel] = Config, above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every section and setting with its dotted name, in the order of the config."""
    for name, field in model.model_fields.items():
        dotted = f"{above}{name}"
        yield dotted, field
        below = _section(field.annotation)
        if below is not None:
            yield from walk(below, f"{dotted}.")
        elif get_origin(field.annotation) is dict:
            inner = _section(get_args(field.annotation)[1])
            if inner is not None:
                yield from walk(inner, f"{dotted}.{NAME}.")
            elif dotted == f"backbones.{NAME}.train":
                yield from walk(TrainConfig, f"{dotted}.")


def _section(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an annotation is of, which may be absent."""
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    sections = [c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)]
    return sections[0] if sections else None


SETTINGS = dict(walk())


def known_as(text: str) -> list[str]:
    """Return the settings that a text may mean: by the whole dotted name, or by the end of it."""
    exact = [name for name in SETTINGS if re.fullmatch(re.escape(name).replace(NAME, r"[^.]+"), text)]
    return exact or [name for name in SETTINGS if name.endswith(f".{text}")]


def takes(name: str, value: Any) -> bool:
    """Say whether a setting may have a value."""
    field = SETTINGS[name]
    kind: Any = Annotated[field.annotation, field]
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def default(name: str) -> Any:
    """Return the default of a setting as plain data."""
    return to_jsonable_python(SETTINGS[name].get_default(call_default_factory=True))


def _remark(name: str, value: Any) -> str:
    """Return what else a setting may be, where it is a choice."""
    if name in GIVEN:
        return "your own"
    kind = SETTINGS[name].annotation
    others = (
        [choice for choice in _choices(kind) if choice != value] if get_origin(kind) is not dict else []
    )
    return f"or {', '.join(others)}" if others else ""


def _choices(annotation: Any) -> list[str]:
    """Return the words that may be chosen."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def listing(model: type[BaseModel] = Config, indent: str = "", above: str = "") -> Iterator[str]:
    """Yield the lines of a config in which everything has its default, with the choices behind it."""
    for name, field in model.model_fields.items():
        dotted = f"{above}{name}"
        section, deeper = _section(field.annotation), f"{indent}  "
        if section is not None:
            yield f"{indent}{name}:"
            yield from listing(section, deeper, f"{dotted}.")
        elif dotted in KEYS:
            inner = _section(get_args(field.annotation)[1])
            assert inner is not None
            yield from (f"{indent}{name}:", f"{deeper}{KEYS[dotted]}:")
            yield from listing(inner, f"{deeper}  ", f"{dotted}.{NAME}.")
        else:
            value = GIVEN[dotted] if dotted in GIVEN else default(dotted)
            shown = yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]
            line, remark = f"{indent}{name}: {shown}", _remark(dotted, value)
            yield f"{line:<36} # {remark}" if remark else line


if __name__ == "__main__":
    print("\n".join(listing()))  # noqa: T201  # for a person, to be put into the page
