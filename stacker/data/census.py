"""The number of images, slides and cases, by class and so on: the numbers of a paper's data section."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stacker.data.folds import Folds
from stacker.data.manifest import Manifest, rows_by, write_csv

Counts = dict[str, int]
VIEWS = {
    "class": "label",
    "subtype": "subtype",
    "magnification": "magnification",
    "part of the data set": "split",
}


def save_census(manifest: Manifest, counts: Mapping[str, Mapping[str, Counts]], path: Path) -> None:
    """Write all counts as CSV, and a row with the reason for every image that was left out."""
    columns = ("what", "name", "images", "slides", "cases", "why")
    rows = [
        (what, name, *(number[unit] for unit in columns[2:5]), "")
        for what, names in counts.items()
        for name, number in names.items()
    ]
    left_out = [("left out", image.path, 1, "", "", image.why) for image in manifest.left_out]
    write_csv(path, columns, [*rows, *left_out])


def census(manifest: Manifest) -> dict[str, dict[str, Counts]]:
    """Return the counts by class and, where they are known, by subtype, magnification and own split."""
    views = {}
    for name, attribute in VIEWS.items():
        rows = rows_by(getattr(image, attribute) or "" for image in manifest.images)
        if list(rows) != [""]:
            values = sorted(rows, key=lambda value: (str(type(value)), value))
            views[name] = {str(value) or "unknown": count(manifest, rows[value]) for value in values}
    views["total"] = {"all": count(manifest, range(len(manifest.images)))}
    return views


def count(manifest: Manifest, rows: Iterable[int]) -> Counts:
    """Return the number of images, slides and cases; what is not known does not count."""
    chosen = list(rows)
    return {
        "images": len(chosen),
        "slides": len({manifest.slides[row] for row in chosen} - {""}),
        "cases": len({manifest.images[row].case for row in chosen} - {""}),
    }


def parts_of(manifest: Manifest, folds: Folds) -> dict[str, np.ndarray]:
    """Return the rows of the parts that a split is made of; no image is in two of them."""
    if folds.protocol == "crossfit":
        parts = {fold.name: fold.held_out for fold in folds.folds}
    else:
        (fold,) = folds.folds
        parts = {"train": fold.train, "validation": fold.validation, "stack": fold.held_out}
    return {
        name: manifest.rows_of(folds.group, groups)
        for name, groups in (*parts.items(), ("test", folds.test))
    }


def official_parts(manifest: Manifest) -> dict[str, np.ndarray]:
    """Return the rows of the parts in which the data set itself has its images."""
    splits = np.array([image.split for image in manifest.images])
    return {name: np.flatnonzero(splits == name) for name in np.unique(splits) if name}


def homes(parts: Mapping[str, np.ndarray]) -> dict[int, str]:
    """Return the part of every row that is in one."""
    return {int(row): part for part, rows in parts.items() for row in rows}


def case_table(manifest: Manifest, parts: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return every known case with its slides, its images by class, and the parts it is in."""
    home = homes(parts)
    cases = rows_by(image.case for image in manifest.images)
    return {
        case: {
            "slides": sorted({manifest.slides[row] for row in rows} - {""}),
            "images": dict(sorted(Counter(manifest.images[row].label for row in rows).items())),
            "parts": sorted({home[row] for row in rows if row in home}),
        }
        for case, rows in sorted(cases.items())
        if case
    }


def part_counts(manifest: Manifest, parts: Mapping[str, np.ndarray]) -> dict[str, dict[str, Counts]]:
    """Return the counts of every part, in all and by class."""
    counts = {}
    for name, rows in parts.items():
        labels = manifest.labels[rows]
        by_class = {c: count(manifest, rows[labels == k]) for k, c in enumerate(manifest.classes)}
        counts[name] = {"all": count(manifest, rows), **by_class}
    return counts
