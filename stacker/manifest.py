"""The manifest: one row per image, with the label to learn and the case that it belongs to.

A reader per data-set format turns a folder into rows; everything downstream sees only the manifest.
The case is the unit that may never straddle a split: in BreakHis the slide ids `14-22549AB`,
`14-22549CD` and `14-22549G` are three slides of the one case `14-22549`.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from stacker.config import DataConfig
from stacker.errors import DataError
from stacker.run import digest, publish

log = logging.getLogger(__name__)

SUBTYPES = {
    "A": "adenosis",
    "F": "fibroadenoma",
    "PT": "phyllodes_tumor",
    "TA": "tubular_adenoma",
    "DC": "ductal_carcinoma",
    "LC": "lobular_carcinoma",
    "MC": "mucinous_carcinoma",
    "PC": "papillary_carcinoma",
}
BREAKHIS_NAME = re.compile(
    r"SOB_(?P<tumour>[BM])_(?P<subtype>A|F|PT|TA|DC|LC|MC|PC)"
    r"-(?P<year>\d{2})-(?P<accession>\d+)(?P<part>[A-Z]*)-(?P<magnification>\d+)-(?P<seq>\d+)\.png"
)


@dataclass(frozen=True, slots=True)
class Image:
    """One row: a picture, its label and where it comes from."""

    id: str
    path: str
    label: str
    case: str
    slide: str
    magnification: int
    subtype: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The images of a run in a fixed order, and the classes in the order of their indices."""

    images: tuple[Image, ...]
    classes: tuple[str, ...]

    @cached_property
    def labels(self) -> np.ndarray:
        """Class indices, (N,) int64."""
        position = {name: i for i, name in enumerate(self.classes)}
        return np.array([position[image.label] for image in self.images], dtype=np.int64)

    @cached_property
    def digest(self) -> str:
        """Stand for every row's identity, label, origin and content, wherever the files lie."""
        rows = [[v for k, v in asdict(i).items() if k != "path"] for i in self.images]
        return digest([self.classes, rows])

    def groups(self, unit: str) -> list[str]:
        """Return each image's case, slide or own id: the unit that a split keeps together."""
        attribute = {"case": "case", "slide": "slide", "image": "id"}[unit]
        return [getattr(image, attribute) for image in self.images]

    def rows_of(self, unit: str, members: Iterable[str]) -> np.ndarray:
        """Return the positions of the images whose case, slide or id is among `members`."""
        wanted = set(members)
        return np.flatnonzero([group in wanted for group in self.groups(unit)])

    def without(self, rows: Iterable[int]) -> Manifest:
        """Return the manifest less some rows."""
        dropped = set(rows)
        return make_manifest([i for n, i in enumerate(self.images) if n not in dropped])

    def describe(self) -> str:
        """Say in a line what is here."""
        cases = {(image.case, image.label) for image in self.images}
        images = Counter(image.label for image in self.images)
        per_class = Counter(label for _, label in cases)
        parts = [f"{c} {images[c]} images of {per_class[c]} cases" for c in self.classes]
        return f"{len(self.images)} images: " + "; ".join(parts)


def read_manifest(config: DataConfig) -> Manifest:
    """Read the data set; raise DataError when the folder, the names or the classes are unusable."""
    if not config.path.is_dir():
        raise DataError(f"data.path: no folder at {config.path}; give the data set's folder")
    if config.masks is not None and not config.masks.is_dir():
        raise DataError(f"data.masks: no folder at {config.masks}; give the masks' folder, or null")
    images = READERS[config.format](config.path, config.task)
    if config.magnifications is not None:
        found = sorted({image.magnification for image in images})
        images = [image for image in images if image.magnification in config.magnifications]
        if not images:
            raise DataError(f"no image has a magnification in {config.magnifications}; found {found}")
    if config.task == "subtype":
        images = _without_contradicting_cases(images)
    _refuse_duplicate_ids(images)
    _refuse_useless_masks(images, config.masks)
    images = sorted(images, key=lambda image: image.id)
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(lambda image: _sha256(Path(image.path)), images)
        images = [replace(image, sha256=h) for image, h in zip(images, hashes, strict=True)]
    return make_manifest(images)


