"""The resume file: everything that a training needs to go on after an epoch as if never interrupted.

Weights, their moving average, the best epoch's weights, the optimizer's memory and the states of all
random generators are tensors (safetensors); counters and the course of the epochs are JSON beside them,
in the same file. It is published after every epoch: a kill costs at most the epoch in hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stacker.files import publish

State = dict[str, Tensor]


@dataclass
class Snapshot:
    """Named groups of tensors, and plain data."""

    tensors: dict[str, State]
    facts: dict[str, Any]

    def save(self, path: Path) -> None:
        """Publish it as one file."""
        flat = {
            f"{group}/{name}": tensor.detach().cpu().contiguous()
            for group, state in self.tensors.items()
            for name, tensor in state.items()
        }
        with publish(path) as temporary:
            save_file(flat, temporary, metadata={"stacker": json.dumps(self.facts)})


def load_snapshot(path: Path, identity: str) -> Snapshot | None:
    """Read a resume file; None when there is none, or one of another job or format."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("stacker", "{}"))
        if facts.get("identity") != identity:
            return None
        tensors: dict[str, State] = {}
        for key, tensor in load_file(path).items():
            group, _, name = key.partition("/")
            tensors.setdefault(group, {})[name] = tensor
    except (FileNotFoundError, SafetensorError):
        return None
    return Snapshot(tensors, facts)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[State, dict[str, Any]]:
    """Return an optimizer's memory: tensors by `<parameter>.<name>`, and what is no tensor.

    Some (LAMB, Adan) count their steps in the groups of parameters, which are kept too.
    """
    whole = optimizer.state_dict()
    tensors: State = {}
    plain: dict[str, Any] = {}
    memories = [(f"group{n}", group) for n, group in enumerate(whole["param_groups"])]
    for number, memory in [*memories, *whole["state"].items()]:
        for name, value in memory.items():
            kept: dict[str, Any] = tensors if isinstance(value, Tensor) else plain
            kept[f"{number}.{name}"] = value
    return tensors, plain


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> None:
    """Give an optimizer its memory back, in the strides that its parameters have.

    A fused kernel walks over both in step: contiguous memory beside channels_last weights would be
    another computation.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for key, value in {**tensors, **plain}.items():
        number, _, name = key.partition(".")
        if number.startswith("group"):
            groups[int(number.removeprefix("group"))][name] = value
            continue
        parameter = parameters[int(number)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)  # noqa: PLW2901
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
