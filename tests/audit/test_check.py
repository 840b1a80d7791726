"""stacker check finds in one call what a run would stumble over one by one, and writes it down."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from stacker import pipeline
from stacker.audit.check import check
from stacker.audit.report import finding, sort, worst, write
from stacker.config.root import Config
from stacker.data import store
from stacker.errors import plural
from stacker.training.begin import begin
from tests.datasets import case_rows, of_topic
from tests.pictures import write_table

MakeConfig = Callable[..., Config]


def test_a_sound_run_has_no_errors_and_is_described(make_config: MakeConfig) -> None:
    """Backbones with their map layers, the disk, the audit and both digests are there."""
    report = check(make_config())
    assert worst(report.findings) != "error"
    assert [(fit.backbone, fit.weights) for fit in report.backbones] == [
        ("test_resnet", "random"),
        ("test_efficientnet", "random"),
    ]
    assert report.disk is not None
    assert report.disk.images == 72 * 32 * 32 * 3
    assert report.audit is not None
    assert report.audit.census["total"]["all"]["images"] == 72
    assert report.manifest_digest
    assert report.folds_digest


def test_a_positive_class_that_nobody_chose_is_noted(make_config: MakeConfig, tmp_path: Path) -> None:
    """In BreakHis it is known; of a table it is the last name, until data.positive chooses one."""
    assert check(make_config()).positive == "malignant"
    rows = [[path, {"benign": "normal"}.get(label, "cancer"), case] for path, label, case in case_rows()]
    table = write_table(tmp_path / "images.csv", "path,label,case", rows)
    settings: dict[str, Any] = {"format": "csv", "path": str(table), "masks": None}
    report = check(make_config(data=settings))
    assert report.positive == "normal"
    assert "normal is taken as the positive class" in of_topic(report, "positive class").message
    report = check(make_config(data={**settings, "positive": "cancer"}))
    assert report.positive == "cancer"
    assert "positive class" not in {found.topic for found in report.findings}


def test_the_estimate_is_what_the_run_writes(make_config: MakeConfig) -> None:
    """Bytes of models and caches as estimated are those of the files, give or take headers."""
    config = make_config(
        frozen={"test_vit": {"weights": "random"}},
        cam={"methods": ["layercam", "ablationcam"], "lower": 3},
    )
    disk = check(config).disk
    pipeline.run_all(config)
    models = sum(path.stat().st_size for path in config.run_path.rglob("model.safetensors"))
    assert disk is not None
    assert disk.models == pytest.approx(models, rel=0.15)
    largest = max(path.stat().st_size for path in config.run_path.rglob("model.safetensors"))
    assert disk.resume == pytest.approx(8 * largest, rel=0.15)
    parts = sum(path.stat().st_size for path in config.run_path.rglob("part-*.h5"))
    overhead = 24_000 * len(list(config.run_path.rglob("part-*.h5")))
    assert disk.caches <= parts <= disk.caches + overhead
    assert check(config).disk.images == 0  # type: ignore[union-attr]  # they are packed by now


def test_faults_of_all_kinds_are_reported_together(make_config: MakeConfig, tmp_path: Path) -> None:
    """Missing weights, an absent GPU and missing data: one call names all three."""
    backbones = {"test_resnet": {"weights": "nowhere.safetensors"}, "resnetv2_18": {"weights": "random"}}
    config = make_config(backbones=backbones, device="cuda:7", data={"path": str(tmp_path / "gone")})
    config = config.model_copy(update={"data": config.data.model_copy(update={"masks": None})})
    report = check(config)
    messages = " ".join(finding.message for finding in report.findings if finding.severity == "error")
    assert "no file at nowhere.safetensors" in messages
    assert "backbones.resnetv2_18" in messages
    assert "cuda:7 is not here" in messages
    assert "data.path: no folder" in messages
    assert report.audit is None


def test_a_split_that_cannot_be_made_does_not_stop_the_audit(make_config: MakeConfig) -> None:
    """More folds than cases is an error; the pictures are looked at all the same."""
    report = check(make_config(folds={"protocol": "crossfit", "k": 30}))
    assert "only 12 cases, and each of 31 parts" in of_topic(report, "split").message
    assert report.audit is not None
    assert report.audit.parts["own"] == {}


@pytest.mark.parametrize(("on_error", "severity"), [("stop", "error"), ("skip", "warning")])
def test_unreadable_images_are_listed_and_left_out(
    make_config: MakeConfig, data: Path, tmp_path: Path, on_error: str, severity: str
) -> None:
    """Each is named with its reason; the rest is audited as the run would see it."""
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    broken, small = sorted((copy / "histology_slides").rglob("*.png"))[:2]
    broken.write_bytes(broken.read_bytes()[:300])
    Picture.new("RGB", (70, 3)).save(small)
    config = make_config(data={"path": str(copy), "masks": None, "on_error": on_error})
    report = check(config)
    unreadable = of_topic(report, "unreadable images")
    assert (unreadable.severity, unreadable.count) == (severity, 2)
    assert f"{small}: 70x3 is too small" in "".join(unreadable.examples)
    assert report.audit is not None
    assert report.audit.census["total"]["all"]["images"] == 70


def test_nothing_is_decoded_again_after_a_check(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that follows begins in the folder of the report and finds its images packed."""
    config = make_config()
    write(check(config), config, config.run_path)

    def refuse(*_: Any) -> None:
        raise AssertionError("decoded twice")

    monkeypatch.setattr(store, "decode_bytes", refuse)
    run = begin(config)
    assert len(run.pixels()) == 72


