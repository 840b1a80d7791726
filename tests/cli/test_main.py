"""The command line from end to end, and one clear line for everything that can go wrong."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stacker import __version__
from stacker.cli.main import main
from stacker.config.root import Config
from tests.commands import call, expect_refusal

WriteConfig = Callable[..., Path]


def test_help_and_version_import_nothing_heavy() -> None:
    """They answer at once: neither torch nor numpy nor pydantic is loaded for them."""
    for option in ("--help", "--version"):
        code = f"import sys; sys.argv = ['stacker', '{option}']; from stacker.cli.main import main\n"
        code += "try: main()\nexcept SystemExit: print(sorted(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        *_, modules = done.stdout.splitlines()
        for heavy in ("torch", "numpy", "pydantic", "sklearn", "matplotlib", "h5py", "rich"):
            assert f"'{heavy}'" not in modules
        assert option == "--help" or __version__ in done.stdout


def test_the_list_of_commands_is_not_cut() -> None:
    """Each has a line that fits 80 columns, in the order of the work."""
    listing = call("--help").stdout.split("Commands:")[1]
    assert "..." not in listing
    assert [line.split()[0] for line in listing.splitlines() if line.strip()] == list(main.commands)


def test_every_command_has_help() -> None:
    """No command without a sentence; that the documentation lists it is looked at in tests/docs."""
    for name, command in main.commands.items():
        assert call(name, "--help").exit_code == 0
        assert command.help
        for part, below in getattr(command, "commands", {}).items():
            assert call(name, part, "--help").exit_code == 0
            assert below.help


def test_three_stages_one_by_one(write_config: WriteConfig, tmp_path: Path) -> None:
    """train, cache and stack leave the run directory of the contract, and run finds all of it done."""
    path = write_config()
    assert call("train", path).exit_code == 0
    assert call("cache", path).exit_code == 0
    stacked = call("stack", path, "--meta", "xgboost")
    assert stacked.exit_code == 0
    for name in ("constant", "test_resnet", "test_efficientnet", "mean", "xgboost"):
        assert name in stacked.stdout
    run = tmp_path / "artifacts" / "small"
    expected = [
        *("config.yaml", "run.json", "manifest.csv", "folds.json", "metrics.json", "predictions.csv"),
        *(
            "figures/confusion.png",
            "figures/roc.png",
            "figures/reliability.png",
            "out_of_fold.csv",
            "stack/xgboost@maps+logits/stack.json",
        ),
        *(f"models/{b}/holdout/model.safetensors" for b in ("test_resnet", "test_efficientnet")),
        *(f"models/{b}/holdout/metrics.jsonl" for b in ("test_resnet", "test_efficientnet")),
        *(
            f"cache/{b}/holdout/{f}.h5"
            for b in ("test_resnet", "test_efficientnet")
            for f in ("index", "part-00000")
        ),
    ]
    assert [name for name in expected if not (run / name).exists()] == []
    epochs = [json.loads(line) for line in (run / "models/test_resnet/holdout/metrics.jsonl").open()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    models = {p: p.stat().st_mtime_ns for p in run.glob("[mc]*/*/*/*.[sh]*")}
    again = call("run", path)
    assert again.exit_code == 0
    assert "logistic" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in models} == models


def test_settings_that_cannot_be_fitted_are_not_kept(finished: Config) -> None:
    """A stack that fails leaves the run's config as it was; one that is fitted changes it."""
    path = finished.run_path / "config.yaml"
    before = path.read_text()
    tight = ("--set", "stack.memory_gb=1e-9", "--set", "stack.svm.C=2")
    expect_refusal(call("stack", path, "--meta", "svm", *tight), 1, "needs its whole table in memory")
    assert path.read_text() == before
    assert call("stack", path, "--meta", "logistic", "--set", "stack.logistic.C=2").exit_code == 0
    assert "C: 2" in path.read_text()


def test_set_changes_a_setting(write_config: WriteConfig, tmp_path: Path) -> None:
    """--set is resolved into the run's stored config."""
    assert call("train", write_config(), "--set", "run=other", "--set", "train.epochs=1").exit_code == 0
    assert "epochs: 1" in (tmp_path / "artifacts" / "other" / "config.yaml").read_text()


def test_predict_takes_a_meta_learner_that_is_fitted(
    finished: Config, data: Path, tmp_path: Path
) -> None:
    """Without --meta it is the first of stack.meta; an error suggests and lists only fitted ones."""
    good = next((data / "histology_slides").rglob("*.png"))
    stacks = finished.run_path / "stack"
    for name in ("logistic", "mlp"):
        (stacks / f"{name}@maps+logits" / "stack.json").unlink()
    assert call("predict", finished.run_path, good, "--out", tmp_path / "out").exit_code == 0
    for name, code, text in (
        ("xgbost", 2, "did you mean 'xgboost'? this run has fitted: xgboost"),
        ("logstic", 2, "no meta-learner 'logstic'; this run has fitted: xgboost"),
        ("logistic", 1, "is fitted; fitted are: xgboost"),
    ):
        expect_refusal(call("predict", finished.run_path, good, "--meta", name), code, text)
    (stacks / "xgboost@maps+logits" / "stack.json").unlink()
    expect_refusal(call("predict", finished.run_path, good), 1, "no meta-learner is fitted yet")


