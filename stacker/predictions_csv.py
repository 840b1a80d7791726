"""What models said, row by row, as CSV: enough to compute every published score again.

    out_of_fold.csv        a line per model, development image and cut into parts
    predictions.csv        a line per model and test image
    ..._cases.csv          the same by case, where each case has one label

`raw_<class>` is what images are ranked by, within their `part` of a `cut`; `p_<class>` is calibrated,
`threshold` is from where on the last class is predicted (the likeliest where it is empty). Numbers are
written so that they are read back to the last bit.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from stacker.cache import Rows
from stacker.manifest import Manifest
from stacker.predictions import Predictions, by_case
from stacker.run import publish

Line = list[object]


def write_predictions(
    path: Path,
    models: Mapping[str, Predictions],
    rows: Rows,
    made_by: np.ndarray | None,
    manifest: Manifest,
    split: str,
) -> None:
    """Publish what models say of some rows, by image and by case; `made_by` (N,) is each row's fold."""
    folds = np.full(len(rows), "") if made_by is None else made_by
    images = [image.decode() for image in rows.image_id]
    lines = (
        [images[i], *line]
        for name, found in models.items()
        for i, line in _lines(name, found, folds, manifest.classes, split)
    )
    _write(path, ["image_id", *_header(manifest.classes)], lines)
    whole = {name: by_case(found) for name, found in models.items()}
    beside = path.with_name(f"{path.stem}_cases.csv")
    if any(found is None for found in whole.values()) or manifest.unit == "image":
        beside.unlink(missing_ok=True)
        return
    _, first, place, counts = np.unique(
        rows.case_id, return_index=True, return_inverse=True, return_counts=True
    )
    straddles = np.bincount(place, folds != folds[first][place]) > 0  # in a split by image
    of_cases = np.where(straddles, "", folds[first])
    _write(
        beside,
        ["images", *_header(manifest.classes)],
        (
            [counts[i], *line]
            for name, found in whole.items()
            if found is not None
            for i, line in _lines(name, found, of_cases, manifest.classes, split)
        ),
    )


def _header(classes: Sequence[str]) -> list[str]:
    raw, shares = [f"raw_{name}" for name in classes], [f"p_{name}" for name in classes]
    start = ["case_id", "label", "model", "fold", "cut", "part"]
    return [*start, *raw, *shares, "threshold", "predicted", "split"]


def _lines(
    name: str, found: Predictions, folds: np.ndarray, classes: Sequence[str], split: str
) -> Iterator[tuple[int, Line]]:
    """Yield the number and the line of every row, cut by cut."""
    raw, parts = found.ranked
    threshold = np.broadcast_to(
        np.nan if found.threshold is None else found.threshold, len(found.labels)
    )
    predicted = found.predicted
    for number, (raw_NK, part_N) in enumerate(zip(raw, parts, strict=True)):
        for i, case in enumerate(found.cases):
            who: Line = [case.decode(), classes[found.labels[i]], name, folds[i], number, int(part_N[i])]
            shares = [repr(float(each)) for each in (*raw_NK[i], *found.probabilities[i])]
            level = "" if np.isnan(threshold[i]) else repr(float(threshold[i]))
            yield i, [*who, *shares, level, classes[predicted[i]], split]


def _write(path: Path, header: Sequence[str], lines: Iterator[Line]) -> None:
    with publish(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)
