"""Pictures that are there more than once: byte by byte, or turned, mirrored, re-encoded.

Copies of copies belong together: what is asked (two classes? two parts?) is asked of the whole group, so
that an image of unknown case or part between two others hides nothing.

Images that are equal to the byte and lie under two cases are disputed: one of them stands under a
patient whom it does not show, and a split may part the two. A run is not begun with them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from stacker.audit.findings import Finding, Severity, finding
from stacker.audit.fingerprints import Measures, find_pairs
from stacker.data.census import homes
from stacker.data.disputed import same_bytes
from stacker.data.images import FLAT
from stacker.data.manifest import Image, Manifest
from stacker.errors import plural

IDENTICAL = "same content"


@dataclass(frozen=True)
class Copy:
    """Two rows of a manifest that show one picture, and what was done to one of them."""

    first: int
    second: int
    change: str
    similarity: float


@dataclass(frozen=True)
class Group:
    """All rows that show one picture, and the copies that tie them together."""

    rows: tuple[int, ...]
    copies: tuple[Copy, ...]
    blank: bool


def find_copies(manifest: Manifest, measures: Measures) -> list[Group]:
    """Return the groups of copies; blank pictures are copies only when they are equal to the byte."""
    same = same_bytes(manifest)
    copies = [Copy(rows[0], row, IDENTICAL, 1.0) for rows in same.values() for row in rows[1:]]
    once = np.setdiff1d(np.arange(len(manifest.images)), [copy.second for copy in copies])
    pairs = find_pairs(measures, once)
    copies += [Copy(pair.first, pair.second, pair.change, pair.similarity) for pair in pairs]
    if not copies:
        return []
    ends = np.array([(copy.first, copy.second) for copy in copies])
    count = len(manifest.images)
    graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (count, count))
    _, home = connected_components(graph, directed=False)
    members: dict[int, list[int]] = defaultdict(list)
    for row in np.unique(ends):
        members[home[row]].append(int(row))
    ties: dict[int, list[Copy]] = defaultdict(list)
    for copy in copies:
        ties[home[copy.first]].append(copy)
    flat = measures.contrast <= FLAT
    return [Group(tuple(rows), tuple(ties[g]), bool(flat[rows].all())) for g, rows in members.items()]


def straddling(
    manifest: Manifest, groups: Iterable[Group], parts: Mapping[str, np.ndarray]
) -> list[str]:
    """Describe the groups that have members in two parts of a split, blank pictures left out."""
    home = homes(parts)
    return [
        shown
        for group in groups
        if not group.blank
        and (shown := _contradiction(manifest, group, lambda row, _: home.get(row, "")))
    ]


def _contradiction(manifest: Manifest, group: Group, value: Callable[[int, Image], str]) -> str | None:
    """Describe two members of a group that differ in something, where it is known; None if none do."""
    first: dict[str, int] = {}
    for row in group.rows:
        first.setdefault(value(row, manifest.images[row]), row)
    first.pop("", None)
    if len(first) < 2:
        return None
    (one, row), (other, second), *_ = first.items()
    change = next((c.change for c in group.copies if {c.first, c.second} == {row, second}), "copies")
    return f"{manifest.images[row].id} ({one}) = {manifest.images[second].id} ({other}): {change}"


def describe(manifest: Manifest, copies: Iterable[Copy]) -> list[str]:
    """Name copies for people."""
    images = manifest.images
    return [
        f"{images[c.first].id} = {images[c.second].id} ({c.change}, {c.similarity:.2f})" for c in copies
    ]


def check_copies(manifest: Manifest, groups: Sequence[Group]) -> Iterable[Finding]:
    """Report copies, the worst kind first: with two labels, under two cases, turned, or just there."""
    kinds: tuple[tuple[str, Severity, Callable[[int, Image], str], str, str], ...] = (
        ("with two classes", "error", lambda _, i: i.label, "one of the labels is wrong", "remove both"),
        (
            *("with two subtypes", "warning", lambda _, i: i.subtype),
            *("one of the subtypes is wrong", "leave both out of the subtype task"),
        ),
        (
            *("under two cases", "warning", lambda _, i: i.case),
            *("the cases may be one patient, whom a split cuts", "merge them"),
        ),
    )
    for kind, severity, value, meaning, advice in kinds:
        shown = [text for group in groups if (text := _contradiction(manifest, group, value))]
        if shown:
            text = f"{plural(len(shown), 'picture')} {kind}: {meaning}"
            yield finding(severity, f"one picture {kind}", text, advice, shown)
    copies = [copy for group in groups for copy in group.copies]
    turned = [copy for copy in copies if copy.change not in (IDENTICAL, "same position")]
    if turned:
        yield finding(
            "warning",
            "augmented copies",
            f"{plural(len(turned), 'pair')} of images turned or mirrored into each other: augmented "
            "files count as images that were never taken, and split apart they leak",
            "keep the originals only: training turns and mirrors them itself (train.augment)",
            describe(manifest, turned),
        )
    if groups:
        images = sum(len(group.rows) for group in groups)
        identical = sum(copy.change == IDENTICAL for copy in copies)
        text = f"{images} images show {plural(len(groups), 'picture')}"
        text += f"; {plural(identical, 'image')} equal to another to the byte" if identical else ""
        yield finding("warning", "duplicates", text, "keep one of each", describe(manifest, copies))
