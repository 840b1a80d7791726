"""The settings that `stacker tune` may change, and what it may change them to.

Only what decides how a backbone learns is searched: `train.*`, `backbones.<name>.train.*` and
`backbones.<name>.weights`. Anything else would change the data or the split under the score, or does not
touch it. What the config refuses is found before the first trial, by trying the ends and the choices of
every range, alone and mixed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from stacker.config.load import explain
from stacker.config.root import Config
from stacker.config.training import AugmentConfig, Range, TrainConfig
from stacker.errors import ConfigError, require_one_of
from stacker.training.begin import require_usable

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MIXTURES = 200  # random combinations that are tried on the config, beside each option by itself
Values = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """A config, and a range for some of its settings by their dotted names."""

    config: Config
    ranges: Mapping[str, Range]

    @cached_property
    def paths(self) -> dict[str, tuple[str, ...]]:
        """Every setting that may be searched, with its way through the config."""
        names = [name for name in TrainConfig.model_fields if name != "augment"]
        recipe = [(name,) for name in names] + [("augment", name) for name in AugmentConfig.model_fields]
        backbones = self.config.backbones
        sections = [("train",), *(("backbones", name, "train") for name in backbones)]
        paths = [(*section, *setting) for section in sections for setting in recipe]
        paths += [("backbones", name, "weights") for name in backbones]
        return {".".join(path): path for path in paths}

    def check(self, backbones: Sequence[str]) -> None:
        """Raise ConfigError for a setting that may not be searched, has no effect or wrong values."""
        for name in self.ranges:
            self._require_searchable(name)
        options = {name: _options(r) for name, r in self.ranges.items()}
        first = {name: choices[0] for name, choices in options.items()}
        for name, choices in options.items():
            configs = [self._try({**first, name: choice}) for choice in choices]
            for config in configs:
                _require_usable(config)
            learnt = [[(c.recipe(b), c.backbones[b].weights) for b in backbones] for c in configs]
            if all(recipes == learnt[0] for recipes in learnt):
                raise ConfigError(
                    f"tune.space.{name} has no effect on {', '.join(backbones)}: a backbone's own "
                    "settings override 'train', and only the backbones that are scored count"
                )
        rng = np.random.default_rng(self.config.seed)
        for _ in range(MIXTURES):
            self._try({name: choices[rng.integers(len(choices))] for name, choices in options.items()})

    def _require_searchable(self, name: str) -> None:
        """Raise ConfigError for a setting that is unknown or not a matter of learning."""
        if not name.startswith(("train.", "backbones.")):
            raise ConfigError(
                f"tune.space.{name}: only train.*, backbones.NAME.train.* and backbones.NAME.weights "
                "can be searched; other settings change the data or the split, or act after training"
            )
        require_one_of("setting to search (tune.space)", [name], self.paths)

    def _try(self, values: Values) -> Config:
        """Return the config with some values; raise ConfigError with the reason that it is refused."""
        try:
            return self.put(values)
        except ValidationError as error:
            faults = "; ".join(explain(dict(fault)) for fault in error.errors())
            raise ConfigError(
                f"tune.space holds {shorten(values)}, which the config refuses: {faults}; narrow "
                "the space"
            ) from None

    def put(self, values: Values) -> Config:
        """Return the config with values put in; raise ValidationError when it refuses them."""
        raw = self.config.model_dump(mode="json")
        for name, value in values.items():
            *parents, last = self.paths[name]
            section = raw
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = value
        return Config.model_validate(raw)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the space as Optuna has it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        known: dict[str, BaseDistribution] = {}
        for name, r in self.ranges.items():
            if r.choices is not None:
                known[name] = CategoricalDistribution([_label(choice) for choice in r.choices])
            elif r.low is not None and r.high is not None:
                whole = IntDistribution(int(r.low), int(r.high), log=r.log) if r.whole else None
                known[name] = whole or FloatDistribution(r.low, r.high, log=r.log)
        return known

    def values(self, parameters: Mapping[str, Any]) -> Values:
        """Return the settings that Optuna's parameters stand for."""
        choices = {
            name: {_label(choice): choice for choice in r.choices or ()}
            for name, r in self.ranges.items()
        }
        return {name: choices[name].get(value, value) for name, value in parameters.items()}

    def values_now(self) -> Values | None:
        """Return the config's values as Optuna's parameters; None where the space lacks one."""
        parameters: Values = {}
        for name, r in self.ranges.items():
            value = self._value_now(name)
            if r.choices is not None and _label(value) in [_label(choice) for choice in r.choices]:
                parameters[name] = _label(value)
            elif _is_within(value, r):
                parameters[name] = int(value) if r.whole else float(value)
        return parameters if parameters.keys() == self.ranges.keys() else None

    def _value_now(self, name: str) -> Any:
        """Return a setting's value in the config as it stands."""
        section, *keys = self.paths[name]
        recipe = self.config.train
        if section == "backbones":
            backbone, subsection, *keys = keys
            if subsection == "weights":
                return self.config.backbones[backbone].weights
            recipe = self.config.recipe(backbone)
        return reduce(getattr, keys, recipe)


def _require_usable(config: Config) -> None:
    """Raise for an optimizer that is not known or a weights file that is not there."""
    try:
        require_usable(config)
    except ConfigError as error:
        raise ConfigError(f"tune.space: {error}") from None


def _is_within(value: Any, r: Range) -> bool:
    if r.low is None or r.high is None or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return r.low <= value <= r.high and (not r.whole or value == int(value))


def _options(r: Range) -> list[Any]:
    """Return what a range is tried with: all choices, or both ends and a number in between."""
    if r.choices is not None:
        return r.choices
    low, high = r.low or 0.0, r.high or 0.0
    return [int(low), int(high)] if r.whole else [low, low + 0.382 * (high - low), high]


def _label(choice: Any) -> Any:
    """Return what stands for a choice in Optuna's records, which hold plain values only."""
    plain = choice is None or isinstance(choice, bool | int | float | str)
    return choice if plain else json.dumps(choice)


def short(name: str) -> str:
    """Return a setting's name as short as it stays clear."""
    return name.removeprefix("train.").removeprefix("backbones.").replace(".train.", ".")


def shorten(values: Mapping[str, Any]) -> str:
    """Say some settings' values in a line."""
    numbers = {name: f"{v:.4g}" if isinstance(v, float) else str(v) for name, v in values.items()}
    return " ".join(f"{short(name)}={number}" for name, number in numbers.items())
