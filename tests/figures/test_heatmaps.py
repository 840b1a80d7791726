"""Maps against masks, and figures that show what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stacker import pipeline
from stacker.caches.summary import find_caches, sample
from stacker.config.root import Config
from stacker.data.formats.registry import read_manifest
from stacker.errors import ConfigError, DataError
from stacker.figures import heatmaps
from stacker.figures.heatmaps import SheetRow, draw, heatmap_sheet, upsample
from stacker.figures.localisation import pointing_and_mass
from stacker.run import BaseModel, reopen


def canvas(figure: Figure) -> np.ndarray:
    """Return a figure as pixels."""
    agg = FigureCanvasAgg(figure)
    agg.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(agg.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].astype(int)


def test_pointing_and_mass() -> None:
    """A peak inside the mask is a hit; the positive mass is split at its border."""
    mask = np.zeros((40, 40), bool)
    mask[:20, :20] = True
    corner = np.array([[4.0, 0.0], [0.0, -9.0]])
    hit, inside = pointing_and_mass(corner, mask)
    assert hit
    assert inside > 0.6
    hit, inside = pointing_and_mass(corner[::-1], mask)
    assert not hit
    assert inside < 0.4
    assert pointing_and_mass(-np.ones((2, 2)), mask) == (False, 0.0)


def test_a_map_that_knows_nothing_has_the_mask_s_area() -> None:
    """A flat map's mass inside is the share of the image that the mask covers."""
    mask = np.random.default_rng(0).random((40, 40)) < 0.3
    assert pointing_and_mass(np.ones((7, 7)), mask)[1] == pytest.approx(mask.mean())


def test_upsampling_keeps_sign_and_range() -> None:
    """Bilinear, within the values of the map."""
    heat = upsample(np.array([[-2.0, 1.0], [0.0, 3.0]]), (64, 96))
    assert heat.shape == (64, 96)
    assert heat.min() == -2
    assert heat.max() == 3


def test_unsigned_sheet_hides_what_speaks_against() -> None:
    """A negative map leaves the picture as it is, and colours it when signs are asked for."""
    row = SheetRow("grey", np.full((32, 32, 3), 128, np.uint8))
    panels = {"net": [-np.ones((2, 2))]}
    plain = canvas(heatmap_sheet([row], {"net": [np.zeros((2, 2))]}, signed=False))
    unsigned = canvas(heatmap_sheet([row], panels, signed=False))
    signed = canvas(heatmap_sheet([row], panels, signed=True))
    blue = (signed[..., 2] - signed[..., 0] > 60).mean()
    assert blue > 0.05
    assert (unsigned[..., 2] - unsigned[..., 0] > 60).mean() < blue / 5
    assert plain.shape == unsigned.shape


def test_sample_takes_the_classes_in_turn(finished: Config) -> None:
    """Four test images are two benign and two malignant, the same for the same seed."""
    run = reopen(finished)
    caches = find_caches(run)
    images = sample(caches, 4, 0)
    assert [image.split("_")[1] for image in images] == ["B", "B", "M", "M"]
    assert images == sample(caches, 4, 0) != sample(caches, 4, 1)


def test_the_class_that_is_named_is_the_class_that_is_drawn(
    finished: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last class by default, any other by its name; maps that know no class are of all."""
    cam = finished.cam.model_copy(update={"methods": ["gradcam", "eigencam"], "lower": 1})
    run = reopen(finished.model_copy(update={"cam": cam}))
    pipeline.cache(run)
    caches = find_caches(run)
    (image,) = sample(caches, 1, 0)
    cache = caches[BaseModel("test_resnet", "holdout")]
    chosen = cache.rows.image_id == image.encode()
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(heatmaps, "heatmap_sheet", lambda _, panels, *__: drawn.update(panels))
    draw(run, caches, [image], ["test_resnet"], maps="maps_lower1")
    draw(run, caches, [image], ["test_resnet"], ["benign"], maps="maps_lower1")
    draw(run, caches, [image], ["test_resnet"], ["benign"], maps="maps_eigencam_lower1")
    expected = cache.read("maps_lower1", chosen)[0]
    lower = "test_resnet, maps_lower1"
    np.testing.assert_array_equal(drawn[f"{lower}\nmalignant"][0], expected[1])
    np.testing.assert_array_equal(drawn[f"{lower}\nbenign"][0], expected[0])
    assert set(drawn) == {
        f"{lower}\nmalignant",
        f"{lower}\nbenign",
        "test_resnet, maps_eigencam_lower1\nall",
    }


def test_drawing_refuses_what_is_not_there(finished: Config) -> None:
    """A typo gets the nearest name; a training image is refused with the reason."""
    run = reopen(finished)
    caches = find_caches(run)
    (known, *_) = sample(caches, 1, 0)
    with pytest.raises(ConfigError, match="no image 'SOB_nowhere'"):
        draw(run, caches, ["SOB_nowhere"])
    with pytest.raises(ConfigError, match="did you mean 'test_resnet'"):
        draw(run, caches, [known], backbones=["test_resnt"])
    with pytest.raises(ConfigError, match="did you mean 'malignant'"):
        draw(run, caches, [known], classes=["malign"])
    trained = run.manifest.images[run.manifest.rows_of("case", run.folds.folds[0].train)[0]]
    with pytest.raises(ConfigError, match="is not cached"):
        draw(run, caches, [trained.id])


def test_masks_that_match_no_image_are_refused_first(finished: Config, tmp_path: Path) -> None:
    """An empty masks folder would give scores of nothing, and be noticed last."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file in .*empty has the name of an image"):
        read_manifest(finished.data.model_copy(update={"masks": tmp_path / "empty"}))