def test_inspect_shows_and_draws(finished: Config, tmp_path: Path) -> None:
    """A table of the caches, as text and as JSON, and a sheet of heatmaps."""
    shown = call("inspect", finished.run_path)
    assert shown.exit_code == 0
    assert "test_resnet" in shown.stdout
    assert "gradcam on 1x1" in shown.stdout
    listed = json.loads(call("inspect", finished.run_path, "--json").stdout)
    assert {entry["backbone"] for entry in listed} == {"test_resnet", "test_efficientnet"}
    assert listed[0]["maps"] == {"maps": [2, 1, 1]}
    out = tmp_path / "sheet.png"
    options = ("--sample", 2, "--backbone", "test_resnet", "--class", "benign", "--signed", "--out", out)
    assert call("inspect", finished.run_path, *options).exit_code == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    of_the_run = finished.run_path / "figures" / "heatmaps.png"
    of_the_run.write_text("the run's own")
    drawn = call("inspect", finished.run_path, "--sample", 1, "--backbone", "test_resnet")
    assert str(finished.run_path / "figures" / "inspect.png") in "".join(drawn.stdout.split())
    assert (finished.run_path / "figures" / "inspect.png").read_bytes().startswith(b"\x89PNG")
    assert of_the_run.read_text() == "the run's own"


def test_usage_errors_exit_with_2(write_config: WriteConfig, tmp_path: Path) -> None:
    """A wrong path, key, backbone or meta-learner is an error of usage, with a hint."""
    expect_refusal(call("run", tmp_path / "nowhere.yaml"), 2, "no config file")
    expect_refusal(call("run", write_config(train={"epocs": 1})), 2, "did you mean 'epochs'")
    expect_refusal(
        call("train", write_config(backbones={"resnet5O": None})), 2, "did you mean 'resnet50'"
    )
    expect_refusal(call("stack", write_config(), "--meta", "xgbost"), 2, "did you mean 'xgboost'")
    expect_refusal(
        call("train", write_config(backbones={"resnet18": {"weights": "no.pth"}})),
        1,
        "no file at no.pth",
    )
    expect_refusal(call("stack", write_config(), "--set", "nonsense"), 2, "section.key=value")
    assert not (tmp_path / "artifacts").exists()


def test_failures_exit_with_1(write_config: WriteConfig, tmp_path: Path) -> None:
    """An empty folder, a stage too early and a run of another config fail with what to do."""
    (tmp_path / "empty").mkdir()
    expect_refusal(
        call("run", write_config(data={"path": str(tmp_path / "empty")})), 1, "no BreakHis image"
    )
    expect_refusal(call("run", write_config(data={"path": str(tmp_path / "none")})), 1, "no folder at")
    expect_refusal(call("cache", write_config()), 1, "run 'stacker train CONFIG' first")
    expect_refusal(call("inspect", tmp_path), 1, "not a run directory")
    expect_refusal(call("predict", tmp_path, write_config()), 1, "not a run directory")
    assert call("train", write_config()).exit_code == 0
    expect_refusal(call("stack", write_config()), 1, "run 'stacker cache CONFIG'")
    expect_refusal(call("train", write_config(images={"size": 48})), 1, "images.size: was 32, is 48")


def test_unreadable_images_stop_or_are_skipped(
    write_config: WriteConfig, data: Path, tmp_path: Path
) -> None:
    """By default all of them are listed and nothing is written; on request they are left out."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for path in (data / "histology_slides").rglob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    bad = sorted(folder.iterdir())[:2]
    for path in bad:
        path.write_bytes(b"broken")
    stopped = call("train", write_config(data={"path": str(folder)}))
    expect_refusal(
        stopped, 1, "2 of 72 images cannot be decoded", bad[0].name, bad[1].name, "on_error=skip"
    )
    assert not (tmp_path / "artifacts" / "small").exists()
    assert call("train", write_config(data={"path": str(folder), "on_error": "skip"})).exit_code == 0
    manifest = (tmp_path / "artifacts" / "small" / "manifest.csv").read_text()
    assert len(manifest.splitlines()) == 1 + 70
    assert bad[0].stem not in manifest


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Can't write data (file write failed: errno = 28, error message = 'No space')"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whoever reports it, Python, HDF5 or safetensors."""

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("stacker.pipeline.train", full)
    expect_refusal(call("train", write_config()), 1, "the disk is full", "run the same command again")


def test_ctrl_c_is_one_line(write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run says that it can go on, and exits as a shell expects."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stacker.pipeline.train", interrupt)
    expect_refusal(call("run", write_config()), 130, "interrupted")


def test_a_bug_keeps_its_traceback(write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a user can fix becomes a message."""

    def bug(*_: object) -> Any:
        return dict[str, str]()["missing"]

    monkeypatch.setattr("stacker.pipeline.train", bug)
    with pytest.raises(KeyError):
        call("train", write_config())


def test_hub_without_network_says_what_else_there_is(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message of stage one names the file and the random start."""

    def offline() -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.utils.get_session", offline)
    expect_refusal(call("train", write_config(backbones={"resnet50": None})), 1, "weights=random")
