"""What models said, as CSV: to the last bit, a line per cut, and cases where they have one label."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stacker.caches.format import Rows, fixed_text
from stacker.data.manifest import Image, Manifest, make_manifest
from stacker.scores.metrics import area_within
from stacker.scores.predictions import Calibrator, Finish, Finishes, Predictions, by_case, finished
from stacker.stacking.saved import write_predictions

Lines = list[dict[str, str]]
CLASSES = ("benign, or so", "malignant")
THREE = ("benign", "in situ", "invasive")
CASES = ["14-1", 'the "other"', "14,2", "Fall Ä", "14-1b", "x\ny", "15", "16"]


def some_rows(classes: tuple[str, ...], images: int = 3) -> tuple[Manifest, Rows]:
    """Return some images of eight cases, whose names are hard to write down, in no order."""
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(CASES)), images))
    labels = order % len(classes)
    found = [
        Image(f"{n}.png", "", classes[k], CASES[c])
        for n, (k, c) in enumerate(zip(labels, order, strict=True))
    ]
    ids, cases = fixed_text([i.id for i in found]), fixed_text([i.case for i in found])
    return make_manifest(found, classes), Rows(labels, ids, cases, cases, fixed_text(["a"] * len(found)))


def some_says(rows: Rows, classes: int, cuts: int, seed: int) -> Predictions:
    """Return what a model says in several cuts by case, with numbers of which no short form is exact."""
    rng = np.random.default_rng(seed)
    raw = rng.dirichlet(np.ones(classes) / 3, (cuts, len(rows)))
    raw[0, 0] = np.eye(classes)[0]
    raw[0, 1, 0] = 5e-324  # the least there is
    _, case = np.unique(rows.case_id, return_inverse=True)
    parts = rng.permutation(np.arange(8) % 2)[case] + np.arange(cuts)[:, None] % 2

    def finishes(bolder: float) -> Finishes:
        return tuple(
            {
                part: Finish(
                    Calibrator("temperature", bolder + 0.1 * part + 0.3 * cut),
                    rng.random() if classes == 2 else None,
                )
                for part in range(3)
            }
            for cut in range(cuts)
        )

    return finished(rows.label, rows.case_id, raw, parts, finishes(1.1), finishes(0.7))


def read(path: Path) -> Lines:
    """Return the lines of a CSV by the names of its columns."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(lines: Lines, names: list[str]) -> np.ndarray:
    """Return some columns as numbers (n, names)."""
    return np.array([[float(line[name]) for name in names] for line in lines])


def assert_said(lines: Lines, said: Predictions, classes: tuple[str, ...]) -> None:
    """Compare the lines of one model, of all cuts, with what it says, to the last bit."""
    raw, parts = said.ranked
    size = len(said.labels)
    assert len(lines) == len(raw) * size
    shares = said.probabilities
    threshold = np.broadcast_to(np.nan if said.threshold is None else said.threshold, size)
    for cut, (raw_NK, part_N) in enumerate(zip(raw, parts, strict=True)):
        own = lines[cut * size : (cut + 1) * size]
        assert np.array_equal(numbers(own, [f"raw_{name}" for name in classes]), raw_NK)
        assert np.array_equal(numbers(own, [f"p_{name}" for name in classes]), shares)
        assert [line["cut"] for line in own] == [str(cut)] * size
        assert [int(line["part"]) for line in own] == part_N.tolist()
        assert [line["case_id"] for line in own] == [case.decode() for case in said.cases]
        assert [line["label"] for line in own] == [classes[k] for k in said.labels]
        assert [line["predicted"] for line in own] == [classes[k] for k in said.predicted]
        levels = [float(line["threshold"] or "nan") for line in own]
        assert np.array_equal(levels, threshold, equal_nan=True)


@pytest.mark.parametrize("classes", [CLASSES, THREE])
@pytest.mark.parametrize("cuts", [1, 3])
def test_every_number_is_read_back_to_the_last_bit(
    classes: tuple[str, ...], cuts: int, tmp_path: Path
) -> None:
    """By image and by case, model after model, a line per cut; whose fold a row is stands there, too."""
    manifest, rows = some_rows(classes)
    models = {name: some_says(rows, len(classes), cuts, seed) for seed, name in enumerate(("a", "b, c"))}
    first = {name: fold for fold, name in enumerate(np.unique(rows.case_id))}
    made_by = np.array([f"fold{first[name] % 2}" for name in rows.case_id])
    path = tmp_path / "out_of_fold.csv"
    write_predictions(path, models, rows, made_by, manifest, "crossfit, by case")
    lines, of_cases = read(path), read(tmp_path / "out_of_fold_cases.csv")
    assert {line["split"] for line in lines + of_cases} == {"crossfit, by case"}
    assert list(dict.fromkeys(line["model"] for line in lines)) == ["a", "b, c"]
    for name, said in models.items():
        own = [line for line in lines if line["model"] == name]
        assert_said(own, said, classes)
        for start in range(0, len(own), len(rows)):
            some = own[start : start + len(rows)]
            assert [line["image_id"] for line in some] == [image.decode() for image in rows.image_id]
            assert [line["fold"] for line in some] == made_by.tolist()
        whole = by_case(said)
        assert whole is not None
        assert whole.raw is not None
        assert whole.raw.shape == (cuts, len(CASES), len(classes))
        own = [line for line in of_cases if line["model"] == name]
        assert_said(own, whole, classes)
        assert {line["images"] for line in own} == {"3"}
        assert [line["fold"] for line in own[:8]] == [f"fold{first[case] % 2}" for case in whole.cases]


