"""`stacker cache verify`, `info` and `export`: nothing that was done to a cache stays hidden."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from stacker import pipeline
from stacker.caches.format import fixed_text, part_file
from stacker.caches.reader import open_cache, opened, read_provenance, read_rows
from stacker.caches.writer import write_index, write_part
from stacker.config.root import Config
from stacker.maps.verify import verify
from stacker.run import Run, reopen
from tests.commands import call, expect_refusal


def flip(path: Path) -> None:
    """Change one bit of a part's maps on the disk."""
    with h5py.File(path) as file:
        offset = file["maps"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 1] ^= 1
    path.write_bytes(content)


def edit(path: Path) -> None:
    """Change a logit by HDF5's own means, which fix its checksums."""
    with h5py.File(path, "a") as file:
        file["logits"][0, 0] += 1


def relabel(path: Path) -> None:
    """Change an attribute by HDF5's own means."""
    with h5py.File(path, "a") as file:
        file.attrs["training_cases"] = ["nobody"]


def truncate(path: Path) -> None:
    """Cut a file in two."""
    os.truncate(path, path.stat().st_size // 2)


ANEW = ("--set", "stack.logistic.C=3")  # what is fitted already need not look at a cache again
DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped bit": flip,
    "edited value": edit,
    "edited attribute": relabel,
    "truncated": truncate,
    "removed": Path.unlink,
    "emptied": lambda path: os.truncate(path, 0),
    "of another base model": lambda path: _copy(path, path.parents[2] / "test_efficientnet" / "holdout"),
    "in another place": lambda path: _copy(path, path.parent),
}


