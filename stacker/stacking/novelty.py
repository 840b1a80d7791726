"""How far a new image lies from the images that the stack was fitted on, by what the base models see.

Each base model embedded development images that it never trained on. They are cut by case into parts,
and for each part a mean, a few principal components and what is left beside them are taken from the
other parts: the distance of an image is its squared length along the components, in their variances,
plus that of the rest, in its own. The distances of a part's images from the fit without their cases are
what is usual, for each base model on a scale of its own (the logarithm, standardised). A new image is
measured against all of these fits, never against one that knows it; the mean over the base models is
compared with that of the development images, and the share of these which lie nearer is its novelty.

Two things keep that share true, so that 5 % of new images of the same kind lie beyond 0.95:

- A development image is standardised by the distances of the other parts alone. Centre and spread of a
  dozen cases suit these cases better than new ones, whose scores would spread wider than the reference.
- A new image's score is a mean over all folds and fits, a development image's comes from one fit of one
  fold, and averaging narrows. By how much is measured on the test images, the only ones of which every
  fold's base models may speak; the reference is narrowed by that ratio. No label is looked at.

What is kept are means, components, variances and the sorted reference: no image's own embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stacker.errors import StackError
from stacker.files import write_arrays
from stacker.run import BaseModel, Run
from stacker.stacking.preparation import read_arrays
from stacker.stacking.tables import Caches, Source

UNLIKE = 0.95  # novelty beyond which an image is called unlike those that the stack was fitted on
PARTS = 5
MOST_COMPONENTS, ROWS_PER_COMPONENT = 32, 16
MOST_ROWS = 2000  # of a fold's development or test rows: more would hardly turn the components
FEWEST_ROWS = 8  # in a fit: the mean of a handful of embeddings would tell them; and in a spread
TINY = 1e-12


@dataclass(frozen=True)
class Cloud:
    """Where some embeddings lie: mean (D,), components (P, D), variances (P,), what is left."""

    mean: np.ndarray
    axes: np.ndarray
    variances: np.ndarray
    rest: float

    def distances(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the logarithm of the distance of each embedding (N, D)."""
        centred = embeddings.astype(np.float64) - self.mean
        along = centred @ self.axes.T
        beside = ((centred**2).sum(axis=1) - (along**2).sum(axis=1)).clip(0)
        logs: np.ndarray = np.log((along**2 / self.variances).mean(axis=1) + beside / self.rest + TINY)
        return logs


@dataclass(frozen=True)
class Base:
    """One base model's fits, each without one part of the cases, and its usual distance and spread."""

    clouds: tuple[Cloud, ...]
    centre: float
    scale: float

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """Return how unusual each embedding (N, D) is by each of the fits, (P, N).

        The unit is the spread of the distances of development images.
        """
        distances = np.stack([cloud.distances(embeddings) for cloud in self.clouds])
        scores: np.ndarray = (distances - self.centre) / self.scale
        return scores


@dataclass(frozen=True)
class Novelty:
    """What is usual for every base model; `reference` are the development images' scores, sorted.

    They are narrowed by `ratio`, as averaging narrows those of new images. `origins` are the digests
    of the caches that it was fitted on.
    """

    bases: dict[BaseModel, Base]
    reference: np.ndarray
    ratio: float
    origins: dict[BaseModel, str]

    def percentile(self, embeddings: Mapping[BaseModel, np.ndarray]) -> np.ndarray:
        """Return for each image (N,) the share of development images that lie nearer than it.

        `embeddings` are those (N, D) of every base model.
        """
        by_base = [base.scores(embeddings[key]).mean(axis=0) for key, base in self.bases.items()]
        scores: np.ndarray = np.mean(by_base, axis=0)
        nearer: np.ndarray = np.searchsorted(self.reference, scores) / len(self.reference)
        return nearer

    def save(self, path: Path) -> None:
        """Publish the arrays as .npz, without pickle."""
        arrays: dict[str, Any] = {
            "names": np.array(["/".join(key) for key in self.bases]),
            "usual": np.array([[base.centre, base.scale] for base in self.bases.values()]),
            "reference": self.reference,
            "ratio": np.array(self.ratio),
            "origins": np.array([[str(base), digest] for base, digest in self.origins.items()]),
        }
        for number, base in enumerate(self.bases.values()):
            for part, cloud in enumerate(base.clouds):
                stem = f"{number}-{part}"
                arrays |= {f"mean-{stem}": cloud.mean, f"axes-{stem}": cloud.axes}
                arrays |= {f"variances-{stem}": cloud.variances, f"rest-{stem}": np.array(cloud.rest)}
        write_arrays(path, arrays)


