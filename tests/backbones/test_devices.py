"""What a machine sets of torch is what its settings promise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from stacker.backbones.devices import Machine


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize(("precision", "rounded"), [(torch.float32, False), (torch.bfloat16, True)])
def test_float32_is_not_rounded_to_tf32(precision: torch.dtype, rounded: bool) -> None:
    """Torch's convolutions keep ten bits on a GPU unless they are told otherwise."""
    Machine(torch.device("cpu"), precision).set_up()
    assert torch.backends.cudnn.allow_tf32 == rounded
