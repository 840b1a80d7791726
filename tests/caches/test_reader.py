"""The cache reads as plain HDF5, repeats itself, and notices what was done to it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stacker.caches.format import Provenance, Rows, part_file
from stacker.caches.reader import open_cache
from stacker.caches.writer import examine_part, write_index, write_part
from stacker.errors import CacheError
from tests.cached import ORIGIN, sign, some_arrays, some_rows


def part_is_done(path: Path, rows: Rows, origin: Provenance) -> bool:
    """Say whether a part stands up to its examination."""
    try:
        examine_part(path, rows, origin)
    except CacheError:
        return False
    return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a cache of two parts, of seven and of four rows."""
    write_part(part_file(tmp_path, 0), some_arrays(7), some_rows(7), ORIGIN)
    write_part(part_file(tmp_path, 1), some_arrays(4), some_rows(4, 7), ORIGIN)
    write_index(tmp_path, [part_file(tmp_path, 0), part_file(tmp_path, 1)])
    return tmp_path


def test_a_stranger_reads_it_with_h5py(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Datasets and attributes have the documented names and types, from any working directory."""
    monkeypatch.chdir("/")
    with h5py.File(folder / "index.h5") as file:
        assert file["maps"].shape == (11, 2, 3, 4)
        assert file["maps"].dtype == np.float16
        assert file["features"].dtype == file["logits"].dtype == np.float32
        assert file["image_id"].asstr()[8] == "image-0008"
        np.testing.assert_array_equal(file["logits"][7:], some_arrays(4)["logits"])
        assert {"label", "image_id", "case_id", "fold"} <= set(file)
        assert list(file.attrs["training_cases"]) == ["14-1", "14-2"]
        assert {
            *(
                "schema_version",
                "checkpoint_sha256",
                "manifest_digest",
                "folds_digest",
                "training_cases",
            ),
            *("target_layer", "methods", "preprocessing", "versions"),
        } <= set(file.attrs)


def test_reader_gives_back_what_was_written(folder: Path) -> None:
    """Rows, provenance and arrays survive, and a mask picks rows."""
    cache = open_cache(folder)
    assert cache.provenance == ORIGIN
    assert len(cache.rows) == 11
    first = cache.rows.case_id == b"15-0"
    assert cache.read("features", first).shape == (first.sum(), 5)
    np.testing.assert_array_equal(cache.read("features")[:7], some_arrays(7)["features"])


def test_a_missing_part_is_noticed(folder: Path) -> None:
    """HDF5 would read zeros without a word."""
    part_file(folder, 1).unlink()
    with h5py.File(folder / "index.h5") as file:
        assert not file["logits"][7:].any()
    with pytest.raises(CacheError, match="stacker cache CONFIG"):
        open_cache(folder)


def test_a_flipped_byte_is_noticed(folder: Path) -> None:
    """Every chunk carries a checksum: the part is not done, and reading it names the folder."""
    path = part_file(folder, 0)
    with h5py.File(path) as file:
        offset = file["maps"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 1
    path.write_bytes(content)
    assert not part_is_done(path, some_rows(7), ORIGIN)
    with pytest.raises(CacheError, match=str(folder)):
        open_cache(folder).read("maps")


def test_a_truncated_part_is_noticed(folder: Path) -> None:
    """Half a file is not a part."""
    path = part_file(folder, 0)
    os.truncate(path, path.stat().st_size // 2)
    assert not part_is_done(path, some_rows(7), ORIGIN)
    with pytest.raises(CacheError, match="stacker cache CONFIG"):
        open_cache(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_sha256": "other"},
        {"training_cases": ("14-1",)},
        {"methods": ("hirescam",)},
        {"precision": "bfloat16"},
    ],
)
def test_a_part_of_another_origin_is_not_done_and_not_read(folder: Path, change: dict[str, Any]) -> None:
    """Resume compares provenance, not existence; a foreign part in the folder is named."""
    other = replace(ORIGIN, **change)
    assert part_is_done(part_file(folder, 0), some_rows(7), ORIGIN)
    assert not part_is_done(part_file(folder, 0), some_rows(7), other)
    write_part(part_file(folder, 0), some_arrays(7), some_rows(7), other)
    with pytest.raises(CacheError, match=r"part-00000\.h5 is not the part"):
        open_cache(folder)


def test_other_package_versions_do_not_undo_a_part(folder: Path) -> None:
    """Versions are written down, but an update in mid-run does not throw away what is cached."""
    assert part_is_done(part_file(folder, 0), some_rows(7), replace(ORIGIN, versions="newer"))


def test_other_rows_are_not_done(folder: Path) -> None:
    """A part is done for exactly its rows."""
    assert not part_is_done(part_file(folder, 0), some_rows(7, 1), ORIGIN)
    assert not part_is_done(part_file(folder, 2), some_rows(7), ORIGIN)


def test_maps_that_are_no_maps_are_flagged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What float16 clips, what is not a number and what is zero everywhere is counted, said and kept."""
    arrays = some_arrays(7) | {"maps_layercam": some_arrays(7)["maps"] + 1}
    arrays["maps"][1, 0, 0, 0] = -1e6
    arrays["maps"][2, 1, 2, 2] = np.nan
    arrays["maps"][3, 1] = 0
    arrays["maps_layercam"][4] = 1e-9  # vanishes in float16
    origin = replace(ORIGIN, methods=("gradcam", "layercam"))
    with caplog.at_level("WARNING", "stacker"):
        write_part(part_file(tmp_path, 0), arrays, some_rows(7), origin)
    write_index(tmp_path, [part_file(tmp_path, 0)])
    cache = open_cache(tmp_path)
    assert cache.maps == ["maps", "maps_layercam"]
    assert cache.read("flags").tolist() == [[0, 0], [1, 0], [2, 0], [4, 0], [0, 4], [0, 0], [0, 0]]
    assert cache.read("maps")[1, 0, 0, 0] == np.finfo(np.float16).min
    for text in ("maps of 1 of 7 images: clipped", "1 of 7 images: not a number", "1 of 7 images: zero"):
        assert text in caplog.text


@pytest.mark.parametrize("name", ["logits", "features"])
def test_a_diverged_model_is_refused(tmp_path: Path, name: str) -> None:
    """Logits and embeddings that are no numbers stop the writing and name the image."""
    arrays = some_arrays(7)
    arrays[name][3, 0] = np.inf
    with pytest.raises(CacheError, match=r"image-0003.*: the base model has diverged"):
        write_part(part_file(tmp_path, 0), arrays, some_rows(7), ORIGIN)
    assert not list(tmp_path.iterdir())


def test_a_changed_attribute_is_noticed(folder: Path) -> None:
    """Who rewrites a part's origin in place is found out by its digest."""
    with h5py.File(part_file(folder, 1), "a") as file:
        file.attrs["training_cases"] = ["14-9"]
    with pytest.raises(CacheError, match=r"part-00001\.h5 is damaged: the digest of its attributes"):
        open_cache(folder)


def test_a_changed_value_is_noticed(folder: Path) -> None:
    """Who rewrites a value with HDF5's own means leaves all checksums right but the digest."""
    with h5py.File(part_file(folder, 1), "a") as file:
        file["logits"][2, 1] += 1
    assert not part_is_done(part_file(folder, 1), some_rows(4, 7), ORIGIN)
    with pytest.raises(CacheError, match=r"part-00001\.h5 is damaged: the SHA-256 of logits"):
        open_cache(folder).read("logits")


def test_parts_in_each_others_place_are_noticed(folder: Path) -> None:
    """Two good parts under each other's names are not the parts that the index lists."""
    one, two = part_file(folder, 0), part_file(folder, 1)
    one.rename(folder / "aside")
    two.rename(one)
    (folder / "aside").rename(two)
    with pytest.raises(CacheError, match=r"part-00000\.h5 is not the part"):
        open_cache(folder)


@pytest.mark.parametrize("name", ["training_cases", "classifier_bias", "versions", "classes"])
def test_an_edited_index_is_noticed(folder: Path, name: str) -> None:
    """What strangers read is as trustworthy as the parts; HDF5 is not asked to read a damaged file."""
    with h5py.File(folder / "index.h5", "a") as file:
        file.attrs[name] = "x"
    with pytest.raises(CacheError, match=r"index\.h5 is damaged"):
        open_cache(folder)
    sign(folder)
    if name in ("training_cases", "classes"):
        with pytest.raises(CacheError, match=r"is not the part|damaged"):
            open_cache(folder)


def test_an_edited_description_is_noticed(folder: Path) -> None:
    """The classes of the maps are part of what is written."""
    with h5py.File(part_file(folder, 0), "a") as file:
        file["maps"].attrs["classes"] = ["malignant", "benign"]
    with pytest.raises(CacheError, match="the digest of its attributes is wrong"):
        open_cache(folder)


def test_files_describe_themselves(folder: Path) -> None:
    """Every dataset, of parts and of the index, says what it is."""
    for path in (part_file(folder, 0), folder / "index.h5"):
        with h5py.File(path) as file:
            assert all(file[name].attrs["says"] for name in file)
            assert file["maps"].attrs["method"] == "gradcam"
            assert file["maps"].attrs["layer"] == "forward_features"
            assert list(file["maps"].attrs["classes"]) == ["benign", "malignant"]
            assert list(file["flags"].attrs["maps"]) == ["maps"]
            assert list(file["flags"].attrs["bits"])[1] == "2: not a number"


def test_an_array_that_is_not_there_is_said_to_be_missing(folder: Path) -> None:
    """The error names what there is."""
    with pytest.raises(CacheError, match=r"no dataset 'maps_layercam', found .*maps"):
        open_cache(folder).read("maps_layercam")


def test_another_schema_is_refused_with_words(folder: Path) -> None:
    """A file of a later schema is not read as if it were of this one."""
    with h5py.File(folder / "index.h5", "a") as file:
        file.attrs["schema_version"] = 99
    sign(folder)
    with pytest.raises(CacheError, match="schema version 99, this stacker reads 3"):
        open_cache(folder)


def test_training_cases_may_be_many(tmp_path: Path) -> None:
    """A hundred thousand names are more than HDF5's classic 64 KiB for an attribute."""
    cases = tuple(f"case-{i:06d}" for i in range(100_000))
    write_part(
        part_file(tmp_path, 0), some_arrays(2), some_rows(2), replace(ORIGIN, training_cases=cases)
    )
    write_index(tmp_path, [part_file(tmp_path, 0)])
    assert open_cache(tmp_path).provenance.training_cases == cases


def replace_by_group(file: h5py.File) -> None:
    """Put a group in place of a dataset."""
    del file["logits"]
    file.create_group("logits")


@pytest.mark.parametrize(
    "damage",
    [
        replace_by_group,
        lambda file: file.attrs.__setitem__("classes", 5),
        lambda file: file.attrs.__setitem__("lower", [1, 2]),
        lambda file: file.attrs.__setitem__("checkpoint_sha256", h5py.Empty("f8")),
        lambda file: file.attrs.__delitem__("digest"),
        lambda file: file["maps"].attrs.__delitem__("sha256"),
        lambda file: file.__delitem__("image_id"),
    ],
    ids=["group", "classes", "lower", "empty", "digest", "sha256", "dataset"],
)
def test_parts_of_another_build_are_damaged_not_a_traceback(folder: Path, damage: Any) -> None:
    """Whatever stands where something else belongs, the file is named and can be rebuilt."""
    with h5py.File(part_file(folder, 0), "a") as file:
        damage(file)
    assert not part_is_done(part_file(folder, 0), some_rows(7), ORIGIN)
    with pytest.raises(CacheError, match=r"part-00000\.h5"):
        open_cache(folder).read("logits")
