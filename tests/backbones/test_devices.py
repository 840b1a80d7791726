"""Which device is chosen, in what arithmetic, what it sets of torch, and what other systems have."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator

import pytest
import torch

from stacker.backbones import devices
from stacker.backbones.devices import choose_device, choose_precision, keep_memory
from stacker.errors import ConfigError
from tests.conftest import MakeConfig

MPS = torch.device("mps")


def pretend(monkeypatch: pytest.MonkeyPatch, cuda: bool = False, mps: bool = False) -> None:
    """Let torch say that it has these devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_best_device_at_hand(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA goes before Apple's GPU, and that before the CPU."""
    pretend(monkeypatch, cuda, mps)
    assert choose_device("auto").type == expected
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("wanted", "found"), [("cuda", "0 CUDA devices found"), ("mps", "torch finds no Apple GPU")]
)
def test_a_device_that_is_not_here_is_refused(
    wanted: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what was found and what to use."""
    pretend(monkeypatch)
    with pytest.raises(ConfigError, match=f"{wanted} is not here .*{found}.*use 'auto'"):
        choose_device(wanted)


def test_apples_gpu_computes_in_float32(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config may name it; other precision must be asked for."""
    pretend(monkeypatch, mps=True)
    machine = devices.Machine.of(make_config(device="mps"))
    assert (machine.device, machine.precision) == (MPS, torch.float32)
    assert choose_precision("bf16", MPS) == torch.bfloat16


def test_a_wanted_precision_is_obeyed() -> None:
    """Whatever the hardware does best."""
    assert choose_precision("fp32", torch.device("cpu")) == torch.float32
    assert choose_precision("bf16", torch.device("cpu")) == torch.bfloat16


def test_the_random_state_of_a_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed training needs it for dropout; a CPU has none beside torch's."""
    states = [torch.tensor([1, 2])]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    kept = devices.rng_state(MPS)
    assert kept is states[0]
    devices.set_rng_state(MPS, kept + 1)
    assert states[-1].tolist() == [2, 3]
    assert devices.rng_state(torch.device("cpu")) is None


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_the_c_library_is_tuned_on_linux_alone(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it is not even looked for: Windows has none without a name."""

    def refuse(*_: object) -> None:
        raise TypeError("bad argument type for built-in operation")  # what ctypes says on Windows

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(TypeError):
        keep_memory()
    monkeypatch.setattr(sys, "platform", platform)
    keep_memory()
    keep_memory(wanted=False)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize(("precision", "rounded"), [(torch.float32, False), (torch.bfloat16, True)])
def test_float32_is_not_rounded_to_tf32(precision: torch.dtype, rounded: bool) -> None:
    """Torch's convolutions keep ten bits on a GPU unless they are told otherwise."""
    devices.Machine(torch.device("cpu"), precision).set_up()
    assert torch.backends.cudnn.allow_tf32 == rounded
