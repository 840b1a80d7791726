"""Images are packed once, a killed packing goes on where it stopped, and arrays stay where they are."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from stacker.config.data import DataConfig, ImagesConfig
from stacker.data.formats.registry import read_manifest
from stacker.data.images import decode, decode_bytes, decode_image
from stacker.data.manifest import Manifest
from stacker.data.store import bytes_to_pack, open_store
from stacker.errors import DataError, UnreadableImages, Unusable, first_few, grouped
from tests.datasets import CHUNKED, pcam, write_part

SIZE = ImagesConfig(size=32)
COUNT = 10
ROW = 32 * 32 * 3

Calls = list[bytes]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Return the manifest of ten noisy pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        noise = rng.integers(0, 255, (46, 70, 3), dtype=np.uint8)
        tumour = ("B_A", "M_DC")[i % 2]
        Picture.fromarray(noise).save(folder / f"SOB_{tumour}-14-{i}-{100 * (1 + i // 5)}-001.png")
    return read_manifest(DataConfig(path=folder))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """Return a function that lists what is decoded from now on; after `limit` images comes a Ctrl-C."""
    monkeypatch.setattr("stacker.data.store.BLOCK", 4)

    def start(limit: int = 10**9) -> Calls:
        calls: Calls = []
        lock = threading.Lock()

        def counted(content: bytes, *settings: Any) -> np.ndarray:
            with lock:
                if len(calls) >= limit:
                    raise KeyboardInterrupt
                calls.append(content)
            return decode_bytes(content, *settings)

        monkeypatch.setattr("stacker.data.store.decode_bytes", counted)
        return calls

    return start


def interrupt(folder: Path, manifest: Manifest, watch: Callable[..., Calls], limit: int = 6) -> Path:
    """Pack until a Ctrl-C, and return the file that stays."""
    watch(limit)
    with pytest.raises(KeyboardInterrupt):
        open_store(folder, manifest, SIZE)
    (partial,) = folder.iterdir()
    assert partial.suffix == ".partial"
    return partial


def test_store_holds_what_decoding_gives(manifest: Manifest, tmp_path: Path) -> None:
    """Row i of the store is image i of the manifest, decoded."""
    pixels = open_store(tmp_path, manifest, SIZE)
    assert pixels[:].shape == (COUNT, 32, 32, 3)
    assert len(pixels) == COUNT
    for row, image in zip(pixels[:], manifest.images, strict=True):
        assert np.array_equal(row, decode(image.path, SIZE))
    assert np.array_equal(pixels[np.array([7, 2, 7])], pixels[:][[7, 2, 7]])


def test_store_is_made_once_and_keyed_by_settings(manifest: Manifest, tmp_path: Path) -> None:
    """Opening again reads the same file, sources or none; another size or resize is another file."""
    first = open_store(tmp_path, manifest, SIZE)
    open_store(tmp_path, manifest, ImagesConfig(size=48))
    assert len(list(tmp_path.glob("*.npy"))) == 2
    open_store(tmp_path, manifest, ImagesConfig(size=32, resize="pad"))
    assert len(list(tmp_path.glob("*.npy"))) == 3
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
    assert caught.value.reasons[1].path == str(second)
    assert sorted(caught.value.reasons) == [0, 1]


@pytest.mark.parametrize(
    ("cut", "kept"), [(0, 4), (10, 3), (ROW, 3), (4 * ROW - 1, 0), (4 * ROW + 9, 0)]
)
def test_a_killed_packing_goes_on(
    manifest: Manifest, tmp_path: Path, watch: Callable[..., Calls], cut: int, kept: int
) -> None:
    """Whole rows are kept, a row or a header that was cut through is made again, and nothing differs."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = open_store(whole, manifest, SIZE)[:]
    partial = interrupt(killed, manifest, watch)
    with partial.open("r+b") as file:
        file.truncate(partial.stat().st_size - cut)
    calls = watch()
    assert np.array_equal(open_store(killed, manifest, SIZE)[:], expected)
    assert len(calls) == COUNT - kept
    assert {p.name: p.read_bytes() for p in killed.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }


