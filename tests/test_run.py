"""A run is begun once: what is there stays as it is, and what the config adds is made."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stacker import pipeline
from stacker.caches.summary import find_caches
from stacker.config.root import Config
from stacker.errors import RunError
from stacker.files import read_json
from stacker.maps.verify import verify
from stacker.run import StackName, create_run, open_run, reopen
from stacker.stacking.saved import stack_facts
from stacker.training.begin import begin
from tests.commands import call
from tests.conftest import MakeConfig

WriteConfig = Callable[..., Path]


def test_a_run_refuses_another_config(make_config: MakeConfig) -> None:
    """The changed setting is named with both values; a changed stack section is welcome."""
    run = create_run(make_config())
    run.manifest_file.touch()
    assert open_run(run.path).config == run.config
    with pytest.raises(RunError, match=r"images\.size: was 32, is 48"):
        create_run(make_config(images={"size": 48}))
    with pytest.raises(RunError, match=r"data\.positive: was null, is 'benign'"):
        create_run(make_config(data={"positive": "benign"}))
    changed = make_config(stack={"meta": ["mlp"]})
    assert create_run(changed).config == changed


def test_a_run_is_not_opened_as_another_one(make_config: MakeConfig) -> None:
    """What its results stand on is not overridden; what they do not stand on may be."""
    run = create_run(make_config())
    run.manifest_file.touch()
    for setting, message in (("train.epochs=7", "epochs: was 2, is 7"), ("folds.test=0.3", "test: was")):
        with pytest.raises(RunError, match=message):
            open_run(run.path, [setting])
    assert open_run(run.path, ["stack.abstain=0.5"]).config.stack.abstain == 0.5


def test_looking_keeps_the_config_of_a_run(make_config: MakeConfig, write_config: WriteConfig) -> None:
    """`data describe` and `check` with other settings leave config.yaml as it is."""
    run = begin(make_config())
    before = (run.path / "config.yaml").read_bytes()
    for command in (("data", "describe"), ("check",)):
        call(*command, write_config(), "--set", "stack.features=[maps]")
        assert (run.path / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("book", "stated"),
    [
        ('{"stacker": "0.1"}', "states no layout"),
        ('{"layout": 1}', "is of layout 1"),
        ("", "states no layout"),
    ],
)
def test_a_run_of_another_layout_is_refused(make_config: MakeConfig, book: str, stated: str) -> None:
    """By every way to open it, before its config is read: what it states, and what to do."""
    config = make_config()
    run = create_run(config)
    run.manifest_file.touch()
    (run.path / "run.json").write_text(book)
    (run.path / "config.yaml").write_text("method: of another version")
    for way in (partial(open_run, run.path), partial(reopen, config), partial(create_run, config)):
        with pytest.raises(RunError, match=f"{stated}.* reads runs of layout 3 only; start a new run"):
            way()


def test_a_start_that_another_version_left_is_begun_again(make_config: MakeConfig) -> None:
    """Nothing was frozen: the logbook is this version's from then on."""
    config = make_config()
    config.run_path.mkdir(parents=True)
    (config.run_path / "run.json").write_text('{"stacker": "0.1"}')
    run = create_run(config)
    run.manifest_file.touch()
    assert open_run(run.path).config == config


def test_a_config_may_be_mended_before_anything_is_made(make_config: MakeConfig) -> None:
    """A run that holds no manifest yet takes the config that comes."""
    create_run(make_config())
    assert create_run(make_config(train={"epochs": 3})).config.train.epochs == 3


def test_a_strange_folder_is_not_taken_for_a_run(make_config: MakeConfig, tmp_path: Path) -> None:
    """Neither to write into nor to open."""
    config = make_config()
    config.run_path.mkdir(parents=True)
    (config.run_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="holds no config"):
        create_run(config)
    with pytest.raises(RunError, match="not a run directory"):
        open_run(tmp_path)


def test_what_an_audit_leaves_is_no_stranger(make_config: MakeConfig) -> None:
    """A run begins in a folder that has a report and a lock, on Windows beside the logbook's."""
    config = make_config()
    config.run_path.mkdir(parents=True)
    for name in ("audit.md", "run.json", ".run.lock", ".run.lock.lock"):
        (config.run_path / name).write_text("{}")
    assert create_run(config).path == config.run_path


def test_logbook_merges_entries(make_config: MakeConfig) -> None:
    """Each stage adds to run.json and keeps what others wrote."""
    run = create_run(make_config())
    run.record("train", {"a": {"seconds": 1}})
    run.record("train", {"b": {"seconds": 2}})
    assert read_json(run.path / "run.json")["train"] == {"a": {"seconds": 1}, "b": {"seconds": 2}}


def with_backbones(config: Config, backbones: dict[str, Any]) -> Config:
    """Return a config with other backbones."""
    return Config.model_validate(config.model_dump() | {"backbones": backbones})


def times(run: Path, pattern: str) -> dict[Path, int]:
    """Return when the files of a run were written."""
    return {path: path.stat().st_mtime_ns for path in run.glob(pattern)}


