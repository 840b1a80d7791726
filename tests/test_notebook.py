"""What a notebook asks of a run, and how the package is imported."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image as Picture

import stacker
from stacker.caches.summary import find_caches, sample
from stacker.config.root import Config
from stacker.errors import CacheError, ConfigError, DataError, RunError
from stacker.notebook import heatmaps, open_cache, predict
from stacker.prediction.pack import pack
from stacker.prediction.rows import CasePrediction, Prediction, Skipped
from stacker.run import Run, create_run, open_run
from tests.conftest import MakeConfig

HEAVY = ("numpy", "torch", "sklearn", "matplotlib", "h5py", "pydantic", "timm", "xgboost")


def alone(code: str) -> Any:
    """Run code in a process of its own; return the JSON that it prints."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_the_import_is_light() -> None:
    """It loads none of the large packages, and knows its names all the same."""
    loaded, named = alone(
        "import json, sys, stacker\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "print(json.dumps([loaded, dir(stacker)]))"
    )
    assert loaded == []
    assert set(stacker.__all__) <= set(named)


def test_only_what_needs_torch_loads_it() -> None:
    """A table, a cache and a config are read without torch."""
    names = ["load_config", "open_run", "open_cache", "table", "heatmaps", "stack", "meta_learner"]
    code = f"import json, sys, stacker\n[getattr(stacker, name) for name in {names}]\n"
    assert alone(code + "print(json.dumps('torch' in sys.modules))") is False


def test_every_name_is_there() -> None:
    """By attribute and by star, from the place that type checkers are told of; no other name is."""
    found: dict[str, Any] = {}
    exec("from stacker import *", found)  # noqa: S102  # what a user may write
    assert set(stacker.__all__) <= set(found)
    guarded = ast.parse(Path(stacker.__file__).read_text())
    told = {
        alias.name: node.module
        for node in ast.walk(guarded)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("stacker.")
        for alias in node.names
    }
    assert told == {name: f"stacker.{home}" for name, home in stacker.HOMES.items()}
    assert {*told, "__version__"} == set(stacker.__all__)
    for name, module in told.items():
        assert found[name] is getattr(sys.modules[str(module)], name)
    with pytest.raises(AttributeError, match="no attribute 'predictions'"):
        stacker.predictions  # type: ignore[attr-defined]  # noqa: B018


def test_types_are_shipped() -> None:
    """Type checkers look for this file beside the package."""
    assert (Path(stacker.__file__).parent / "py.typed").exists()


@pytest.fixture
def crossed(crossed_artifacts: Path) -> Run:
    """Return a finished run by crossfit. Do not write into it."""
    return open_run(str(crossed_artifacts / "small"))


@pytest.fixture
def held(finished_artifacts: Path) -> Run:
    """Return a finished run by holdout. Do not write into it."""
    return open_run(finished_artifacts / "small")


def test_a_run_says_what_it_is(crossed: Run, make_config: MakeConfig) -> None:
    """Images, split and what is done; one that has just begun has nothing yet."""
    said = repr(crossed)
    for part in (str(crossed.path), "72 images", "crossfit split by case", "6 base models, 6 caches"):
        assert part in said
    assert said.endswith("stacks: logistic, xgboost")
    begun = create_run(make_config())
    assert repr(begun).endswith("small\n  0 base models, 0 caches, stacks: none")


