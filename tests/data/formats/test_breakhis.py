"""All of BreakHis from a table of its slides: what is there, what the labels are, how it splits."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stacker.config.data import DataConfig, FoldsConfig
from stacker.data.folds import make_folds
from stacker.data.formats.breakhis import SUBTYPES, read_breakhis, read_fold_list
from stacker.data.formats.registry import without_contradicting_slides
from stacker.data.manifest import Image, Manifest, make_manifest
from stacker.errors import DataError
from tests.datasets import SLIDES, names_of, touch_all

STRADDLING = {1: 8, 2: 6, 3: 7, 4: 7, 5: 6}  # cases on both sides of each official list, of 70


def split_of(image: Image, number: int) -> str:
    """Return the part in which the table has an image's subtype and slide in an official list."""
    code = next(code for code, name in SUBTYPES.items() if name == image.subtype)
    tumour = f"{'B' if image.label == 'benign' else 'M'}_{code}"
    (row,) = (r for r in SLIDES if (r["subtype"], r["slide"]) == (tumour, image.slide))
    return row[f"fold{number}"]


def write_list(path: Path, number: int, newline: str = "\n") -> Path:
    """Write an official list of lines `file|magnification|fold|part`."""
    lines = [
        f"{name}|{name.split('-')[3]}|{number}|{slide[f'fold{number}']}"
        for slide in SLIDES
        for name in names_of(slide)
    ]
    path.write_bytes((newline.join(lines) + newline).encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of BreakHis's names; reading does not open the files."""
    return touch_all(tmp_path_factory.mktemp("breakhis"))


@pytest.fixture(scope="module")
def images(folder: Path) -> list[Image]:
    """Return the rows of the whole data set."""
    return read_breakhis(DataConfig(path=folder))


@pytest.fixture(scope="module")
def official(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Manifest]:
    """Return a function that gives the manifest with the split of one of the five lists."""
    lists = tmp_path_factory.mktemp("lists")

    def read(number: int) -> Manifest:
        path = write_list(lists / f"dsfold{number}.txt", number)
        return make_manifest(read_breakhis(DataConfig(path=folder, fold_list=path)))

    return read


def subtypes_of(images: Iterable[Image]) -> dict[str, set[str]]:
    """Return the subtypes of each case."""
    subtypes = defaultdict(set)
    for image in images:
        subtypes[image.case].add(image.subtype)
    return subtypes


def test_the_whole_of_breakhis_is_counted_right(images: list[Image]) -> None:
    """There are 7,909 images of 81 slide ids, 82 with their subtypes, which are 70 cases."""
    assert len(images) == 7909
    assert len({image.slide for image in images}) == 81
    assert len({(image.subtype, image.slide) for image in images}) == 82
    assert len({image.case for image in images}) == 70
    assert Counter(image.label for image in images) == {"benign": 2480, "malignant": 5429}
    assert Counter(image.magnification for image in images) == {
        40: 1995,
        100: 2081,
        200: 2013,
        400: 1820,
    }


def test_the_year_is_read(images: list[Image]) -> None:
    """One slide is of 15, all others are of 14."""
    assert {image.slide for image in images if not image.case.startswith("14-")} == {"15-190EF"}


def test_a_case_has_one_tumour_though_not_one_subtype(images: list[Image]) -> None:
    """No case is benign and malignant; three have two subtypes."""
    labels = defaultdict(set)
    for image in images:
        labels[image.case].add(image.label)
    assert {len(names) for names in labels.values()} == {1}
    several = {case for case, names in subtypes_of(images).items() if len(names) > 1}
    assert several == {"14-13412", "14-21998", "14-29960"}


def test_only_the_contradicting_slide_is_left_out(images: list[Image]) -> None:
    """By subtype 14-13412 (DC and LC) goes; cases with two subtypes on two slides stay."""
    by_subtype = [replace(image, label=image.subtype) for image in images]
    kept, left_out = without_contradicting_slides(by_subtype)
    assert {image.why for image in left_out} == {
        "slide 14-13412 is labelled ductal_carcinoma and lobular_carcinoma"
    }
    assert {i.slide for i in by_subtype} - {i.slide for i in kept} == {"14-13412"}
    assert len(by_subtype) - len(kept) == sum(image.slide == "14-13412" for image in images)
    assert {len(subtypes_of(kept)[case]) for case in ("14-21998", "14-29960")} == {2}
    assert len(make_manifest(kept).classes) == 8


def test_a_slide_without_a_letter_is_not_its_case() -> None:
    """14-1 and 14-1A are two slides of one case, and each may have a subtype of its own."""
    two = [Image(f"{n}", "", label, "14-1", f"14-1{n}") for n, label in (("", "x"), ("A", "y"))]
    assert without_contradicting_slides(two) == (two, [])


def test_by_tumour_nothing_is_left_out(images: list[Image]) -> None:
    """14-13412 is malignant under both of its subtypes."""
    assert without_contradicting_slides(images) == (images, [])


@pytest.mark.parametrize("number", range(1, 6))
def test_an_official_list_gives_every_image_its_part(
    official: Callable[[int], Manifest], number: int
) -> None:
    """Each image is in train or test as the list has it."""
    expected = {(i.subtype, i.slide): split_of(i, number) for i in official(number).images}
    assert len(expected) == 82
    assert set(expected.values()) == {"train", "test"}
    for image in official(number).images:
        assert image.split == expected[image.subtype, image.slide]


@pytest.mark.parametrize("number", range(1, 6))
def test_an_official_list_is_refused_by_case(official: Callable[[int], Manifest], number: int) -> None:
    """Every official list has cases on both sides, and the refusal counts them."""
    message = f"{STRADDLING[number]} of 70 cases in several parts, e.g. 14-.* in test and train"
    with pytest.raises(DataError, match=message):
        make_folds(official(number), FoldsConfig(test="official"), 0)


@pytest.mark.parametrize("number", [1, 3, 5])
def test_three_official_lists_are_refused_by_slide(
    official: Callable[[int], Manifest], number: int
) -> None:
    """Lists 1, 3 and 5 have the slide 14-13412 as DC on one side and as LC on the other."""
    with pytest.raises(DataError, match=r"1 of 81 slides in several parts, e\.g\. 14-13412 in test and"):
        make_folds(official(number), FoldsConfig(test="official", group="slide"), 0)


@pytest.mark.parametrize("number", [2, 4])
def test_two_official_lists_work_by_slide(official: Callable[[int], Manifest], number: int) -> None:
    """The test slides are the list's own, and the split is called what it is."""
    manifest = official(number)
    folds = make_folds(manifest, FoldsConfig(test="official", group="slide"), 0)
    assert set(folds.test) == {image.slide for image in manifest.images if image.split == "test"}
    assert folds.label == "crossfit split by slide, official test, leaks across cases"


def test_a_list_with_windows_line_ends_is_the_same_list(tmp_path: Path) -> None:
    """Carriage returns do not become part of a split's name."""
    plain = read_fold_list(write_list(tmp_path / "plain.txt", 1))
    assert read_fold_list(write_list(tmp_path / "windows.txt", 1, "\r\n")) == plain
    assert len(plain) == 7909


@pytest.mark.parametrize(
    "line",
    ["SOB_B_A-14-1-40-001.png|40|1", "a.png|40|1|dev", "a.png|40|1|train|", "a.png,40,1,train", "a.png"],
)
def test_a_malformed_list_is_refused_by_line(tmp_path: Path, line: str) -> None:
    """The refusal names the file, the line's number and the line; a blank line is none."""
    path = tmp_path / "dsfold1.txt"
    path.write_text(f"b.png|40|1|train\n\n{line}\n")
    message = re.escape(f"dsfold1.txt, line 3: found {line!r}, expected file|magnification|fold|part")
    with pytest.raises(DataError, match=message):
        read_fold_list(path)


def test_images_that_the_list_does_not_have_are_noticed(folder: Path, tmp_path: Path) -> None:
    """They have no part, and folds.test=official says so."""
    path = write_list(tmp_path / "short.txt", 2)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    images = read_breakhis(DataConfig(path=folder, fold_list=path))
    assert sum(not image.split for image in images) == 1
    with pytest.raises(DataError, match="which has 1 images without a part "):
        make_folds(make_manifest(images), FoldsConfig(test="official", group="slide"), 0)


def test_official_without_a_list_is_refused(images: list[Image]) -> None:
    """BreakHis's names do not tell its split: the refusal names the setting that does."""
    with pytest.raises(DataError, match=r"7909 images without a part.*breakhis: data\.fold_list"):
        make_folds(make_manifest(images), FoldsConfig(test="official"), 0)


@pytest.mark.parametrize(
    "name",
    [
        "SOB_M_A-14-22549AB-100-001.png",  # a benign subtype, called malignant
        "SOB_B_DC-14-22549AB-100-001.png",  # the other way round
        "sob_b_a-14-22549ab-100-001.png",
        "SOB_B_A-14-22549ab-100-001.png",
        "SOB_B_A-14-22549AB-100.png",  # no sequence number
        "SOB_B_A-14-22549AB-001.png",  # no magnification
        "SOB_B_A-14-AB-100-001.png",  # no accession number
        "SOB_B_A-2014-22549AB-100-001.png",
        "SOB_B_A-14-22549AB-100X-001.png",
        "SOB_B_A-14-22549AB-100-001.png.png",
        "xSOB_B_A-14-22549AB-100-001.png",
        "SOB_B_A-14-22549AB-100-001 (1).png",
        "SOB_B_A_14-22549AB-100-001.png",
        "SOB_B_XX-14-22549AB-100-001.png",
    ],
)
def test_the_grammar_is_strict(tmp_path: Path, name: str) -> None:
    """A name that is nearly BreakHis's is not guessed at: it stops the reading."""
    (tmp_path / "SOB_B_A-14-22549AB-100-001.png").touch()
    assert len(read_breakhis(DataConfig(path=tmp_path))) == 1
    (tmp_path / name).touch()
    message = f"1 of 2 PNG files in .* are not named as in BreakHis .*: {re.escape(name)}; "
    with pytest.raises(DataError, match=message):
        read_breakhis(DataConfig(path=tmp_path))


@pytest.mark.parametrize("seed", range(3))
def test_the_whole_of_breakhis_splits_by_case(images: list[Image], seed: int) -> None:
    """A part's share of cases is kept to within one, of malignant images to a hundredth.

    One of the 16 benign cases holds 493 of their 2,480 images, more than a fold's whole share: the part
    that has it cannot be less than a third too large.
    """
    manifest = make_manifest(images)
    folds = make_folds(manifest, FoldsConfig(k=5, test=0.2), seed)
    parts = [fold.held_out for fold in folds.folds] + [folds.test]
    assert sorted(case for part in parts for case in part) == sorted({i.case for i in images})
    for label in ("benign", "malignant"):
        cases = {image.case for image in images if image.label == label}
        rows = np.array([image.label == label for image in images])
        for part, share in zip(parts, [0.16] * 5 + [0.2], strict=True):
            assert abs(len(cases & set(part)) - share * len(cases)) < 1
            part_share = rows[manifest.rows_of("case", part)].sum() / rows.sum()
            assert abs(part_share - share) < share * (0.6 if label == "benign" else 0.01)


@pytest.mark.parametrize(
    "config", [FoldsConfig(k=2), FoldsConfig(protocol="holdout")], ids=["crossfit", "holdout"]
)
def test_all_eight_subtypes_cannot_be_split_by_case(images: list[Image], config: FoldsConfig) -> None:
    """BreakHis has two cases of adenosis and every split has three parts: the refusal counts both."""
    kept, _ = without_contradicting_slides([replace(image, label=image.subtype) for image in images])
    with pytest.raises(DataError, match=r"'adenosis' has only 2 cases, and each of 3 parts \("):
        make_folds(make_manifest(kept), config, 0)
