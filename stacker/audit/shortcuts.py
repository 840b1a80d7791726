"""Could a network tell the classes apart without looking at the tissue?

A shallow model gets what is no evidence (file size, shape and format of the image, magnification) or
hardly any (mean colours), and is scored on held-out cases. Where it succeeds, so may a network, and a
good score then says less than it seems to.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture
from PIL import UnidentifiedImageError

from stacker.audit.fingerprints import Measures
from stacker.data.cuts import cut
from stacker.data.manifest import Image, Manifest
from stacker.scores.bootstrap import Resampling
from stacker.scores.predictions import Predictions

MOST_ROWS = 20_000  # a shallow model does not learn more from more
FOLDS = 5


def recognisability(manifest: Manifest, measures: Measures, seed: int) -> dict[str, Any]:
    """Return, for each kind of clue, the AUC of a shallow model on unseen cases, with its interval.

    A clue that is the same for all images is left out; so is everything when cases are too few.
    """
    rows = _some_rows(manifest, seed)
    images = [manifest.images[row] for row in rows]
    names, cases = np.array([image.label for image in images]), np.array(manifest.cases)[rows]
    folds = cut(names, cases, FOLDS, seed)
    if folds is None or len(np.unique(names)) < len(manifest.classes):
        return {}
    clues = {"colour": np.c_[measures.colour, measures.saturation][rows]}
    clues["magnification"] = np.array([[image.magnification or 0] for image in images])
    typical = {"magnification": _by_class([f"{image.magnification}X" for image in images], images)}
    if images[0].index is None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            files = list(pool.map(_read_header, images))
        clues |= _file_clues(files)
        typical["picture format"] = _by_class(files, images)
    labels, parts = manifest.labels[rows], folds[None].astype(np.int64)
    told = {}
    for name, values in clues.items():
        if (values == values[0]).all():
            continue
        shares = _out_of_fold(values.astype(np.float32), labels, folds)
        predictions = Predictions(labels, cases, shares, raw=shares[None], parts=parts)
        scores = Resampling(500, seed, manifest.classes, manifest.unit).evaluate({name: predictions})
        image = scores[name]["image"]
        told[name] = {
            "auc": image["auc"],
            "interval": image["interval"]["auc"],
            "withheld": image["withheld"].get("auc"),
            "images": len(rows),
            "typical": typical.get(name, []),
        }
    return told


def _some_rows(manifest: Manifest, seed: int) -> np.ndarray:
    """Return all rows, or those of randomly drawn cases until there are enough."""
    if len(manifest.images) <= MOST_ROWS:
        return np.arange(len(manifest.images))
    cases, position = np.unique(manifest.cases, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(cases))
    sizes = np.bincount(position)[order].cumsum()
    taken = order[: max(FOLDS * 4, int(np.searchsorted(sizes, MOST_ROWS)) + 1)]
    return np.flatnonzero(np.isin(position, taken))


@dataclass(frozen=True)
class File:
    """What can be told of a picture without decoding it."""

    size: int
    width: int
    height: int
    mode: str
    format: str

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.format} {self.mode} {self.width}x{self.height}"


def _read_header(image: Image) -> File:
    """Read the header of a picture; what cannot be read has no properties."""
    path = Path(image.path)
    try:
        with Picture.open(path) as picture:
            return File(path.stat().st_size, *picture.size, picture.mode, picture.format or "")
    except (OSError, UnidentifiedImageError):
        return File(0, 1, 1, "", "")


def _file_clues(files: list[File]) -> dict[str, np.ndarray]:
    """Return the size of the files, and the shape and kind of the pictures in them."""
    kinds = sorted({(file.mode, file.format) for file in files})
    shapes = [[f.width, f.height, f.width / f.height, kinds.index((f.mode, f.format))] for f in files]
    sizes = [[math.log(file.size + 1)] for file in files]
    return {"file size": np.array(sizes), "picture format": np.array(shapes)}


def _by_class(values: Sequence[object], images: Sequence[Image]) -> list[str]:
    """Say which value is the most frequent in each class."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for value, image in zip(values, images, strict=True):
        counts[image.label][str(value)] += 1
    return [
        f"{label}: {value} ({number} of {counts[label].total()})"
        for label in sorted(counts)
        for value, number in counts[label].most_common(1)
    ]


def _out_of_fold(values: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return the class probabilities (N, K) that a shallow forest gives to cases it has not seen."""
    from sklearn.ensemble import RandomForestClassifier

    shares = np.zeros((len(labels), labels.max() + 1))
    for fold in np.unique(folds):
        unseen = folds == fold
        forest = RandomForestClassifier(
            n_estimators=50,
            max_depth=4,
            min_samples_leaf=5,
            class_weight="balanced",
            random_state=0,
            n_jobs=-1 if len(labels) > 5000 else 1,  # below, starting threads takes longer than trees
        )
        forest.fit(values[~unseen], labels[~unseen])
        shares[np.ix_(unseen, forest.classes_)] = forest.predict_proba(values[unseen])
    return shares