def test_a_stack_by_name(finished: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name, several, or those of the config."""
    asked: list[Any] = []
    monkeypatch.setattr("stacker.stacking.stage.fit_stack", lambda _, names: asked.append(list(names)))
    run = open_run(finished.run_path)
    stacker.stack(run, "mlp")
    stacker.stack(run, ["svm", "mlp"])
    stacker.stack(run)
    assert asked == [["mlp"], ["svm", "mlp"], ["logistic", "mlp", "xgboost"]]


def test_a_cache_by_name(crossed: Run, held: Run) -> None:
    """One base model's maps of one image, as an array; the fold is asked for where there are several."""
    cache = open_cache(crossed, "test_resnet", "fold1")
    for row in (0, len(cache.rows) - 1):
        image = cache.rows.image_id[row].decode()
        np.testing.assert_array_equal(cache.of(image), cache.read("maps")[row])
        np.testing.assert_array_equal(cache.of(image, "logits"), cache.read("logits")[row])
    trained = next(iter(set(crossed.manifest.images) - set_of(crossed, cache.rows.image_id)))
    with pytest.raises(CacheError, match=rf"no image {trained.id} among .*not trained on"):
        cache.of(trained.id)
    assert open_cache(held, "test_resnet").provenance.model_fold == "holdout"
    with pytest.raises(ConfigError, match="choose one with fold=: fold0, fold1, fold2"):
        open_cache(crossed, "test_resnet")
    with pytest.raises(ConfigError, match="did you mean 'test_resnet'"):
        open_cache(crossed, "test_resnett", "fold0")
    with pytest.raises(ConfigError, match="no fold 'fold3'"):
        open_cache(crossed, "test_resnet", "fold3")


def set_of(run: Run, ids: np.ndarray) -> set[Any]:
    """Return the images that have these ids."""
    return {image for image in run.manifest.images if image.id.encode() in ids}


def test_heatmaps_show_themselves(crossed: Run) -> None:
    """A notebook that never imported pyplot asks a figure for its PNG."""
    image = sample(find_caches(crossed), 1, seed=0)[0]
    figure = heatmaps(crossed, image, signed=True)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 1 + 2 + 2  # the image, two maps and their scales
    content = figure._repr_png_()  # type: ignore[attr-defined]
    assert content.startswith(b"\x89PNG")
    assert len(heatmaps(crossed, [image, image], ["test_resnet"], ["benign"], signed=True).axes) == 4 + 1
    with pytest.raises(ConfigError, match="no image 'nobody'"):
        heatmaps(crossed, "nobody")


def test_ipython_displays_heatmaps(crossed: Run) -> None:
    """What IPython sends to a notebook has the picture beside the text."""
    formatters = pytest.importorskip("IPython.core.formatters")
    image = sample(find_caches(crossed), 1, seed=0)[0]
    shown, _ = formatters.DisplayFormatter().format(heatmaps(crossed, image))
    assert shown["image/png"].startswith(b"\x89PNG")


def paths_of(run: Run, count: int) -> list[str]:
    """Return the files of some test images."""
    rows = run.manifest.rows_of("case", run.folds.test)
    return [run.manifest.images[row].path for row in rows[:count]]


def anonymous(row: Any) -> Any:
    """Return a row without what only the name of a file tells."""
    return replace(row, path="", case=None, seen=None)


def pixels_of(path: str) -> np.ndarray:
    """Return a file's pixels."""
    return np.asarray(Picture.open(path).convert("RGB"))


@pytest.mark.parametrize("read", [pixels_of, Picture.open])
def test_a_picture_in_memory_is_its_file(crossed: Run, read: Callable[[str], Any]) -> None:
    """Decoded by the caller and resized here: the same row to the last bit, of a case nobody knows."""
    for path in paths_of(crossed, 3):
        (by_file, _), (in_memory,) = (list(predict(crossed, image)) for image in (path, read(path)))
        assert isinstance(by_file, Prediction)
        assert isinstance(in_memory, Prediction)
        assert anonymous(in_memory) == anonymous(by_file)
        assert (in_memory.path, in_memory.case, in_memory.seen) == ("image-0", None, None)
        assert by_file.seen is False


def test_paths_and_pictures_may_be_mixed(crossed: Run, tmp_path: Path) -> None:
    """Rows come in the order of the images, then the cases; what is no picture is a row as well."""
    paths = paths_of(crossed, 2)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    sliver = np.zeros((4, 64, 3), np.uint8)
    rows = list(predict(crossed, [paths[0], pixels_of(paths[1]), sliver, damaged, Path(paths[1])]))
    assert [type(row) for row in rows[:5]] == [Prediction, Prediction, Skipped, Skipped, Prediction]
    assert [getattr(row, "path", "") for row in rows[:5]] == [
        paths[0],
        "image-0",
        "image-1",
        str(damaged),
        paths[1],
    ]
    assert "too small" in str(rows[2])
    assert all(isinstance(row, CasePrediction) for row in rows[5:])


def test_pictures_are_taken_when_it_is_their_turn(crossed: Run) -> None:
    """Tiles of a slide need not all be in memory: they are read a few batches ahead."""
    pixels, taken = pixels_of(paths_of(crossed, 1)[0]), 0

    def tiles() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(400):
            taken += 1
            yield pixels

    rows = predict(crossed, tiles())
    next(rows)
    assert taken <= 4 * crossed.config.cam.batch_size


def test_an_array_of_another_scale_is_refused(crossed: Run) -> None:
    """Floats might be from 0 to 1 or to 255, and four dimensions are several images."""
    pixels = pixels_of(paths_of(crossed, 1)[0])
    with pytest.raises(DataError, match=r"a float64 array of shape \(46, 70, 3\), expected uint8"):
        next(predict(crossed, pixels / 255))
    with pytest.raises(DataError, match="expected uint8"):
        next(predict(crossed, [pixels[..., 0]]))
    assert len(list(predict(crossed, np.stack([pixels, pixels])))) == 2


def test_a_run_or_a_pack_by_its_path(crossed: Run, tmp_path: Path) -> None:
    """A pack's zip is unpacked while rows are asked for, and says what the run says."""
    (path,) = paths_of(crossed, 1)
    packed = tmp_path / "packed.zip"
    pack(crossed, packed, "logistic")
    here, *_ = predict(crossed, path, "logistic")
    for where in (str(crossed.path), packed):
        there, *_ = predict(where, path, "logistic")
        assert anonymous(there) == anonymous(here)
    with pytest.raises(RunError, match="is not a run directory"):
        predict(tmp_path, path)
    with pytest.raises(ConfigError, match="did you mean 'logistic'"):
        predict(crossed, path, "logistics")


def test_overlays_are_drawn_where_they_are_wanted(crossed: Run, tmp_path: Path) -> None:
    """Of files under their names, of pictures in memory under their numbers."""
    (path,) = paths_of(crossed, 1)
    rows = list(predict(crossed, [path, pixels_of(path)], overlays=str(tmp_path / "drawn")))
    drawn = [row.overlay for row in rows if isinstance(row, Prediction)]
    assert drawn == [str(tmp_path / "drawn" / f"{stem}.png") for stem in (Path(path).stem, "image-0")]
    assert all(Path(str(file)).exists() for file in drawn)
