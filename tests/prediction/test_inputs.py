"""What predict is asked about: every way of naming images, and where their cases come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacker.config.data import DataConfig, ImagesConfig
from stacker.data.formats.registry import case_in
from stacker.errors import ConfigError
from stacker.prediction.inputs import Input, find_inputs, read_ahead
from tests.pictures import tissue, write_all

FOLDER = DataConfig(format="folder", path=Path())


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Return a folder of pictures in folders, with a note and a hidden picture among them."""
    root = tmp_path / "slides"
    names = ("b/2.png", "b/10.PNG", "a/1.jpg", ".hidden/0.png")
    write_all({root / name: tissue(n) for n, name in enumerate(names)})
    (root / "note.txt").write_text("not a picture")
    return root


def names(inputs: list[Input]) -> list[str]:
    """Return the names of the files."""
    return [image.path.name for image in inputs]


def test_a_folder_is_its_pictures_sorted(slides: Path) -> None:
    """Whatever the case of the ending; hidden files and other files are none of it."""
    assert names(find_inputs([str(slides)], FOLDER)) == ["1.jpg", "10.PNG", "2.png"]


def test_patterns_reach_into_folders(slides: Path) -> None:
    """`**` too; what matches and is a folder stands for its pictures, and each comes once."""
    assert names(find_inputs([f"{slides}/*/*.png"], FOLDER)) == ["2.png"]
    assert names(find_inputs([f"{slides}/**/*.png"], FOLDER)) == ["2.png"]
    assert names(find_inputs([f"{slides}/**"], FOLDER)) == ["1.jpg", "10.PNG", "2.png"]
    assert names(find_inputs([f"{slides}/b*", str(slides)], FOLDER)) == ["10.PNG", "2.png", "1.jpg"]


def test_a_file_may_be_called_like_a_pattern(slides: Path) -> None:
    """What is there by its very name is meant."""
    write_all({slides / "c[1].png": tissue(9)})
    assert names(find_inputs([str(slides / "c[1].png")], FOLDER)) == ["c[1].png"]


def test_images_named_twice_come_once(slides: Path, tmp_path: Path) -> None:
    """By another spelling or by a link, too: the first one counts."""
    link = tmp_path / "link.png"
    link.symlink_to(slides / "b" / "2.png")
    arguments = [str(slides / "b" / "2.png"), f"{slides}/b/../b/2.png", str(link)]
    assert names(find_inputs(arguments, FOLDER)) == ["2.png"]


def test_a_table_names_images_cases_and_labels(slides: Path) -> None:
    """Relative to its own folder; separators and the mark of Excel do not matter."""
    table = slides / "list.csv"
    table.write_text("\ufeffPath;case;label\nb/2.png;P1;benign\na/1.jpg;;\nmissing.png;P2;\n;;\n")
    inputs = find_inputs([str(table)], FOLDER)
    assert [(image.path.name, image.case, image.label) for image in inputs] == [
        ("2.png", "P1", "benign"),
        ("1.jpg", "", ""),
        ("missing.png", "P2", ""),
    ]


def test_stdin_names_a_path_per_line(slides: Path) -> None:
    """Empty lines do not count."""
    lines = [f"{slides}/b/2.png\n", "\n", f"{slides}/a/1.jpg"]
    assert names(find_inputs(["-"], FOLDER, lines)) == ["2.png", "1.jpg"]


def test_what_names_nothing_is_refused(slides: Path, tmp_path: Path) -> None:
    """With what was looked for."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.csv").write_text("file,case\na.png,1\n")
    (tmp_path / "bare.csv").write_text("path,case\n,1\n")
    for argument, text in (
        ("nowhere.png", r"nowhere\.png: no such file or folder; give a picture"),
        (str(tmp_path / "empty"), r"no picture below this folder; looked for \.bmp, \.gif"),
        (f"{slides}/*.svs", r"no picture matches this pattern; looked for \.bmp"),
        (str(tmp_path / "odd.csv"), r"has no column path; .*found \['file', 'case'\]"),
        (str(tmp_path / "bare.csv"), "names no image"),
        ("-", "stdin is empty; expected a path per line"),
    ):
        with pytest.raises(ConfigError, match=text):
            find_inputs([argument], FOLDER)


def test_lesion_masks_are_no_images(slides: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder or pattern that takes them in leaves them out and says how many; a file is meant."""
    config = FOLDER.model_copy(update={"masks": slides / "b"})
    with caplog.at_level("INFO", "stacker"):
        assert names(find_inputs([str(slides)], config)) == ["1.jpg"]
        assert names(find_inputs([f"{slides}/**"], config)) == ["1.jpg"]
    said = [record.message.split(": ")[1] for record in caplog.records]
    assert said == ["2 lesion masks left out (data.masks)"] * 2
    assert names(find_inputs([str(slides / "b" / "2.png")], config)) == ["2.png"]
    with pytest.raises(ConfigError, match=r"no picture below this folder but lesion masks"):
        find_inputs([str(slides / "b")], config)


def test_cases_are_told_by_the_names_of_the_runs_own_format() -> None:
    """By strict grammar, or by the pattern below what named the image; else not at all."""
    breakhis, idc = (DataConfig(format=name, path=Path()) for name in ("breakhis", "idc"))
    assert case_in(Path("x/SOB_B_A-14-22549AB-100-001.png"), "", breakhis) == "14-22549"
    assert case_in(Path("SOB_B_A-14-22549AB-100-001.jpg"), "", breakhis) == "14-22549"
    assert case_in(Path("IMG_14-22549.png"), "", breakhis) == ""
    assert case_in(Path("10253_idx5_x1001_y1001_class0.png"), "", idc) == "10253"
    pattern = DataConfig(format="folder", path=Path(), case_pattern=r"(^|/)p(?P<case>\d+)")
    assert case_in(Path("/p9/x.png"), "p12/x.png", pattern) == "12"
    assert case_in(Path("/p9/p7_x.png"), "", pattern) == "7"
    assert case_in(Path("/p9/x.png"), "", pattern) == ""
    assert case_in(Path("p9.png"), "", FOLDER) == ""


def test_images_are_read_ahead_in_their_order(tmp_path: Path) -> None:
    """In batches, the last one being shorter; what cannot be read keeps its place and its reason."""
    paths = [tmp_path / f"{n}.png" for n in range(5)]
    write_all({path: tissue(n, 40) for n, path in enumerate(paths)})
    paths[3].write_bytes(b"nonsense")
    batches = list(read_ahead(map(Input, paths), ImagesConfig(size=32), 2))
    assert [[reading.image.path for reading in batch] for batch in batches] == [
        paths[:2],
        paths[2:4],
        paths[4:],
    ]
    (bad,) = (reading for batch in batches for reading in batch if reading.pixels is None)
    assert (bad.image.path, bad.reason) == (
        paths[3],
        "not an image, or a format that Pillow does not know",
    )
    shapes = [e.pixels.shape for batch in batches for e in batch if e.pixels is not None]
    assert shapes == [(32, 32, 3)] * 4


def test_reading_stays_two_batches_ahead(tmp_path: Path) -> None:
    """However many images there are: no more of them are looked at than memory is meant for."""
    path = tmp_path / "one.png"
    write_all({path: tissue(1, 40)})
    taken = []

    def endless() -> object:
        while True:
            taken.append(path)
            yield Input(path)

    batches = read_ahead(endless(), ImagesConfig(size=32), 4)  # type: ignore[arg-type]
    for number in range(3):
        assert len(next(batches)) == 4
        assert len(taken) <= 4 * (number + 3)
    batches.close()  # type: ignore[attr-defined]
