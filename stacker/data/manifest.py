"""The manifest: one row per image, with the label to learn and the case that it belongs to.

`formats` turns a data set of any format into rows; everything downstream sees only the manifest. The
case is the unit that may never straddle a split: in BreakHis the slide ids `14-22549AB`, `14-22549CD`
and `14-22549G` are three slides of the one case `14-22549`. Where nothing tells the case it stays empty,
and a split by case is refused: it is never guessed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from stacker.errors import SHOWN, DataError, Unusable, grouped
from stacker.files import publish

log = logging.getLogger(__name__)
T = TypeVar("T")
SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
}
PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"}


@dataclass(frozen=True, slots=True)
class Image:
    """One row: a picture, its label and where it comes from.

    What is unknown is empty or None. `index` is the row where `path` is an array of images; `split` is
    the part in which the data set itself has the image (train, valid or test).
    """

    id: str
    path: str
    label: str
    case: str = ""
    slide: str = ""
    magnification: int | None = None
    subtype: str = ""
    split: str = ""
    index: int | None = None
    sha256: str = ""


COLUMNS = tuple(column.name for column in fields(Image))
LEFT_OUT = "left_out.csv"  # beside the manifest of a run


@dataclass(frozen=True)
class Manifest:
    """The images of a run in a fixed order, and the classes in the order of their indices.

    `left_out` are the images that could not be used; they are no part of what the manifest stands for.
    """

    images: tuple[Image, ...]
    classes: tuple[str, ...]
    left_out: tuple[Unusable, ...] = field(default=(), compare=False)

    @cached_property
    def labels(self) -> np.ndarray:
        """Class indices, (N,) int64."""
        position = {name: i for i, name in enumerate(self.classes)}
        return np.array([position[image.label] for image in self.images], dtype=np.int64)

    @property
    def positive(self) -> str | None:
        """The class that sensitivity is about, the last of two; None where there are more."""
        return self.classes[-1] if len(self.classes) == 2 else None

    @cached_property
    def unit(self) -> str:
        """Name the largest unit that is known for every image: case, slide or image.

        Whatever may not take a patient apart (intervals, shallow models) goes by it, and says so.
        """
        if all(image.case for image in self.images):
            return "case"
        return "slide" if all(self.slides) else "image"

    @cached_property
    def cases(self) -> list[str]:
        """Each image's case; where some are not known, its slide or its own id, as `unit` says."""
        return self.groups(self.unit)

    @cached_property
    def mixed_cases(self) -> list[str]:
        """The cases with images of several classes: where there are any, labels are not of cases."""
        labels: dict[str, set[str]] = defaultdict(set)
        for case, image in zip(self.cases, self.images, strict=True):
            labels[case].add(image.label)
        return sorted(case for case, found in labels.items() if len(found) > 1)

    @cached_property
    def slides(self) -> list[str]:
        """Return every image's slide; where cases number their slides from one, with its case."""
        if not self._slides_are_numbered:
            return [image.slide for image in self.images]
        return [f"{image.case}/{image.slide}" if image.slide else "" for image in self.images]

    @cached_property
    def misplaced_slides(self) -> dict[str, list[str]]:
        """Return the slides that are listed under several cases by mistake, with the cases."""
        return {} if self._slides_are_numbered else self._slides_of_several_cases

    @cached_property
    def _slides_of_several_cases(self) -> dict[str, list[str]]:
        cases: dict[str, set[str]] = {}
        for image in self.images:
            if image.slide and image.case:
                cases.setdefault(image.slide, set()).add(image.case)
        return {slide: sorted(cases[slide]) for slide in cases if len(cases[slide]) > 1}

    @cached_property
    def _slides_are_numbered(self) -> bool:
        """Say whether slide names repeat from case to case: a few do by mistake, most do by design."""
        slides = {image.slide for image in self.images if image.slide}
        return 2 * len(self._slides_of_several_cases) >= max(1, len(slides))

    @cached_property
    def digest(self) -> str:
        """Stand for every row's identity, label, origin and content, wherever the files lie."""
        names = [name for name in COLUMNS if name != "path"]
        content = hashlib.sha256(json.dumps(self.classes).encode())
        for image in self.images:
            content.update(json.dumps([getattr(image, name) for name in names]).encode())
        return content.hexdigest()[:16]

    def names(self, unit: str) -> list[str]:
        """Return each image's case, slide or own id; what is not known is empty."""
        if unit == "slide":
            return self.slides
        return [image.case if unit == "case" else image.id for image in self.images]

    def groups(self, unit: str) -> list[str]:
        """Return each image's case, slide or own id: the unit that a split keeps together.

        Raise DataError when an image's case (or slide) is not known.
        """
        names = self.names(unit)
        if not all(names):
            first = self.images[names.index("")].id
            raise DataError(
                f"the {unit} of {names.count('')} of {len(names)} images is unknown, e.g. of {first}",
                "set data.case_pattern (folder, csv), or add a column 'case' (csv) or the meta CSVs "
                "(pcam); folds.group=image needs no case, but its results are labelled as leaking",
            )
        return names

    def rows_of(self, unit: str, members: Iterable[str]) -> np.ndarray:
        """Return the positions of the images whose case, slide or id is among `members`."""
        wanted = set(members)
        return np.flatnonzero([group in wanted for group in self.groups(unit)])

    def without(self, unusable: Mapping[int, Unusable]) -> Manifest:
        """Return the manifest less some rows; raise DataError when a class goes with them."""
        kept = [image for row, image in enumerate(self.images) if row not in unusable]
        left_out = (*self.left_out, *(unusable[row] for row in sorted(unusable)))
        return make_manifest(kept, self.classes, left_out=left_out)

    def describe(self) -> str:
        """Say in a line what is here."""
        images = Counter(image.label for image in self.images)
        cases = cases_by_class(self.images)
        parts = [
            f"{c}{' (positive)' * (c == self.positive)} {images[c]} images"
            + (f" of {cases[c]} cases" if cases[c] else "")
            for c in self.classes
        ]
        return f"{len(self.images)} images: " + "; ".join(parts)


