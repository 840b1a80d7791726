"""The benchmarks measure what they say; how fast anything is, they leave to the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stacker.bench import images as bench
from stacker.bench.train import _verdict
from tests.commands import call, expect_refusal


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LEAST_SECONDS", 0.0)


def test_loading_is_timed_four_ways(write_config: Callable[..., Path]) -> None:
    """One thread, all threads, torch's DataLoader and the store, each as often as asked for."""
    done = call("bench", "images", write_config(), "--images", "20", "--repeats", "2", "--json")
    timings = json.loads(done.stdout)
    assert [timing["way"].split(",")[0] for timing in timings] == [
        "decode",
        "decode",
        "DataLoader",
        "store",
    ]
    assert all(len(timing["repeats"]) == 2 and timing["images_per_second"] > 0 for timing in timings)
    table = call("bench", "images", write_config(), "--images", "20", "--repeats", "1").stdout
    assert "store is faster by" in table


def test_a_way_that_loses_images_is_a_bug() -> None:
    """A rate of images that were never delivered would be a lie."""
    with pytest.raises(AssertionError, match="delivered 3 of 4 images"):
        bench._time("lossy", lambda: iter([[1, 2], [3]]), 4, 1)  # noqa: SLF001


def test_training_is_timed_beside_its_limits(write_config: Callable[..., Path]) -> None:
    """The loop, the loader alone and the synthetic tensor, with what holds the loop back."""
    options = ("--images", "20", "--repeats", "2", "--backbone", "test_efficientnet")
    found = json.loads(call("bench", "train", write_config(), *options, "--json").stdout)
    ways = {timing["way"]: timing for timing in found["timings"]}
    assert set(ways) == {"loader alone", "our loop", "our loop, synthetic tensor"}
    assert all(len(t["repeats"]) == 2 and t["images_per_second"] > 0 for t in ways.values())
    assert (found["backbone"], found["batch_size"]) == ("test_efficientnet", 16)
    shown = call("bench", "train", write_config(), "--images", "16", "--repeats", "1").stdout
    assert "our loop is faster by" in shown
    assert "bottleneck" in shown


def test_timms_script_sees_the_same_files_and_settings(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """It is started with our model, size, batch and optimizer, and its second epoch is read."""
    script = tmp_path / "train.py"
    script.write_text(
        "import pathlib, sys\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "(here / 'args').write_text(' '.join(sys.argv[1:]))\n"
        "root = pathlib.Path(sys.argv[sys.argv.index('--data-dir') + 1])\n"
        "files = sorted(str(p.resolve()) for p in root.glob('train/*/*'))\n"
        "(here / 'files').write_text('\\n'.join(files))\n"
        "print('Train: 0 [1/2] Time: 9.0s, 1.0/s  ( 9.000s,  1.78/s)  LR: 1')\n"
        "print('Train: 1 [1/2] Time: 9.0s, 1.0/s  ( 0.250s,  64.00/s)  LR: 1')\n"
    )
    options = ("--images", "32", "--repeats", "1", "--timm-script", script, "--json")
    found = json.loads(call("bench", "train", write_config(), *options).stdout)
    (peer,) = (t for t in found["timings"] if t["way"] == "timm's train.py")
    assert peer["images_per_second"] == 16 / 0.25
    assert "x timm's train.py" in found["verdict"]
    words = (tmp_path / "args").read_text()
    for option in ("--model test_resnet", "--batch-size 16", "--input-size 3 32 32", "--opt adamw"):
        assert option in words
    files = (tmp_path / "files").read_text().splitlines()
    assert len(files) == 32
    assert all(Path(file).exists() and file.endswith(".png") for file in files)


def test_a_script_that_fails_is_quoted(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """Its last words are in the message."""
    script = tmp_path / "train.py"
    script.write_text("import sys; sys.exit('no such model')")
    done = call("bench", "train", write_config(), "--images", "16", "--timm-script", script)
    expect_refusal(done, 2, "no such model")


def test_too_many_or_too_few_images_are_refused(write_config: Callable[..., Path]) -> None:
    """Whole batches, of images that are there."""
    for count in ("8", "800"):
        expect_refusal(call("bench", "train", write_config(), "--images", count), 2, "batches of 16")


@pytest.mark.parametrize(
    ("loop", "synthetic", "loader", "cause"),
    [(95, 100, 5000, "arithmetic"), (50, 100, 90, "loading"), (50, 100, 5000, "varying")],
)
def test_the_bottleneck_is_named(loop: float, synthetic: float, loader: float, cause: str) -> None:
    """By what the loop is slower than."""
    rates = {"our loop": loop, "our loop, synthetic tensor": synthetic, "loader alone": loader}
    assert cause in _verdict({way: bench.Timing(way, rate, (rate,)) for way, rate in rates.items()})
