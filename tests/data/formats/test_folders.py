"""A folder per class, and the IDC patches: what folders and names say, and what they leave unsaid."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacker.config.data import DataConfig
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import Manifest
from stacker.errors import DataError
from tests.datasets import by_id, draw, listen, tree


def folder(path: Path, pattern: str | None = None) -> Manifest:
    """Read a folder per class."""
    return read_manifest(DataConfig(format="folder", path=path, case_pattern=pattern))


def test_a_folder_per_class(tmp_path: Path) -> None:
    """The first folder is the class, however deep the picture lies; the id is the path below all."""
    manifest = folder(tree(tmp_path, "cat/a.png", "cat/deep/er/b.jpg", "dog/a.PNG"))
    assert {i.id: i.label for i in manifest.images} == {
        "cat/a.png": "cat",
        "cat/deep/er/b.jpg": "cat",
        "dog/a.PNG": "dog",
    }
    assert {image.split for image in manifest.images} == {""}


def test_folders_of_parts(tmp_path: Path) -> None:
    """Where all top folders are parts, the classes are below them; val and validation are valid."""
    manifest = folder(tree(tmp_path, "Train/cat/a.png", "val/dog/a.png", "test/cat/deep/b.png"))
    rows = {i.id: (i.label, i.split) for i in manifest.images}
    assert rows == {
        "Train/cat/a.png": ("cat", "train"),
        "val/dog/a.png": ("dog", "valid"),
        "test/cat/deep/b.png": ("cat", "test"),
    }


def test_a_part_among_classes_is_a_class(tmp_path: Path) -> None:
    """Only when every top folder is a part are they taken for parts."""
    manifest = folder(tree(tmp_path, "test/a.png", "dog/a.png"))
    assert manifest.classes == ("dog", "test")
    assert {image.split for image in manifest.images} == {""}


def test_a_picture_in_no_class_folder_is_refused(tmp_path: Path) -> None:
    """Below a part there must be a class."""
    tree(tmp_path, "train/cat/a.png", "test/dog/a.png", "test/b.png")
    with pytest.raises(DataError, match=r"test/b\.png is in no class folder, expected .*test/<class>/"):
        folder(tmp_path)


def test_other_files_are_counted_and_hidden_ones_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no picture is left out with a warning; what is hidden is nobody's business."""
    listen(caplog, monkeypatch)
    tree(tmp_path, "cat/a.png", "dog/a.png", ".cache/b.png", "cat/.hidden.png")
    (tmp_path / "cat" / "notes.txt").write_text("a cat")
    (tmp_path / "cat" / "Thumbs.db").write_text("")
    assert len(folder(tmp_path).images) == 2
    assert "2 files in" in caplog.text


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    """The refusal says how the folder should look."""
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"no image in .*, expected .*/<class>/<image>"):
        folder(tmp_path)


def test_case_and_slide_from_the_path(tmp_path: Path) -> None:
    """A pattern finds the case anywhere in the id, and the slide if it has the group."""
    tree(tmp_path, "cat/p1_s1_a.png", "cat/p1_s2_a.png", "dog/p2_s3_a.png")
    with_slide = folder(tmp_path, r"/(?P<case>p\d+)_(?P<slide>s\d+)_")
    assert with_slide.groups("case") == ["p1", "p1", "p2"]
    assert with_slide.groups("slide") == ["s1", "s2", "s3"]
    only_case = folder(tmp_path, r"/(?P<case>p\d+)_")
    assert only_case.groups("case") == ["p1", "p1", "p2"]
    assert {image.slide for image in only_case.images} == {""}


@pytest.mark.parametrize("pattern", [r"/(?P<case>p\d+)", r"/(?P<case>p?\d*)"])
def test_a_pattern_that_misses_some_is_refused(tmp_path: Path, pattern: str) -> None:
    """No case is made up, nor is an empty one taken; the refusal counts and shows one."""
    tree(tmp_path, "cat/p1.png", "dog/p2.png", "dog/stray.png")
    with pytest.raises(DataError, match=r"matches no case in 1 of 3 paths below .*: dog/stray\.png"):
        folder(tmp_path, pattern)


def test_parts_among_classes_are_refused(tmp_path: Path) -> None:
    """train, test and something else with pictures: nobody can tell classes from parts."""
    tree(tmp_path, "train/cat/a.png", "test/dog/a.png", "results/x.png")
    with pytest.raises(DataError, match="mixes folders of a split with others: results, test, train"):
        folder(tmp_path)
    (tmp_path / "results" / "x.png").unlink()
    assert folder(tmp_path).classes == ("cat", "dog")


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
    with pytest.raises(DataError, match=r"x1_y1_class0\.png is in folder 1, but its name says class0"):
        read_manifest(DataConfig(format="idc", path=tmp_path))


@pytest.mark.parametrize("name", ["10253_idx5_x1_y1_class2.png", "x_idx5_x1_y1_class0.png", "a.png"])
def test_a_stranger_in_idc_is_refused(tmp_path: Path, name: str) -> None:
    """A name without a patient or with another class stops the reading."""
    draw(idc_tree(tmp_path) / name)
    with pytest.raises(DataError, match=f"1 of 4 PNG files .* not named as in IDC .*: {name}"):
        read_manifest(DataConfig(format="idc", path=tmp_path))


def test_pictures_of_another_format_are_called_so(tmp_path: Path) -> None:
    """A few strangers may be moved; where most are, the format is not that of the data."""
    draw(idc_tree(tmp_path) / "a.png")
    with pytest.raises(DataError, match="move them elsewhere"):
        read_manifest(DataConfig(format="idc", path=tmp_path))
    tree(tmp_path / "others", "SOB_B_A-14-22549AB-100-001.png")
    with pytest.raises(DataError, match=r"1 of 1 PNG files .*; data\.format or data\.path is wrong"):
        read_manifest(DataConfig(format="idc", path=tmp_path / "others"))


def test_the_doubled_idc_archive_is_read_once(tmp_path: Path) -> None:
    """The archive holds everything again below IDC_regular_ps50_idx5."""
    idc_tree(tmp_path)
    idc_tree(tmp_path / "IDC_regular_ps50_idx5")
    manifest = read_manifest(DataConfig(format="idc", path=tmp_path))
    assert len(manifest.images) == 3
    assert all("IDC_regular_ps50_idx5" in image.path for image in manifest.images)