def test_backbones_may_come_and_go(
    finished: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is kept, what is new is made, and the results say which base models took part."""
    monkeypatch.setattr(logging.getLogger("stacker"), "propagate", True)
    caplog.set_level(logging.INFO, "stacker")
    path, plain = finished.run_path, {"weights": "random", "train": {"lr": 1e-3}}
    before = times(path, "[mc]*/test_*/*/[mp]*.[sh]*")
    config = with_backbones(finished, {**finished.backbones, "test_vit": {"weights": "random"}})
    metrics = pipeline.run_all(config)
    assert times(path, "[mc]*/test_[re]*/*/[mp]*.[sh]*") == before
    names = ["test_resnet", "test_efficientnet", "test_vit"]
    assert metrics["base_models"] == [f"{name}/holdout" for name in names]
    assert list(metrics["test"])[1:4] == names
    assert open_run(path).config.backbones.keys() == set(names)
    assert stack_facts(open_run(path), "logistic")["base_models"] == metrics["base_models"]
    fewer = with_backbones(finished, {"test_resnet": plain, "test_vit": {"weights": "random"}})
    metrics = pipeline.run_all(fewer)
    assert metrics["base_models"] == ["test_resnet/holdout", "test_vit/holdout"]
    said = "models/test_efficientnet is ignored: it is not in this config"
    assert caplog.text.count(said) == 1
    assert times(path, "[mc]*/test_[re]*/*/[mp]*.[sh]*") == before
    caplog.clear()
    assert [verdict.problems for verdict in verify(open_run(path))] == [(), ()]
    assert "cache/test_efficientnet/holdout is ignored" in caplog.text
    assert len(find_caches(open_run(path))) == 2
    assert "2 base models, 2 caches" in repr(open_run(path))
    assert "not complete" not in caplog.text


def test_a_changed_recipe_names_every_setting(finished: Config) -> None:
    """Of the base models that are there; what a backbone without any is to be may change."""
    recipes = {
        "test_resnet": {"weights": "random", "train": {"lr": 2e-3, "augment": {"flips": False}}},
        "test_vit": {"weights": "random", "train": {"epochs": 7}},
    }
    with pytest.raises(RunError) as refused:
        reopen(with_backbones(finished, recipes))
    lines = str(refused.value).splitlines()
    assert "trained with other settings; set these back, choose another name for the run" in lines[0]
    assert "delete models/test_resnet to train again" in lines[0]
    assert sorted(lines[1:]) == [
        "  backbones.test_resnet.train.augment.flips: was True, is False",
        "  backbones.test_resnet.train.lr: was 0.001, is 0.002",
    ]
    shutil.rmtree(finished.run_path / "models" / "test_resnet")
    assert reopen(with_backbones(finished, recipes)).config.recipe("test_resnet").lr == 2e-3


def test_many_changes_are_cut_short(make_config: MakeConfig) -> None:
    """Eight settings are named, each with both values, and how many there are beside."""
    run = create_run(make_config())
    run.manifest_file.touch()
    folds = {"protocol": "crossfit", "k": 3, "test": 0.1, "stack": 0.2, "validation": 0.3}
    images = {"size": 48, "resize": "crop"}
    data = {"task": "subtype", "classes": ["a", "b"]}
    with pytest.raises(RunError) as refused:
        create_run(make_config(seed=3, folds=folds, images=images, data=data))
    lines = str(refused.value).splitlines()
    assert "  seed: was 0, is 3" in lines
    assert "  data.task: was 'binary', is 'subtype'" in lines
    assert len(lines) == 10
    assert lines[-1] == "  and 2 more"


@pytest.mark.parametrize(
    ("text", "full", "folder"),
    [
        ("mlp", "mlp: maps + logits", "mlp@maps+logits"),
        ("mlp: logits", "mlp: logits", "mlp@logits"),
        ("mlp@relu4+logits", "mlp: relu4 + logits", "mlp@relu4+logits"),
        ("mean", "mean", "mean"),
        ("a_package.Class: maps", "a_package.Class: maps", "a_package.Class@maps"),
    ],
)
def test_a_stack_has_one_name_and_one_folder(text: str, full: str, folder: str) -> None:
    """However it is called: by its meta-learner, its full name or its folder."""
    name = StackName.parse(text, ("maps", "logits"))
    assert (str(name), name.folder) == (full, folder)
    assert StackName.parse(full, ()) == StackName.parse(folder, ()) == name


def test_a_folder_never_has_too_long_a_name() -> None:
    """Two dozen blocks are cut off, and two such stacks still lie apart."""
    blocks = [f"block_number_{n}" for n in range(24)]
    one, two = (StackName.of("mlp", names).folder for names in (blocks, blocks[::-1]))
    assert len(one) == len(two) == 180
    assert one != two


def test_training_that_is_done_loads_no_torch(finished: Config) -> None:
    """`train` says so from headers and digests alone."""
    path = finished.run_path / "config.yaml"
    code = f"import sys; sys.argv = ['stacker', 'train', {str(path)!r}]\n"
    code += "from stacker.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: print(sorted({n.split('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, modules = done.stdout.splitlines()
    assert said.startswith("2 of 2 base models")
    assert "test_resnet/holdout: already done" in done.stderr
    for heavy in ("torch", "timm", "torchvision", "sklearn", "matplotlib"):
        assert f"'{heavy}'" not in modules