def rows_by(values: Iterable[T]) -> dict[T, list[int]]:
    """Return the rows in which each value is found."""
    rows: dict[T, list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        rows[value].append(row)
    return rows


def cases_by_class(images: Iterable[Image]) -> Counter[str]:
    """Return how many known cases have images of each class."""
    return Counter(label for _, label in {(i.case, i.label) for i in images if i.case})


def warn_left_out(images: Sequence[Unusable]) -> None:
    """Log how many images are left out and why, and where all of them are listed."""
    for line in grouped(images):
        log.warning("left out: %s", line)
    if len(images) > SHOWN:
        log.warning(
            "complete list: %s of the run, or 'stacker data describe CONFIG --out FILE'", LEFT_OUT
        )


def make_manifest(
    images: Sequence[Image],
    classes: Sequence[str] | None = None,
    positive: str | None = None,
    left_out: tuple[Unusable, ...] = (),
) -> Manifest:
    """Return the images with their classes, sorted unless an order is given, the positive one last.

    Raise DataError when there is only one class, or when the images' classes are not those given.
    """
    counts = Counter(image.label for image in images)
    order = tuple(sorted(classes or sorted(counts), key=lambda name: name == positive))
    if len(counts) < 2:
        only = order[0] if counts and not classes else ", ".join(counts) or "none"
        raise DataError(
            f"{len(images)} images of one class only ({only}), expected at least two classes",
            "check data.path, data.task and data.magnifications",
        )
    if set(order) != set(counts):
        raise DataError(
            f"the images have the classes {', '.join(sorted(counts))}, expected {', '.join(order)}",
            "check data.classes and the images that were left out",
        )
    return Manifest(tuple(images), order, left_out)


def save_manifest(manifest: Manifest, path: Path) -> None:
    """Publish the manifest as CSV, and beside it the images that were left out."""
    rows = ([getattr(image, name) for name in COLUMNS] for image in manifest.images)
    if manifest.left_out:
        write_csv(path.with_name(LEFT_OUT), Unusable._fields, manifest.left_out)
    write_csv(path, COLUMNS, rows)


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Publish a table."""
    with publish(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def load_manifest(
    path: Path, classes: Sequence[str] | None = None, positive: str | None = None
) -> Manifest:
    """Read a manifest that `save_manifest` wrote, with the classes in the order of `make_manifest`."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            return make_manifest([_image(row) for row in reader], classes, positive)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} was edited and cannot be read ({error})",
                "restore the file, or start a new run (--set run=NAME)",
            ) from None


def _image(row: dict[str, str]) -> Image:
    """Turn a CSV row into an image; texts that repeat are held once."""
    texts = {name: sys.intern(row.pop(name)) for name in ("path", "label", "case", "slide", "subtype")}
    numbers = {
        name: int(text) if text else None
        for name, text in ((name, row.pop(name)) for name in ("magnification", "index"))
    }
    return Image(**row, **texts, **numbers)  # type: ignore[arg-type]
