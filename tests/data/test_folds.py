"""No group is on two sides, every part has every class, and a split is reloaded verbatim."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stacker.config.data import FoldsConfig
from stacker.data.folds import Fold, Folds, load_folds, make_folds, save_folds
from stacker.data.manifest import Image, Manifest, make_manifest
from stacker.errors import DataError, RunError

SUBTYPES = {
    "benign": ("adenosis", "fibroadenoma"),
    "malignant": ("ductal_carcinoma", "papillary_carcinoma"),
}


def random_manifest(seed: int, fewest: int = 8) -> Manifest:
    """Return a manifest of random cases, some with several slides, of one to forty images each."""
    rng = np.random.default_rng(seed)
    images: list[Image] = []
    for label, subtypes in SUBTYPES.items():
        for _ in range(int(rng.integers(fewest, fewest + 20))):
            case, subtype = f"14-{len(images)}", str(rng.choice(subtypes))
            for n in range(int(rng.integers(1, 40))):
                slide = case + str(rng.choice(["A", "B"]))
                images.append(
                    Image(
                        f"{case}-{n}",
                        "",
                        label,
                        case,
                        slide,
                        100,
                        subtype,
                        "",
                    )
                )
    return make_manifest(images)


CONFIGS = [
    FoldsConfig(protocol="crossfit", k=5, test=0.2),
    FoldsConfig(protocol="crossfit", k=2, test=0.3, validation=0.3),
    FoldsConfig(protocol="holdout", test=0.25, stack=0.25),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.protocol}-{c.k}")
@pytest.mark.parametrize("seed", range(15))
def test_no_case_is_on_two_sides(config: FoldsConfig, seed: int) -> None:
    """In every fold each case is in exactly one of fit, validation, held-out and test."""
    manifest = random_manifest(seed)
    folds = make_folds(manifest, config, seed)
    cases = {image.case for image in manifest.images}
    for fold in folds.folds:
        parts = [set(fold.train), set(fold.validation), set(fold.held_out), set(folds.test)]
        assert sum(len(part) for part in parts) == len(cases)
        assert set().union(*parts) == cases
    if config.protocol == "crossfit":
        held_out = [case for fold in folds.folds for case in fold.held_out]
        assert sorted([*held_out, *folds.test]) == sorted(cases)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.protocol}-{c.k}")
@pytest.mark.parametrize("seed", range(15))
def test_every_part_has_every_class(config: FoldsConfig, seed: int) -> None:
    """Fit, validation, held-out and test parts hold benign and malignant cases."""
    manifest = random_manifest(seed)
    folds = make_folds(manifest, config, seed)
    for fold in folds.folds:
        for part in (fold.train, fold.validation, fold.held_out, folds.test):
            assert len(set(manifest.labels[manifest.rows_of("case", part)])) == 2


@pytest.mark.parametrize("seed", range(15))
def test_parts_are_balanced(seed: int) -> None:
    """Each fold has its share of a class's cases to within one, of its images to within a third."""
    manifest = random_manifest(seed, fewest=20)
    folds = make_folds(manifest, FoldsConfig(k=4, test=0.2), seed)
    for label in range(2):
        rows = np.flatnonzero(manifest.labels == label)
        cases = {manifest.images[row].case for row in rows}
        for fold in folds.folds:
            assert abs(len(cases & set(fold.held_out)) - 0.2 * len(cases)) <= 1
            held_out = np.intersect1d(manifest.rows_of("case", fold.held_out), rows)
            assert abs(len(held_out) / len(rows) - 0.2) < 0.2 / 3 + 40 / len(rows)


def test_same_seed_same_split_and_another_seed_another() -> None:
    """A split is a function of the manifest, the policy and the seed."""
    manifest = random_manifest(0)
    assert make_folds(manifest, CONFIGS[0], 7) == make_folds(manifest, CONFIGS[0], 7)
    assert make_folds(manifest, CONFIGS[0], 7) != make_folds(manifest, CONFIGS[0], 8)


def test_more_folds_than_cases_of_a_class_is_refused() -> None:
    """The refusal gives the class and both numbers."""
    manifest = random_manifest(1, fewest=3)
    with pytest.raises(DataError, match=r"'benign' has only \d+ cases, and each of 41 parts"):
        make_folds(manifest, FoldsConfig(k=40), 0)


