"""An export answers as the base model does, describes itself, and is not written where it does not."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result

from stacker.backbones.alexnet import AlexNet
from stacker.backbones.backbone import create
from stacker.backbones.checkpoint import load_checkpoint, save_checkpoint
from stacker.backbones.sources import read_facts
from stacker.cli import train as cli_models
from stacker.cli.common import Commands
from stacker.config.root import Config
from stacker.config.training import BackboneConfig
from stacker.errors import BackboneError, ConfigError
from stacker.files import digest, file_sha256
from stacker.run import Run
from stacker.training import export as exports
from stacker.training.export import export

RANDOM = BackboneConfig(weights="random")


@pytest.fixture
def run(finished: Config) -> Run:
    """Return a finished run of two base models."""
    return Run(finished.run_path, finished)


def only(run: Run, name: str, size: tuple[int, int]) -> Run:
    """Return the run with one untrained base model of another backbone in the place of its own."""
    facts = {"classes": ["benign", "malignant"], "training_cases": ["14-1"]}
    torch.manual_seed(0)
    save_checkpoint(run.model_file(name, "holdout"), create(name, 2, RANDOM, size), facts)
    return Run(run.path, run.config.model_copy(update={"backbones": {name: RANDOM}}))


def logits(run: Run, name: str, images: torch.Tensor) -> np.ndarray:
    """Return what the base model itself answers."""
    base, _ = load_checkpoint(run.model_file(name, "holdout"))
    answer: np.ndarray = base.freeze().model(images).numpy()
    return answer


def loaded_by_its_line(path: Path) -> Any:
    """Run the line of Python that the JSON gives, where the file lies."""
    names: dict[str, Any] = {}
    exec(json.loads(path.with_suffix(".json").read_text())["load"], names)  # noqa: S102  # its purpose
    return names["model"]


def invoke(*arguments: object) -> Result:
    """Call the command as the program does."""
    group = Commands()
    group.add_command(cli_models.export)
    return CliRunner().invoke(group, ["export", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize(("name", "size"), [("test_resnet", (32, 32)), ("test_vit", (32, 48))])
def test_the_line_loads_the_checkpoint(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, size: tuple[int, int]
) -> None:
    """The JSON's line, run beside the file, gives a model with the base model's logits."""
    run = run if name in run.config.backbones else only(run, name, size)
    done = export(run, name, "holdout", "timm")
    assert done.path == run.path / "export" / f"{name}-holdout.pth"
    assert done.bytes == done.path.stat().st_size
    monkeypatch.chdir(done.path.parent)
    images = torch.randn(5, 3, *size)
    np.testing.assert_allclose(
        loaded_by_its_line(done.path)(images).detach().numpy(), logits(run, name, images), atol=1e-5
    )


def test_alexnet_s_line_registers_it(run: Run) -> None:
    """Timm knows AlexNet by stacker alone, so that its line imports both."""
    base, facts = load_checkpoint(run.model_file("test_resnet", "holdout"))
    with torch.device("meta"):
        base = replace(base, name="alexnet", model=AlexNet(num_classes=2))
    line = exports._load_line(Path("folder/a.pth"), base, facts)  # noqa: SLF001
    assert line.startswith(
        "import timm, stacker.backbones.alexnet; model = timm.create_model('alexnet', num_c"
    )
    assert line.endswith("checkpoint_path='a.pth').eval()")


def test_a_checkpoint_is_tensors_and_nothing_else(run: Run) -> None:
    """Equal base models are equal files, which hold the state dict and a JSON that tells the rest."""
    path = export(run, "test_resnet", "holdout", "timm").path
    base, facts = load_checkpoint(run.model_file("test_resnet", "holdout"))
    state = torch.load(path, weights_only=True)
    assert list(state) == list(base.model.state_dict())
    assert all(tensor.is_contiguous() for tensor in state.values())
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["sha256"] == file_sha256(path)
    assert (about["backbone"], about["fold"]) == ("test_resnet", "holdout")
    assert about["classes"] == ["benign", "malignant"]
    assert about["size"] == [32, 32]
    assert about["resize"] == "squash, bicubic"
    assert (about["mean"], about["std"]) == ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    assert about["training_cases"] == len(facts["training_cases"])
    assert about["training_cases_digest"] == digest(facts["training_cases"])
    assert not any(case in path.with_suffix(".json").read_text() for case in facts["training_cases"])
    again = export(run, "test_resnet", "holdout", "timm", run.path / "again.pth").path
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_onnx_answers_as_the_base_model_does(run: Run, name: str) -> None:
    """A batch of any size, under the names `images` and `logits`, with the facts in the file."""
    size = (32, 48) if name == "test_vit" else (32, 32)
    run = run if name in run.config.backbones else only(run, name, size)
    done = export(run, name, "holdout", "onnx")
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        images = torch.randn(count, 3, *size)
        (answers,) = session.run(["logits"], {"images": images.numpy()})
        np.testing.assert_allclose(answers, logits(run, name, images), atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    facts = read_facts(run.model_file(name, "holdout"))
    assert about["backbone"] == name
    for key in ("classes", "size", "mean", "std"):
        assert json.loads(about[key]) == facts[key]
    assert (session.get_inputs()[0].shape, session.get_outputs()[0].shape) == (
        ["batch", 3, *size],
        ["batch", 2],
    )


def test_onnx_is_clean_and_quiet(
    run: Run, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is printed, logged or warned of, and the file names no file of this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = export(run, "test_resnet", "holdout", "onnx", run.path / "own.onnx").path
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert logging.root.manager.disable == 0
    assert b"/timm/models/" not in path.read_bytes()
    assert [entry.name for entry in path.parent.iterdir() if "own" in entry.name] == ["own.onnx"]


@pytest.mark.parametrize("form", ["timm", "onnx"])
@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_wrong_export_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, form: exports.Form, wrong: float
) -> None:
    """Weights that change between the base model and the file leave nothing behind but the reason."""
    write = "_write_timm" if form == "timm" else "_write_onnx"
    original = getattr(exports, write)

    def corrupt(path: Path, base: Any, about: dict[str, Any]) -> exports.Ask:
        bias = base.model.get_classifier().bias
        bias += wrong
        answer: exports.Ask = original(path, base, about)
        bias -= wrong if wrong == wrong else 0  # noqa: PLR0124  # nan stays
        return answer

    monkeypatch.setattr(exports, write, corrupt)
    with pytest.raises(BackboneError, match=r"not written: its logits differ .* by (0\.01|nan)"):
        export(run, "test_resnet", "holdout", form)
    assert not list((run.path / "export").iterdir())


def test_what_onnx_cannot_do_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many weights for one file, and an exporter that fails, with the root of its reasons."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("failed, see below") from KeyError("no translation")

    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", fail)
        with pytest.raises(BackboneError, match=r"cannot export it: KeyError: 'no tr[^$]*use --to timm"):
            export(run, "test_resnet", "holdout", "onnx")
    with monkeypatch.context() as patch:
        patch.setattr(exports, "LARGEST_ONNX", 1000)
        with pytest.raises(BackboneError, match=r"more than the .* of an ONNX file"):
            export(run, "test_resnet", "holdout", "onnx")
    assert not list((run.path / "export").iterdir())


def test_onnx_without_its_packages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnxruntime the extra is named; a timm checkpoint needs none of it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[export\]'"):
        export(run, "test_resnet", "holdout", "onnx")
    assert export(run, "test_resnet", "holdout", "timm").deviation < 1e-5


def test_only_a_trained_base_model_is_exported(run: Run) -> None:
    """Unknown names get the nearest one; a base model that is missing, its file and the command."""
    with pytest.raises(ConfigError, match="did you mean 'test_resnet'"):
        export(run, "test_resnt", "holdout", "timm")
    with pytest.raises(ConfigError, match="no fold of this run 'fold2'"):
        export(run, "test_resnet", "2", "timm")
    with pytest.raises(
        ConfigError, match=r"2 backbones; choose one with --backbone: test_resnet, test_eff"
    ):
        export(run, None, None, "timm")
    run.model_file("test_resnet", "holdout").unlink()
    with pytest.raises(BackboneError, match=r"test_resnet/holdout/model.safetensors.*'stacker train"):
        export(run, "test_resnet", "holdout", "timm")


def test_folds_go_by_number_or_name(run: Run) -> None:
    """`2` is fold2; of several folds one is to be chosen."""
    (fold,) = run.folds.folds
    thirds = [fold.held_out[i::3] for i in range(3)]
    folds = tuple(replace(fold, name=f"fold{i}", held_out=third) for i, third in enumerate(thirds))
    run = run.with_split(run.manifest, replace(run.folds, folds=folds))
    for given in ("2", "fold2"):
        with pytest.raises(BackboneError, match=r"test_resnet/fold2/model.safetensors.*'stacker train"):
            export(run, "test_resnet", given, "timm")
    with pytest.raises(ConfigError, match="3 folds; choose one with --fold: fold0, fold1, fold2"):
        export(run, "test_resnet", None, "timm")


def test_the_command_prints_what_it_wrote(run: Run, tmp_path: Path) -> None:
    """Path, size and deviation; the same as JSON; one message and its exit code for a fault."""
    done = invoke(run.path, "--backbone", "test_resnet")
    assert done.exit_code == 0, done.output
    first, second = done.stdout.splitlines()
    assert first == f"{run.path}/export/test_resnet-holdout.pth (1.5 MB)"
    assert second.startswith("largest difference of its logits from the base model's: ")
    out = tmp_path / "new" / "net.onnx"
    given = ("--backbone", "test_resnet", "--fold", "holdout", "--to", "onnx", "--out", out, "--json")
    facts = json.loads(invoke(run.path, *given).stdout)
    assert Path(facts["path"]) == out
    assert facts["bytes"] == out.stat().st_size
    assert facts["classes"] == ["benign", "malignant"]
    assert facts["deviation"] < 1e-4
    refused = invoke(run.path, "--backbone", "test_resnet", "--out", tmp_path / "net.onnx")
    assert refused.exit_code == 2
    assert "must end in .pth" in refused.stderr
