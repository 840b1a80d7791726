"""From a YAML file and `--set` overrides to a checked Config.

Unknown keys are rejected with the nearest known name, and all faults are reported at once. The
config.yaml inside of a run directory is that directory's, wherever it was copied or moved to.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from stacker.config.root import Config
from stacker.errors import ConfigError, plural

RUN_FILES = ("run.json", "manifest.csv")  # which a folder has that is a run


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config and apply `a.b=c` overrides; raise ConfigError with every fault in it.

    Of a run's own config.yaml, `run` and `artifacts` are where it lies, unless they are overridden.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise _no_file(path) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(raw).__name__}")
    place = _place_of_run(path)
    raw |= {"run": "run"} if place else {}  # a folder may have a name that no config may give
    for override in overrides:
        _override(raw, override)
        place.pop(override.partition("=")[0], None)
    try:
        return Config.model_validate(raw).model_copy(update=place)
    except ValidationError as error:
        raise _refusal(path, error, [override.partition("=")[0] for override in overrides]) from None


def _no_file(path: Path) -> ConfigError:
    """Say that there is no config file, or that the path is a run, which has one."""
    if _is_run(path):
        return ConfigError(f"{path} is a run, not a config file; give {path / 'config.yaml'}")
    return ConfigError(f"no config file at {path}; give the path of a YAML file")


def _refusal(path: Path, error: ValidationError, changed: Sequence[str]) -> ConfigError:
    """List the faults; those in keys that were changed by --set are not blamed on the file."""
    lines, of_file = [], False
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        from_set = any(f"{where}.".startswith(f"{key}.") for key in changed)
        of_file |= not from_set
        lines.append("--set " * from_set + explain(dict(fault)))
    heading = f"{path}: {plural(len(lines), 'fault')} in the config"
    if not of_file:
        heading = f"{plural(len(lines), 'fault')} in the settings given by --set"
    return ConfigError("\n  ".join([heading, *lines]))


def _is_run(folder: Path) -> bool:
    return all((folder / name).exists() for name in RUN_FILES)


def _place_of_run(path: Path) -> dict[str, Any]:
    """Return `artifacts` and `run` of the run directory that a config lies in; empty outside of one."""
    if path.name != "config.yaml" or not _is_run(path.parent):
        return {}
    folder = path.parent if path.parent.name not in ("", "..") else path.parent.resolve()
    return {"artifacts": folder.parent, "run": folder.name}


def _override(raw: dict[str, Any], override: str) -> None:
    """Set `a.b=c` in the raw mapping, creating the sections on the way."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected section.key=value, e.g. train.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: '{text}' is not a YAML value") from None
    section = raw
    for key in keys[:-1]:
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: '{key}' is a value, not a section")
    section[keys[-1]] = value


def explain(fault: dict[str, Any]) -> str:
    """Say one pydantic fault in a line: where, what is wrong, what was found or what is near."""
    location: tuple[str | int, ...] = fault["loc"]
    where = ".".join(str(part) for part in location)
    if fault["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{where}: required, but not given"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not location or fault["type"] == "value_error":
        return f"{where}: {message}" if where else message
    if fault["type"] == "literal_error":
        choices = [c.strip("'") for c in fault["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        near = difflib.get_close_matches(str(fault["input"]), choices, n=1, cutoff=0.5)
        message += f"; did you mean '{near[0]}'?" if near else ""
    return f"{where}: {message}; found {fault['input']!r}"


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    """Return the names that the section at `location` knows."""
    if location[:1] == ("backbones",) and "train" in location:  # a backbone's own changes of `train`
        location = location[location.index("train") :]
    model: type[BaseModel] = Config
    keys = iter(location)
    for key in keys:
        annotation = model.model_fields[str(key)].annotation
        sections = [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        if sections and get_origin(annotation) is not dict:  # a section that may be absent
            annotation = sections[0]
        if get_origin(annotation) is dict:
            next(keys)
            annotation = get_args(annotation)[1]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
