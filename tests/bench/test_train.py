"""Training is timed beside its limits and timm's script; how fast it is, is left to the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stacker.bench.timing import Timing
from stacker.bench.train import COMPILED, LOADER, OURS, PEER, SYNTHETIC, bench_train, verdict
from stacker.config.root import Config
from tests.commands import call, expect_refusal


def test_training_is_timed_beside_its_limits(write_config: Callable[..., Path]) -> None:
    """The loop, the loader alone and the synthetic tensor, with what holds the loop back."""
    options = ("--images", "20", "--repeats", "2", "--backbone", "test_efficientnet")
    bench = json.loads(call("bench", "train", write_config(), *options, "--json").stdout)
    ways = {timing["way"]: timing for timing in bench["timings"]}
    assert set(ways) == {LOADER, OURS, SYNTHETIC}
    assert all(len(t["repeats"]) == 2 and t["images_per_second"] > 0 for t in ways.values())
    assert (bench["backbone"], bench["batch_size"]) == ("test_efficientnet", 16)
    shown = call("bench", "train", write_config(), "--images", "16", "--repeats", "1").stdout
    assert "test_resnet, 32x32, batches of" in shown
    assert "our loop is faster by" in shown
    assert "bottleneck" in shown
    assert shown.splitlines()[-1].endswith("medians of 1 repeat on 16 images")


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
    bench = json.loads(call("bench", "train", write_config(), *options).stdout)
    (peer,) = (timing for timing in bench["timings"] if timing["way"] == PEER)
    assert peer["images_per_second"] == 16 / 0.25
    assert "the rate of timm's train.py" in bench["verdict"]
    words = (tmp_path / "args").read_text()
    for option in ("--model test_resnet", "--batch-size 16", "--input-size 3 32 32", "--opt adamw"):
        assert option in words
    files = (tmp_path / "files").read_text().splitlines()
    assert len(files) == 32
    assert all(Path(file).exists() and file.endswith(".png") for file in files)
    assert not Path(words.split("--data-dir ")[1].split()[0]).exists()


def test_a_script_that_fails_is_quoted(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """Its last words are in the message."""
    script = tmp_path / "train.py"
    script.write_text("import sys; sys.exit('no such model')")
    done = call("bench", "train", write_config(), "--images", "16", "--timm-script", script)
    expect_refusal(done, 2, "no such model")


def test_too_many_or_too_few_images_are_refused(write_config: Callable[..., Path]) -> None:
    """Whole batches, of images that are there."""
    for count in ("8", "800"):
        done = call("bench", "train", write_config(), "--images", count)
        expect_refusal(done, 2, f"--images {count}: 72 images are there and a batch has 16", "16 to 72")


def timings(**rates: float) -> list[Timing]:
    """Return timings of three repeats each, by short names."""
    ways = {"loop": OURS, "synthetic": SYNTHETIC, "loader": LOADER, "compiled": COMPILED, "peer": PEER}
    return [Timing(ways[name], rate, (rate,) * 3, 64, rough=False) for name, rate in rates.items()]


@pytest.mark.parametrize(
    ("loop", "synthetic", "loader", "cause"),
    [(95, 100, 5000, "arithmetic"), (50, 100, 90, "loading"), (50, 100, 5000, "augmentation")],
)
def test_the_bottleneck_is_named(loop: float, synthetic: float, loader: float, cause: str) -> None:
    """By what the loop is slower than."""
    assert cause in verdict(timings(loop=loop, synthetic=synthetic, loader=loader))


def test_compiling_and_the_peer_are_compared_with_the_loop() -> None:
    """Faster by less than a twentieth does not pay."""
    rates: dict[str, float] = {"loop": 100, "synthetic": 100, "loader": 5000}
    assert "compiled 1.04x as fast, which does not pay off" in verdict(timings(**rates, compiled=104))
    said = verdict(timings(**rates, compiled=120, peer=50))
    assert "; compiled 1.20x as fast, which pays off (compile: true); " in said
    assert said.endswith("our loop at 2.00x the rate of timm's train.py")


def test_next_to_no_time_measures_one_batch_once(make_config: Callable[..., Config]) -> None:
    """The least that there is; all of it is rough."""
    bench = bench_train(make_config(), minutes=1e-4)
    assert (bench["images"], bench["repeats"]) == (16, 1)
    assert all(timing.rough for timing in bench["timings"])
    assert bench["verdict"].endswith("medians of 1 repeat on 16 images")
