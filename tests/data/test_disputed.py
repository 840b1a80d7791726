"""Images that are equal to the byte and lie under two cases: nobody can say whose they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from stacker.audit.check import check
from stacker.config.data import ImagesConfig
from stacker.config.root import Config
from stacker.data.disputed import disputed
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import Manifest
from stacker.errors import DataError
from stacker.training.begin import begin
from tests.datasets import case_rows, of_topic, pcam, write_part
from tests.pictures import write_table

MakeConfig = Callable[..., Config]
MakeStudy = Callable[..., Config]
SIZE = ImagesConfig(size=32)


@pytest.fixture
def of_cases(make_config: MakeConfig, tmp_path: Path) -> MakeStudy:
    """Return a function that makes a config for pictures of 16 cases, some of them made equal."""

    def make(*copies: str, on_error: str = "stop", **changes: Any) -> Config:
        table = write_table(tmp_path / "set.csv", "path,label,case", case_rows())
        for name in copies:
            (tmp_path / name).write_bytes((tmp_path / "00-0.png").read_bytes())
        data = {"path": str(table), "format": "csv", "masks": None, "on_error": on_error}
        return make_config(data=data, folds={"protocol": "crossfit", "k": 2}, **changes)

    return make


def test_a_run_is_not_begun_with_them(of_cases: MakeStudy) -> None:
    """The first pair is named with its cases, and what to do; nothing is written."""
    config = of_cases("01-0.png", "05-2.png")
    expected = (
        r"^3 of 48 images are identical files listed under two cases: 00-0\.png "
        r"\(case case00\) = 01-0\.png \(case case01\)\. .*data\.on_error=skip"
    )
    with pytest.raises(DataError, match=expected):
        begin(config)
    assert not config.run_path.exists()


def test_all_of_them_are_left_out_by_request(
    of_cases: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says how many and names the first pair; the run has none of them."""
    with caplog.at_level(logging.WARNING, "stacker"):
        run = begin(of_cases("01-0.png", "05-2.png", on_error="skip"))
    ids = {image.id for image in run.manifest.images}
    assert len(ids) == 45
    assert not ids & {"00-0.png", "01-0.png", "05-2.png"}
    assert "left out: 3 of 48 images" in caplog.text
    assert "00-0.png (case case00) = 01-0.png (case case01)" in caplog.text


def test_a_check_lists_them_and_goes_on(of_cases: MakeStudy) -> None:
    """It is an error where no run begins with them, and the audit has them among its copies."""
    report = check(of_cases("01-0.png"))
    finding = of_topic(report, "identical file under two cases")
    assert (finding.severity, finding.count) == ("error", 1)
    assert finding.examples == ("00-0.png (case case00) = 01-0.png (case case01)",)
    assert of_topic(report, "duplicate under two cases").count == 1


def test_a_check_sees_the_split_of_the_run_that_leaves_them_out(of_cases: MakeStudy) -> None:
    """There it is a warning, and the report is about the images that are left."""
    config = of_cases("01-0.png", on_error="skip")
    report = check(config)
    finding = of_topic(report, "identical file under two cases")
    assert (finding.severity, finding.count) == ("warning", 1)
    run = begin(config)
    assert report.manifest_digest == run.manifest.digest
    assert report.folds_digest == run.folds.digest


def test_copies_within_a_case_are_its_own_affair(of_cases: MakeStudy) -> None:
    """No split by case parts them."""
    assert len(begin(of_cases("00-1.png", "00-2.png")).manifest.images) == 48


def test_blank_pictures_are_nobodys(of_cases: MakeStudy, tmp_path: Path) -> None:
    """Glass looks the same beside every section, and tells nothing of a patient."""
    Picture.new("RGB", (64, 64), "white").save(tmp_path / "00-0.png")
    assert len(begin(of_cases("01-0.png")).manifest.images) == 48


def test_what_cannot_be_decoded_is_told_as_that(of_cases: MakeStudy, tmp_path: Path) -> None:
    """Two empty files are unreadable, and prove nothing of cases."""
    (tmp_path / "00-0.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 48 images cannot be decoded"):
        begin(of_cases("01-0.png"))


def test_a_case_that_is_not_known_is_not_judged(of_cases: MakeStudy) -> None:
    """Only two known cases contradict each other; then a third copy of no case goes with them."""
    manifest = read_manifest(of_cases("01-0.png", "02-0.png").data)
    assert disputed(manifest, SIZE) == [[0, 3, 6]]
    assert disputed(with_cases(manifest, {0: "", 3: ""}), SIZE) == []
    assert disputed(with_cases(manifest, {0: ""}), SIZE) == [[0, 3, 6]]


def with_cases(manifest: Manifest, cases: dict[int, str]) -> Manifest:
    """Return a manifest with the cases of some rows changed."""
    images = [replace(image, case=cases.get(n, image.case)) for n, image in enumerate(manifest.images)]
    return replace(manifest, images=tuple(images))


def test_contents_that_are_not_known_are_not_equal(of_cases: MakeStudy) -> None:
    """An image without a hash is a copy of none."""
    manifest = read_manifest(of_cases("01-0.png").data)
    assert disputed(manifest, SIZE)
    unhashed = replace(manifest, images=tuple(replace(image, sha256="") for image in manifest.images))
    assert disputed(unhashed, SIZE) == []


def test_rows_of_arrays_are_compared_too(tmp_path: Path) -> None:
    """Their hashes are those of the pixels."""
    write_part(tmp_path, "train", meta=["s1", "s1", "s2", "s3", "s2"])
    manifest = pcam(tmp_path)
    assert disputed(manifest, SIZE) == []
    copied = [replace(image, sha256=manifest.images[0].sha256) for image in manifest.images[:3]]
    images = (*copied, *manifest.images[3:])
    assert disputed(replace(manifest, images=images), SIZE) == [[0, 1, 2]]
