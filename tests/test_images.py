"""Images are decoded once, and what cannot be decoded is listed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from stacker.config import DataConfig, ImagesConfig
from stacker.errors import DataError, UnreadableImages
from stacker.images import decode
from stacker.manifest import Manifest
from stacker.readers import read_manifest
from stacker.store import open_store

SIZE = ImagesConfig(size=32)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Return the manifest of four noisy pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, tumour in enumerate(("B_A", "B_F", "M_DC", "M_LC")):
        noise = rng.integers(0, 255, (46, 70, 3), dtype=np.uint8)
        Picture.fromarray(noise).save(folder / f"SOB_{tumour}-14-{i}-100-001.png")
    return read_manifest(DataConfig(path=folder))


def test_store_holds_what_decoding_gives(manifest: Manifest, tmp_path: Path) -> None:
    """Row i of the store is image i of the manifest, decoded."""
    pixels = open_store(tmp_path, manifest, SIZE)
    assert pixels[:].shape == (4, 32, 32, 3)
    for row, image in zip(pixels[:], manifest.images, strict=True):
        assert np.array_equal(row, decode(image.path, SIZE))


def test_store_is_made_once_and_keyed_by_settings(manifest: Manifest, tmp_path: Path) -> None:
    """Opening again reads the same file, sources or no sources; another size is another file."""
    first = open_store(tmp_path, manifest, SIZE)
    open_store(tmp_path, manifest, ImagesConfig(size=48))
    assert len(list(tmp_path.glob("*.npy"))) == 2
    for image in manifest.images:
        Path(image.path).unlink()
    assert np.array_equal(open_store(tmp_path, manifest, SIZE)[:], first[:])


def test_all_broken_images_are_listed(manifest: Manifest, tmp_path: Path) -> None:
    """A truncated file and a text file are both named, with the reason, in one error."""
    first, second = (Path(image.path) for image in manifest.images[:2])
    first.write_bytes(first.read_bytes()[:200])
    second.write_text("not a picture")
    manifest = read_manifest(DataConfig(path=first.parent))
    with pytest.raises(UnreadableImages) as caught:
        open_store(tmp_path, manifest, SIZE)
    assert str(first) in str(caught.value)
    assert f"{second}: not an image" in str(caught.value)
    assert sorted(caught.value.reasons) == [0, 1]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_eight_bit_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    """Grey, palette, alpha, CMYK and bilevel pictures of one colour keep their colour."""
    path = tmp_path / "picture.tiff"
    Picture.new("RGB", (40, 40), "white").convert(mode).save(path)
    assert decode(path, SIZE).min() >= 254


def test_transparent_becomes_white(tmp_path: Path) -> None:
    """Where a picture has no tissue it is as white as an empty slide, not black."""
    path = tmp_path / "clear.png"
    Picture.new("RGBA", (40, 40), (0, 0, 0, 0)).save(path)
    assert decode(path, SIZE).min() == 255


def test_sixteen_bit_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Sixteen bits would be cut to eight silently: convert them on purpose."""
    path = tmp_path / "deep.png"
    Picture.fromarray(np.full((40, 40), 40_000, np.uint16)).save(path)
    with pytest.raises(DataError, match="I;16"):
        decode(path, SIZE)


def test_squash_keeps_all_and_crop_keeps_the_aspect(tmp_path: Path) -> None:
    """A wide picture with red sides: squashed, the sides stay; cropped, they are gone."""
    pixels = np.full((40, 80, 3), 255, np.uint8)
    pixels[:, :16] = pixels[:, -16:] = (255, 0, 0)
    path = tmp_path / "wide.png"
    Picture.fromarray(pixels).save(path)
    assert tuple(decode(path, ImagesConfig(size=40))[20, 1]) == (255, 0, 0)
    assert decode(path, ImagesConfig(size=40, resize="crop")).min() == 255
