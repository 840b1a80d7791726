"""Maps against masks, and figures that show what they should."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image as Picture

from stacker import pipeline
from stacker.caches.summary import find_caches, sample
from stacker.config.data import ImagesConfig
from stacker.config.root import Config
from stacker.data.formats.registry import read_manifest
from stacker.errors import ConfigError, DataError
from stacker.figures import heatmaps
from stacker.figures.canvas import save_figure
from stacker.figures.heatmaps import SheetColumn, SheetRow, draw, heatmap_sheet
from stacker.figures.localisation import localise, pointing_and_mass
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


def test_maps_that_know_no_class_are_scored(finished: Config) -> None:
    """A first method with one map for all classes is held against the masks of every class."""
    cam = finished.cam.model_copy(update={"methods": ["eigencam"], "lower": 0})
    run = reopen(finished.model_copy(update={"cam": cam}))
    pipeline.cache(run)
    scores = localise(run)
    assert set(scores) == set(run.config.backbones)
    assert all(0 <= each["mass_inside"] <= 1 and each["maps"] for each in scores.values())


def test_unsigned_sheet_hides_what_speaks_against() -> None:
    """A negative map leaves the picture as it is, and colours it when signs are asked for."""
    row = SheetRow("grey", np.full((32, 32, 3), 128, np.uint8))
    images = ImagesConfig(size=32)

    def sheet(value: float, signed: bool) -> np.ndarray:
        column = SheetColumn("net", "logits per cell", [np.full((2, 2), value)], ["malignant 0.10"])
        return canvas(heatmap_sheet([row], [column], images, signed))

    plain, unsigned, signed = sheet(0, signed=False), sheet(-1, signed=False), sheet(-1, signed=True)
    blue = (signed[..., 2] - signed[..., 0] > 60).mean()
    assert blue > 0.05
    assert (unsigned[..., 2] - unsigned[..., 0] > 60).mean() < blue / 5
    np.testing.assert_array_equal(plain, unsigned)


def test_a_sheet_has_the_resolution_of_its_images(tmp_path: Path) -> None:
    """In a file a photograph has its own pixels, in full colour; images and maps are equally high."""
    pixels = np.zeros((300, 500, 3), np.uint8)
    pixels[:, ::4] = pixels[:, 1::4] = 255  # fine stripes: lost if they were drawn with fewer pixels
    column = SheetColumn("net", "logits per cell", [np.zeros((2, 2))], ["malignant 0.10"])
    figure = heatmap_sheet([SheetRow("lines", pixels)], [column], ImagesConfig(size=32), signed=False)
    assert len({round(axis.get_position().height, 6) for axis in figure.axes}) == 1
    save_figure(figure, tmp_path / "sheet.png")
    with Picture.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode in ("RGB", "RGBA")
        shown = np.asarray(sheet.convert("L")).astype(int)
    edges = np.diff(shown > 128, axis=1).sum(axis=1)
    assert edges.max() > 480  # of two photographs, 249 of each


def test_texts_stay_within_their_cells() -> None:
    """However long names are: what is too wide loses its middle."""
    rows = [SheetRow("x" * 300 + "\n" + "y" * 300, np.zeros((40, 60, 3), np.uint8))]
    names = ["a_backbone_of_a_very_long_name.with_its_weights", "b"]
    columns = [SheetColumn(f"{n}\n{n}", "no unit", [np.ones((2, 2))], [n]) for n in names]
    figure = heatmap_sheet(rows, columns, ImagesConfig(size=32), signed=True, warning="w" * 300)
    canvas(figure)
    boxes = [text.get_window_extent() for text in figure.texts]
    width, height = figure.bbox.width, figure.bbox.height
    assert all(box.x0 >= 0 and box.x1 <= width * 1.001 for box in boxes)
    assert all(box.y0 >= 0 and box.y1 <= height * 1.001 for box in boxes)
    for n, box in enumerate(boxes):
        for other in boxes[n + 1 :]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            down = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert across <= 1 or down <= 1


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
    drawn: dict[str, SheetColumn] = {}
    monkeypatch.setattr(
        heatmaps, "heatmap_sheet", lambda _, columns, *__: drawn.update({c.title: c for c in columns})
    )
    draw(run, caches, [image], ["test_resnet"], maps="maps_lower1")
    draw(run, caches, [image], ["test_resnet"], ["benign"], maps="maps_lower1")
    draw(run, caches, [image], ["test_resnet"], ["benign"], maps="maps_eigencam_lower1")
    expected = cache.read("maps_lower1", chosen)[0]
    lower, eigencam = "test_resnet, maps_lower1", "test_resnet, maps_eigencam_lower1\nall classes"
    malignant, benign = (drawn[f"{lower}\nevidence for {k}"] for k in ("malignant", "benign"))
    np.testing.assert_array_equal(malignant.maps[0], expected[1])
    np.testing.assert_array_equal(benign.maps[0], expected[0])
    assert set(drawn) == {malignant.title, benign.title, eigencam}
    assert (malignant.unit, drawn[eigencam].unit) == ("logits per cell", "no unit")
    shares = [float(column.captions[0].split()[-1]) for column in (malignant, benign)]
    assert sum(shares) == pytest.approx(1, abs=0.02)


def test_a_row_says_what_was_predicted_and_what_is_true(
    finished: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the run's first meta-learner, with its probability; nothing where none is fitted."""
    run = reopen(finished)
    caches = find_caches(run)
    (image,) = sample(caches, 1, 0)
    titles: list[str] = []
    monkeypatch.setattr(heatmaps, "heatmap_sheet", lambda rows, *_: titles.append(rows[0].title))
    draw(run, caches, [image])
    with (run.path / "predictions.csv").open() as file:
        said = next(
            row for row in csv.DictReader(file) if (row["image_id"], row["model"]) == (image, "logistic")
        )
    share = float(said[f"p_{said['predicted']}"])
    words = f"true class: {said['label']}; predicted: {said['predicted']} {share:.2f} (logistic)"
    assert titles == [f"{image}\n{words}"]
    only = finished.stack.model_copy(update={"features": ["logits"], "meta": ["logistic"]})
    draw(reopen(finished.model_copy(update={"stack": only})), caches, [image])
    assert titles.pop() == f"{image}\ntrue class: {said['label']}"
    (run.path / "predictions.csv").unlink()
    draw(reopen(finished), caches, [image])
    assert titles[1] == f"{image}\ntrue class: {said['label']}"