def test_a_class_of_one_case_per_part_is_trained_on_and_not_validated() -> None:
    """With three cases of a rare subtype each part has one; two classes are never split like that."""
    images = [
        Image(f"{label}{case}-{n}", "", label, f"{label}{case}")
        for label, cases in (("a", 9), ("b", 9), ("rare", 3))
        for case in range(cases)
        for n in range(4)
    ]
    manifest = make_manifest(images)
    (fold,) = make_folds(manifest, FoldsConfig(protocol="holdout"), 0).folds
    present = {
        part: {group[:-1] for group in groups} for part, groups in vars(fold).items() if part != "name"
    }
    assert present == {
        "train": {"a", "b", "rare"},
        "validation": {"a", "b"},
        "held_out": {"a", "b", "rare"},
    }
    binary = make_manifest([image for image in images if image.label != "b"])
    with pytest.raises(
        DataError, match=r"'rare' has only 1 case, and each of 2 parts \(train, validation\)"
    ):
        make_folds(binary, FoldsConfig(protocol="holdout"), 0)


def test_splits_by_slide_and_image_are_labelled_as_leaking() -> None:
    """Other groupings can be asked for, and every output that names the split says what they are."""
    manifest = random_manifest(2)
    by_slide = make_folds(manifest, FoldsConfig(group="slide"), 0)
    assert set(by_slide.test) <= {image.slide for image in manifest.images}
    assert by_slide.label == "crossfit split by slide, leaks across cases"
    assert make_folds(manifest, FoldsConfig(group="image"), 0).label.endswith("leaks across cases")
    assert make_folds(manifest, FoldsConfig(), 0).label == "crossfit split by case"


def test_a_straddling_split_cannot_be_made() -> None:
    """Whoever builds Folds with a case on two sides is stopped."""
    with pytest.raises(RunError, match="case b is in train and in held out"):
        Folds("holdout", "case", 0, "", (Fold("holdout", ("a", "b"), ("c",), ("b",)),), ("d",))


def test_a_class_that_only_the_official_test_part_has_is_refused() -> None:
    """Nothing could be trained to tell it, and an official part of everything leaves nothing."""
    images = [
        Image(
            f"{label}{n}", "", label, f"{label}{n}", split="test" if label == "b" or n > 6 else "train"
        )
        for label in ("a", "b")
        for n in range(10)
    ]
    with pytest.raises(DataError, match="the development part has no image of b"):
        make_folds(make_manifest(images), FoldsConfig(k=2, test="official"), 0)
    everything = make_manifest([replace(image, split="test") for image in images])
    with pytest.raises(DataError, match="the development part has no image of a, b"):
        make_folds(everything, FoldsConfig(k=2, test="official"), 0)


def test_a_case_is_held_out_once() -> None:
    """Two folds that hold out one case would put its images into the stack's table twice."""
    folds = (Fold("fold0", ("b",), ("c",), ("a",)), Fold("fold1", ("b",), ("c",), ("a",)))
    with pytest.raises(RunError, match="case a is held out by 2 folds"):
        Folds("crossfit", "case", 0, "", folds, ("d",))


def test_the_policy_is_written_down(tmp_path: Path) -> None:
    """folds.json says what was asked for, and a part that is the data set's own is named."""
    manifest = random_manifest(5)
    save_folds(make_folds(manifest, CONFIGS[2], 5), tmp_path / "folds.json")
    policy = json.loads((tmp_path / "folds.json").read_text())["policy"]
    assert policy == CONFIGS[2].model_dump(mode="json")
    official = Folds("holdout", "slide", 0, "", (), (), {"test": "official", "stack": "official"})
    assert official.label == "holdout split by slide, official test and stack, leaks across cases"


def test_reloaded_verbatim(tmp_path: Path) -> None:
    """folds.json holds the whole split."""
    manifest = random_manifest(3)
    folds = make_folds(manifest, CONFIGS[2], 3)
    save_folds(folds, tmp_path / "folds.json")
    assert load_folds(tmp_path / "folds.json", manifest) == folds


def test_edited_or_foreign_split_is_refused(tmp_path: Path) -> None:
    """Moving a case by hand, or using the split with other images, is noticed."""
    path = tmp_path / "folds.json"
    manifest = random_manifest(4)
    save_folds(make_folds(manifest, CONFIGS[0], 4), path)
    with pytest.raises(RunError, match="belongs to manifest"):
        load_folds(path, replace(manifest, images=manifest.images[1:]))
    content = json.loads(path.read_text())
    content["folds"][0]["train"].append(content["test"].pop())
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="was edited"):
        load_folds(path, manifest)
