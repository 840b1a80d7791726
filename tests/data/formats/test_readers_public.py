"""The public patch sets: IDC by its names, PatchCamelyon from its arrays."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stacker.config.data import DataConfig
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import Manifest
from stacker.errors import DataError
from tests.data.formats.test_readers import by_id, draw, listen, tree

IDC = (
    "10253_idx5_x1_y1_class0.png",
    "10253_idx5_x51_y1_class1.png",
    "8863_idx5_x1_y1_class0.png",
)


def idc_tree(root: Path) -> Path:
    """Write the IDC pictures as they are distributed: a folder per patient, and per class in it."""
    return tree(root, *(f"{n.split('_')[0]}/{n[-5]}/{n}" for n in IDC))


def test_idc_in_a_tree_and_flat_are_the_same(tmp_path: Path) -> None:
    """The name states the patient and the class; a patient is a case with one slide."""
    nested = read_manifest(DataConfig(format="idc", path=idc_tree(tmp_path / "tree")))
    flat = read_manifest(DataConfig(format="idc", path=tree(tmp_path / "flat", *IDC)))
    assert nested.digest == flat.digest
    assert nested.classes == ("idc_negative", "idc_positive")
    image = by_id(nested)["10253_idx5_x51_y1_class1"]
    assert (image.label, image.case, image.slide) == ("idc_positive", "10253", "10253")
    assert set(nested.groups("case")) == {"10253", "8863"}


def test_idc_in_the_folder_of_another_class_is_refused(tmp_path: Path) -> None:
    """The folder says 1 and the name says 0."""
    tree(tmp_path, "10253/1/10253_idx5_x1_y1_class0.png", "10253/1/10253_idx5_x51_y1_class1.png")
    with pytest.raises(DataError, match=r"x1_y1_class0\.png lies in folder 1 and is named class0"):
        read_manifest(DataConfig(format="idc", path=tmp_path))


@pytest.mark.parametrize("name", ["10253_idx5_x1_y1_class2.png", "x_idx5_x1_y1_class0.png", "a.png"])
def test_a_stranger_in_idc_is_refused(tmp_path: Path, name: str) -> None:
    """A name without a patient or with another class stops the reading."""
    draw(idc_tree(tmp_path) / name)
    with pytest.raises(DataError, match=f"1 of 4 PNG files .* not named as in IDC, e.g. {name}"):
        read_manifest(DataConfig(format="idc", path=tmp_path))


def test_the_doubled_idc_archive_is_read_once(tmp_path: Path) -> None:
    """The archive holds everything again below IDC_regular_ps50_idx5."""
    idc_tree(tmp_path)
    idc_tree(tmp_path / "IDC_regular_ps50_idx5")
    manifest = read_manifest(DataConfig(format="idc", path=tmp_path))
    assert len(manifest.images) == 3
    assert all("IDC_regular_ps50_idx5" in image.path for image in manifest.images)


CHUNKED = {"chunks": (2, 96, 96, 3), "compression": "gzip"}
LABELS = (0, 1, 1, 0, 1)


def write_part(
    root: Path, split: str, labels: tuple[int, ...] = LABELS, meta: list[str] | None = None, **how: Any
) -> np.ndarray:
    """Write one part of PatchCamelyon and return its pixels; `meta` gives each row's slide."""
    stem = f"camelyonpatch_level_2_split_{split}"
    seed = sum(map(ord, split))
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 96, 96, 3), dtype=np.uint8)
    with h5py.File(root / f"{stem}_x.h5", "w") as file:
        file.create_dataset("x", data=pixels, **how)
    with h5py.File(root / f"{stem}_y.h5", "w") as file:
        file.create_dataset("y", data=np.array(labels, np.uint8).reshape(-1, 1, 1, 1))
    if meta is not None:
        with (root / f"{stem}_meta.csv").open("w", newline="", encoding="utf-8") as table:
            writer = csv.writer(table)
            writer.writerow(["", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"])
            for row, (wsi, label) in enumerate(zip(meta, labels, strict=False)):
                writer.writerow([row, 0, 0, True, bool(label), wsi])
    return pixels


def pcam(path: Path) -> Manifest:
    """Read PatchCamelyon."""
    return read_manifest(DataConfig(format="pcam", path=path))


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
    assert [image.label == "tumour" for image in train] == [bool(label) for label in LABELS]
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
    assert "split_test_meta.csv is not there" in caplog.text
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
    with pytest.raises(DataError, match=r"has no column wsi; found \['row', 'slide'\]"):
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
    with pytest.raises(DataError, match=r"no file at .*train_y\.h5; .* belong together"):
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
    ("pixels", "found"),
    [
        (np.zeros((5, 96, 96, 3), np.float32), r"\(5, 96, 96, 3\) of float32"),
        (np.zeros((5, 96, 96), np.uint8), r"\(5, 96, 96\) of uint8"),
        (np.zeros((5, 96, 96, 4), np.uint8), r"\(5, 96, 96, 4\) of uint8"),
    ],
    ids=["float", "grey", "alpha"],
)
def test_pcam_with_other_pixels_is_refused(tmp_path: Path, pixels: np.ndarray, found: str) -> None:
    """Eight bits and three channels, or the shape and type that were found."""
    write_part(tmp_path, "train")
    with h5py.File(tmp_path / "camelyonpatch_level_2_split_train_x.h5", "w") as file:
        file["x"] = pixels
    with pytest.raises(DataError, match=f"{found}, expected"):
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
