"""PatchCamelyon, read where it lies: its arrays, its labels and its slides."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stacker.data.images import open_array
from stacker.errors import DataError
from tests.datasets import (
    CHUNKED,
    PATCH_LABELS,
    listen,
    pcam,
    write_part,
)


@pytest.mark.parametrize("how", [{}, CHUNKED], ids=["contiguous", "chunked"])
def test_pcam_with_its_slides(tmp_path: Path, how: dict[str, Any]) -> None:
    """A row names the file, the position, the label, the slide and the content, however it is stored."""
    slides = ["s1", "s1", "s2", "s3", "s2"]
    pixels = write_part(tmp_path, "train", meta=slides, **how)
    write_part(tmp_path, "valid", (0, 1), meta=["s4", "s5"], **how)
    manifest = pcam(tmp_path)
    assert manifest.classes == ("normal", "tumour")
    train = [image for image in manifest.images if image.split == "train"]
    assert [image.id for image in train] == [f"train-{row:06d}" for row in range(5)]
    assert [image.index for image in train] == list(range(5))
    assert [image.label == "tumour" for image in train] == [bool(label) for label in PATCH_LABELS]
    assert [image.case for image in train] == [image.slide for image in train] == slides
    assert [i.sha256 for i in train] == [hashlib.sha256(row.tobytes()).hexdigest() for row in pixels]
    assert {image.magnification for image in manifest.images} == {10}
    assert [i.case for i in manifest.images if i.split == "valid"] == ["s4", "s5"]


def test_pcam_without_its_slides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case is unknown, a warning says so, and a split by case is refused."""
    listen(caplog, monkeypatch)
    write_part(tmp_path, "test")
    manifest = pcam(tmp_path)
    assert "split_test_meta.csv: the slides, and so the cases, are unknown" in caplog.text
    assert {image.case for image in manifest.images} == {""}
    with pytest.raises(DataError, match=r"or the meta CSVs \(pcam\)"):
        manifest.groups("case")


def test_pcam_meta_of_other_rows_is_refused(tmp_path: Path) -> None:
    """A slide per image, or none at all."""
    write_part(tmp_path, "train", meta=["s1", "s2"])
    with pytest.raises(DataError, match=r"meta\.csv has 2 rows, expected 5"):
        pcam(tmp_path)


def test_pcam_meta_without_slides_is_refused(tmp_path: Path) -> None:
    """The refusal lists the columns that are there."""
    write_part(tmp_path, "train")
    (tmp_path / "camelyonpatch_level_2_split_train_meta.csv").write_text("row,slide\n0,s1\n")
    with pytest.raises(DataError, match=r"has no column wsi, found \['row', 'slide'\]"):
        pcam(tmp_path)


def test_pcam_meta_that_contradicts_the_labels_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows may be in another order: the count of differences says how bad it is."""
    listen(caplog, monkeypatch)
    write_part(tmp_path, "train", meta=["s"] * 5)
    assert pcam(tmp_path)
    assert not caplog.text
    path = tmp_path / "camelyonpatch_level_2_split_train_meta.csv"
    path.write_text(path.read_text().replace("False", "True"))
    assert pcam(tmp_path)
    assert "differs from the label in 2 of 5 rows" in caplog.text


def test_pcam_without_labels_is_refused(tmp_path: Path) -> None:
    """The x and the y file belong together."""
    write_part(tmp_path, "train")
    (tmp_path / "camelyonpatch_level_2_split_train_y.h5").unlink()
    with pytest.raises(DataError, match=r"no file at .*train_y\.h5; put .* into one folder"):
        pcam(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 1], "3 labels, expected 5"),
        ([0, 1, 2, 0, 1], "5 labels, expected 5 of them, each 0 or 1"),
    ],
)
def test_pcam_with_other_labels_is_refused(tmp_path: Path, labels: list[int], message: str) -> None:
    """One label per image, and two kinds of them."""
    write_part(tmp_path, "train")
    with h5py.File(tmp_path / "camelyonpatch_level_2_split_train_y.h5", "w") as file:
        file["y"] = np.array(labels).reshape(-1, 1, 1, 1)
    with pytest.raises(DataError, match=message):
        pcam(tmp_path)


@pytest.mark.parametrize(
    ("pixels", "shape"),
    [
        (np.zeros((5, 96, 96, 3), np.float32), r"float32 of shape \(5, 96, 96, 3\)"),
        (np.zeros((5, 96, 96), np.uint8), r"uint8 of shape \(5, 96, 96\)"),
        (np.zeros((5, 96, 96, 4), np.uint8), r"uint8 of shape \(5, 96, 96, 4\)"),
    ],
    ids=["float", "grey", "alpha"],
)
def test_pcam_with_other_pixels_is_refused(tmp_path: Path, pixels: np.ndarray, shape: str) -> None:
    """Eight bits and three channels, or the shape and type that were found."""
    write_part(tmp_path, "train")
    with h5py.File(tmp_path / "camelyonpatch_level_2_split_train_x.h5", "w") as file:
        file["x"] = pixels
    with pytest.raises(DataError, match=f"{shape}, expected"):
        pcam(tmp_path)


@pytest.mark.parametrize("content", ["text", "another"])
def test_pcam_that_is_not_hdf5_is_refused(tmp_path: Path, content: str) -> None:
    """A file cut short in the download, or one with another dataset in it."""
    write_part(tmp_path, "train")
    path = tmp_path / "camelyonpatch_level_2_split_train_x.h5"
    if content == "text":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        with h5py.File(path, "w") as file:
            file["pixels"] = np.zeros(3)
    with pytest.raises(DataError, match=r"train_x\.h5 cannot be read as HDF5 with a dataset 'x'"):
        pcam(tmp_path)


def test_pcam_as_it_is_downloaded_is_refused_with_advice(tmp_path: Path) -> None:
    """Compressed files are to be unpacked; an empty folder is told what it lacks."""
    with pytest.raises(DataError, match=r"no PatchCamelyon file in .*split_train_x\.h5"):
        pcam(tmp_path)
    (tmp_path / "camelyonpatch_level_2_split_test_x.h5.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"test_x\.h5\.gz is compressed; unpack it first \(gunzip\)"):
        pcam(tmp_path)


def test_arrays_are_read_where_there_is_no_pread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has none: there HDF5 reads what lies in one piece."""
    monkeypatch.delattr(os, "pread")
    pixels = write_part(tmp_path, "train")
    array = open_array(next(tmp_path.glob("*_x.h5")), "x")
    np.testing.assert_array_equal(array[1:3], pixels[1:3])
    np.testing.assert_array_equal(array[4], pixels[4])
