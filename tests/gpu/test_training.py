"""Training on a GPU learns, resumes to the same bits, and lives with little memory."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stacker.backbones.backbone import create
from stacker.backbones.devices import Machine
from stacker.bench.loops import LOOPS, Task, generate, time_loop
from stacker.bench.usage import Usage
from stacker.config.training import TrainConfig, WeightsConfig
from stacker.training.loop import Training, finetune
from stacker.training.measures import Epoch
from stacker.training.record import Snapshot, load_snapshot
from tests.gpu.conftest import ask_too_much
from tests.training.test_loop import parts

RECIPE = TrainConfig(epochs=4, batch_size=8, lr=3e-3, ema=0.9, monitor="last")


def trained(
    device: torch.device,
    precision: torch.dtype,
    recipe: TrainConfig = RECIPE,
    on_epoch: Callable[[Epoch, Callable[[], Snapshot]], None] = lambda *_: None,
    snapshot: Snapshot | None = None,
) -> tuple[Epoch, dict[str, Tensor]]:
    """Train a small model on a device; return its best epoch and its weights."""
    machine = Machine(device, precision, deterministic=True).set_up()
    torch.manual_seed(0)
    base = create("test_resnet", 2, WeightsConfig(weights="random"), (32, 32))
    best = finetune(base, *parts(), recipe, machine, on_epoch, snapshot=snapshot)
    return best, {name: value.cpu() for name, value in base.model.state_dict().items()}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_it_learns_in_either_precision(device: torch.device, precision: torch.dtype) -> None:
    """The loss is finite and falls, and the memory of a GPU is written down."""
    epochs: list[Epoch] = []
    best, weights = trained(device, precision, on_epoch=lambda epoch, _: epochs.append(epoch))
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    assert best is epochs[-1]
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert all(("gpu_gb" in epoch) == (device.type == "cuda") for epoch in epochs)


def test_float32_trains_as_on_the_cpu(device: torch.device) -> None:
    """The first epoch's loss is the same to a thousandth."""
    recipe = RECIPE.model_copy(update={"epochs": 1})
    one, _ = trained(torch.device("cpu"), torch.float32, recipe)
    other, _ = trained(device, torch.float32, recipe)
    assert other["train_loss"] == pytest.approx(one["train_loss"], rel=2e-3)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_resumed_training_ends_with_the_same_weights(
    device: torch.device, precision: torch.dtype, tmp_path: Path
) -> None:
    """Optimizer, moving average and random numbers come back from the file, bit by bit."""
    file = tmp_path / "resume.safetensors"

    def save(epoch: Epoch, take: Callable[[], Snapshot]) -> None:
        if epoch["epoch"] == 2:
            snapshot = take()
            snapshot.facts["identity"] = "job"
            snapshot.save(file)

    _, whole = trained(device, precision, on_epoch=save)
    _, resumed = trained(device, precision, snapshot=load_snapshot(file, "job"))
    assert [name for name in whole if not whole[name].equal(resumed[name])] == []


def test_little_memory_is_shared_by_slices(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pass that does not fit is tried again with half of the images, which the log says.

    The model asks for more memory than any device has when it sees more than four images.
    """
    begin = Training.__init__

    def short_of_memory(self: Training, *args: object) -> None:
        begin(self, *args)  # type: ignore[arg-type]
        model = self.model

        def limited(images: Tensor) -> Tensor:
            answer: Tensor = ask_too_much(device) if len(images) > 4 else model(images)
            return answer

        self.forward = limited

    monkeypatch.setattr(Training, "__init__", short_of_memory)
    monkeypatch.setattr(logging.getLogger("stacker"), "propagate", True)
    with caplog.at_level(logging.WARNING, "stacker"):
        best, _ = trained(device, torch.float32, RECIPE.model_copy(update={"epochs": 1}))
    assert best["accumulate"] == 2
    assert "a batch of 8 is now processed in 2 slices" in caplog.text


def test_a_training_may_be_the_first_to_use_a_gpu(device: torch.device) -> None:
    """With a precision that was given, nothing has initialised CUDA before."""
    code = (
        "import torch\n"
        "from tests.training.test_loop import RECIPE, parts, small\n"
        "from stacker.backbones.devices import Machine\n"
        "from stacker.training.loop import Training\n"
        f"machine = Machine(torch.device({str(device)!r}), torch.float32).set_up()\n"
        "Training(small(), parts()[0], RECIPE, machine)\n"
    )
    here = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=here
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("loop", LOOPS)
def test_every_loop_of_the_bench_runs(device: torch.device, loop: str) -> None:
    """It is timed, and on a GPU its memory is known."""
    machine = Machine(device, torch.bfloat16).set_up()
    task = Task("test_resnet", 32, 4, 8, 2, machine)
    cost = time_loop(task, loop, generate(8, 32), limit=5)
    assert cost.images == 8
    assert len(cost.repeats) == 2
    assert min(cost.repeats) > 0
    assert (cost.peak_gb is not None) == (device.type == "cuda")


def test_usage_is_known_of_a_gpu_alone(device: torch.device) -> None:
    """The peak is that of the block, not of what was before."""
    large = torch.empty(2**26, device=device)
    del large
    with Usage(device) as usage:
        kept = torch.ones(2**20, device=device)
    assert kept.sum() == 2**20
    if device.type == "cpu":
        assert (usage.peak_gb, usage.utilisation) == (None, None)
    else:
        assert usage.peak_gb is not None
        assert usage.peak_gb < 2**28 / 1e9
