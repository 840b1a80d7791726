"""How much of a GPU some work takes: the most memory, and how busy it is."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Self

import torch

EVERY = 0.2  # seconds between two looks
Reader = Callable[[torch.device], float]


class Usage:
    """What the device is used for while the block runs; None where that cannot be known.

    `peak_gb` is the most memory that tensors took, `utilisation` the mean share of time, in percent, in
    which the GPU was at work, by its driver.
    """

    def __init__(self, device: torch.device, read: Reader | None = None) -> None:
        self.device = device
        self.peak_gb: float | None = None
        self.utilisation: float | None = None
        self._read = read or find_reader(device)
        self._over = Event()
        self._seen: list[float] = []
        self._thread = Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        """Forget earlier peaks, and begin to look."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop looking, and keep what was seen."""
        self._over.set()
        self._thread.join()
        if self._seen:
            self.utilisation = round(statistics.mean(self._seen), 1)
        if self.device.type == "cuda":
            self.peak_gb = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)

    def _look(self) -> None:
        while self._read is not None and not self._over.wait(EVERY):
            self._seen.append(self._read(self.device))


def find_reader(device: torch.device) -> Reader | None:
    """Return what can read the utilisation of a device: NVML, else nvidia-smi, else nothing."""
    if device.type != "cuda":
        return None
    for read in (by_nvml, by_nvidia_smi):
        try:
            read(device)
        except Exception:  # noqa: BLE001, S112  # NVML's errors have no base; not to know is an answer
            continue
        return read
    return None


def by_nvml(device: torch.device) -> float:
    """Ask the driver's library, which needs the package nvidia-ml-py."""
    return float(torch.cuda.utilization(device))


def by_nvidia_smi(device: torch.device) -> float:
    """Ask the driver's program."""
    program = shutil.which("nvidia-smi") or "nvidia-smi"
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    which = str(device.index or 0) if uuid is None else f"GPU-{uuid}"
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i", which]
    answer = subprocess.run(  # noqa: S603  # the driver's own program
        [program, *query], capture_output=True, text=True, check=True, timeout=10
    )
    return float(answer.stdout.strip())