def test_backbones_stand_in_the_order_of_the_config(
    finished: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in every table; folders, and so caches, are sorted by name."""
    run = reopen(finished)
    caches, names = find_caches(run), list(run.config.backbones)
    titles: list[str] = []
    monkeypatch.setattr(
        heatmaps, "heatmap_sheet", lambda _, columns, *__: titles.extend(c.title for c in columns)
    )
    for order in (names, names[::-1]):
        backbones = {name: run.config.backbones[name] for name in order}
        changed = replace(run, config=run.config.model_copy(update={"backbones": backbones}))
        draw(changed, caches, sample(caches, 1, 0))
    drawn = [title.split("\n")[0] for title in titles]
    assert drawn == names + names[::-1]


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


def test_maps_of_all_classes_are_localised(finished: Config) -> None:
    """Eigen-CAM has one map, which is compared with the masks of every class."""
    cam = finished.cam.model_copy(update={"methods": ["eigencam"]})
    run = reopen(finished.model_copy(update={"cam": cam}))
    pipeline.cache(run)
    assert localise(run)["test_resnet"]["maps"] > 0


def test_masks_that_match_no_image_are_refused_first(finished: Config, tmp_path: Path) -> None:
    """An empty masks folder would give scores of nothing, and be noticed last."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file in .*empty is named like an image"):
        read_manifest(finished.data.model_copy(update={"masks": tmp_path / "empty"}))
