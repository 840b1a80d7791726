"""Where tensors are multiplied, and in what type."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from stacker.config.root import Config
from stacker.errors import ConfigError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


def choose_device(wanted: str) -> torch.device:
    """Return the wanted device, or the best one at hand for 'auto'."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ConfigError(f"device: {wanted} is not here ({found} CUDA devices found); use 'auto'")
    return device


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Return bfloat16 for 'auto' where the hardware multiplies it natively, else float32."""
    if wanted == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
            native = any(getattr(torch.cpu, check, bool)() for check in checks)
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def keep_memory(wanted: bool = True) -> None:
    """Let glibc keep the memory of freed tensors for the next ones, or give it back as it is used to.

    Large blocks are mapped anew for every layer otherwise, and the kernel clears them page by page: a
    third of a forward pass on a CPU. Where there is no glibc, nothing happens.
    """
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


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the autocast context of a forward pass; it does nothing in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


@cache
def constant(values: tuple[Any, ...], device: torch.device) -> torch.Tensor:
    """Return numbers as a tensor that lies on the device already: a copy per batch would wait for it."""
    return torch.tensor(values, device=device)


def set_deterministic(wanted: bool) -> None:
    """Choose between the fastest kernels and those that give equal bits in every run."""
    if wanted:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted
    torch.backends.cudnn.deterministic = wanted


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

    def set_up(self) -> Machine:
        """Set torch's kernels and the C library's use of memory for all of this process; return this."""
        set_deterministic(self.deterministic)
        keep_memory(self.device.type == "cpu")
        return self
