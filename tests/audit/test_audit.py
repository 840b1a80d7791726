"""The audit catches the broken recipes of the field, each on a small set that has just that fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from stacker.audit import shortcuts
from stacker.audit.data import audit, check_shortcuts
from stacker.audit.fingerprints import Measures
from stacker.audit.report import Audit, worst
from stacker.config.data import DataConfig, FoldsConfig, ImagesConfig
from stacker.data.folds import make_folds
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import Image, make_manifest
from stacker.data.store import open_store
from stacker.errors import DataError
from tests.datasets import LABELS, case_rows, of_topic
from tests.pictures import tissue, write_all, write_table


def audited(tmp_path: Path, folds: FoldsConfig | None = None, **data: Any) -> Audit:
    """Audit a data set with the split that the config makes of it, or with its own alone."""
    manifest = read_manifest(DataConfig(**data))
    pixels = open_store(tmp_path / ".images", manifest, ImagesConfig(size=64))
    return audit(manifest, make_folds(manifest, folds, 0) if folds else None, pixels, 0)


def topics(audit: Audit) -> set[str]:
    """Return what was found, in words."""
    return {finding.topic for finding in audit.findings}


def test_a_clean_set_is_called_clean(tmp_path: Path) -> None:
    """Split by case, no copies, balanced: nothing worse than a note is found."""
    table = write_table(tmp_path / "set.csv", "path,label,case", case_rows())
    result = audited(tmp_path, FoldsConfig(k=2, test=0.25), format="csv", path=table)
    others = [found for found in result.findings if found.topic != "few test cases"]
    assert worst(others) in (None, "note")
    assert result.census["total"]["all"] == {"images": 48, "slides": 0, "cases": 16}
    assert sum(part["all"]["images"] for part in result.parts["own"].values()) == 48
    assert len(result.cases) == 16
    assert result.cases["case01"]["images"] == {"malignant": 3}
    assert len(result.cases["case01"]["parts"]) == 1


def test_test_cases_too_few_for_intervals_are_a_warning(tmp_path: Path) -> None:
    """Below five cases of a class there is no interval at all, which is worse than a wide one."""
    table = write_table(tmp_path / "set.csv", "path,label,case", case_rows())
    few = of_topic(
        audited(tmp_path, FoldsConfig(k=2, test=0.25), format="csv", path=table), "few test cases"
    )
    assert few.severity == "warning"
    assert "test has only 2 of 'benign', 2 of 'malignant' (cases)" in few.message
    assert "scores have no confidence interval" in few.message


def test_random_image_split_with_shared_patients(tmp_path: Path) -> None:
    """Images drawn at random into train and test put every patient on both sides."""
    parts = np.random.default_rng(0).permutation(["train"] * 32 + ["test"] * 16)
    rows = [[*row, part] for row, part in zip(case_rows(), parts, strict=True)]
    table = write_table(tmp_path / "set.csv", "path,label,case,split", rows)
    shared = of_topic(audited(tmp_path, format="csv", path=table), "case in several parts")
    assert shared.severity == "warning"  # the run's own split is another one
    assert shared.count > 8
    assert "test and train" in shared.examples[0]
    with pytest.raises(DataError, match=f"has {shared.count} of 16 cases in several parts"):
        make_folds(read_manifest(DataConfig(format="csv", path=table)), FoldsConfig(test="official"), 0)


def test_a_leaking_split_that_is_asked_for_is_an_error(tmp_path: Path) -> None:
    """A run may split by image, to measure the inflation; the audit says what that is."""
    table = write_table(tmp_path / "set.csv", "path,label,case", case_rows())
    by_image = audited(tmp_path, FoldsConfig(k=2, group="image"), format="csv", path=table)
    assert of_topic(by_image, "case in several parts").severity == "error"
    assert by_image.split == "crossfit split by image, leaks across cases"


def test_slide_level_split_with_shared_accession(tmp_path: Path) -> None:
    """Slides AB and CD of one accession in train and test are one patient on both sides."""
    lines, pictures = [], {}
    for n, (code, part) in enumerate(
        (c, p) for c in ("B_A", "M_DC") for p in ("train", "test") for _ in "12"
    ):
        slide = f"14-{n // 4}{'AB' if part == 'train' else 'CD'}"
        name = f"SOB_{code}-{slide}-100-{n:03d}.png"
        pictures[tmp_path / "set" / name] = tissue(n)
        lines.append(f"{name}|100|1|{part}")
    write_all(pictures)
    (tmp_path / "dsfold1.txt").write_text("\n".join(lines))
    result = audited(tmp_path, path=tmp_path / "set", fold_list=tmp_path / "dsfold1.txt")
    assert of_topic(result, "case in several parts").count == 2
    assert "slide in several parts" not in topics(result)


def test_augmentation_before_the_split(tmp_path: Path) -> None:
    """Mirrored and turned files of a training image in the test part are found without any names."""
    pictures = {}
    for label in LABELS:
        for n in range(8):
            original = tissue(100 * LABELS.index(label) + n)
            part = "train" if n < 6 else "test"
            pictures[tmp_path / "set" / part / label / f"{n}.png"] = original
            if n < 4:
                turned = original.transpose(Picture.Transpose.ROTATE_90)
                part = "test" if n < 2 else "train"
                pictures[tmp_path / "set" / part / label / f"{n}_1.png"] = turned
    write_all(pictures)
    result = audited(tmp_path, format="folder", path=tmp_path / "set")
    assert of_topic(result, "augmented copies").count == 8
    assert of_topic(result, "duplicate in several parts").count == 4
    assert all("rotated by 90 degrees" in copy["change"] for copy in result.copies)


def test_ordered_cut_whose_validation_part_has_one_class(tmp_path: Path) -> None:
    """A list sorted by class and cut in three leaves the last part with one class only."""
    rows = sorted(case_rows(), key=lambda row: row[1])
    parts = ["train"] * 30 + ["valid"] * 9 + ["test"] * 9
    rows = [[*row, part] for row, part in zip(rows, parts, strict=True)]
    table = write_table(tmp_path / "set.csv", "path,label,case,split", rows)
    result = audited(tmp_path, format="csv", path=table)
    lacking = [finding for finding in result.findings if finding.topic == "part without a class"]
    assert len(lacking) == 2
    assert all("has no benign" in finding.message for finding in lacking)


def test_the_same_case_in_two_subtypes(tmp_path: Path) -> None:
    """BreakHis lists slide 14-13412 as ductal and as lobular, with identical pictures."""
    folder = tmp_path / "set"
    names = [f"SOB_M_{code}-14-13412-100-{n:03d}.png" for code in ("DC", "LC") for n in (1, 2)]
    names += [f"SOB_B_{code}-14-{n}{code}-100-001.png" for n in range(5) for code in ("A", "F")]
    write_all({folder / name: tissue(seed) for seed, name in enumerate(names)})
    for n in (1, 2):
        copy = folder / f"SOB_M_LC-14-13412-100-{n:03d}.png"
        copy.write_bytes((folder / f"SOB_M_DC-14-13412-100-{n:03d}.png").read_bytes())
    result = audited(tmp_path, path=folder)
    slide = of_topic(result, "slide with two subtypes")
    assert slide.severity == "warning"
    assert slide.examples == ("14-13412: ductal_carcinoma, lobular_carcinoma",)
    assert of_topic(result, "duplicate with two subtypes").count == 2


def test_one_picture_under_two_labels_and_two_cases(tmp_path: Path) -> None:
    """A file that is there twice with another label, or of another patient, is reported as both."""
    table = write_table(tmp_path / "set.csv", "path,label,case", case_rows())
    (tmp_path / "01-0.png").write_bytes((tmp_path / "00-0.png").read_bytes())
    result = audited(tmp_path, FoldsConfig(k=2), format="csv", path=table)
    assert of_topic(result, "duplicate with two classes").severity == "error"
    assert of_topic(result, "duplicate under two cases").severity == "warning"
    assert "1 file identical to another" in of_topic(result, "duplicates").message


def test_a_copy_of_unknown_part_and_case_hides_nothing(tmp_path: Path) -> None:
    """Three copies, the first of no known case or part: the other two are still on two sides."""
    rows = [[*row, "test" if int(row[2][4:]) > 11 else "train"] for row in case_rows()]
    rows[0][2:] = ["", ""]
    table = write_table(tmp_path / "set.csv", "path,label,case,split", rows)
    for name in ("02-0.png", "14-1.png"):
        (tmp_path / name).write_bytes((tmp_path / "00-0.png").read_bytes())
    result = audited(tmp_path, format="csv", path=table)
    assert (
        "02-0.png (train) = 14-1.png (test)"
        in of_topic(result, "duplicate in several parts").examples[0]
    )
    assert "(case02) = 14-1.png (case14)" in of_topic(result, "duplicate under two cases").examples[0]


def test_identical_blank_pictures_contradict_each_other_by_label_alone(tmp_path: Path) -> None:
    """A blank file on two sides of a split leaks nothing; under two labels it is a mistake."""
    table = write_table(tmp_path / "set.csv", "path,label,case", case_rows())
    for name in ("00-0.png", "01-0.png", "05-2.png"):
        Picture.new("RGB", (64, 64), "white").save(tmp_path / name)
    result = audited(tmp_path, FoldsConfig(k=4), format="csv", path=table)
    assert of_topic(result, "duplicate with two classes").severity == "error"
    assert "duplicate in several parts" not in topics(result)


def test_a_slide_under_two_cases(tmp_path: Path) -> None:
    """One slide that is listed under two patients is a mistake; slides numbered per patient are not."""
    rows = [[*row, f"s{row[2]}"] for row in case_rows()]
    rows[0][3] = "scase07"
    table = write_table(tmp_path / "set.csv", "path,label,case,slide", rows)
    result = audited(tmp_path, FoldsConfig(k=2), format="csv", path=table)
    assert of_topic(result, "slide under two cases").examples == ("scase07: case00, case07",)
    numbered = [[*row, "1"] for row in case_rows()]
    table = write_table(tmp_path / "numbered.csv", "path,label,case,slide", numbered)
    result = audited(tmp_path, FoldsConfig(k=2), format="csv", path=table)
    assert not {"slide under two cases", "slide in several parts"} & topics(result)
    assert result.census["total"]["all"]["slides"] == 16


def test_what_is_not_known_is_not_called_a_case(tmp_path: Path) -> None:
    """Without cases the shallow model has seen the patients of its test images, and does not deny it."""
    table = write_table(tmp_path / "set.csv", "path,label", [row[:2] for row in case_rows()])
    result = audited(tmp_path, FoldsConfig(k=2, group="image"), format="csv", path=table)
    assert result.unit == "image"
    assert result.census["total"]["all"]["cases"] == 0


@pytest.mark.parametrize("clue", ["picture format", "magnification", "colour", "file size"])
def test_a_class_that_is_told_by_something_else_than_tissue(tmp_path: Path, clue: str) -> None:
    """Format, magnification, colour and file size that go with the class are each pointed out."""
    rows: list[list[object]] = []
    for row in case_rows():
        malignant = row[1] == LABELS[1]
        seed = len(rows)
        ending = "jpg" if malignant and clue == "picture format" else "png"
        colour = (
            np.array([180.0, 150, 215])
            if malignant and clue == "colour"
            else np.array([215.0, 150, 195])
        )
        picture = tissue(seed, 128 if malignant and clue == "file size" else 64, colour)
        name = f"{row[0].removesuffix('.png')}.{ending}"
        write_all({tmp_path / name: picture})
        rows.append([name, *row[1:], 200 if malignant and clue == "magnification" else 100])
    table = write_table(tmp_path / "set.csv", "path,label,case,magnification", rows)
    result = audited(tmp_path, FoldsConfig(k=2), format="csv", path=table)
    told = of_topic(result, f"shortcut: {clue}")
    assert told.severity == ("error" if clue in ("picture format", "magnification") else "warning")
    assert result.shortcuts[clue]["auc"] > 0.9
    said = {
        "picture format": "malignant: JPEG RGB 64x64 (24 of 24)",
        "magnification": "malignant: 200X (24 of 24)",
    }
    assert told.examples[1:] == tuple(text for name, text in said.items() if name == clue)


@pytest.mark.parametrize("clue", ["magnification", "file size"])
def test_a_clue_without_an_error_is_flagged(clue: str) -> None:
    """An AUC of 1 has no interval, nothing telling its error, and is the worst there is."""
    clues = {clue: {"auc": 1.0, "interval": None, "images": 9, "typical": ["a"]}}
    (told,) = check_shortcuts(clues, "case")
    assert told.topic == f"shortcut: {clue}"
    assert told.severity == ("error" if clue == "magnification" else "warning")
    assert "with AUC 1.00" in told.message
    for less in ({"auc": 0.97, "interval": None}, {"auc": 0.97, "interval": [0.55, 0.99]}):
        assert not list(check_shortcuts({clue: {**clues[clue], **less}}, "case"))
    (told,) = check_shortcuts({clue: {**clues[clue], "auc": 0.97, "interval": [0.81, 0.99]}}, "case")
    assert "AUC 0.97 [0.81, 0.99]" in told.message
    assert "too few cases" in next(iter(check_shortcuts({}, "case"))).message


def test_clues_are_ranked_within_the_parts_of_one_forest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts whose forests differ in scale are not compared: each may be right by itself."""
    images = [Image(f"{n}", "", LABELS[n % 2], f"case{n}") for n in range(40)]
    manifest = make_manifest([replace(image, magnification=40 + n) for n, image in enumerate(images)])

    def shifted(_: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
        share = 0.05 + 0.1 * folds + 0.08 * labels
        return np.stack([1 - share, share], axis=1)

    monkeypatch.setattr(shortcuts, "_out_of_fold", shifted)
    monkeypatch.setattr(shortcuts, "_file_clues", lambda _: {})
    nothing = np.zeros(40)
    measured = Measures(np.zeros((40, 6)), nothing, nothing, nothing, nothing)
    clues = shortcuts.recognisability(manifest, measured, 0)
    assert clues["magnification"]["auc"] == 1
    assert clues["magnification"]["interval"] is None


def test_blank_grey_and_colourless_pictures(tmp_path: Path) -> None:
    """Glass without tissue is listed; a set of grey pictures is asked whether it is histology."""
    table = write_table(tmp_path / "set.csv", "path,label,case", case_rows())
    assert "not histology" not in topics(audited(tmp_path, format="csv", path=table))
    for n, row in enumerate(case_rows()):
        tissue(n).convert("L").save(tmp_path / row[0])
    Picture.new("RGB", (64, 64), (243, 243, 245)).save(tmp_path / "00-0.png")
    result = audited(tmp_path, format="csv", path=table)
    assert of_topic(result, "blank images").examples == ("00-0.png",)
    assert of_topic(result, "grey images").count == 47
    assert of_topic(result, "not histology").severity == "warning"


def test_unknown_cases_few_cases_and_unbalanced_classes(tmp_path: Path) -> None:
    """What makes a score less than it seems is said before it is computed."""
    rows = [[f"{n:02d}.png", LABELS[n < 2], "" if n == 40 else f"case{n}"] for n in range(41)]
    table = write_table(tmp_path / "set.csv", "path,label,case", rows)
    result = audited(tmp_path, format="csv", path=table)
    assert of_topic(result, "unknown case").examples == ("40.png",)
    assert "'malignant' has 2 cases" in of_topic(result, "few cases").message
    assert "39 images are 'benign' and 2 'malignant'" in of_topic(result, "unbalanced classes").message


def test_patches_with_labels_of_their_own_are_a_note(tmp_path: Path) -> None:
    """In IDC nearly every patient has patches of both classes: that is no contradiction."""
    rows = [[f"{n:02d}.png", LABELS[n % 2], f"case{n // 4}"] for n in range(32)]
    table = write_table(tmp_path / "set.csv", "path,label,case", rows)
    assert (
        of_topic(audited(tmp_path, format="csv", path=table), "case with two classes").severity == "note"
    )
    rows = [[f"{n:02d}.png", LABELS[n // 4 % 2 ^ (n == 0)], f"case{n // 4}"] for n in range(32)]
    table = write_table(tmp_path / "one.csv", "path,label,case", rows)
    mixed = of_topic(audited(tmp_path, format="csv", path=table), "case with two classes")
    assert mixed.examples == ("case0: benign, malignant",)
