"""Problems of a data set and its split, found before a network learns from them.

Every check is a function from the manifest (and what was measured of its images) to findings. An
error makes a score wrong: the same case, slide or image in two parts, a part without a class. A warning
may make it misleading. A note is worth a sentence in a paper.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from stacker.audit.copies import Group, check_copies, find_copies, straddling
from stacker.audit.fingerprints import Copy, Measures, measure
from stacker.audit.report import Audit, Finding, Severity, finding, sort
from stacker.audit.shortcuts import recognisability
from stacker.data.census import case_table, census, official_parts, part_counts, parts_of
from stacker.data.folds import Folds
from stacker.data.images import FLAT
from stacker.data.manifest import Manifest, cases_by_class
from stacker.data.store import Pixels
from stacker.errors import SHOWN, first_few, plural

Parts = Mapping[str, np.ndarray]
FEW_CASES = 5
GREY = 0.02  # mean saturation; the palest BreakHis and IDC tissue is above
COLOURLESS = 0.05
NO_EVIDENCE = ("picture format", "magnification")  # of a diagnosis, whatever they correlate with


def audit(manifest: Manifest, folds: Folds | None, pixels: Pixels, seed: int) -> Audit:
    """Look at everything: counts, overlaps, copies, contradictions, shortcuts, pictures."""
    measures = measure(pixels)
    copies = find_copies(manifest, measures)
    shortcuts = recognisability(manifest, measures, seed)
    parts = {} if folds is None else parts_of(manifest, folds)
    official = official_parts(manifest)
    if folds is not None and folds.policy.get("test") == "official":
        official = {}  # it is this run's own
    theirs = "the data set's own split (not used)"
    findings = [
        *check_split(manifest, parts, copies, "this run's split", "error"),
        *check_parts(manifest, parts, "this run's split", "error"),
        *check_split(manifest, official, copies, theirs, "warning"),
        *check_parts(manifest, official, theirs, "warning"),
        *check_copies(manifest, copies),
        *check_labels(manifest),
        *check_sizes(manifest),
        *check_pictures(manifest, measures),
        *check_shortcuts(shortcuts, manifest.unit),
    ]
    return Audit(
        findings=sort(findings),
        census=census(manifest),
        unit=manifest.unit,
        split="" if folds is None else folds.label,
        parts={"own": part_counts(manifest, parts), "official": part_counts(manifest, official)},
        cases=case_table(manifest, parts or official),
        shortcuts=shortcuts,
        copies=tuple(_named(manifest, copy) for group in copies for copy in group.copies),
    )


def _named(manifest: Manifest, copy: Copy) -> dict[str, Any]:
    first, second = manifest.images[copy.first], manifest.images[copy.second]
    return {**asdict(copy), "first": first.id, "second": second.id}


def check_split(
    manifest: Manifest, parts: Parts, copies: Sequence[Group], name: str, severity: Severity
) -> Iterable[Finding]:
    """Find cases, slides and duplicates in several parts."""
    meaning = "in several parts: a model would be tested on what trained it"
    for unit in ("case", "slide"):
        names = manifest.names(unit)
        sides: dict[str, set[str]] = defaultdict(set)
        for part, rows in parts.items():
            for row in rows:
                sides[names[row]].add(part)
        sides.pop("", None)
        both = sorted(group for group in sides if len(sides[group]) > 1)
        if both:
            mistaken = unit == "slide" and manifest.misplaced_slides
            yield finding(
                severity,
                f"{unit} in several parts",
                f"{name} has {len(both)} of {len(sides)} {unit}s {meaning}",
                "correct the slides that are listed under two cases"
                if mistaken
                else "set folds.group=case, and shares instead of 'official'",
                [f"{group} in {' and '.join(sorted(sides[group]))}" for group in both],
            )
    apart = straddling(manifest, copies, parts)
    if apart:
        text = f"{name} has duplicates of {plural(len(apart), 'image')} {meaning}"
        yield finding(severity, "duplicate in several parts", text, "remove the duplicates", apart)


def check_parts(manifest: Manifest, parts: Parts, name: str, severity: Severity) -> Iterable[Finding]:
    """Find parts that lack a class, and test and validation parts with few cases of one."""
    few_means = {
        "test": f"below {FEW_CASES} cases of a class, scores have no confidence interval",
        "validation": "too few to choose an epoch, so training keeps the last one",
    }
    for part, rows in parts.items():
        images = [manifest.images[row] for row in rows]
        present = {image.label for image in images}
        lacking = [label for label in manifest.classes if label not in present]
        cases = sorted(cases_by_class(images).items())
        few = [f"{number} of '{label}'" for label, number in cases if number < FEW_CASES]
        if few and part in few_means:
            text = f"{name}: {part} has only {first_few(few)} (cases): {few_means[part]}"
            own_test: Severity = "warning" if part == "test" and severity == "error" else "note"
            yield finding(own_test, f"few {part} cases", text, "add cases, or say so in the paper")
        if lacking:
            text = f"{name}: {part} ({len(rows)} images) has no {first_few(lacking)}"
            if part == "validation":
                yield finding("note", "part without a class", f"{text}: training keeps the last epoch")
                continue
            yield finding(
                severity,
                "part without a class",
                f"{text}: scores on it are meaningless. Was the list split without shuffling?",
                "set folds.test and folds.stack to shares instead of 'official'",
            )


def check_labels(manifest: Manifest) -> Iterable[Finding]:
    """Find slides and cases that carry two subtypes or two classes."""
    kinds = [("subtype", "subtypes"), ("label", "classes")]
    if all(image.label == image.subtype for image in manifest.images):
        kinds.pop()  # they are the same
    slides = set(manifest.slides)
    for unit in ("slide", "case"):
        names = manifest.names(unit)
        for attribute, kind in kinds:
            values: dict[str, set[str]] = defaultdict(set)
            for image, name in zip(manifest.images, names, strict=True):
                if name and getattr(image, attribute):
                    values[name].add(getattr(image, attribute))
            mixed = sorted(group for group in values if len(values[group]) > 1)
            if unit == "case":  # a case that is one slide of the same name is reported as that slide
                mixed = [group for group in mixed if group not in slides]
            if not mixed:
                continue
            topic = f"{unit} with two {kind}"
            text = f"{len(mixed)} of {len(values)} {unit}s have images of two {kind}"
            if len(mixed) > len(values) / 4:
                yield finding("note", topic, f"{text}: labels belong to patches, not to patients")
                continue
            listed = [f"{group}: {', '.join(sorted(values[group]))}" for group in mixed]
            severity: Severity = "warning" if unit == "slide" else "note"
            yield finding(severity, topic, text, "check them against the source of the data", listed)


def check_sizes(manifest: Manifest) -> Iterable[Finding]:
    """Find unknown cases, classes of few cases and classes that outnumber the others."""
    misplaced = sorted(manifest.misplaced_slides.items())
    if misplaced:
        listed = [f"{slide}: {', '.join(cases)}" for slide, cases in misplaced]
        text = f"{plural(len(listed), 'slide')} listed under several cases: only one can be right"
        yield finding("warning", "slide under two cases", text, "correct the case", listed)
    unknown = [image.id for image in manifest.images if not image.case]
    if unknown:
        yield finding(
            "warning",
            "unknown case",
            f"the case of {len(unknown)} of {len(manifest.images)} images is unknown, so images of one "
            "patient may end up in different parts",
            "set data.case_pattern, or add a column 'case' or the meta CSVs",
            unknown,
        )
    cases = sorted(cases_by_class(manifest.images).items())
    few = [f"'{label}' has {plural(number, 'case')}" for label, number in cases if number < FEW_CASES]
    if few:
        listed = few if len(few) > SHOWN else []
        text = f"{len(few)} classes have fewer than {FEW_CASES} cases" if listed else ", ".join(few)
        text += ": too few for confidence intervals, and scores depend on the random split"
        yield finding("warning", "few cases", text, "add cases, or say so in the paper", listed)
    images = np.bincount(manifest.labels)
    if images.max() > 10 * images.min():
        most, least = manifest.classes[images.argmax()], manifest.classes[images.argmin()]
        text = f"{images.max()} images are '{most}' and {images.min()} '{least}': "
        text += "accuracy is misleading"
        yield finding("warning", "unbalanced classes", text, "use balanced accuracy and AUC")


def check_pictures(manifest: Manifest, measures: Measures) -> Iterable[Finding]:
    """Find images without content or colour."""
    blank = measures.contrast < FLAT
    grey = (measures.saturation < GREY) & ~blank
    kinds = (
        ("blank images", blank, "blank or nearly so: they show no tissue"),
        ("grey images", grey, "without colour: glass, dirt or greyscale instead of stained tissue"),
    )
    for topic, which, meaning in kinds:
        if which.any():
            ids = [manifest.images[row].id for row in np.flatnonzero(which)]
            text = f"{plural(len(ids), 'image')} {meaning}"
            yield finding("warning", topic, text, "look at them, and remove what shows no tissue", ids)
    typical = float(np.median(measures.saturation))
    if typical < COLOURLESS:
        text = f"half of the images have a saturation below {typical:.3f}: is this H&E-stained tissue?"
        yield finding("warning", "not histology", text, "check data.path")


def check_shortcuts(shortcuts: Mapping[str, Any], unit: str) -> Iterable[Finding]:
    """Find shortcuts: clues from which a shallow model tells the class of held-out cases."""
    if not shortcuts:
        text = f"too few {unit}s of a class to test whether colour or file format give it away"
        yield finding("note", "shortcuts not tested", text)
    for clue, area in shortcuts.items():
        perfect = [1.0, 1.0] if area["auc"] == 1 else [0.0, 1.0]  # of which nothing tells the error
        low, high = area["interval"] or perfect
        if low <= 0.6:
            continue
        artefact = clue in NO_EVIDENCE
        yield finding(
            "error" if artefact and low > 0.8 else "warning",
            f"shortcut: {clue}",
            f"{clue} alone predicts the class of held-out {unit}s with AUC {area['auc']:.2f} "
            f"[{low:.2f}, {high:.2f}]: a network may learn that instead of the tissue",
            "prepare the images of all classes in the same way"
            if artefact
            else "compare the final scores with this AUC",
            area["typical"],
        )
