"""Every format becomes the same rows, and what a format leaves unsaid is not guessed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from stacker.config.data import DataConfig
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import Image, Manifest, load_manifest, make_manifest, save_manifest
from stacker.errors import ConfigError, DataError, UnreadableImages
from tests.datasets import (
    by_id,
    listen,
    tree,
)


def folder(path: Path, pattern: str | None = None) -> Manifest:
    """Read a folder per class."""
    return read_manifest(DataConfig(format="folder", path=path, case_pattern=pattern))


def test_classes_are_in_the_order_that_is_given(tmp_path: Path) -> None:
    """The last class is the positive one; a name that no image has is refused."""
    tree(tmp_path, "cat/a.png", "dog/a.png")
    content = {"format": "folder", "path": tmp_path}
    manifest = read_manifest(DataConfig.model_validate({**content, "classes": ["dog", "cat"]}))
    assert manifest.classes == ("dog", "cat")
    assert manifest.labels.tolist() == [1, 0]
    with pytest.raises(ConfigError, match=r"no class \(data.classes\) 'catt'; did you mean 'cat'"):
        read_manifest(DataConfig.model_validate({**content, "classes": ["catt", "dog"]}))


def test_the_positive_class_is_the_last(tmp_path: Path) -> None:
    """`positive` moves its class to the end, in the manifest that is read and in the stored one."""
    tree(tmp_path, "cancer/a.png", "normal/a.png")
    content = {"format": "folder", "path": tmp_path}
    by_name = read_manifest(DataConfig.model_validate(content))
    assert by_name.positive == "normal"
    chosen = read_manifest(DataConfig.model_validate({**content, "positive": "cancer"}))
    assert (chosen.classes, chosen.positive) == (("normal", "cancer"), "cancer")
    assert chosen.labels.tolist() == [1, 0]
    assert chosen.digest != by_name.digest
    assert chosen.describe() == "2 images: normal 1 images; cancer (positive) 1 images"
    save_manifest(chosen, tmp_path / "manifest.csv")
    assert load_manifest(tmp_path / "manifest.csv", None, "cancer") == chosen
    with pytest.raises(ConfigError, match=r"no class \(data.positive\) 'cancr'; did you mean 'cancer'"):
        read_manifest(DataConfig.model_validate({**content, "positive": "cancr"}))
    tree(tmp_path, "benign/a.png")
    several = {**content, "positive": "cancer", "task": "subtype"}
    with pytest.raises(
        ConfigError, match=r"for two classes, and there are 3 \(benign, cancer, normal\)"
    ):
        read_manifest(DataConfig.model_validate(several))


def test_classes_that_are_not_asked_for_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of three classes can be told apart, and what is left out is said."""
    tree(tmp_path, "cat/a.png", "dog/a.png", "cow/a.png", "cow/b.png")
    logging.getLogger("stacker").addHandler(caplog.handler)
    config = DataConfig(format="folder", path=tmp_path, classes=["dog", "cat"])
    assert [image.id for image in read_manifest(config).images] == ["cat/a.png", "dog/a.png"]
    logging.getLogger("stacker").removeHandler(caplog.handler)
    assert "left out, not in data.classes: 'cow' (2 images)" in caplog.text


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
    with pytest.raises(DataError, match=r"case of 2 of 2 images .* cat/a\.png; set data\.case_pattern"):
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
            "case_pattern is for format folder and csv, and data.format is idc; remove",
        ),
        (
            {"format": "csv", "fold_list": "dsfold1.txt"},
            "fold_list is for format breakhis, and data.format is csv; remove",
        ),
    ],
)
def test_a_setting_that_a_format_does_not_take_is_refused(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    """Before anything is read, and so is a format that nobody knows."""
    with pytest.raises(ConfigError, match=message):
        read_manifest(DataConfig(path=tmp_path, **settings))
