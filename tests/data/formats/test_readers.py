"""Every format becomes the same rows, and what a format leaves unsaid is not guessed."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from stacker.config.data import DataConfig
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import Image, Manifest, load_manifest, make_manifest, save_manifest
from stacker.errors import ConfigError, DataError, UnreadableImages


def listen(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caplog hear the package, though the command line may have cut it off from the root."""
    monkeypatch.setattr(logging.getLogger("stacker"), "propagate", True)
    caplog.set_level(logging.WARNING, "stacker")


def draw(path: Path, shade: int = 0) -> Path:
    """Write a picture of one shade, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)
    return path


def tree(root: Path, *names: str) -> Path:
    """Write pictures of different shades below a folder, and return it."""
    for shade, name in enumerate(names):
        draw(root / name, shade)
    return root


def by_id(manifest: Manifest) -> dict[str, Image]:
    """Return the images by their ids."""
    return {image.id: image for image in manifest.images}


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
    found = {i.id: (i.label, i.split) for i in manifest.images}
    assert found == {
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
    with pytest.raises(DataError, match=r"test/b\.png is in no class folder; expected .*test/<class>/"):
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
    with pytest.raises(DataError, match=r"no picture in .*; expected .*/<class>/<image>"):
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
    with pytest.raises(DataError, match=r"finds no case in 1 of 3 images, e\.g\. dog/stray\.png"):
        folder(tmp_path, pattern)


def test_parts_among_classes_are_refused(tmp_path: Path) -> None:
    """train, test and something else with pictures: nobody can tell classes from parts."""
    tree(tmp_path, "train/cat/a.png", "test/dog/a.png", "results/x.png")
    with pytest.raises(DataError, match="holds results, test, train: parts of a split and others"):
        folder(tmp_path)
    (tmp_path / "results" / "x.png").unlink()
    assert folder(tmp_path).classes == ("cat", "dog")


def test_classes_are_in_the_order_that_is_given(tmp_path: Path) -> None:
    """The last class is the positive one; a name that no image has is refused."""
    tree(tmp_path, "cat/a.png", "dog/a.png")
    content = {"format": "folder", "path": tmp_path}
    manifest = read_manifest(DataConfig.model_validate({**content, "classes": ["dog", "cat"]}))
    assert manifest.classes == ("dog", "cat")
    assert manifest.labels.tolist() == [1, 0]
    with pytest.raises(ConfigError, match=r"no class \(data.classes\) 'catt'; did you mean 'cat'"):
        read_manifest(DataConfig.model_validate({**content, "classes": ["catt", "dog"]}))


def test_classes_that_are_not_asked_for_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of three classes can be told apart, and what is left out is said."""
    tree(tmp_path, "cat/a.png", "dog/a.png", "cow/a.png", "cow/b.png")
    logging.getLogger("stacker").addHandler(caplog.handler)
    config = DataConfig(format="folder", path=tmp_path, classes=["dog", "cat"])
    assert [image.id for image in read_manifest(config).images] == ["cat/a.png", "dog/a.png"]
    logging.getLogger("stacker").removeHandler(caplog.handler)
    assert "class 'cow' is left out, images: 2" in caplog.text


def test_three_classes_are_not_binary(tmp_path: Path) -> None:
    """The refusal names them and the task that takes them."""
    tree(tmp_path, "cat/a.png", "cow/a.png", "dog/a.png")
    with pytest.raises(
        DataError, match=r"3 classes \(images of 'cat': 1, 'cow': 1, 'dog': 1\); choose two"
    ):
        folder(tmp_path)
    several = read_manifest(DataConfig(format="folder", path=tmp_path, task="subtype"))
    assert several.classes == ("cat", "cow", "dog")