def test_a_packing_killed_before_it_was_named_goes_on(
    manifest: Manifest, tmp_path: Path, watch: Callable[..., Calls], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is packed and the index is written, only the last rename is missing: nothing is decoded."""

    def killed(_: Path, __: Path) -> Path:
        raise KeyboardInterrupt

    folder = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        patch.setattr("stacker.data.store.write_json", lambda path, c: path.write_text(json.dumps(c)))
        with pytest.raises(KeyboardInterrupt):
            open_store(folder, manifest, SIZE)
    calls = watch()
    for row, image in zip(open_store(folder, manifest, SIZE)[:], manifest.images, strict=True):
        assert np.array_equal(row, decode(image.path, SIZE))
    assert not calls


def test_reasons_survive_a_kill(manifest: Manifest, tmp_path: Path, watch: Callable[..., Calls]) -> None:
    """What could not be decoded before the kill is listed after it; a black picture is not."""
    broken, black = Path(manifest.images[1].path), Path(manifest.images[2].path)
    broken.write_text("not a picture")
    Picture.new("RGB", (40, 40)).save(black)
    manifest = read_manifest(DataConfig(path=broken.parent))
    partial = interrupt(tmp_path / "store", manifest, watch)
    assert partial.stat().st_size > 4 * ROW
    watch()
    with pytest.raises(UnreadableImages) as caught:
        open_store(tmp_path / "store", manifest, SIZE)
    assert {row: str(unusable) for row, unusable in caught.value.reasons.items()} == {
        1: f"{broken}: not an image, or a format that Pillow does not know"
    }
    rest = open_store(tmp_path / "store", manifest.without(caught.value.reasons), SIZE)
    assert len(rest) == COUNT - 1
    assert rest[1:2].max() == 0


def test_a_subset_is_served_from_the_same_file(
    manifest: Manifest, tmp_path: Path, watch: Callable[..., Calls]
) -> None:
    """Fewer images, or those of one magnification, are packed already; of more, the new are decoded."""
    whole = open_store(tmp_path / "store", manifest, SIZE)[:]
    calls = watch()
    fewer = open_store(
        tmp_path / "store", manifest.without(dict.fromkeys((0, 3), Unusable("", ""))), SIZE
    )
    assert np.array_equal(fewer[:], np.delete(whole, [0, 3], axis=0))
    folder = Path(manifest.images[0].path).parent
    at_200 = read_manifest(DataConfig(path=folder, magnifications=[200]))
    rows = [row for row, image in enumerate(manifest.images) if image.magnification == 200]
    assert np.array_equal(open_store(tmp_path / "store", at_200, SIZE)[:], whole[rows])
    assert not calls
    Picture.new("RGB", (40, 40)).save(folder / "SOB_M_DC-14-99-100-001.png")
    (folder / "SOB_M_DC-14-98-100-001.png").write_bytes(b"no picture")
    more = read_manifest(DataConfig(path=folder))
    with pytest.raises(UnreadableImages) as caught:
        open_store(tmp_path / "store", more, SIZE)
    assert len(calls) == 2
    usable = more.without(caught.value.reasons)
    pixels = open_store(tmp_path / "store", usable, SIZE)
    position = {image.id: row for row, image in enumerate(usable.images)}
    assert np.array_equal(pixels[[position[image.id] for image in manifest.images]], whole)
    Picture.new("RGB", (40, 40), "red").save(folder / "SOB_M_DC-14-97-100-001.png")
    with pytest.raises(UnreadableImages, match=r"SOB_M_DC-14-98-100-001\.png: not an image"):
        open_store(tmp_path / "store", read_manifest(DataConfig(path=folder)), SIZE)
    assert len(calls) == 3


def test_the_same_content_is_packed_once(
    manifest: Manifest, tmp_path: Path, watch: Callable[..., Calls]
) -> None:
    """Two names for one picture are two rows of the manifest and one of the store."""
    first = Path(manifest.images[0].path)
    (first.parent / "SOB_M_DC-14-99-100-001.png").write_bytes(first.read_bytes())
    doubled = read_manifest(DataConfig(path=first.parent))
    calls = watch()
    pixels = open_store(tmp_path / "store", doubled, SIZE)
    assert len(pixels) == COUNT + 1
    assert len(calls) == COUNT
    assert bytes_to_pack(tmp_path / "another", doubled, SIZE) == COUNT * ROW
    assert bytes_to_pack(tmp_path / "store", doubled, SIZE) == 0
    twin = next(n for n, image in enumerate(doubled.images) if image.case == "14-99")
    assert np.array_equal(pixels[twin : twin + 1][0], decode(first, SIZE))


@pytest.mark.parametrize("change", ["content", "gone"])
def test_a_file_that_changed_after_it_was_listed_is_refused(
    manifest: Manifest, tmp_path: Path, change: str
) -> None:
    """Other pixels under a listed name would be a stale row: nothing is published."""
    path = Path(manifest.images[3].path)
    if change == "gone":
        path.unlink()
    else:
        Picture.new("RGB", (40, 40)).save(path)
    reason = {"gone": "cannot be read: No such file", "content": "has changed since it was listed"}
    with pytest.raises(DataError, match=f"1 image cannot be packed:\n  {path}: {reason[change]}"):
        open_store(tmp_path / "store", manifest, SIZE)
    assert not list((tmp_path / "store").glob("*.npy"))


def test_two_at_once_make_one_store(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first, decodes nothing, and reads what the first has made."""
    calls: Calls = []
    waiting = threading.Event()

    def patient(content: bytes, *settings: Any) -> np.ndarray:
        assert waiting.wait(60)
        calls.append(content)
        return decode_bytes(content, *settings)

    monkeypatch.setattr("stacker.data.store.decode_bytes", patient)
    monkeypatch.setattr(logging.getLogger("stacker.data.store"), "info", lambda _: waiting.set())
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(open_store, tmp_path / "store", manifest, SIZE) for _ in range(2)]
        first, second = (future.result(120)[:] for future in both)
    assert np.array_equal(first, second)
    assert len(calls) == COUNT
    assert sorted(path.suffix for path in (tmp_path / "store").iterdir()) == [".json", ".npy"]


