"""What a GPU is worth: the tests that need one, training and stage two at real size, in one report.

Three backbones with random weights see generated images, so that nothing but the package is needed. The
report is written again after every figure: what is measured is kept, whatever happens next. What cannot
be measured stands in it with the reason. torch.compile comes last, and DenseNet at its end: compiling
its many layers takes minutes, which nothing can interrupt.
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import torch

from stacker.backbones.backbone import require_known
from stacker.backbones.devices import Machine, choose_device, choose_precision
from stacker.bench.cache import measure, run_stage_two
from stacker.bench.gpu_report import describe_loop, write_report
from stacker.bench.loops import LOOPS, Task, generate, time_loop
from stacker.bench.timing import REPEATS, Budget
from stacker.bench.train import COMPILED
from stacker.bench.usage import Usage
from stacker.bench.work import generated_work
from stacker.errors import ConfigError, StackerError
from stacker.files import versions
from stacker.progress import track

log = logging.getLogger(__name__)
BACKBONES = ("densenet121", "resnet50", "vgg16")
TESTS_SHARE, CACHE_SHARE = 0.4, 0.3  # of the time that is left
LEAST, LEAST_COMPILED = 20.0, 150.0  # seconds that must be left to begin with a step
WORKERS = 16  # at most, of timm's loader


@dataclass(frozen=True)
class Size:
    """What is measured: backbones, on so many generated images, in batches."""

    backbones: Sequence[str] = BACKBONES
    size: int = 224
    batch_size: int = 64
    images: int = 2048
    cached: int = 512
    repeats: int = 3
    compiled: bool = True


@dataclass
class Report:
    """What is known so far; `failures` are what went wrong, `notes` what was left out."""

    machine: dict[str, Any]
    size: Size
    tests: dict[str, Any] | None = None
    loops: list[Any] = field(default_factory=list)
    cache: dict[str, Any] | None = None
    cache_usage: dict[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def find_gpu(device: str) -> str | None:
    """Return why nothing can be measured on a device, None where it can."""
    if device == "cpu" or torch.cuda.is_available():
        return None
    return f"no CUDA GPU was found (torch {torch.__version__}, built for CUDA {torch.version.cuda})"


def bench_gpu(out: Path, device: str, minutes: float, size: Size, tests: Path | None = None) -> Report:
    """Measure what fits into the minutes; write report.json and report.md into `out` as it goes.

    Raise ConfigError for unknown backbones and devices, and for less than a batch.
    """
    budget = Budget(minutes)
    require_known(size.backbones)
    if size.images < size.batch_size:
        raise ConfigError(
            f"--images {size.images}: less than a batch of {size.batch_size}",
            "ask for more images, or for a smaller --batch-size",
        )
    chosen = choose_device(device)
    machine = Machine(chosen, choose_precision("auto", chosen)).set_up()
    report = Report(describe_machine(machine), size)
    log.info("bench gpu: %g minutes at most, on %s", minutes, report.machine["device"])
    if tests is not None:
        report.tests = run_tests(tests, out, TESTS_SHARE * budget.left)
        report.failures += [f"tests: {report.tests['result']}"] if report.tests["failed"] else []
        write_report(out, report)
    later = [(name, COMPILED) for name in reversed(size.backbones)] if size.compiled else []
    steps: list[tuple[str, Callable[[float], None]]] = [
        *_of_loops(report, machine, [(name, loop) for name in size.backbones for loop in LOOPS]),
        ("stage two", partial(_cache, report, machine, out)),
        *_of_loops(report, machine, later),
    ]
    for number, (name, step) in track(list(enumerate(steps)), "bench gpu", len(steps)):
        if budget.left < (LEAST_COMPILED if COMPILED in name else LEAST):
            report.notes.append(f"{name} was skipped: not enough time")
            continue
        share = CACHE_SHARE if name == "stage two" else 1 / (len(steps) - number)
        try:
            step(share * budget.left)
        except (StackerError, RuntimeError) as error:  # one that fails must not hide the others
            log.exception("%s failed", name)
            report.failures.append(f"{name}: {str(error).strip().splitlines()[0]}")
        write_report(out, report)
    write_report(out, report)
    return report


def _of_loops(
    report: Report, machine: Machine, wanted: Sequence[tuple[str, str]]
) -> list[tuple[str, Callable[[float], None]]]:
    """Return the steps that time some loops of some backbones, with their names."""
    return [(f"{name}, {loop}", partial(_loop, report, machine, name, loop)) for name, loop in wanted]


def _loop(report: Report, machine: Machine, name: str, loop: str, limit: float) -> None:
    """Time one loop of one backbone."""
    size = report.size
    workers = min(WORKERS, os.cpu_count() or 1) if machine.device.type == "cuda" else 0
    task = Task(name, size.size, size.batch_size, size.images, size.repeats, machine, workers)
    cost = time_loop(task, loop, generate(size.images, size.size), limit)
    report.loops.append(cost)
    log.info("%s", describe_loop(cost))


def _cache(report: Report, machine: Machine, out: Path, limit: float) -> None:
    """Time stage two beside a bare forward pass and grad-cam, and see what it takes of the device."""
    size = report.size
    work = generated_work(
        size.backbones, generate(size.cached, size.size), size.batch_size, machine, out
    )
    images = [size.cached // share for share in (1, 2, 4) if size.cached // share]
    repeats = [number for number in REPEATS if number <= size.repeats]
    report.cache = measure(work, Budget(limit / 60), images, repeats)
    report.notes += report.cache["notes"]
    with Usage(machine.device) as usage:
        run_stage_two(work)
    report.cache_usage = {"peak_gb": usage.peak_gb, "utilisation": usage.utilisation}


def describe_machine(machine: Machine) -> dict[str, Any]:
    """Return what was measured on: the device, its memory, and the versions that decide its speed."""
    device = machine.device
    about: dict[str, Any] = {"device": platform.processor() or platform.machine()}
    if device.type == "cuda":
        known = torch.cuda.get_device_properties(device)
        about = {
            "device": known.name,
            "memory_gb": round(known.total_memory / 1e9, 1),
            "capability": f"{known.major}.{known.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    cores, python = os.cpu_count(), platform.python_version()
    return about | {
        "precision": machine.arithmetic,
        "cores": cores,
        "python": python,
        "versions": versions(),
    }


def run_tests(folder: Path, out: Path, limit: float) -> dict[str, Any]:
    """Run the tests that are marked gpu in a process of their own, for so many seconds at most."""
    out.mkdir(parents=True, exist_ok=True)
    results = (out / "tests.xml").absolute()
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", str(folder)]
    log.info("tests of %s, %.0f s at most", folder, limit)
    try:
        ran = subprocess.run(  # noqa: S603  # this interpreter
            [*command, f"--junitxml={results}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return {"failed": True, "result": f"did not end within {limit:.0f} s", "details": ""}
    output = (ran.stdout + ran.stderr).strip()
    result = count_tests(results) if results.exists() else "they did not start"
    failed = ran.returncode != 0
    log.info("tests: %s", result)
    return {"failed": failed, "result": result, "details": output[-4000:] if failed else ""}


def count_tests(results: Path) -> str:
    """Return how many tests passed, failed and were skipped, by pytest's JUnit file."""
    suites = ET.parse(results).getroot().iter("testsuite")  # noqa: S314  # written by this program
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in suites:
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    bad = counts["failures"] + counts["errors"]
    passed = counts["tests"] - bad - counts["skipped"]
    return f"{passed} passed, {bad} failed, {counts['skipped']} skipped"
