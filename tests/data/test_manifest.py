"""Names become rows, and the case is the accession behind the slides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from stacker.config.data import DataConfig
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import load_manifest, save_manifest
from stacker.errors import DataError, Unusable

NAMES = (
    "SOB_B_A-14-22549AB-100-001.png",
    "SOB_B_A-14-22549CD-100-002.png",
    "SOB_B_F-13-14134-200-001.png",
    "SOB_M_DC-15-13412-100-001.png",
    "SOB_M_LC-15-13412-100-002.png",
    "SOB_M_PC-14-9146-400-010.png",
)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Return a flat folder of pictures with BreakHis names, every one different."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for shade, name in enumerate(NAMES):
        Picture.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(folder / name)
    return folder


def test_slides_of_one_accession_are_one_case(flat: Path) -> None:
    """14-22549AB and 14-22549CD are two slides of the case 14-22549, of whatever year."""
    images = {image.id: image for image in read_manifest(DataConfig(path=flat)).images}
    assert images["SOB_B_A-14-22549AB-100-001"].case == images["SOB_B_A-14-22549CD-100-002"].case
    assert images["SOB_B_A-14-22549AB-100-001"].slide == "14-22549AB"
    assert images["SOB_B_F-13-14134-200-001"].case == "13-14134"
    assert images["SOB_M_PC-14-9146-400-010"].magnification == 400


def test_binary_and_subtype_labels(flat: Path) -> None:
    """The letter gives the tumour, the code the subtype; a case with two subtypes is left out."""
    assert read_manifest(DataConfig(path=flat)).classes == ("benign", "malignant")
    by_subtype = read_manifest(DataConfig(path=flat, task="subtype"))
    assert by_subtype.classes == ("adenosis", "fibroadenoma", "papillary_carcinoma")
    assert "15-13412" not in {image.case for image in by_subtype.images}


def test_tree_and_flat_folder_give_the_same_manifest(data: Path, tmp_path: Path) -> None:
    """Where a file lies does not matter: its name and its content do."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in (data / "histology_slides").rglob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    tree, copy = read_manifest(DataConfig(path=data)), read_manifest(DataConfig(path=folder))
    assert tree.digest == copy.digest
    assert tree.images != copy.images


def test_a_missing_masks_folder_is_noticed_before_any_training(flat: Path) -> None:
    """Masks are needed last, and asked for first."""
    with pytest.raises(DataError, match=r"data\.masks: no folder"):
        read_manifest(DataConfig(path=flat, masks=flat / "nowhere"))


def test_content_is_part_of_the_digest(flat: Path) -> None:
    """A picture that changes under its name is another manifest."""
    before = read_manifest(DataConfig(path=flat)).digest
    Picture.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(flat / NAMES[0])
    assert read_manifest(DataConfig(path=flat)).digest != before


def test_magnifications_are_filtered(flat: Path) -> None:
    """Only the wanted magnifications are read, and one that is not there is named."""
    manifest = read_manifest(DataConfig(path=flat, magnifications=[100]))
    assert {image.magnification for image in manifest.images} == {100}
    with pytest.raises(DataError, match=r"has magnification 40; found 100, 200, 400; change"):
        read_manifest(DataConfig(path=flat, magnifications=[40]))


def test_csv_round_trip(flat: Path, tmp_path: Path) -> None:
    """A manifest is what its CSV says."""
    manifest = read_manifest(DataConfig(path=flat))
    save_manifest(manifest, tmp_path / "manifest.csv")
    assert load_manifest(tmp_path / "manifest.csv") == manifest


def test_edited_csv_is_refused(flat: Path, tmp_path: Path) -> None:
    """A column that was removed by hand is an error with the path, not a traceback."""
    path = tmp_path / "manifest.csv"
    save_manifest(read_manifest(DataConfig(path=flat)), path)
    path.write_text(path.read_text().replace("magnification", "magnifcation"))
    with pytest.raises(DataError, match=r"manifest\.csv was edited"):
        load_manifest(path)


@pytest.mark.parametrize(
    "name",
    ["holiday.png", "SOB_X_A-14-22549AB-100-001.png", "SOB_B_DC-14-1-100.png", "sob_b_a-14-1-40-1.png"],
)
def test_a_stranger_among_the_names_is_refused(flat: Path, name: str) -> None:
    """The grammar is strict: a picture that is not named as in BreakHis stops the reading."""
    (flat / name).write_bytes((flat / NAMES[0]).read_bytes())
    with pytest.raises(DataError, match="not named as in BreakHis"):
        read_manifest(DataConfig(path=flat))


def test_same_name_twice_is_refused(flat: Path) -> None:
    """An image id stands for one file."""
    (flat / "again").mkdir()
    (flat / "again" / NAMES[0]).write_bytes((flat / NAMES[0]).read_bytes())
    with pytest.raises(DataError, match="two images have the id"):
        read_manifest(DataConfig(path=flat))


def test_one_class_only_is_refused(flat: Path) -> None:
    """There is nothing to tell apart in a folder of benign images."""
    for path in flat.glob("SOB_M*"):
        path.unlink()
    with pytest.raises(DataError, match=r"one class only \(benign\)"):
        read_manifest(DataConfig(path=flat))


def test_empty_and_missing_folders_are_refused(tmp_path: Path) -> None:
    """Both name the path."""
    with pytest.raises(DataError, match="no BreakHis image"):
        read_manifest(DataConfig(path=tmp_path))
    with pytest.raises(DataError, match="no folder at"):
        read_manifest(DataConfig(path=tmp_path / "nowhere"))


def test_images_that_were_left_out_are_listed_beside_the_manifest(flat: Path, tmp_path: Path) -> None:
    """Each with its reason; the digest, and the manifest that is read again, know nothing of them."""
    whole = read_manifest(DataConfig(path=flat))
    rest = whole.without({0: Unusable("a.png", "too small, 4x5")})
    assert [image.path for image in rest.left_out] == ["a.png"]
    save_manifest(rest, tmp_path / "manifest.csv")
    assert (tmp_path / "left_out.csv").read_text().splitlines() == ["path,why", 'a.png,"too small, 4x5"']
    again = load_manifest(tmp_path / "manifest.csv")
    assert (again, again.digest) == (rest, rest.digest)
