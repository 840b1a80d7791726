"""CSV tables: what a spreadsheet saves is read, and what is wrong in it is said line by line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from stacker.config.data import DataConfig
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import Image, Manifest
from stacker.errors import DataError
from tests.datasets import by_id, listen, tree


@pytest.fixture
def read_table(tmp_path: Path) -> Callable[..., Manifest]:
    """Return a function that writes a table beside three pictures and reads it."""
    tree(tmp_path, "a.png", "sub/b.png", "c.png")

    def read(*lines: str, encoding: str = "utf-8", **settings: str) -> Manifest:
        (tmp_path / "table.csv").write_text("\n".join(lines) + "\n", encoding=encoding)
        content = {"format": "csv", "path": tmp_path / "table.csv", **settings}
        return read_manifest(DataConfig.model_validate(content))

    return read


def test_a_table_with_all_columns(read_table: Callable[..., Manifest], tmp_path: Path) -> None:
    """Every column ends in its field, and relative paths start at the table."""
    manifest = read_table(
        "split,subtype,magnification,slide,case,id,label,path",
        "Val,x,200X,s1,c1,one,ill,a.png",
        "test,y,40,s2,c2,two,well,sub/b.png",
    )
    sha256 = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    path = str(tmp_path / "a.png")
    expected = Image("one", path, "ill", "c1", "s1", 200, "x", "valid", None, sha256)
    assert by_id(manifest)["one"] == expected
    assert by_id(manifest)["two"].path == str(tmp_path / "sub" / "b.png")


def test_a_minimal_table(read_table: Callable[..., Manifest], tmp_path: Path) -> None:
    """Path and label are enough; the id is the path as given, which may be absolute."""
    manifest = read_table("path,label", "a.png,ill", f"{tmp_path / 'c.png'},well")
    images = by_id(manifest)
    assert set(images) == {"a.png", str(tmp_path / "c.png")}
    assert (images["a.png"].case, images["a.png"].magnification) == ("", None)


def test_a_table_from_excel(read_table: Callable[..., Manifest]) -> None:
    """A byte-order mark is not a part of the first column's name."""
    manifest = read_table("path,label", "a.png,ill", "c.png,well", encoding="utf-8-sig")
    assert len(manifest.images) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("path,label", "nowhere.png,ill"), r"line 2: no file at .*nowhere\.png"),
        (("path,label", "a.png,ill", "sub,well"), r"line 3: no file at .*sub"),
        (("path,label", "a.png,"), "line 2: no label"),
        (("path,label", ",ill"), "line 2: no path"),
        (
            ("path,label,split", "a.png,ill,left"),
            "line 2: split is 'left', expected train, valid, test or",
        ),
        (("path,label,magnification", "a.png,ill,high"), "magnification is 'high', expected e.g. 200"),
        (("path,label,magnification", "a.png,ill,-4"), "magnification is '-4'"),
        (("file,label", "a.png,ill"), r"has no column path, .* found \['file', 'label'\]"),
        (("file label", "a.png ill"), r"has no column path and label, .* found \['file label'\]"),
        (("path,label", "a.png,ill,more"), "line 2: more cells than columns"),
        (
            ("path,label", "x.png,ill", ",well"),
            r"errors in 2 of 2 rows:\n  line 2: no file at .*\n.* no path",
        ),
        (("path,label",), "has no rows"),
        (("path,label", "a.png,ill", "a.png,well"), r"two images have the id a\.png"),
    ],
)
def test_a_table_that_is_wrong_is_refused(
    read_table: Callable[..., Manifest], lines: tuple[str, ...], message: str
) -> None:
    """The refusal gives the line and what was found."""
    with pytest.raises(DataError, match=message):
        read_table(*lines)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_commas_semicolons_and_tabs_separate(
    read_table: Callable[..., Manifest], separator: str
) -> None:
    """Spreadsheets write what their country writes; capitals in the header do not matter."""
    rows = (("Path", "LABEL", "case"), ("a.png", "ill", "1"), ("c.png", "well", "2"))
    manifest = read_table(*(separator.join(row) for row in rows))
    assert [(i.id, i.label, i.case) for i in manifest.images] == [
        ("a.png", "ill", "1"),
        ("c.png", "well", "2"),
    ]


def test_a_table_in_another_encoding_is_refused(read_table: Callable[..., Manifest]) -> None:
    """A table that is not UTF-8 is refused by name, not with a traceback."""
    with pytest.raises(DataError, match=r"table\.csv is not a CSV in UTF-8"):
        read_table("path,label", "a.png,böse", "c.png,gut", encoding="latin-1")


def test_a_column_that_is_not_used_is_warned_of(
    read_table: Callable[..., Manifest],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever writes patient and means case hears of it, and the case stays unknown."""
    listen(caplog, monkeypatch)
    manifest = read_table("path,label,patient", "a.png,ill,p1", "c.png,well,p2")
    assert "columns not used: patient (known are" in caplog.text
    assert {image.case for image in manifest.images} == {""}


def test_the_pattern_works_on_a_table(read_table: Callable[..., Manifest]) -> None:
    """A slide that the table states stays where the pattern has none."""
    lines = ("path,label,slide,id", "a.png,ill,s1,p1-1", "sub/b.png,well,s2,p2-1")
    manifest = read_table(*lines, case_pattern=r"(?P<case>\w)\.png")
    assert [(i.case, i.slide) for i in manifest.images] == [("a", "s1"), ("b", "s2")]
    with pytest.raises(DataError, match=r"has a column 'case', and data\.case_pattern is set"):
        read_table("path,label,case", "a.png,ill,1", "c.png,well,2", case_pattern=r"(?P<case>\w)\.")


@pytest.mark.parametrize("name", ["nan", "NA", "None", "unknown", "?"])
def test_a_placeholder_is_not_a_case(read_table: Callable[..., Manifest], name: str) -> None:
    """All patients that nobody knows would become one."""
    with pytest.raises(DataError, match=f"line 3: case is '{re.escape(name)}'; leave"):
        read_table("path,label,case", "a.png,ill,1", f"c.png,well,{name}")


def test_a_subtype_that_is_missing_is_not_the_class(read_table: Callable[..., Manifest]) -> None:
    """Under task: subtype some with and some without one would mix two questions."""
    lines = ("path,label,subtype", "a.png,ill,dc", "c.png,well,")
    with pytest.raises(DataError, match=r"1 of 2 images have no subtype \(c\.png\)"):
        read_table(*lines, task="subtype")