def test_an_unknown_case_is_never_guessed(tmp_path: Path) -> None:
    """Grouping by case is refused with what would tell it; by image it works."""
    manifest = folder(tree(tmp_path, "cat/a.png", "dog/a.png"))
    with pytest.raises(DataError, match=r"case of 2 of 2 images .* cat/a\.png: give data\.case_pattern"):
        manifest.groups("case")
    assert manifest.groups("image") == ["cat/a.png", "dog/a.png"]


def test_a_cluster_is_the_nearest_thing_to_a_case() -> None:
    """The case, else the slide, else the image itself."""
    images = [Image(f"i{n}", "", "xy"[n % 2], f"c{n // 2}", f"s{n // 2}") for n in range(4)]
    assert (make_manifest(images).unit, make_manifest(images).cases) == (
        "case",
        ["c0", "c0", "c1", "c1"],
    )
    images[0] = Image("i0", "", "x", "", "s0")
    assert (make_manifest(images).unit, make_manifest(images).cases[0]) == ("slide", "s0")
    images[0] = Image("i0", "", "x")
    assert make_manifest(images).cases == ["i0", "i1", "i2", "i3"]


def test_slides_that_are_numbered_per_case_are_told_apart() -> None:
    """Slide 1 of one patient is not slide 1 of another; names that are unique stay as they are."""
    numbered = make_manifest([Image(f"i{n}", "", "xy"[n % 2], f"c{n}", "1") for n in range(3)])
    assert numbered.groups("slide") == ["c0/1", "c1/1", "c2/1"]
    unique = make_manifest([Image(f"i{n}", "", "xy"[n % 2], f"c{n}", f"s{n}") for n in range(3)])
    assert unique.groups("slide") == ["s0", "s1", "s2"]


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_file_that_is_gone_when_it_is_read(
    tmp_path: Path,
    on_error: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stops the reading with its path and reason, or is left out with both in a warning."""
    listen(caplog, monkeypatch)
    tree(tmp_path, "cat/a.png", "cat/b.png", "dog/a.png")
    read_bytes = Path.read_bytes

    def lose(path: Path) -> bytes:
        if path.name == "b.png":
            path.unlink()
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", lose)
    config = {"format": "folder", "path": tmp_path, "on_error": on_error}
    if on_error == "stop":
        with pytest.raises(UnreadableImages, match=r"1 of 3 .*\n.*b\.png: cannot be read: No such") as e:
            read_manifest(DataConfig.model_validate(config))
        assert list(e.value.reasons) == [1]
    else:
        assert set(by_id(read_manifest(DataConfig.model_validate(config)))) == {"cat/a.png", "dog/a.png"}
        assert "left out: " in caplog.text
        assert "b.png: cannot be read: No such file" in caplog.text


def test_a_stored_manifest_keeps_what_is_unknown(tmp_path: Path) -> None:
    """None and row 0 of an array are told apart, commas survive, and classes keep a given order."""
    images = [
        Image("a,1", "x.h5", "well", index=0, magnification=10),
        Image("b", "dir/é.png", "ill", "c", "s", None, "sub", "valid", None, "00"),
    ]
    manifest = make_manifest(images, ["well", "ill"])
    save_manifest(manifest, tmp_path / "manifest.csv")
    assert load_manifest(tmp_path / "manifest.csv", ["well", "ill"]) == manifest
    assert load_manifest(tmp_path / "manifest.csv").classes == ("ill", "well")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "breakhs"}, r"no format \(data\.format\) 'breakhs'; did you mean 'breakhis'"),
        (
            {"format": "idc", "case_pattern": "(?P<case>.)"},
            "case_pattern is for folder and csv; idc takes",
        ),
        ({"format": "csv", "fold_list": "dsfold1.txt"}, "fold_list is for breakhis; csv takes none"),
    ],
)
def test_a_setting_that_a_format_does_not_take_is_refused(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    """Before anything is read, and so is a format that nobody knows."""
    with pytest.raises(ConfigError, match=message):
        read_manifest(DataConfig(path=tmp_path, **settings))