def load_novelty(path: Path) -> Novelty:
    """Read what `Novelty.save` wrote; raise StackError when it is damaged."""
    stored = read_arrays(path)

    def cloud(stem: str) -> Cloud:
        mean, axes, variances = (stored[f"{kind}-{stem}"] for kind in ("mean", "axes", "variances"))
        return Cloud(mean, axes, variances, float(stored[f"rest-{stem}"]))

    try:
        bases = {}
        for number, (name, usual) in enumerate(zip(stored["names"], stored["usual"], strict=True)):
            stems = [f"{number}-{part}" for part in range(PARTS) if f"mean-{number}-{part}" in stored]
            bases[BaseModel.named(str(name))] = Base(
                tuple(cloud(stem) for stem in stems), float(usual[0]), float(usual[1])
            )
        origins = {BaseModel.named(str(name)): str(digest) for name, digest in stored["origins"]}
        return Novelty(bases, stored["reference"], float(stored["ratio"]), origins)
    except (ValueError, KeyError) as error:
        raise StackError(
            f"{path} is damaged ({error})", "delete it and run 'stacker stack CONFIG' again"
        ) from None


def novelty_file(run: Run) -> Path:
    """Return where it is kept what is usual of the images that the stacks of a run were fitted on."""
    return run.path / "stack" / "novelty.npz"


def keep_novelty(run: Run, caches: Caches) -> None:
    """Fit and publish what is usual, unless it is there and of just these caches.

    Where there are too few cases or images to say, there is no file.
    """
    path = novelty_file(run)
    if path.exists() and _kept_origins(path) == _origins(caches):
        return
    novelty = fit_novelty(caches)
    if novelty is None:
        path.unlink(missing_ok=True)
    else:
        novelty.save(path)


def _kept_origins(path: Path) -> dict[BaseModel, str] | None:
    """Return the digests behind a file; None for one that is damaged, and has to be rebuilt."""
    try:
        return load_novelty(path).origins
    except StackError:
        return None


def fit_novelty(caches: Caches) -> Novelty | None:
    """Learn from the caches what is usual; None where some fold has too few cases or images to say."""
    bases: dict[BaseModel, Base] = {}
    reference, tests = [], []
    for source in caches.sources:
        places = _some(source.rows.fold != b"test")
        parts = _parts([group.decode() for group in source.rows.group_id[places]])
        if parts is None:
            return None
        scores = []
        for name, cache in source.caches.items():
            base, of_base = _fit_base(cache.read("features", places), parts)
            bases[BaseModel(name, source.fold)] = base
            scores.append(of_base)
        reference.append(np.mean(scores, axis=0))
        tests.append(_test_scores(source, bases))
    ratio, usual = _narrowing(tests), np.sort(np.concatenate(reference))
    narrowed = usual.mean() + ratio * (usual - usual.mean())
    return Novelty(bases, narrowed, ratio, _origins(caches))


def _test_scores(source: Source, bases: Mapping[BaseModel, Base]) -> np.ndarray:
    """Return the scores (P, N) of the test images by each of a fold's fits, averaged over backbones."""
    places = _some(source.rows.fold == b"test")
    by_backbone = [
        bases[BaseModel(name, source.fold)].scores(cache.read("features", places))
        for name, cache in source.caches.items()
    ]
    scores: np.ndarray = np.mean(by_backbone, axis=0)
    return scores


