"""How many images, slides and cases there are of what: the numbers of a paper's data section."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from stacker.data.folds import Folds
from stacker.data.manifest import Image, Manifest

Counts = dict[str, int]
VIEWS: dict[str, Callable[[Image], Any]] = {
    "class": lambda image: image.label,
    "subtype": lambda image: image.subtype,
    "magnification": lambda image: image.magnification,
    "part of the data set": lambda image: image.split,
}


def census(manifest: Manifest) -> dict[str, dict[str, Counts]]:
    """Return the counts by class and, where they are known, by subtype, magnification and own split."""
    found = {}
    for name, view in VIEWS.items():
        values = sorted(
            {view(image) or "" for image in manifest.images}, key=lambda v: (str(type(v)), v)
        )
        if values not in ([""], [0]):
            rows = defaultdict(list)
            for row, image in enumerate(manifest.images):
                rows[view(image) or ""].append(row)
            found[name] = {str(value) or "unknown": count(manifest, rows[value]) for value in values}
    found["total"] = {"all": count(manifest, range(len(manifest.images)))}
    return found


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
    found: dict[str, dict[str, Any]] = {}
    for row, image in enumerate(manifest.images):
        if image.case:
            case = found.setdefault(image.case, {"slides": set(), "images": Counter(), "parts": set()})
            case["slides"] |= {manifest.slides[row]} - {""}
            case["images"][image.label] += 1
            case["parts"] |= {home[row]} if row in home else set()
    return {
        name: {
            "slides": sorted(found[name]["slides"]),
            "images": dict(sorted(found[name]["images"].items())),
            "parts": sorted(found[name]["parts"]),
        }
        for name in sorted(found)
    }


def part_counts(manifest: Manifest, parts: Mapping[str, np.ndarray]) -> dict[str, dict[str, Counts]]:
    """Return the counts of every part, in all and by class."""
    found = {}
    for name, rows in parts.items():
        labels = manifest.labels[rows]
        by_class = {c: count(manifest, rows[labels == k]) for k, c in enumerate(manifest.classes)}
        found[name] = {"all": count(manifest, rows), **by_class}
    return found
