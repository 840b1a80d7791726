"""Runs as a user finds them again: listed, changed since, copied to another place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from stacker.cli.tables.runs import runs_table
from stacker.config.load import load_config
from stacker.config.root import Config
from stacker.files import read_json, write_json
from stacker.overview import Overview, look
from tests.cli.tables.test_models import printed
from tests.commands import call, expect_refusal


def test_runs_are_listed(finished: Config, tmp_path: Path) -> None:
    """Data, protocol, state and the best model of each; strangers are skipped, other layouts named."""
    folder = finished.artifacts
    shutil.copytree(finished.run_path, folder / "older")
    book = read_json(folder / "older" / "run.json")
    write_json(folder / "older" / "run.json", book | {"layout": 1})
    (folder / "thesis").mkdir()
    (folder / "notes.txt").touch()
    shown = call("runs", folder)
    assert shown.exit_code == 0
    for text in ("small", "breakhis", "72", "24", "holdout, by case", "test_resnet", "3 stacks"):
        assert text in shown.stdout
    assert "trained 2 of 2, cached 2 of 2" in " ".join(shown.stdout.split())
    assert "is of layout 1" in shown.stdout
    assert "thesis" not in shown.stdout
    older, small = json.loads(call("runs", folder, "--json").stdout)
    assert (older["run"], small["run"]) == ("older", "small")
    assert "layout" in older["problem"]
    metrics = read_json(finished.run_path / "metrics.json")
    name, score = small["best"]["name"], small["best"]["value"]
    assert score == max(m["image"]["auc"] for m in metrics["development"].values())
    assert metrics["development"][name]["image"]["auc"] == score
    assert small["notes"] == []
    expect_refusal(call("runs", tmp_path / "nowhere"), 1, "no such folder")
    assert "no run in" in call("runs", tmp_path / "artifacts" / "thesis").stderr


def test_backbones_are_not_broken() -> None:
    """On a narrow terminal each stands on its own line, whole, without a comma."""
    names = ("resnet18", "efficientnet_b0")
    run = Overview("tiny", "a/tiny", data="breakhis", images=422, cases=81, backbones=names)
    words = [word for line in printed(runs_table([run]), 80) for word in line.split()]
    assert set(names) <= set(words)


def test_listing_loads_nothing_heavy(finished: Config) -> None:
    """Neither torch nor scikit-learn nor matplotlib has to be there for it."""
    code = f"import sys; sys.argv = ['stacker', 'runs', {str(finished.artifacts)!r}, '--json']\n"
    code += "from stacker.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: print(sorted({n.split('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, modules = done.stdout.splitlines()
    for heavy in ("torch", "timm", "sklearn", "scipy", "matplotlib"):
        assert f"'{heavy}'" not in modules


def change(run: Path, **settings: object) -> None:
    """Change the stored config of a run, as a command with these settings would."""
    content = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in settings.items():
        section, _, name = key.partition("__")
        content[section] = content[section] | {name: value} if name else value
    (run / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def test_what_is_out_of_date_is_called_so(finished: Config) -> None:
    """Scores of other stacks or base models than the config has, and what is ignored."""
    run = finished.run_path
    assert look(run).notes == ()
    change(run, stack__features=["logits"])
    assert "metrics.json does not match the stacks of this run" in look(run).notes[0]
    change(run, stack__features=["maps", "logits"])
    (run / "stack" / "mlp@maps+logits" / "stack.json").write_text("{")
    assert "metrics.json does not match the stacks of this run" in look(run).notes[0]
    shutil.rmtree(run / "stack" / "mlp@maps+logits")
    assert "metrics.json does not match the stacks of this run" in look(run).notes[0]
    change(run, backbones={"test_resnet": {"weights": "random"}, "test_vit": {"weights": "random"}})
    first, second = look(run).notes
    assert (
        "metrics.json was computed with other base models than the config lists: run 'stacker run"
        in first
    )
    assert second == "models/test_efficientnet is ignored: it is not in the config"
    assert (look(run).base_models, look(run).planned) == (1, 2)


def test_a_copied_run_stands_on_its_own(finished: Config, tmp_path: Path, data: Path) -> None:
    """Copied and the original deleted, every command reads and writes the copy, and advises on it."""
    copy = tmp_path / "else where" / "a copy"
    shutil.copytree(finished.run_path, copy)
    shutil.rmtree(finished.artifacts)
    config, image = copy / "config.yaml", next((data / "histology_slides").rglob("*.png"))
    for arguments in (
        ("runs", copy.parent),
        ("cache", "info", copy),
        ("cache", "verify", copy),
        ("cache", "export", copy, "--csv"),
        ("inspect", copy, "--sample", 2),
        ("predict", copy, image),
        ("pack", copy, "--out", tmp_path / "pack"),
        ("export", copy, "--backbone", "test_resnet"),
        ("data", "split", config),
        ("train", config),
        ("cache", config),
        ("stack", config, "--meta", "logistic", "--set", "stack.logistic.C=3"),
    ):
        done = call(*arguments)
        assert done.exit_code == 0, (arguments, done.output)
        assert str(finished.run_path) not in done.output
    assert not finished.artifacts.exists()
    assert load_config(config).run_path == copy
    assert load_config(config).stack.logistic.C == 3
    part = next(copy.glob("cache/test_resnet/*/part-00000.h5"))
    part.unlink()
    done = call("cache", "verify", copy)
    expect_refusal(
        done, 1, f"1 of 2 caches of {copy} have problems", f"'stacker cache {copy}/config.yaml'"
    )
    assert call("cache", config).exit_code == 0
    assert part.exists()
    assert load_config(config, ["run=other"]).run_path == copy.parent / "other"


def test_a_config_that_no_cache_can_be_filled_by_is_not_kept(finished: Config) -> None:
    """A backbone that is not trained is refused, and the run is what it was."""
    config = finished.run_path / "config.yaml"
    before = config.read_text()
    vit = ("--set", "backbones.test_vit.weights=random")
    expect_refusal(call("cache", config, *vit), 1, "this base model is not trained yet")
    assert config.read_text() == before
    assert call("cache", config, "--set", "cam.batch_size=8").exit_code == 0
    assert load_config(config).cam.batch_size == 8


def test_without_a_run_that_can_be_read_there_is_no_table(finished: Config) -> None:
    """What is wrong is said, under no empty table."""
    book = read_json(finished.run_path / "run.json")
    write_json(finished.run_path / "run.json", book | {"layout": 1})
    shown = call("runs", finished.artifacts)
    assert "is of layout 1" in shown.stdout
    assert "best model" not in shown.stdout
