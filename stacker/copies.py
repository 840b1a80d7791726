"""Pictures that are there more than once: byte by byte, or turned, mirrored, re-encoded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from stacker.findings import Finding, Severity, finding, plural
from stacker.fingerprints import FLAT, Measures, find_pairs
from stacker.manifest import Manifest

IDENTICAL = "same content"


@dataclass(frozen=True)
class Copy:
    """Two rows of a manifest that show one picture, and what was done to one of them."""

    first: int
    second: int
    change: str
    similarity: float


def find_copies(manifest: Manifest, measures: Measures) -> list[Copy]:
    """Return the copies among the pictures that show something: blank ones all look alike.

    A group of identical images is tied to its first one, which alone is compared with other pictures.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for row in np.flatnonzero(measures.contrast >= FLAT):
        groups[manifest.images[row].sha256].append(int(row))
    identical = [Copy(rows[0], row, IDENTICAL, 1.0) for rows in groups.values() for row in rows[1:]]
    distinct = np.array(sorted(rows[0] for rows in groups.values()), dtype=np.int64)
    pairs = find_pairs(measures, distinct)
    return identical + [Copy(p.first, p.second, p.change, p.similarity) for p in pairs]


def straddling(copies: Sequence[Copy], parts: Mapping[str, np.ndarray]) -> list[Copy]:
    """Return the copies whose two rows are in different parts of a split."""
    home = {int(row): part for part, rows in parts.items() for row in rows}
    return [c for c in copies if c.first in home and home.get(c.second, home[c.first]) != home[c.first]]


def describe(manifest: Manifest, copies: Iterable[Copy]) -> list[str]:
    """Name copies for people."""
    images = manifest.images
    return [
        f"{images[c.first].id} = {images[c.second].id} ({c.change}, {c.similarity:.2f})" for c in copies
    ]


def check_copies(manifest: Manifest, copies: Sequence[Copy]) -> Iterable[Finding]:
    """Report copies, the worst kind first: with two labels, under two cases, turned, or just there."""
    kinds: dict[str, list[Copy]] = defaultdict(list)
    for copy in copies:
        first, second = manifest.images[copy.first], manifest.images[copy.second]
        if first.label != second.label:
            kinds["with two classes"].append(copy)
        elif first.subtype != second.subtype:
            kinds["with two subtypes"].append(copy)
        if first.case and second.case and first.case != second.case:
            kinds["under two cases"].append(copy)
        if copy.change not in (IDENTICAL, "same position"):
            kinds["turned or mirrored"].append(copy)
    wordings: dict[str, tuple[Severity, str, str]] = {
        "with two classes": ("error", "one of the labels is wrong", "remove both"),
        "with two subtypes": ("warning", "one of the subtypes is wrong", "leave both out of that task"),
        "under two cases": ("warning", "the cases may be one patient, whom a split cuts", "merge them"),
        "turned or mirrored": (
            "warning",
            "augmented files count as images that were never taken, and split apart they leak",
            "keep the originals only: training turns and mirrors them itself (train.flips)",
        ),
    }
    for kind, (severity, meaning, advice) in wordings.items():
        if kinds[kind]:
            topic = "augmented copies" if kind == "turned or mirrored" else f"one picture {kind}"
            text = f"{plural(len(kinds[kind]), 'pair')} of one picture {kind}: {meaning}"
            yield finding(severity, topic, text, advice, describe(manifest, kinds[kind]))
    if copies:
        pictures, images = _groups(copies)
        identical = sum(copy.change == IDENTICAL for copy in copies)
        text = f"{images} images show {plural(pictures, 'picture')}"
        text += f"; {plural(identical, 'pair')} equal to the byte" if identical else ""
        shown = describe(manifest, copies)
        yield finding("warning", "duplicates", text, "keep one of each", shown)


def _groups(copies: Sequence[Copy]) -> tuple[int, int]:
    """Return how many distinct pictures the copies show, and how many images they are."""
    ends = np.array([(copy.first, copy.second) for copy in copies])
    rows, position = np.unique(ends, return_inverse=True)
    first, second = position.reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(first)), (first, second)), (len(rows), len(rows)))
    return int(connected_components(graph, directed=False)[0]), len(rows)