def test_a_run_that_has_begun_is_checked_as_it_is(make_config: MakeConfig) -> None:
    """Its own manifest and split are audited, and another config of its name is refused."""
    config = make_config()
    run = begin(config)
    report = check(config)
    assert report.folds_digest == run.folds.digest
    other = check(make_config(seed=5))
    assert "was made with other settings" in of_topic(other, "data").message


def test_too_little_space_is_an_error(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is compared with what is free before it starts."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("stacker.audit.check.shutil.disk_usage", lambda _: usage._replace(free=1000))
    assert "GB are free" in of_topic(check(make_config()), "disk").message


def test_weights_that_have_seen_a_case_are_an_error(finished: Config, make_config: MakeConfig) -> None:
    """A base model to start from, or to embed with, where its cases are."""
    path = finished.run_path / "models" / "test_resnet" / "holdout" / "model.safetensors"
    report = check(make_config(run="other", frozen={"test_resnet": {"weights": str(path)}}))
    assert "cases of this run" in of_topic(report, "weights trained on these cases").message


def test_coarse_maps_are_noted(make_config: MakeConfig) -> None:
    """At 32 pixels a network of stride 32 has a map of one cell."""
    notes = [finding for finding in check(make_config()).findings if finding.topic == "coarse maps"]
    assert any("at images.size=32 its maps have only 1x1 cells" in finding.message for finding in notes)


def test_report_on_paper(make_config: MakeConfig, tmp_path: Path) -> None:
    """audit.json holds everything; audit.md has the tables and findings of a data section."""
    table = write_table(tmp_path / "set.csv", "path,label,case", case_rows())
    (tmp_path / "01-0.png").write_bytes((tmp_path / "00-0.png").read_bytes())
    data = {"path": str(table), "format": "csv", "masks": None}
    config = make_config(data=data, folds={"protocol": "crossfit", "k": 2})
    report = check(config)
    write(report, config, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert len(content["findings"]) == len(report.findings)
    assert content["audit"]["copies"][0]["first"] == "00-0.png"
    assert content["config"]["data"]["path"] == str(table)
    assert content["audit"]["census"]["class"]["benign"]["cases"] == 8
    page = (tmp_path / "out" / "audit.md").read_text()
    assert "48 images, slides unknown, 16 cases" in page
    assert "| benign | 24 | - | 8 |" in page
    assert "## Split: crossfit split by case" in page
    assert "the rest is split into 2 folds" in page
    assert "**error: duplicate with two classes.**" in page
    assert "00-0.png (benign) = 01-0.png (malignant): same content" in page


def test_findings_are_ordered_and_complete() -> None:
    """Errors come first; all of a thousand places are kept and counted."""
    many = finding("note", "many", "", "", [str(n) for n in range(1000)])
    assert (many.count, len(many.examples)) == (1000, 1000)
    error = finding("error", "bad", "")
    assert sort([many, error]) == (error, many)
    assert worst([many]) == "note"
    assert worst([]) is None
    assert (plural(1, "case"), plural(0, "case")) == ("1 case", "0 cases")


def test_a_check_without_images_does_not_replace_one_with(make_config: MakeConfig) -> None:
    """A wrong config for a run that was audited leaves its report alone."""
    config = make_config()
    folder = config.run_path
    assert write(check(config), config, folder)
    before = (folder / "audit.md").read_text()
    begin(config)
    other = make_config(seed=5)
    assert not write(check(other), other, folder)
    assert (folder / "audit.md").read_text() == before


def test_a_class_that_cannot_be_decoded_is_reported(make_config: MakeConfig, tmp_path: Path) -> None:
    """Nothing can be audited then, but what was found before is not lost."""
    table = write_table(tmp_path / "set.csv", "path,label,case", case_rows())
    for row in case_rows():
        if row[1] == "malignant":
            (tmp_path / row[0]).write_bytes(b"no picture")
    report = check(make_config(data={"path": str(table), "format": "csv", "masks": None}))
    assert of_topic(report, "images").severity == "error"
    assert of_topic(report, "unreadable images").count == 24
    assert report.backbones


def test_a_backbone_that_is_too_large_for_the_images(make_config: MakeConfig) -> None:
    """Some networks shrink 32 pixels to nothing: that is a finding, not a traceback."""
    report = check(make_config(backbones={"inception_v3": {"weights": "random"}}))
    assert "does not take images of 32x32" in of_topic(report, "backbone").message


def test_errors_of_a_check_are_mentioned_when_the_run_begins(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """What the audit found is not forgotten between two commands."""
    config = make_config(folds={"group": "image"})
    write(check(config), config, config.run_path)
    logging.getLogger("stacker").addHandler(caplog.handler)
    begin(config)
    logging.getLogger("stacker").removeHandler(caplog.handler)
    assert "'stacker check' found errors in the data (case in several parts" in caplog.text


def test_an_audit_of_another_state_is_not_quoted(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the cause is fixed the run says that the report is old, and no more."""
    monkeypatch.setattr(logging.getLogger("stacker"), "propagate", True)
    caplog.set_level(logging.INFO, "stacker")
    leaking, fixed = make_config(folds={"group": "image"}), make_config()
    write(check(leaking), leaking, leaking.run_path)
    begin(fixed)
    assert "found errors" not in caplog.text
    assert (
        "audit.md was made from other images or another split; 'stacker check CONFIG' looks"
        in caplog.text
    )


def test_a_fault_of_the_machine_is_not_quoted_as_one_of_the_data(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that was not there is asked for again when the run begins."""
    monkeypatch.setattr(logging.getLogger("stacker"), "propagate", True)
    elsewhere = make_config(device="cuda:7")
    report = check(elsewhere)
    assert of_topic(report, "device").severity == "error"
    write(report, elsewhere, elsewhere.run_path)
    begin(make_config())
    assert "found errors" not in caplog.text
