"""What `bench gpu` does on a GPU is done here on the CPU, on small images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from stacker.bench import gpu as bench
from stacker.bench.gpu import Size, bench_gpu, count_tests, run_tests
from stacker.bench.loops import LOOPS, Task, time_loop
from stacker.bench.train import OURS, SYNTHETIC
from stacker.bench.usage import Usage, find_reader
from stacker.errors import BackboneError, ConfigError
from tests.commands import call

SMALL = Size(("test_resnet", "test_efficientnet"), 32, 4, 8, 8, 2, compiled=False)


def test_everything_is_measured_and_written(tmp_path: Path) -> None:
    """Every loop of every backbone, stage two beside its peers, and tables of both."""
    report = bench_gpu(tmp_path, "cpu", 5, SMALL)
    assert report.failures == []
    assert [(cost.backbone, cost.loop) for cost in report.loops] == [
        (name, loop) for name in SMALL.backbones for loop in LOOPS
    ]
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["machine"]["versions"]["torch"]
    assert [cost["repeats"] for cost in stored["loops"]] == [list(c.repeats) for c in report.loops]
    assert {cost["of"] for cost in stored["cache"]["costs"]} == {*SMALL.backbones, "all together"}
    assert (stored["cache"]["images"], stored["cache"]["batch_size"]) == (8, 4)
    shown = (tmp_path / "report.md").read_text()
    for text in ("## Training", "## Stage two", f"| test_resnet | {OURS} |", "| all together |"):
        assert text in shown
    assert "GPU busy unknown" in shown
    assert list(tmp_path.glob(".bench-*")) == []


def test_the_command_prints_the_report(tmp_path: Path) -> None:
    """And says where it was written."""
    size = ("--size", "32", "--batch-size", "4", "--images", "4", "--cached", "4", "--repeats", "1")
    what = ("--device", "cpu", "--backbone", "test_resnet", "--no-compiled", "--out", tmp_path / "gpu")
    done = call("bench", "gpu", *what, *size)
    assert done.exit_code == 0
    assert (tmp_path / "gpu" / "report.md").read_text() in done.stdout
    assert str(tmp_path / "gpu" / "report.json") in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_is_skipped_with_the_reason(tmp_path: Path) -> None:
    """Exit code 0, and no report of nothing."""
    done = call("bench", "gpu", "--out", tmp_path / "gpu")
    assert done.exit_code == 0
    assert done.stdout.startswith("skipped: no CUDA GPU was found")
    assert not (tmp_path / "gpu").exists()


def test_what_fails_does_not_hide_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named in the report, and the command ends with exit code 1."""

    def fail(task: Task, loop: str, *rest: Any) -> Any:
        if loop == OURS:
            raise BackboneError("out of memory")
        return time_loop(task, loop, *rest)

    monkeypatch.setattr(bench, "time_loop", fail)
    report = bench_gpu(tmp_path, "cpu", 5, SMALL)
    assert report.failures == [f"{name}, {OURS}: out of memory" for name in SMALL.backbones]
    assert len(report.loops) == 2 * (len(LOOPS) - 1)
    assert f"Failed:\n\n- test_resnet, {OURS}: out of memory" in (tmp_path / "report.md").read_text()


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    """Nothing is begun in the last seconds; the report is there all the same."""
    report = bench_gpu(tmp_path, "cpu", 0.01, SMALL)
    assert report.loops == []
    assert f"test_resnet, {SYNTHETIC} was skipped: not enough time" in report.notes
    assert "stage two was skipped: not enough time" in (tmp_path / "report.md").read_text()


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    """An unknown backbone, and less than a batch, before anything is done."""
    with pytest.raises(ConfigError, match="--images 2: less than a batch of 4"):
        bench_gpu(tmp_path, "cpu", 5, replace(SMALL, images=2))
    with pytest.raises(ConfigError, match="resnet50"):
        bench_gpu(tmp_path, "cpu", 5, Size(("resnet5",)))


def test_only_tests_of_the_gpu_are_run(tmp_path: Path) -> None:
    """They are counted, and the end of what was printed is kept where one fails."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs one\n")
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.gpu\n"
        "def test_one(): pass\n"
        "@pytest.mark.gpu\n"
        "def test_two(): pytest.skip('no GPU')\n"
        "def test_three(): assert 1 == 2\n"
    )
    found = run_tests(tmp_path, tmp_path / "out", 60)
    assert found == {"failed": False, "result": "1 passed, 0 failed, 1 skipped", "details": ""}
    assert count_tests(tmp_path / "out" / "tests.xml") == found["result"]
    with (tmp_path / "test_some.py").open("a") as file:
        file.write("@pytest.mark.gpu\ndef test_four(): assert 3 == 4\n")
    found = run_tests(tmp_path, tmp_path / "out", 60)
    assert (found["failed"], found["result"]) == (True, "1 passed, 1 failed, 1 skipped")
    assert "assert 3 == 4" in found["details"]


def test_tests_that_do_not_end_are_stopped(tmp_path: Path) -> None:
    """After the time that they have."""
    (tmp_path / "test_slow.py").write_text("import time\ntime.sleep(60)\n")
    found = run_tests(tmp_path, tmp_path / "out", 1)
    assert (found["failed"], found["result"]) == (True, "did not end within 1 s")


def test_utilisation_is_read_while_the_block_runs() -> None:
    """It is the mean of what was read; of a CPU nothing is known."""
    values, enough = [10.0, 70.0], Event()

    def read(_: torch.device) -> float:
        if len(values) == 1:
            enough.set()
        return values.pop(0) if len(values) > 1 else values[0]

    cpu = torch.device("cpu")
    with Usage(cpu, read) as usage:
        assert enough.wait(60)
    assert usage.utilisation is not None
    assert 10 < usage.utilisation <= 70
    assert usage.peak_gb is None
    assert find_reader(cpu) is None
