"""Duplicate images: identical files, or images that were rotated, mirrored or re-encoded.

Copies of copies belong together. Contradictions (two classes? two parts?) are looked for in the whole
group, so that an image of unknown case or part between two others hides nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from stacker.audit.fingerprints import Copy, Measures, find_pairs
from stacker.audit.report import Finding, Severity, finding
from stacker.data.census import homes
from stacker.data.disputed import same_bytes
from stacker.data.images import FLAT
from stacker.data.manifest import Manifest
from stacker.errors import plural

IDENTICAL = "same content"


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
    copies += find_pairs(measures, once)
    sets = DisjointSet(sorted({row for copy in copies for row in (copy.first, copy.second)}))
    for copy in copies:
        sets.merge(copy.first, copy.second)
    ties: dict[int, list[Copy]] = defaultdict(list)
    for copy in copies:
        ties[sets[copy.first]].append(copy)
    flat = measures.contrast <= FLAT
    groups = [sorted(rows) for rows in sets.subsets()]
    return [Group(tuple(g), tuple(ties[sets[g[0]]]), bool(flat[g].all())) for g in groups]


def straddling(
    manifest: Manifest, groups: Iterable[Group], parts: Mapping[str, np.ndarray]
) -> list[str]:
    """Describe the groups that have members in two parts of a split, blank pictures left out."""
    home = homes(parts)
    values = [home.get(row, "") for row in range(len(manifest.images))]
    return _contradictions(manifest, (group for group in groups if not group.blank), values)


def _contradictions(manifest: Manifest, groups: Iterable[Group], values: Sequence[str]) -> list[str]:
    """Describe two members of each group that differ in a value of the rows, where it is known."""
    described = []
    for group in groups:
        first: dict[str, int] = {}
        for row in group.rows:
            first.setdefault(values[row], row)
        first.pop("", None)
        if len(first) > 1:
            (one, row), (other, second), *_ = first.items()
            ties = (copy.change for copy in group.copies if {copy.first, copy.second} == {row, second})
            ids = (manifest.images[row].id, manifest.images[second].id)
            described.append(f"{ids[0]} ({one}) = {ids[1]} ({other}): {next(ties, 'copies')}")
    return described


def describe(manifest: Manifest, copies: Iterable[Copy]) -> list[str]:
    """Name copies for people."""
    images = manifest.images
    return [
        f"{images[c.first].id} = {images[c.second].id} ({c.change}, {c.similarity:.2f})" for c in copies
    ]


def check_copies(manifest: Manifest, groups: Sequence[Group]) -> Iterable[Finding]:
    """Report duplicates, the worst kind first: with two labels, under two cases, rotated, or plain."""
    patient = "the two cases may be one patient, and a split by case would leak"
    leave = "leave both out of the subtype task"
    kinds: tuple[tuple[str, str, Severity, str, str], ...] = (
        ("label", "with two classes", "error", "one of the labels is wrong", "remove both"),
        ("subtype", "with two subtypes", "warning", "one of the subtypes is wrong", leave),
        ("case", "under two cases", "warning", patient, "merge the cases"),
    )
    for attribute, kind, severity, meaning, advice in kinds:
        values = [getattr(image, attribute) for image in manifest.images]
        shown = _contradictions(manifest, groups, values)
        if shown:
            text = f"{plural(len(shown), 'image')} with duplicates {kind}: {meaning}"
            yield finding(severity, f"duplicate {kind}", text, advice, shown)
    copies = [copy for group in groups for copy in group.copies]
    turned = [copy for copy in copies if copy.change not in (IDENTICAL, "same position")]
    if turned:
        yield finding(
            "warning",
            "augmented copies",
            f"{plural(len(turned), 'pair')} of images are rotated or mirrored copies of each other: "
            "files augmented before the split count twice, and leak if they end up in different parts",
            "keep only the originals: training augments them itself (train.augment)",
            describe(manifest, turned),
        )
    if groups:
        images = sum(len(group.rows) for group in groups)
        identical = sum(copy.change == IDENTICAL for copy in copies)
        text = f"{images} images, of which only {len(groups)} are different from each other"
        text += f"; {plural(identical, 'file')} identical to another" if identical else ""
        yield finding("warning", "duplicates", text, "keep one of each", describe(manifest, copies))
