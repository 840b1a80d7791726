"""The devices of these tests: the CPU, on which they show that they can pass, and a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS is used: deterministic=true

import pytest
import torch

NO_GPU = f"no CUDA GPU was found (torch {torch.__version__})"
GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)]
)


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return the device that is compared with the CPU."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _kernels_as_they_were() -> Iterator[None]:
    """Undo what a machine that was set up has changed of torch."""
    yield
    torch.use_deterministic_algorithms(mode=False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = True


def ask_too_much(device: torch.device) -> Any:
    """Ask for more memory than any device has."""
    if device.type == "cpu":  # it would be another error there
        raise torch.OutOfMemoryError("out of memory")
    return torch.empty(2**44, device=device)
