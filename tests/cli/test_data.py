"""check and data on the command line: tables, JSON, files, and exit codes that scripts can use."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from matplotlib.image import imread

from stacker.config.data import DataConfig
from stacker.config.load import load_config
from stacker.data.formats.registry import read_manifest
from stacker.figures.data import pick
from stacker.training.begin import begin
from tests.commands import call, expect_refusal
from tests.pictures import write_table

WriteConfig = Callable[..., Path]


def test_check_prints_and_writes(write_config: WriteConfig, tmp_path: Path) -> None:
    """The tables go to stdout, the report next to the run, and a sound run exits with 0."""
    done = call("check", write_config())
    assert done.exit_code == 0, done.output
    sentence = "72 images, 30 slides, 24 cases: 36 benign, 36 malignant"
    for text in (sentence, "holdout split by case", "test_resnet", "forward_features"):
        assert text in " ".join(done.stdout.split())
    run = tmp_path / "artifacts" / "small"
    assert {path.name for path in run.iterdir()} == {"audit.json", "audit.md"}
    assert call("train", write_config(train={"epochs": 1})).exit_code == 0


def test_exit_code_by_severity(write_config: WriteConfig, tmp_path: Path) -> None:
    """Errors fail; warnings fail under --strict; a wrong config is 2."""
    leaking = write_config(folds={"group": "image"})
    expect_refusal(call("check", leaking), 1, "error")
    images = shutil.copytree(load_config(leaking).data.path, tmp_path / "copy")
    (images / "histology_slides" / "SOB_B_A-14-99999-100-001.png").write_bytes(b"no picture")
    warned = write_config(data={"path": str(images), "on_error": "skip"})
    assert call("check", warned).exit_code == 0
    expect_refusal(call("check", warned, "--strict"), 1, "warning")
    assert "unreadable images" in call("check", warned, "--json").stdout
    expect_refusal(call("check", warned, "--set", "data.formt=idc"), 2, "did you mean 'format'?")


def test_check_for_scripts(write_config: WriteConfig, tmp_path: Path) -> None:
    """--json prints the findings alone; --out chooses the folder of the report."""
    done = call("check", write_config(), "--json", "--out", tmp_path / "report")
    assert {finding["severity"] for finding in json.loads(done.stdout)} <= {"warning", "note"}
    assert (tmp_path / "report" / "audit.md").exists()


def test_describe(write_config: WriteConfig) -> None:
    """Images, slides and cases are counted by class, subtype and magnification."""
    counts = json.loads(call("data", "describe", write_config(), "--json").stdout)
    assert counts["class"]["benign"]["images"] + counts["class"]["malignant"]["images"] == 72
    assert counts["total"]["all"]["cases"] == 24
    assert len(counts["subtype"]) == 8
    assert "tubular_adenoma" in call("data", "describe", write_config()).stdout


def many_classes(tmp_path: Path, write_config: WriteConfig) -> Path:
    """Return the config of 60 classes of two cases each, and 60 more images that cannot be read."""
    rows = [[f"{n:03d}.png", f"class{n % 60:02d}", f"case{n}"] for n in range(180)]
    table = write_table(tmp_path / "set.csv", "path,label,case", rows)
    for n in range(120, 180):
        (tmp_path / f"{n:03d}.png").write_bytes(b"no picture")
    data = {"path": str(table), "format": "csv", "masks": None, "on_error": "skip", "task": "subtype"}
    return write_config(data=data, folds={"validation": 0.3})


def test_long_lists_are_cut_on_the_terminal_and_complete_in_a_file(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    """Sixty classes and sixty broken images take a few lines; --out has each of them."""
    path, out = many_classes(tmp_path, write_config), tmp_path / "all.csv"
    done = call("-q", "data", "describe", path, "--out", out)
    assert len(done.output.splitlines()) <= 25
    assert "60 images in" in done.stderr
    assert "120.png, 121.png, 122.png and 57 more: not an image" in " ".join(done.stderr.split())
    assert "and 57 more" in done.stdout
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows if row["what"] == "class"} == {
        f"class{n:02d}" for n in range(60)
    }
    left_out = [row for row in rows if row["what"] == "left out"]
    assert len(left_out) == 60
    assert left_out[0]["why"].startswith("not an image")


def test_a_check_of_many_faults_fits_on_a_terminal(write_config: WriteConfig, tmp_path: Path) -> None:
    """No table of it grows with the classes or the images; audit.json has every one."""
    folder = tmp_path / "report"
    done = call("-q", "check", many_classes(tmp_path, write_config), "--out", folder)
    for table in re.split("Images \\(cases\\)|Backbones|Findings", done.stdout):
        assert len(table.splitlines()) <= 25
    assert len(done.stderr.splitlines()) <= 5
    findings = json.loads((folder / "audit.json").read_text())["findings"]
    unreadable = next(f for f in findings if f["topic"] == "unreadable images")
    assert len(unreadable["examples"]) == 60
    few = next(finding for finding in findings if finding["topic"] == "few cases")
    assert len(few["examples"]) == 60


def test_split_shows_the_split_of_the_run(write_config: WriteConfig, tmp_path: Path) -> None:
    """Before a run it is the one to come, afterwards the one that is written down: they are the same."""
    path = write_config()
    before = json.loads(call("data", "split", path, "--json").stdout)
    run = begin(load_config(path))
    after = json.loads(call("data", "split", path, "--json").stdout)
    assert before == after
    assert after["digest"] == run.folds.digest
    assert sum(part["all"]["images"] for part in after["parts"].values()) == 72
    assert set(after["parts"]) == {"train", "validation", "stack", "test"}
    picture = imread(tmp_path / "artifacts" / "small" / "figures" / "split.png")
    assert picture.shape[1] > 1000
    assert "validation" in call("data", "split", path, "--out", tmp_path / "s.png").stdout
    assert (tmp_path / "s.png").exists()


def test_montage(write_config: WriteConfig, tmp_path: Path) -> None:
    """The picture has a row per subtype and a column per case, and does not stop a later run."""
    path = write_config()
    done = call("data", "montage", path, "--cases", "2", "--seed", "3")
    file = tmp_path / "artifacts" / "small" / "figures" / "montage.png"
    assert done.stdout.strip() == str(file)
    height, width, _ = imread(file).shape
    assert height > 2 * width
    assert begin(load_config(path)).path.exists()


def test_montage_picks_one_image_per_case(data: Path) -> None:
    """Rows are the subtypes, those of a class together; a seed draws the same images again."""
    manifest = read_manifest(DataConfig(path=data))
    chosen = pick(manifest, 2, 0)
    assert list(chosen)[:4] == ["adenosis", "fibroadenoma", "phyllodes_tumor", "tubular_adenoma"]
    for subtype, images in chosen.items():
        assert {image.subtype for image in images} == {subtype}
        assert len({image.case for image in images}) == len(images) == 2
    assert pick(manifest, 2, 0) == chosen != pick(manifest, 2, 1)
