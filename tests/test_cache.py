"""The cache reads as plain HDF5, repeats itself, and notices what was done to it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stacker import pipeline, studies
from stacker.cache import (
    Provenance,
    Rows,
    fixed_text,
    open_cache,
    part_file,
    part_is_done,
    write_index,
    write_part,
)
from stacker.config import Config
from stacker.errors import CacheError, RunError
from stacker.run import file_sha256

ORIGIN = Provenance(
    backbone="resnet50",
    model_fold="fold0",
    classes=("benign", "malignant"),
    group="case",
    checkpoint_sha256="c0ffee",
    manifest_digest="3f2a",
    folds_digest="9c41",
    training_cases=("14-1", "14-2"),
    target_layer="forward_features",
    method="gradcam",
    preprocessing="{}",
    precision="float32",
    versions="{}",
)


def some_rows(count: int, start: int = 0) -> Rows:
    """Return rows of images in held-out cases."""
    numbers = range(start, start + count)
    return Rows(
        np.arange(count) % 2,
        fixed_text([f"image-{i:04d}" for i in numbers]),
        fixed_text([f"15-{i % 3}" for i in numbers]),
        fixed_text(["fold0"] * count),
    )


def some_arrays(count: int) -> dict[str, np.ndarray]:
    """Return maps, features and logits of random numbers."""
    rng = np.random.default_rng(count)
    shapes = {"maps": (count, 2, 3, 4), "features": (count, 5), "logits": (count, 2)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


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
            *("target_layer", "method", "preprocessing", "versions"),
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
        {"method": "hirescam"},
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


@pytest.mark.parametrize("poison", [np.nan, 1e6])
def test_values_that_do_not_fit_are_refused(tmp_path: Path, poison: float) -> None:
    """NaN, and what overflows float16, stop the writing and name the image."""
    arrays = some_arrays(7)
    arrays["maps"][3, 0, 0, 0] = poison
    with pytest.raises(CacheError, match="image-0003"):
        write_part(part_file(tmp_path, 0), arrays, some_rows(7), ORIGIN)
    assert not list(tmp_path.iterdir())


def test_another_schema_is_refused_with_words(folder: Path) -> None:
    """A file of a later schema is not read as if it were of this one."""
    with h5py.File(folder / "index.h5", "a") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(CacheError, match="schema 99, this program reads 1"):
        open_cache(folder)


def test_training_cases_may_be_many(tmp_path: Path) -> None:
    """A hundred thousand names are more than HDF5's classic 64 KiB for an attribute."""
    cases = tuple(f"case-{i:06d}" for i in range(100_000))
    write_part(
        part_file(tmp_path, 0), some_arrays(2), some_rows(2), replace(ORIGIN, training_cases=cases)
    )
    write_index(tmp_path, [part_file(tmp_path, 0)])
    assert open_cache(tmp_path).provenance.training_cases == cases


def test_caching_twice_gives_the_same_bytes(finished: Config) -> None:
    """Delete the caches of a run, make them again: every file is equal to the byte."""
    files = sorted(finished.run_path.glob("cache/*/*/*.h5"))
    before = {path: file_sha256(path) for path in files}
    for path in files:
        path.unlink()
    pipeline.cache(studies.reopen(finished))
    assert {path: file_sha256(path) for path in files} == before
    assert len(files) == 2 * (4 + 1)


def test_only_missing_parts_are_made_again(finished: Config) -> None:
    """A damaged part is repaired; its neighbours are not touched."""
    folder = finished.run_path / "cache" / "test_resnet" / "holdout"
    before = {path: (path.stat().st_mtime_ns, file_sha256(path)) for path in folder.glob("part*")}
    broken = part_file(folder, 1)
    os.truncate(broken, 100)
    pipeline.cache(studies.reopen(finished))
    after = {path: (path.stat().st_mtime_ns, file_sha256(path)) for path in folder.glob("part*")}
    assert after[broken][1] == before[broken][1]
    assert {p: v for p, v in after.items() if p != broken} == {
        p: v for p, v in before.items() if p != broken
    }


def test_a_damaged_index_is_made_again(finished: Config) -> None:
    """When all parts are whole but the index is not, caching again mends it and touches no part."""
    folder = finished.run_path / "cache" / "test_resnet" / "holdout"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("part*")}
    digest = file_sha256(folder / "index.h5")
    (folder / "index.h5").write_bytes(b"junk")
    pipeline.cache(studies.reopen(finished))
    assert file_sha256(folder / "index.h5") == digest
    assert {path: path.stat().st_mtime_ns for path in folder.glob("part*")} == before


def test_larger_parts_replace_smaller_ones(finished: Config) -> None:
    """The size of parts may change within a run; what is left of the old ones is removed."""
    cam = finished.cam.model_copy(update={"part_rows": 1000})
    study = studies.reopen(finished.model_copy(update={"cam": cam}))
    folder = study.run.cache_folder("test_resnet", "holdout")
    before = open_cache(folder).read("maps")
    pipeline.cache(study)
    assert [path.name for path in folder.glob("part*")] == ["part-00000.h5"]
    np.testing.assert_allclose(open_cache(folder).read("maps"), before, rtol=2e-2, atol=1e-3)


def test_only_unseen_images_are_cached(finished: Config) -> None:
    """No cached case is among the cases that the file says trained its model; all others are there."""
    study = studies.reopen(finished)
    for name, fold in study.jobs():
        cache = open_cache(study.run.cache_folder(name, fold.name))
        cached = {case.decode() for case in cache.rows.case_id}
        assert set(cache.provenance.training_cases) == {*fold.fit, *fold.validation}
        assert cached == {*fold.held_out, *study.folds.test}
        assert {part.decode() for part in cache.rows.fold} == {"stack", "test"}


def test_caching_needs_its_base_models(finished: Config) -> None:
    """A missing checkpoint, and one of another run, are refused with what to do."""
    study = studies.reopen(finished)
    path = study.run.model_file("test_resnet", "holdout")
    other = study.run.model_file("test_efficientnet", "holdout")
    path.write_bytes(other.read_bytes())
    with pytest.raises(RunError, match="was trained for another run"):
        pipeline.cache(study)
    path.unlink()
    with pytest.raises(RunError, match="run 'stacker train CONFIG' first"):
        pipeline.cache(study)
