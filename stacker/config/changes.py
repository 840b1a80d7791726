"""What two trees of settings differ in, said setting by setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stacker.errors import first_few

MOST = 8  # lines of a message: nobody reads more of them
UNSET = object()


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that is another one now: `images.size: was 32, is 48`."""
    old, new = _flat(before), _flat(now)
    keys = list(dict.fromkeys([*new, *old]))
    changed = [key for key in keys if old.get(key, UNSET) != new.get(key, UNSET)]
    return [f"{key}: was {_shown(old, key)}, is {_shown(new, key)}" for key in changed]


def listed(lines: Sequence[str]) -> str:
    """Return the first lines of a message, one below the other, and how many more there are."""
    return "\n  " + first_few(lines, "\n  ", MOST) if lines else ""


def _shown(flat: Mapping[str, Any], key: str) -> str:
    """Return a value nearly as YAML writes it."""
    if key not in flat:
        return "not set"
    return "null" if flat[key] is None else repr(flat[key])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of a tree by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
