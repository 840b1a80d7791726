"""Where tensors are multiplied, in what type, and how rows of the store get there as batches."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stacker.config.root import Config
from stacker.config.section import require_device
from stacker.data.store import Pixels
from stacker.errors import ConfigError

Batch = tuple[Tensor, Tensor]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


def choose_device(wanted: str) -> torch.device:
    """Return the wanted device; for 'auto' a CUDA GPU, else Apple's (MPS), else the CPU."""
    require_device(wanted)
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: mps is not here (torch finds no Apple GPU)", "use 'auto'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device: {wanted} is not here ({count} CUDA devices found)", "use 'auto'")
    return device


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Return bfloat16 for 'auto' where the hardware multiplies it natively, else float32.

    On Apple's GPU it is float32: not every kernel has bfloat16 there.
    """
    if wanted == "auto":
        native = False
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        elif device.type == "cpu":
            checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
            native = any(getattr(torch.cpu, check, bool)() for check in checks)
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def keep_memory(wanted: bool = True) -> None:
    """Let glibc keep the memory of freed tensors for the next ones, or give it back as it is used to.

    Large blocks are mapped again for every layer otherwise, and the kernel clears them page by page: a
    third of a forward pass on a CPU. Where there is no glibc, nothing happens.
    """
    if sys.platform != "linux":  # elsewhere ctypes may not even find the C library without its name
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    if wanted:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    else:  # where glibc's own moving thresholds come to rest in a program with tensors
        libc.mallopt(M_MMAP_MAX, 65536)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**26)
        libc.malloc_trim(0)


def rng_state(device: torch.device) -> Tensor | None:
    """Return the state of a GPU's own random generator; None on a CPU, whose generator is torch's."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None


def set_rng_state(device: torch.device, state: Tensor) -> None:
    """Give a GPU's random generator a state back."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the autocast context of a forward pass; it does nothing in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


@cache
def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Return numbers as a tensor that lies on the device already: a copy per batch would wait for it."""
    return torch.tensor(values, device=device)


@dataclass(frozen=True)
class Machine:
    """On which device, in which arithmetic and from which seed."""

    device: torch.device
    precision: torch.dtype
    seed: int = 0
    compile: bool = False
    deterministic: bool = False

    @classmethod
    def of(cls, config: Config) -> Machine:
        """Choose device and precision as a config wants them; nothing is set before `set_up`."""
        device = choose_device(config.device)
        precision = choose_precision(config.precision, device)
        return cls(device, precision, compile=config.compile, deterministic=config.deterministic)

    @property
    def arithmetic(self) -> str:
        """The precision by the name that files have for it."""
        return str(self.precision).removeprefix("torch.")

    def set_up(self) -> Machine:
        """Set torch's kernels and the C library's use of memory for all of this process; return this.

        Kernels are the fastest ones, or those that give equal bits in every run.
        """
        if self.deterministic:  # cuBLAS reads it when it is first used
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if torch.are_deterministic_algorithms_enabled() != self.deterministic:  # it loads the compiler
            torch.use_deterministic_algorithms(self.deterministic)
        torch.backends.cudnn.benchmark = not self.deterministic
        torch.backends.cudnn.deterministic = self.deterministic
        # without this, convolutions "in float32" keep ten bits of a number on a GPU
        torch.backends.cudnn.allow_tf32 = self.precision != torch.float32
        keep_memory(self.device.type == "cpu")
        return self


@dataclass(frozen=True)
class Subset:
    """Rows of the store; all images' class indices, and their cases and classes' names where known."""

    pixels: Pixels
    labels: np.ndarray
    rows: np.ndarray
    cases: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    names: Sequence[str] = ()

    def name_of(self, label: int) -> str:
        """Return what a class is called."""
        return self.names[label] if self.names else f"class {label}"

    def batches(self, order: np.ndarray, size: int, device: torch.device) -> Iterator[Batch]:
        """Yield (pixels_BHWC uint8, labels_B) on the device, in the given order of rows.

        The next batches are read, and pinned for a GPU, in a thread while one is worked on.
        """
        pieces = (order[start : start + size] for start in range(0, len(order), size))
        for pixels, labels in _ahead(self._read(chosen, device) for chosen in pieces):
            yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    def _read(self, chosen: np.ndarray, device: torch.device) -> Batch:
        pixels, labels = torch.from_numpy(self.pixels[chosen]), torch.from_numpy(self.labels[chosen])
        return (pixels.pin_memory(), labels.pin_memory()) if device.type == "cuda" else (pixels, labels)


def _ahead(batches: Iterable[Batch], depth: int = 3) -> Iterator[Batch]:
    """Yield the batches while a thread reads the next few."""
    source = iter(batches)
    with ThreadPoolExecutor(1) as thread:
        pending = deque(thread.submit(list, islice(source, 1)) for _ in range(depth))
        while batch := pending.popleft().result():
            pending.append(thread.submit(list, islice(source, 1)))
            yield batch[0]
