"""What a notebook asks of a run: its caches, its heatmaps, its comparison, its word on new images.

The commands of the same names do the same and print it. Torch is imported by `predict` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stacker.caches import reader
from stacker.caches.reader import Cache
from stacker.caches.summary import find_caches
from stacker.config.data import DataConfig
from stacker.data.images import Shown, each_of, require_pixels
from stacker.errors import ConfigError, require_one_of
from stacker.run import FROZEN, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stacker.prediction.inputs import Input
    from stacker.prediction.predictor import Predictor
    from stacker.prediction.rows import Row


def open_cache(run: Run, backbone: str, fold: str | None = None) -> Cache:
    """Open the cache of one base model; `fold` may be left out where the backbone has one cache.

    Raise ConfigError for a name that the run does not have, CacheError for a cache that is not whole.
    """
    frozen = backbone in run.config.frozen and backbone not in run.config.backbones
    require_one_of("backbone", [backbone], [*run.config.backbones, *run.config.frozen])
    folds = [FROZEN] if frozen else [fold.name for fold in run.folds.folds]
    if fold is None and len(folds) > 1:
        raise ConfigError(
            f"{backbone} has one base model per fold; choose one with fold=: {', '.join(folds)}"
        )
    if fold is not None:
        require_one_of("fold", [fold], [*folds, *([FROZEN] if backbone in run.config.frozen else [])])
    return reader.open_cache(run.cache_folder(backbone, fold or folds[0]))


def heatmaps(
    run: Run,
    images: str | Sequence[str],
    backbones: Sequence[str] = (),
    classes: Sequence[str] = (),
    signed: bool = False,
    maps: str = "maps",
) -> Figure:
    """Draw cached maps over images, which are named by their ids; a notebook shows the figure by itself.

    Every backbone and the last class are drawn where none is named. `signed` draws what speaks against
    the class, too; `maps` takes those of another method or level. Raise ConfigError for unknown names.
    """
    from stacker.figures.heatmaps import draw

    ids = [images] if isinstance(images, str) else images
    return draw(run, find_caches(run), ids, backbones, classes, signed, maps)


def compare(run: Run, jobs: int = 0) -> dict[str, Any]:
    """Fit every meta-learner on every choice of features, in so many processes (0: one per core).

    Return the leaderboard as plain data, with the entries that failed under `failures`. What is fitted
    already is kept; `stack.compare` in the config says what is compared.
    """
    from stacker.comparison.entries import compare as fit_all
    from stacker.comparison.leaderboard import make_leaderboard

    return make_leaderboard(fit_all(run, jobs), run)


def predict(
    run: Run | Path | str,
    images: Shown | Iterable[Shown],
    meta: str | None = None,
    *,
    abstain: float | None = None,
    overlays: Path | str | None = None,
    trusted: Sequence[str] = (),
) -> Iterator[Row]:
    """Yield what the whole stack says of each image, and then of each case that is known.

    `run` is a run, or the path of one or of a pack. An image is a path, or in memory an array (height,
    width, 3) of uint8 or a PIL image; a path may be that of a folder, a table or a pattern. `overlays`
    is a folder to draw the maps in. Images that cannot be read are rows, too (`Skipped`). Raise
    StackerError when some part of the stack is not as it was.
    """
    from stacker.prediction.predictor import open_predictor
    from stacker.prediction.unpack import opened

    with ExitStack() as kept:
        ready = run if isinstance(run, Run) else kept.enter_context(opened(Path(run)))
        folder = None if overlays is None else Path(overlays)
        predictor = open_predictor(ready, meta, abstain, folder, trusted)
        return _rows(predictor, images, kept.pop_all())


def _rows(predictor: Predictor, images: Shown | Iterable[Shown], kept: ExitStack) -> Iterator[Row]:
    """Yield all rows; an unzipped pack is there until then."""
    with kept:
        yield from predictor.stream(_inputs(images, predictor.run.config.data))


def _inputs(images: Shown | Iterable[Shown], data: DataConfig) -> Iterator[Input]:
    """Yield images as the stack reads them, those in memory when it is their turn."""
    from stacker.prediction.inputs import Input, find_inputs

    number = 0
    for paths, some in groupby(each_of(images), lambda image: isinstance(image, str | Path)):
        if paths:
            yield from find_inputs([str(path) for path in some], data)
            continue
        for picture in some:
            require_pixels(picture)
            yield Input(Path(f"image-{number}"), picture=picture)
            number += 1
