"""What a training leaves on the disk: what is seen of it, and what it needs to go on.

models/<backbone>/<fold>/metrics.jsonl         one line per epoch
                         tensorboard/          the same for TensorBoard, and more: see board.py
                         curves.png            the same as a picture, when the training has ended
                         resume.safetensors    as long as it has not ended

Weights, their moving average, the best epoch's weights, the optimizer's memory and the states of all
random generators are tensors in the resume file; counters and the course of the epochs are JSON beside
them. It is published after every epoch: a kill costs at most the epoch in hand, and what is resumed ends
as if never interrupted.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stacker.config.training import TrainConfig
from stacker.figures.canvas import save_figure
from stacker.figures.training import draw_curves
from stacker.files import publish
from stacker.training.board import Board
from stacker.training.measures import Epoch

log = logging.getLogger(__name__)
State = dict[str, Tensor]
COLLAPSED = 3  # epochs in a row with one answer for all images before it is called a collapse


def _speed(rate: float) -> str:
    """Return a rate for the log: two significant digits below 10, whole numbers from there on."""
    return f"{rate:.2g}" if rate < 10 else f"{rate:.0f}"


class Watch:
    """Everything that is written down about one training."""

    def __init__(self, folder: Path, name: str, total: int, before: Sequence[Epoch] = ()) -> None:
        """Start afresh, or with the epochs that a resumed training has behind it."""
        self.folder, self.name, self.total = folder, name, total
        self.epochs: list[Epoch] = []
        self.board = Board(folder / "tensorboard")
        with publish(folder / "metrics.jsonl") as temporary:
            temporary.touch()
        for epoch in before:
            self._keep(epoch)

    def see(self, epoch: Epoch) -> None:
        """Write an epoch down, log it, and warn of what looks wrong."""
        self._keep(epoch)
        gpu = f"  {epoch['gpu_gb']:.1f} GB" if "gpu_gb" in epoch else ""
        log.info(
            "train %s: epoch %d/%d  loss %.3f  val loss %.3f  acc %.3f  AUC %.3f  %s img/s%s",
            *(self.name, epoch["epoch"], self.total, epoch["train_loss"], epoch["val_loss"]),
            *(epoch["val_accuracy"], epoch["val_auc"], _speed(epoch["images_per_second"]), gpu),
        )
        if not math.isfinite(epoch["val_loss"]):
            log.warning("train %s: the validation loss is %s", self.name, epoch["val_loss"])
        last = self.epochs[-COLLAPSED:]
        answers = [seen["val_majority"] for seen in last if seen["val_majority_share"] == 1]
        if len(answers) == COLLAPSED:
            log.warning(
                "train %s: for %d epochs every validation image has been given one class (%s); "
                "a lower learning rate, a longer warm-up or another train.balance may help",
                *(self.name, COLLAPSED, ", ".join(dict.fromkeys(answers))),
            )

    def close(self) -> None:
        """Let go of TensorBoard's file."""
        self.board.close()

    def end(self, best: Epoch, recipe: TrainConfig) -> None:
        """Draw the curves; warn when the epoch that is kept cannot tell the classes apart."""
        self.board.end(self.name, recipe, best)
        save_figure(draw_curves(self.epochs, best["epoch"], self.name), self.folder / "curves.png")
        if best["val_majority_share"] == 1:
            log.warning(
                "train %s: the model that is kept (epoch %d) calls every validation image %s",
                *(self.name, best["epoch"], best["val_majority"]),
            )

    def _keep(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)
        line = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in epoch.items()
        }
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")  # JSON has no NaN
        self.board.add(epoch)


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
    """Read a resume file; None when there is none, or one of another job."""
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
