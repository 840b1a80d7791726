"""A run is begun once: it refuses another config, another layout and strangers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from stacker.errors import RunError
from stacker.files import read_json
from stacker.run import create_run, open_run, reopen
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


def test_logbook_merges_entries(make_config: MakeConfig) -> None:
    """Each stage adds to run.json and keeps what others wrote."""
    run = create_run(make_config())
    run.record("train", {"a": {"seconds": 1}})
    run.record("train", {"b": {"seconds": 2}})
    assert read_json(run.path / "run.json")["train"] == {"a": {"seconds": 1}, "b": {"seconds": 2}}
