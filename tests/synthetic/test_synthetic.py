"""The synthetic set: BreakHis names, masks that fit, bytes that repeat, and no answer in the colour."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stacker.errors import DataError
from stacker.synthetic.breakhis import EOSIN, HAEMATOXYLIN, SUBTYPES, SyntheticSet, write_breakhis

NAME = re.compile(
    r"SOB_(?P<kind>[BM])_(?P<code>A|F|PT|TA|DC|LC|MC|PC)-(?P<year>\d\d)-(?P<accession>\d+)"
    r"(?P<letters>[A-Z]*)-(?P<magnification>100|200)-(?P<sequence>\d{3})\.png"
)


def write_small(root: Path, seed: int = 0, workers: int = 1) -> SyntheticSet:
    """Write 16 cases of 2 small images."""
    return write_breakhis(root, cases=16, images_per_case=2, size=(70, 46), seed=seed, workers=workers)


def contents(root: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def parts(path: Path) -> dict[str, str]:
    """Return the parts of a BreakHis file name, which must match as a whole."""
    match = NAME.fullmatch(path.name)
    assert match, path.name
    return match.groupdict()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    """Return a small set that tests only read."""
    return write_small(tmp_path_factory.mktemp("synthetic") / "small")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    """Return a set of the default size of images and number of cases, with half of the images."""
    return write_breakhis(tmp_path_factory.mktemp("synthetic") / "large", images_per_case=4)


def test_folders_and_names_follow_breakhis(small: SyntheticSet) -> None:
    """Each path is the one that BreakHis would give to the image its name describes."""
    paths = sorted((small.root / "histology_slides").rglob("*.png"))
    assert paths == sorted(small.images)
    assert len(paths) == 32
    for path in paths:
        part = parts(path)
        label = {"B": "benign", "M": "malignant"}[part["kind"]]
        slide = f"SOB_{part['kind']}_{part['code']}_{part['year']}-{part['accession']}"
        folders = (label, "SOB", SUBTYPES[label][part["code"]], slide + part["letters"])
        breast = small.root / "histology_slides" / "breast"
        assert path.parent == breast.joinpath(*folders, f"{part['magnification']}X")


def test_subtypes_magnifications_and_slides_are_all_there(small: SyntheticSet) -> None:
    """Sixteen cases hold eight subtypes, two magnifications and cases of several slides."""
    names = [parts(path) for path in small.images]
    assert {n["code"] for n in names} == {code for codes in SUBTYPES.values() for code in codes}
    assert {n["magnification"] for n in names} == {"100", "200"}
    slides: dict[str, set[str]] = {}
    codes: dict[str, set[str]] = {}
    for n in names:
        case = f"{n['year']}-{n['accession']}"
        slides.setdefault(case, set()).add(n["letters"])
        codes.setdefault(case, set()).add(n["code"])
    assert set(slides) == set(small.cases)
    assert max(map(len, slides.values())) > 1
    assert all(len(kinds) == 1 for kinds in codes.values())


def test_masks_belong_to_malignant_images(large: SyntheticSet) -> None:
    """Malignant images alone have a mask; it has their size, two values and a sensible area."""
    malignant = {path.name: path for path in large.images if parts(path)["kind"] == "M"}
    assert {path.name for path in large.masks.iterdir()} == set(malignant)
    areas = []
    for name, path in malignant.items():
        mask = Image.open(large.masks / name)
        assert (mask.mode, mask.size) == ("L", Image.open(path).size)
        assert set(np.unique(np.asarray(mask))) == {0, 255}
        areas.append(np.mean(np.asarray(mask) > 0))
    assert min(areas) > 0.03
    assert max(areas) < 0.40
    assert 0.12 < np.median(areas) < 0.35


def test_bytes_repeat_whatever_the_workers(small: SyntheticSet, tmp_path: Path) -> None:
    """The seed fixes every byte; how many processes drew does not matter."""
    assert contents(write_small(tmp_path / "two", workers=2).root) == contents(small.root)


def test_another_seed_gives_other_images(small: SyntheticSet, tmp_path: Path) -> None:
    """No picture of one seed comes back with another seed."""
    other = write_small(tmp_path / "other", seed=1)
    pictures = [{path.read_bytes() for path in made.images} for made in (small, other)]
    assert not pictures[0] & pictures[1]


def test_a_complete_set_is_left_alone(tmp_path: Path) -> None:
    """Asking again for the same settings returns the set without writing a file."""
    first = write_small(tmp_path / "set")
    times = {path: path.stat().st_mtime_ns for path in first.root.rglob("*")}
    assert write_small(tmp_path / "set") == first
    assert {path: path.stat().st_mtime_ns for path in first.root.rglob("*")} == times


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    """An existing folder without content is as good as none."""
    (tmp_path / "set").mkdir()
    assert len(contents(write_small(tmp_path / "set").root)) == 32 + 16 + 1


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that breaks half-way leaves no folder, and the next run starts afresh."""
    save, saved = Image.Image.save, []

    def break_at_tenth(image: Image.Image, *args: Any, **options: Any) -> None:
        saved.append(args)
        if len(saved) == 10:
            raise KeyboardInterrupt
        save(image, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", break_at_tenth)
        with pytest.raises(KeyboardInterrupt):
            write_small(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
    assert len(write_small(tmp_path / "set").images) == 32


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    """A folder with other content is named in the error and stays as it was."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds something other than a synthetic set"):
        write_small(tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A path that is a file is refused, not replaced."""
    (tmp_path / "set").write_text("mine")
    with pytest.raises(DataError, match="choose another folder"):
        write_small(tmp_path / "set")


def test_a_set_of_other_settings_is_refused(tmp_path: Path) -> None:
    """A set of another seed, or of an older generator, is not taken for the one asked for."""
    made = write_small(tmp_path / "set")
    with pytest.raises(DataError, match=r"'seed': 0.* expected .*'seed': 5"):
        write_small(tmp_path / "set", seed=5)
    settings = made.root / "synthetic.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"generator": -1}))
    with pytest.raises(DataError, match="'generator': -1"):
        write_small(tmp_path / "set")


def test_a_set_that_lost_a_file_is_refused(tmp_path: Path) -> None:
    """A missing image is reported by name."""
    made = write_small(tmp_path / "set")
    made.images[3].unlink()
    with pytest.raises(DataError, match="lacks 1 of 48 files"):
        write_small(tmp_path / "set")


@pytest.mark.parametrize("settings", [{"cases": 7}, {"images_per_case": 0}, {"size": (70, 20)}])
def test_settings_that_cannot_work_are_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    """Too few cases or images, or too small images, are named with what was found."""
    with pytest.raises(DataError, match=r"cases=.* expected at least 8 cases"):
        write_breakhis(tmp_path / "set", **settings)  # type: ignore[arg-type]


def colour_statistics(path: Path) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return mean, spread and percentiles of RGB and of the two stains (45,)."""
    rgb = np.asarray(Image.open(path)).reshape(-1, 3) / 255
    stains = -np.log(rgb.clip(1 / 255)) @ np.linalg.pinv(np.stack([HAEMATOXYLIN, EOSIN]))
    values = np.hstack([rgb, stains])
    percentiles = np.percentile(values, [1, 5, 25, 50, 75, 95, 99], axis=0).ravel()
    return np.concatenate([values.mean(axis=0), values.std(axis=0), percentiles])


def test_colour_alone_does_not_tell_the_class(large: SyntheticSet) -> None:
    """Colour statistics of a whole image reach an AUC of 0.70 at most on cases not trained on."""
    features = np.stack([colour_statistics(path) for path in large.images])
    labels = np.array([parts(path)["kind"] == "M" for path in large.images])
    cases = np.array([parts(path)["accession"] for path in large.images])
    for model in (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        RandomForestClassifier(100, min_samples_leaf=3, random_state=0),
    ):
        scores = cross_val_predict(
            model, features, labels, groups=cases, cv=GroupKFold(6), method="predict_proba"
        )
        assert roc_auc_score(labels, scores[:, 1]) <= 0.70, model