def test_published_scores_can_be_computed_again(tmp_path: Path) -> None:
    """The area within parts, from nothing but the file, is that of the predictions to the last bit."""
    manifest, rows = some_rows(CLASSES)
    said = some_says(rows, 2, 3, 0)
    write_predictions(tmp_path / "out_of_fold.csv", {"a": said}, rows, None, manifest, "x")
    for name, expected in (("out_of_fold", said), ("out_of_fold_cases", by_case(said))):
        assert expected is not None
        lines = read(tmp_path / f"{name}.csv")
        assert {line["fold"] for line in lines} == {""}
        size = len(expected.labels)
        raw = numbers(lines, [f"raw_{c}" for c in CLASSES]).reshape(3, size, 2)
        parts = np.array([int(line["part"]) for line in lines]).reshape(3, size)
        shares = numbers(lines[:size], [f"p_{c}" for c in CLASSES])
        labels = np.array([CLASSES.index(line["label"]) for line in lines[:size]])
        again = Predictions(labels, np.arange(size), shares, None, raw, parts)
        assert area_within(again) == area_within(expected)
        for line in lines:  # what is predicted follows from the numbers beside it
            above = float(line["p_malignant"]) >= float(line["threshold"])
            assert line["predicted"] == CLASSES[above]


def test_without_parts_there_is_one_cut(tmp_path: Path) -> None:
    """Probabilities of test images that one fit made are ranked themselves; nothing is cut off them."""
    manifest, rows = some_rows(THREE)
    shares = np.random.default_rng(0).dirichlet(np.ones(3), len(rows)).astype(np.float32)
    plain = Predictions(rows.label, rows.case_id, shares)
    write_predictions(tmp_path / "predictions.csv", {"a": plain}, rows, None, manifest, "x")
    lines = read(tmp_path / "predictions.csv")
    assert_said(lines, plain, THREE)
    assert {(line["cut"], line["part"], line["threshold"]) for line in lines} == {("0", "0", "")}
    assert len(read(tmp_path / "predictions_cases.csv")) == len(CASES)


def test_a_case_of_several_folds_is_of_none(tmp_path: Path) -> None:
    """In a split by image a case's rows are made by several folds' models: it is called no one's."""
    manifest, rows = some_rows(CLASSES)
    made_by = np.where(rows.case_id == b"16", "fold1", "fold0")
    made_by[np.flatnonzero(rows.case_id == b"15")[1]] = "fold1"
    said = some_says(rows, 2, 1, 0)
    write_predictions(tmp_path / "out_of_fold.csv", {"a": said}, rows, made_by, manifest, "x")
    found = {line["case_id"]: line["fold"] for line in read(tmp_path / "out_of_fold_cases.csv")}
    assert found == dict.fromkeys(CASES, "fold0") | {"15": "", "16": "fold1"}


@pytest.mark.parametrize("why", ["labels", "unknown"])
def test_there_is_no_file_of_what_is_no_case(why: str, tmp_path: Path) -> None:
    """Where a case has two labels, or cases are not known; one of another run does not stay behind."""
    manifest, rows = some_rows(CLASSES)
    said, path = some_says(rows, 2, 1, 0), tmp_path / "predictions.csv"
    write_predictions(path, {"a": said}, rows, None, manifest, "x")
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "predictions.csv",
        "predictions_cases.csv",
    ]
    if why == "labels":
        labels = rows.label.copy()
        labels[0] = 1 - labels[0]
        rows, said = replace(rows, label=labels), replace(said, labels=labels)
    else:
        manifest = replace(manifest, images=tuple(replace(i, case="") for i in manifest.images))
        assert manifest.unit == "image"
    write_predictions(path, {"a": said}, rows, None, manifest, "x")
    assert [each.name for each in tmp_path.iterdir()] == ["predictions.csv"]
    assert_said(read(path), said, CLASSES)
