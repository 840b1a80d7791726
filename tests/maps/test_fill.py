"""Stage two fills in what is missing, from one read of the images, and nothing else."""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from stacker import pipeline
from stacker.backbones.checkpoint import load_checkpoint
from stacker.backbones.devices import Subset
from stacker.caches.format import part_file
from stacker.caches.reader import open_cache
from stacker.config.root import Config
from stacker.errors import BackboneError, CacheError, RunError
from stacker.files import file_sha256
from stacker.maps.extract import extract
from stacker.maps.targets import Target, list_targets
from stacker.run import Run, reopen
from stacker.training.begin import begin
from tests.cached import sign
from tests.conftest import MakeConfig, tables_of


def test_caching_twice_gives_the_same_bytes(finished: Config) -> None:
    """Delete the caches of a run, make them again: every file is equal to the byte."""
    files = sorted(finished.run_path.glob("cache/*/*/*.h5"))
    before = {path: file_sha256(path) for path in files}
    for path in files:
        path.unlink()
    pipeline.cache(reopen(finished))
    assert {path: file_sha256(path) for path in files} == before
    assert len(files) == 2 * (4 + 1)


def test_only_missing_parts_are_made_again(finished: Config) -> None:
    """A damaged part is repaired; its neighbours are not touched."""
    folder = finished.run_path / "cache" / "test_resnet" / "holdout"
    before = {path: (path.stat().st_mtime_ns, file_sha256(path)) for path in folder.glob("part*")}
    broken = part_file(folder, 1)
    os.truncate(broken, 100)
    pipeline.cache(reopen(finished))
    after = {path: (path.stat().st_mtime_ns, file_sha256(path)) for path in folder.glob("part*")}
    assert after[broken][1] == before[broken][1]
    assert {p: v for p, v in after.items() if p != broken} == {
        p: v for p, v in before.items() if p != broken
    }