def _copy(path: Path, folder: Path) -> None:
    shutil.copy(part_file(folder, 0), path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_named_and_mended(finished: Config, damage: str) -> None:
    """Verify names the part, stage three refuses the cache, and caching again makes only that part."""
    run = reopen(finished)
    assert [verdict.problems for verdict in verify(run)] == [(), ()]
    folder = run.cache_folder("test_resnet", "holdout")
    path = part_file(folder, 1)
    before = {file: file.read_bytes() for file in folder.glob("*.h5")}
    times = {file: file.stat().st_mtime_ns for file in folder.glob("part-*.h5")}
    DAMAGES[damage](path)
    problems = {verdict.name: verdict.problems for verdict in verify(run)}
    assert problems["test_efficientnet/holdout"] == ()
    assert len(problems["test_resnet/holdout"]) == 1
    assert str(path) in problems["test_resnet/holdout"][0]
    expect_refusal(
        call("cache", "verify", finished.run_path), 1, f"1 of 2 caches of {finished.run_path} have"
    )
    expect_refusal(
        call("stack", finished.run_path / "config.yaml", "--meta", "logistic", *ANEW), 1, str(folder)
    )
    pipeline.cache(run)
    assert {file: file.read_bytes() for file in folder.glob("*.h5")} == before
    unharmed = {file: time for file, time in times.items() if file != path}
    assert {file: file.stat().st_mtime_ns for file in unharmed} == unharmed
    assert [verdict.problems for verdict in verify(run)] == [(), ()]


def test_an_index_of_other_parts_is_found(finished: Config) -> None:
    """A flipped name in the index is a lie about good parts."""
    run = reopen(finished)
    index = run.cache_folder("test_resnet", "holdout") / "index.h5"
    with h5py.File(index, "a") as file:
        file.attrs["part_digests"] = list(file.attrs["part_digests"])[::-1]
    (problem,) = verify(run)[0].problems
    assert "index.h5 is damaged" in problem


def test_stray_parts_are_found(finished: Config) -> None:
    """What a stranger globs together should be this cache and nothing else."""
    run = reopen(finished)
    folder = run.cache_folder("test_resnet", "holdout")
    shutil.copy(part_file(folder, 0), part_file(folder, 77))
    assert "part-00077.h5 is not one of its parts" in verify(run)[0].problems[0]
    pipeline.cache(run)
    assert verify(run)[0].problems == ()


def rewrite(run: Run, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Write the first part of a cache again, by the writer itself, with other values."""
    folder = run.cache_folder("test_resnet", "holdout")
    path = part_file(folder, 0)
    with opened(path) as file:
        arrays = {name: file[name][:].astype(np.float32) for name in ("maps", "features", "logits")}
        rows, origin = read_rows(file), read_provenance(file)
    change(arrays)
    write_part(path, arrays, rows, origin)
    write_index(folder, sorted(folder.glob("part-*.h5")))


def test_maps_that_do_not_add_up_are_found(finished: Config) -> None:
    """Behind an average, a map sums to logit - bias: maps of another class or scale do not."""
    run = reopen(finished)
    with opened(part_file(run.cache_folder("test_resnet", "holdout"), 0)) as file:
        assert len(read_provenance(file).classifier_bias) == 2
    rewrite(run, lambda arrays: arrays.update(maps=arrays["maps"][:, ::-1]))
    assert "do not sum to logit - bias" in verify(run)[0].problems[0]
    rewrite(run, lambda arrays: arrays.update(maps=arrays["maps"][:, ::-1]))
    assert verify(run)[0].problems == ()


def test_leaks_are_found(finished: Config) -> None:
    """A case of the rows among those that trained the model, however well the file is made."""
    run = reopen(finished)
    folder = run.cache_folder("test_resnet", "holdout")
    cache = open_cache(folder)
    stolen = run.folds.folds[0].train[0]
    arrays = {name: cache.read(name) for name in ("maps", "features", "logits")}
    cases = [case.decode() for case in cache.rows.case_id]
    rows = replace(cache.rows, case_id=fixed_text([stolen, *cases[1:]]))
    write_part(part_file(folder, 0), arrays, rows, cache.provenance)
    assert any("holds other images" in problem for problem in verify(run)[0].problems)


def test_verify_and_info_speak_json(finished: Config) -> None:
    """Scripts get what people see."""
    verdicts = json.loads(call("cache", "verify", finished.run_path, "--json").stdout)
    assert [(v["name"], v["problems"]) for v in verdicts] == [
        ("test_resnet/holdout", []),
        ("test_efficientnet/holdout", []),
    ]
    summaries = json.loads(call("cache", "info", finished.run_path, "--json").stdout)
    assert {s["backbone"] for s in summaries} == {"test_resnet", "test_efficientnet"}
    for s in summaries:
        assert s["maps"] == {"maps": [2, 1, 1]}
        assert s["images_per_second"] > 0
        assert s["kilobytes_per_image"] > 0
        assert s["versions"]["torch"]
    shown = call("cache", "info", finished.run_path)
    assert "test_resnet/holdout" in shown.stdout
    assert "made by stacker" in shown.stdout


def test_info_shows_flags(finished: Config) -> None:
    """A map of zeros is counted where people look."""
    run = reopen(finished)
    rewrite(run, lambda arrays: arrays["maps"].__setitem__((0, 1), 0))
    assert "maps: zero everywhere" in call("cache", "info", finished.run_path).stdout


def test_cache_alone_fills(finished: Config) -> None:
    """The group's name with a config behind it means `fill`, with or without options before it."""
    config = finished.run_path / "config.yaml"
    part = next(finished.run_path.glob("cache/*/*/part-00000.h5"))
    for arguments in ((config,), ("--set", "device=cpu", config), ("fill", config)):
        part.unlink()
        done = call("cache", *arguments)
        assert done.exit_code == 0, done.output
        assert "2 caches in" in done.stdout
        assert part.exists()


def test_export_npz(finished: Config) -> None:
    """Every array and row, and where they come from."""
    folder = finished.run_path / "export"
    assert call("cache", "export", finished.run_path, "--npz").exit_code == 0
    cache = open_cache(finished.run_path / "cache" / "test_resnet" / "holdout")
    with np.load(folder / "test_resnet-holdout.npz") as archive:
        np.testing.assert_array_equal(archive["maps"], cache.read("maps"))
        np.testing.assert_array_equal(archive["features"], cache.read("features"))
        assert archive["image_id"][0] == cache.rows.image_id[0].decode()
        assert json.loads(str(archive["provenance"]))["checkpoint_sha256"]


def test_export_csv(finished: Config, tmp_path: Path) -> None:
    """A line per image: who it is, which model made it, and every value under its name."""
    assert call("cache", "export", finished.run_path, "--csv", "--out", tmp_path).exit_code == 0
    cache = open_cache(finished.run_path / "cache" / "test_resnet" / "holdout")
    with (tmp_path / "test_resnet-holdout.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(cache.rows)
    assert {line["made_by"] for line in lines} == {"test_resnet/holdout"}
    assert {line["part"] for line in lines} == {"stack", "test"}
    logits = [float(line["logits/malignant"]) for line in lines]
    np.testing.assert_allclose(logits, cache.read("logits")[:, 1], rtol=1e-6)
    maps = [float(line["maps/benign/r0c0"]) for line in lines]
    np.testing.assert_allclose(maps, cache.read("maps")[:, 0, 0, 0], rtol=1e-3)


def test_export_zarr(finished: Config, tmp_path: Path) -> None:
    """A group with the arrays, and the provenance as attributes; a second export replaces it."""
    zarr = pytest.importorskip("zarr")
    for _ in range(2):
        assert call("cache", "export", finished.run_path, "--zarr", "--out", tmp_path).exit_code == 0
    group = zarr.open_group(tmp_path / "test_resnet-holdout.zarr", mode="r")
    cache = open_cache(finished.run_path / "cache" / "test_resnet" / "holdout")
    np.testing.assert_array_equal(group["maps"][:], cache.read("maps"))
    assert group["image_id"][0] == cache.rows.image_id[0].decode()
    assert group.attrs["methods"] == ["gradcam"]


def test_export_wants_a_form(finished: Config) -> None:
    """Without one it is an error of usage."""
    expect_refusal(call("cache", "export", finished.run_path), 2, "--npz, --csv or --zarr")