@pytest.mark.parametrize("how", [{}, CHUNKED], ids=["contiguous", "chunked"])
def test_arrays_are_read_in_place(tmp_path: Path, how: dict[str, Any]) -> None:
    """At their own size the pixels are the array's, in any order of rows; nothing is packed."""
    parts = {split: write_part(tmp_path, split, **how) for split in ("train", "test")}
    manifest = pcam(tmp_path)
    assert bytes_to_pack(tmp_path / "store", manifest, SIZE) == 0
    expected = np.stack([parts[i.split][i.index] for i in manifest.images if i.index is not None])
    config = ImagesConfig(size=96)
    pixels = open_store(tmp_path / "store", manifest, config)
    assert len(pixels) == 10
    assert np.array_equal(pixels[:], expected)
    shuffled = np.random.default_rng(1).permutation(10)
    assert np.array_equal(pixels[shuffled], expected[shuffled])
    assert np.array_equal(pixels[np.array([8, 0, 8])], expected[[8, 0, 8]])
    assert np.array_equal(decode_image(manifest.images[7], config), expected[7])
    turned = replace(manifest, images=manifest.images[::-1])
    assert np.array_equal(open_store(tmp_path / "store", turned, config)[:], expected[::-1])
    assert not (tmp_path / "store").exists()


def test_arrays_are_resized_on_the_way(tmp_path: Path) -> None:
    """At another size a row is what Pillow makes of it."""
    array = write_part(tmp_path, "train")
    manifest = pcam(tmp_path)
    pixels = open_store(tmp_path / "store", manifest, ImagesConfig(size=48))[np.array([3, 1])]
    for row, source in zip(pixels, array[[3, 1]], strict=True):
        resized = Picture.fromarray(source).resize((48, 48), Picture.Resampling.BICUBIC)
        assert np.array_equal(row, np.asarray(resized))


def test_reasons_are_grouped() -> None:
    """Those that differ in numbers only are one kind: three are named, and the rest counted."""
    small = [Unusable(f"/d/{n}/x.png", f"50x{n} is too small") for n in range(5)]
    other = [Unusable(f"/e/{n}", "abcdefgh"[n]) for n in range(8)]
    first, *rest, last = grouped([*small, *other])
    assert first == "5 images in /d: 0/x.png, 1/x.png, 2/x.png and 2 more: 50x0 is too small"
    assert rest == [f"/e/{n}: {'abcdefgh'[n]}" for n in range(4)]
    assert last == "4 images for other reasons"
    assert first_few(["a", "b", "c"]) == "a, b, c"