def test_a_cache_is_looked_at_once(finished: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all its bytes is enough to know that it is whole, or what it misses."""
    run = reopen(finished)
    part_file(run.cache_folder("test_resnet", "holdout"), 1).unlink()
    looks: list[str] = []
    original = Target.missing

    def counted(target: Target) -> dict[int, str]:
        looks.append(target.name)
        return original(target)

    monkeypatch.setattr(Target, "missing", counted)
    pipeline.cache(run)
    assert sorted(looks) == ["test_efficientnet/holdout", "test_resnet/holdout"]


def test_a_damaged_index_is_made_again(finished: Config) -> None:
    """When all parts are whole but the index is not, caching again fixes it and touches no part."""
    folder = finished.run_path / "cache" / "test_resnet" / "holdout"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("part*")}
    digest = file_sha256(folder / "index.h5")
    (folder / "index.h5").write_bytes(b"junk")
    pipeline.cache(reopen(finished))
    assert file_sha256(folder / "index.h5") == digest
    assert {path: path.stat().st_mtime_ns for path in folder.glob("part*")} == before


def test_larger_parts_replace_smaller_ones(finished: Config) -> None:
    """The size of parts may change within a run; what is left of the old ones is removed."""
    cam = finished.cam.model_copy(update={"part_rows": 1000})
    run = reopen(finished.model_copy(update={"cam": cam}))
    folder = run.cache_folder("test_resnet", "holdout")
    before = open_cache(folder).read("maps")
    pipeline.cache(run)
    assert sorted(path.name for path in folder.glob("part*")) == ["part-00000.h5", "part-00001.h5"]
    np.testing.assert_allclose(open_cache(folder).read("maps"), before, rtol=2e-2, atol=1e-3)


def test_only_unseen_images_are_cached(finished: Config) -> None:
    """No cached case is among the cases that the file says trained its model; all others are there."""
    run = reopen(finished)
    for name, fold in run.jobs():
        cache = open_cache(run.cache_folder(name, fold.name))
        cached = {case.decode() for case in cache.rows.case_id}
        assert set(cache.provenance.training_cases) == {*fold.train, *fold.validation}
        assert cached == {*fold.held_out, *run.folds.test}
        assert {part.decode() for part in cache.rows.fold} == {"stack", "test"}


def test_caching_needs_its_base_models(finished: Config) -> None:
    """A missing checkpoint, and one of another run, are refused with what to do."""
    run = reopen(finished)
    path = run.model_file("test_resnet", "holdout")
    other = run.model_file("test_efficientnet", "holdout")
    path.write_bytes(other.read_bytes())
    with pytest.raises(RunError, match="was trained with other data or settings than this run"):
        pipeline.cache(run)
    path.unlink()
    with pytest.raises(RunError, match="run 'stacker train CONFIG' first"):
        pipeline.cache(run)


MANY = {"methods": ["layercam", "eigencam", "ablationcam"], "lower": 2, "part_rows": 10}


def with_cam(config: Config, **changes: Any) -> Run:
    """Return a run whose `cam` section is another one."""
    return reopen(config.model_copy(update={"cam": config.cam.model_copy(update=changes)}))


def test_several_methods_and_layers_in_one_cache(finished: Config) -> None:
    """Each is a dataset of its own that says what it is; the first one's maps are `maps`."""
    run = with_cam(finished, **MANY)
    pipeline.cache(run)
    cache = open_cache(run.cache_folder("test_resnet", "holdout"))
    assert cache.maps == [
        *("maps", "maps_lower1", "maps_lower2"),
        *("maps_eigencam", "maps_eigencam_lower1", "maps_eigencam_lower2", "maps_ablationcam"),
    ]
    assert cache.shapes["maps_lower2"] == (2, 4, 4)
    assert cache.shapes["maps_eigencam"] == (1, 1, 1)
    assert cache.provenance.lower_layers == ("layer3", "layer2")
    with h5py.File(cache.folder / "index.h5") as file:
        assert file["maps_lower2"].attrs["layer"] == "layer2"
        assert file["maps_eigencam_lower1"].attrs["method"] == "eigencam"
        assert list(file["maps_eigencam"].attrs["classes"]) == ["all"]
        assert list(file["flags"].attrs["maps"]) == cache.maps


def test_maps_of_any_method_and_layer_can_be_stacked(finished: Config) -> None:
    """Their columns are named after dataset, class and place; maps for no class are of `all`."""
    stack = finished.stack.model_copy(update={"features": ["maps_eigencam_lower1", "maps_lower2"]})
    run = with_cam(finished.model_copy(update={"stack": stack}), **MANY)
    pipeline.cache(run)
    metrics = pipeline.stack(run, ["logistic"])
    tables = tables_of(run, run.config.stack.features)
    columns = tables.development.columns
    assert "test_resnet/maps_eigencam_lower1/all/r1c0" in columns
    assert "test_efficientnet/maps_lower2/malignant-benign/r3c3" in columns
    assert "logistic" in metrics["test"]


def test_perturbing_methods_say_what_they_cost_first(
    finished: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the first part is written the log has seconds per image and hours in all."""
    run = with_cam(finished, methods=["gradcam", "scorecam"])
    with caplog.at_level("WARNING", "stacker"):
        pipeline.cache(run)
    assert "cache test_resnet/holdout: scorecam takes" in caplog.text
    assert "s per image, " in caplog.text
    assert "for the 36 images to do" in caplog.text


def test_too_many_lower_layers_are_refused(finished: Config) -> None:
    """A backbone has as many stages as it has."""
    run = with_cam(finished, lower=4)
    pipeline.cache(run)  # five stages: four below the last
    path = run.model_file("test_resnet", "holdout")
    assert load_checkpoint(path)[0].layers_below(4)[0] == "act1"
    with pytest.raises(BackboneError, match=r"4 stages below its last grid, cam\.lower=5"):
        load_checkpoint(path)[0].layers_below(5)


def test_one_read_feeds_all_base_models(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are read once per round: the test images are not read again for every fold or backbone."""
    config = make_config(
        folds={"protocol": "crossfit", "k": 2},
        train={"epochs": 1},
        frozen={"test_vit": {"weights": "random"}},
    )
    pipeline.train(begin(config))
    run = reopen(config)
    seen: list[int] = []
    original = Subset.batches

    def counted(part: Any, order: np.ndarray, size: int, device: torch.device) -> Any:
        seen.extend(order.tolist())
        return original(part, order, size, device)

    monkeypatch.setattr(Subset, "batches", counted)
    pipeline.cache(run)
    assert sorted(seen) == list(range(len(run.manifest.images)))
    seen.clear()
    for path in config.run_path.glob("cache/*/*/*.h5"):
        path.unlink()
    before = [target.name for target in list_targets(run)]
    assert len(before) == 2 * 2 + 1
    pipeline.cache(with_cam(config, memory_gb=1e-9))
    assert len(seen) == sum(target.images for target in list_targets(run))


def test_what_is_computed_together_equals_what_is_computed_alone(finished: Config) -> None:
    """The rounds that base models are in do not change a byte."""
    files = sorted(finished.run_path.glob("cache/*/*/*.h5"))
    before = {path: file_sha256(path) for path in files}
    for path in files:
        path.unlink()
    pipeline.cache(with_cam(finished, memory_gb=1e-9))
    assert {path: file_sha256(path) for path in files} == before


def test_a_cache_of_an_older_schema_is_made_again(finished: Config) -> None:
    """Stage three refuses it with words; stage two replaces it."""
    run = reopen(finished)
    folder = run.cache_folder("test_resnet", "holdout")
    before = file_sha256(part_file(folder, 0))
    for path in folder.glob("*.h5"):
        with h5py.File(path, "a") as file:
            file.attrs["schema_version"] = 1
    sign(folder)
    with pytest.raises(CacheError, match="schema version 1, this stacker reads 3"):
        pipeline.stack(run, ["logistic"])
    pipeline.cache(run)
    assert file_sha256(part_file(folder, 0)) == before


def test_one_diverged_base_model_does_not_stop_the_others(
    finished: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caches are named at the end; those of the others are there."""
    for path in finished.run_path.glob("cache/*/*/*.h5"):
        path.unlink()
    original = extract

    def diverged(*arguments: Any) -> Any:
        arrays = original(*arguments)
        arrays.get("test_resnet/holdout", {"logits": np.zeros(1)})["logits"][:] = np.nan
        return arrays

    monkeypatch.setattr("stacker.maps.fill.extract", diverged)
    with pytest.raises(CacheError, match=r"1 of 2 caches could not be filled:\n.*has diverged"):
        pipeline.cache(reopen(finished))
    assert open_cache(finished.run_path / "cache" / "test_efficientnet" / "holdout").rows
    assert not (finished.run_path / "cache" / "test_resnet" / "holdout" / "index.h5").exists()


def test_what_is_rebuilt_is_said(finished: Config, caplog: pytest.LogCaptureFixture) -> None:
    """Another method replaces a cache, and the log says why."""
    with caplog.at_level("WARNING", "stacker"):
        pipeline.cache(with_cam(finished, methods=["layercam"]))
    assert "rebuilding 4 of 4 parts" in caplog.text
    assert "was made with methods gradcam, expected layercam" in caplog.text