def make_manifest(images: list[Image]) -> Manifest:
    """Return the images with their classes; raise DataError when there is only one class."""
    classes = tuple(sorted({image.label for image in images}))
    if len(classes) < 2:
        only = classes[0] if classes else "none"
        raise DataError(
            f"{len(images)} images of one class only ({only}); two are needed: look at data.path, "
            "data.task and data.magnifications"
        )
    return Manifest(tuple(images), classes)


def read_breakhis(root: Path, task: str) -> list[Image]:
    """Read BreakHis, as distributed or as a flat folder, from its strict file-name grammar.

    A tree may keep other pictures beside the slides (masks, say): where there is a
    `histology_slides` folder, only what is below it counts.
    """
    tree = next(iter(sorted(root.rglob("histology_slides"))), root)
    images, strangers = [], []
    for path in sorted(tree.rglob("*.png")):
        match = BREAKHIS_NAME.fullmatch(path.name)
        if match is None:
            strangers.append(path)
            continue
        case = f"{match['year']}-{match['accession']}"
        subtype = SUBTYPES[match["subtype"]]
        tumour = {"B": "benign", "M": "malignant"}[match["tumour"]]
        images.append(
            Image(
                id=path.stem,
                path=str(path.absolute()),
                label=tumour if task == "binary" else subtype,
                case=case,
                slide=case + match["part"],
                magnification=int(match["magnification"]),
                subtype=subtype,
                sha256="",
            )
        )
    if strangers:
        raise DataError(
            f"{len(strangers)} of {len(images) + len(strangers)} PNG files in {tree} are not named as "
            f"in BreakHis, e.g. {strangers[0].name} (expected SOB_M_DC-14-10001AB-200-001.png); "
            "move them elsewhere"
        )
    if not images:
        raise DataError(f"no BreakHis image (SOB_*.png) in {tree}")
    return images


READERS: dict[str, Callable[[Path, str], list[Image]]] = {"breakhis": read_breakhis}


def _without_contradicting_cases(images: list[Image]) -> list[Image]:
    """Leave out the cases that carry two subtypes (BreakHis lists 14-13412 as DC and as LC)."""
    labels = defaultdict(set)
    for image in images:
        labels[image.case].add(image.label)
    contradicting = sorted(case for case, found in labels.items() if len(found) > 1)
    for case in contradicting:
        log.warning("case %s is left out: it is labelled %s", case, " and ".join(labels[case]))
    return [image for image in images if image.case not in contradicting]


def _refuse_duplicate_ids(images: list[Image]) -> None:
    paths: dict[str, str] = {}
    for image in images:
        if image.id in paths:
            raise DataError(
                f"two files are named {image.id}: {paths[image.id]} and {image.path}; remove one"
            )
        paths[image.id] = image.path


def _refuse_useless_masks(images: list[Image], masks: Path | None) -> None:
    """Masks are needed last, when all is trained: notice early that none belongs to an image."""
    if masks is not None and not any((masks / Path(image.path).name).exists() for image in images):
        raise DataError(
            f"data.masks: no file in {masks} has the name of an image, {images[0].id}.png say"
        )


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def save_manifest(manifest: Manifest, path: Path) -> None:
    """Publish the manifest as CSV."""
    with publish(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Image)])
        writer.writeheader()
        writer.writerows(asdict(image) for image in manifest.images)


def load_manifest(path: Path) -> Manifest:
    """Read a manifest that `save_manifest` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        images = [Image(**{**row, "magnification": int(row["magnification"])}) for row in rows]  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} was edited and cannot be read ({error}); delete the run") from None
    return make_manifest(images)