def _narrowing(scores: Sequence[np.ndarray]) -> float:
    """Return the spread of scores that are averaged over folds and fits, relative to single ones.

    `scores` are those (P, N) of the same images in each fold, which spread around the fold's own mean:
    so do those of the reference. It is 1 where too few images or no spread can say otherwise.
    """
    averaged = np.mean([of_fold.mean(axis=0) for of_fold in scores], axis=0)
    if len(averaged) < FEWEST_ROWS:
        return 1.0
    single, final = float(np.mean([of_fold.var() for of_fold in scores])), float(averaged.var())
    return min(1.0, float(np.sqrt(final / single))) if min(single, final) > TINY else 1.0


def _origins(caches: Caches) -> dict[BaseModel, str]:
    """Return the digests of the caches of fine-tuned base models."""
    return {base: origin for base, origin in caches.origins.items() if not base.is_frozen}


def _some(wanted: np.ndarray) -> np.ndarray:
    """Return the places of the rows that are wanted (N,), or of some of them spread evenly."""
    places: np.ndarray = np.flatnonzero(wanted)
    if len(places) > MOST_ROWS:
        places = places[np.linspace(0, len(places) - 1, MOST_ROWS).astype(np.int64)]
    return places


def _parts(groups: list[str]) -> np.ndarray | None:
    """Return the part (N,) of every row, whole groups together, the parts as equal as can be.

    None where the rows that one part leaves to the others are too few.
    """
    names, sizes = np.unique(groups, return_counts=True)
    count = min(PARTS, len(names))
    if count < 2:
        return None
    load, home = np.zeros(count, dtype=np.int64), {}
    for number in np.argsort(-sizes, kind="stable"):
        part = int(load.argmin())
        home[str(names[number])] = part
        load[part] += sizes[number]
    if load.sum() - load.max() < FEWEST_ROWS:
        return None
    return np.array([home[group] for group in groups])


def _fit_base(embeddings: np.ndarray, parts: np.ndarray) -> tuple[Base, np.ndarray]:
    """Return a base model's fits, and the score (N,) of each row by what is known without its part."""
    distances = np.empty(len(embeddings))
    clouds = []
    for part in range(parts.max() + 1):
        cloud = _fit_cloud(embeddings[parts != part])
        distances[parts == part] = cloud.distances(embeddings[parts == part])
        clouds.append(cloud)
    usual = np.empty(len(embeddings))
    for part in range(parts.max() + 1):
        centre, scale = _centre_and_spread(distances[parts != part])
        usual[parts == part] = (distances[parts == part] - centre) / scale
    return Base(tuple(clouds), *_centre_and_spread(distances)), usual


def _centre_and_spread(distances: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation, which is never nought."""
    return float(distances.mean()), float(max(distances.std(), TINY))


def _fit_cloud(embeddings: np.ndarray) -> Cloud:
    """Fit mean, components and variances, from the products of the rows: they are fewer than columns.

    Each component's variance is that of the rows plus the mean of the directions that are left over,
    which few rows find too small.
    """
    rows = len(embeddings)
    mean = embeddings.mean(axis=0, dtype=np.float64)
    centred = embeddings - mean
    squares, turns = np.linalg.eigh(centred @ centred.T)
    order = np.argsort(-squares)
    variances = squares[order].clip(0) / (rows - 1)
    most = min(MOST_COMPONENTS, rows // ROWS_PER_COMPONENT)
    count = max(1, min(most, int((variances > TINY).sum())))
    rest = max(float(variances[count:].sum()), TINY)
    lengths = np.sqrt(np.maximum(squares[order[:count]], TINY))
    axes = (turns[:, order[:count]] / lengths).T @ centred
    usual = variances[:count] + rest / max(1, rows - 1 - count)
    return Cloud(mean.astype(np.float32), axes.astype(np.float32), usual, rest)
