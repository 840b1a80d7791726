"""The formats by name, and how a data set of any of them becomes a manifest.

    breakhis   SOB_<B|M>_<subtype>-<year>-<slide>-<magnification>-<seq>.png, in a tree or flat
    pcam       camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5, read in place
    idc        <patient>/<class>/<patient>_idx5_x<X>_y<Y>_class<0|1>.png
    folder     [<train|valid|test>/]<class>/.../<image>, as torchvision's ImageFolder
    csv        path,label and, where known, id, case, slide, magnification, subtype, split

A format is one object beside its reader, and one line here.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from stacker.config.data import DataConfig
from stacker.data.formats.breakhis import BREAKHIS
from stacker.data.formats.folders import FOLDER, IDC
from stacker.data.formats.format import Format
from stacker.data.formats.pcam import PCAM
from stacker.data.formats.table import TABLE
from stacker.data.manifest import Image, Manifest, make_manifest, warn_left_out
from stacker.errors import (
    ConfigError,
    DataError,
    UnreadableImages,
    Unusable,
    first_few,
    plural,
    require_one_of,
)
from stacker.progress import track

log = logging.getLogger(__name__)

FORMATS: dict[str, Format] = {
    "breakhis": BREAKHIS,
    "pcam": PCAM,
    "idc": IDC,
    "folder": FOLDER,
    "csv": TABLE,
}


def format_of(config: DataConfig) -> Format:
    """Return a config's format; raise ConfigError for an unknown one, or a setting that it lacks."""
    require_one_of("format (data.format)", [config.format], FORMATS)
    chosen = FORMATS[config.format]
    for setting in ("case_pattern", "fold_list"):
        if getattr(config, setting) is not None and setting not in chosen.takes:
            others = " and ".join(name for name, kind in FORMATS.items() if setting in kind.takes)
            raise ConfigError(
                f"data.{setting} is for format {others}, and data.format is {config.format}",
                f"remove data.{setting}",
            )
    return chosen


def read_manifest(config: DataConfig) -> Manifest:
    """Read the data set; raise DataError when the paths, the names or the classes are unusable."""
    source = format_of(config)
    _require_paths(config, source.given)
    images: list[Image] = source.read(config)
    left_out: list[Unusable] = []
    if config.magnifications is not None:
        present = sorted({image.magnification or 0 for image in images})
        images = [image for image in images if image.magnification in config.magnifications]
        if not images:
            wanted = ", ".join(map(str, config.magnifications))
            raise DataError(
                f"no image has magnification {wanted}; found {', '.join(map(str, present))}",
                "change data.magnifications",
            )
    if config.task == "subtype":
        images = _by_subtype(images)
        if source.one_subtype_per_slide:
            images, left_out = without_contradicting_slides(images)
    if config.classes is not None:
        images = _of_classes(images, config.classes)
    if not images:
        raise DataError(f"no image is left of {config.path}", "check data.classes and data.task")
    _require_positive(images, config.positive)
    _refuse_duplicate_ids(images)
    _refuse_useless_masks(images, config.masks)
    images, gone = _with_hashes(sorted(images, key=lambda image: image.id), config.on_error)
    manifest = make_manifest(images, config.classes, config.positive, left_out=(*left_out, *gone))
    if config.task == "binary" and len(manifest.classes) > 2:
        counts = Counter(image.label for image in images)
        listed = ", ".join(f"{label!r}: {counts[label]}" for label in manifest.classes)
        raise DataError(
            f"data.task is binary, but there are {len(counts)} classes (images of {listed})",
            "choose two with data.classes, set data.task=subtype, or correct the labels",
        )
    return manifest


def _require_paths(config: DataConfig, given: str) -> None:
    """Raise DataError for a folder or file of the data section that is not there."""
    if not (config.path.is_file() if given == "file" else config.path.is_dir()):
        raise DataError(f"data.path: no {given} at {config.path}", f"set it to the data set's {given}")
    if config.masks is not None and not config.masks.is_dir():
        raise DataError(
            f"data.masks: no folder at {config.masks}", "set it to the folder of the masks, or null"
        )
    if config.fold_list is not None and not config.fold_list.is_file():
        raise DataError(
            f"data.fold_list: no file at {config.fold_list}", "set it to a dsfold list, or null"
        )


def _by_subtype(images: list[Image]) -> list[Image]:
    """Return the images with their subtype as label; the labels stay where nothing has a subtype."""
    without = [image.id for image in images if not image.subtype]
    if len(without) == len(images):
        return images
    if without:
        raise DataError(
            f"data.task is subtype, but {len(without)} of {len(images)} images have no subtype "
            f"({first_few(without)})",
            "add the subtypes, or set data.task=binary",
        )
    return [replace(image, label=image.subtype) for image in images]


def without_contradicting_slides(images: list[Image]) -> tuple[list[Image], list[Unusable]]:
    """Leave out slides labelled with two subtypes (BreakHis lists 14-13412 as DC and as LC).

    Return the other images, and those that are left out. A case may have lesions of two subtypes on
    slides of their own (14-21998, 14-29960): those stay.
    """
    labels: dict[str, set[str]] = defaultdict(set)
    for image in images:
        labels[image.slide].add(image.label)
    both = {slide: " and ".join(sorted(labels[slide])) for slide in sorted(labels)}
    both = {slide: named for slide, named in both.items() if len(labels[slide]) > 1}
    for named in dict.fromkeys(both.values()):
        slides = [slide for slide in both if both[slide] == named]
        log.warning(
            "left out: %s labelled %s: %s", plural(len(slides), "slide"), named, first_few(slides)
        )
    why = "slide {} is labelled {}"
    left_out = [Unusable(i.path, why.format(i.slide, both[i.slide])) for i in images if i.slide in both]
    return [image for image in images if image.slide not in both], left_out


def _of_classes(images: list[Image], classes: list[str]) -> list[Image]:
    """Leave out the images of classes that are not asked for."""
    counts = Counter(image.label for image in images)
    require_one_of("class (data.classes)", classes, sorted(counts))
    others = [
        f"'{label}' ({plural(counts[label], 'image')})" for label in sorted(counts.keys() - set(classes))
    ]
    if others:
        log.warning("left out, not in data.classes: %s", first_few(others))
    return [image for image in images if image.label in classes]


def _require_positive(images: list[Image], positive: str | None) -> None:
    """Raise for a positive class that no image is of, or that more than one class stands against."""
    if positive is None:
        return
    classes = sorted({image.label for image in images})
    require_one_of("class (data.positive)", [positive], classes)
    if len(classes) > 2:
        raise ConfigError(
            f"data.positive is {positive!r}: a positive class is for two classes, and there are "
            f"{len(classes)} ({', '.join(classes)})",
            "choose two with data.classes, or leave out data.positive",
        )


def _refuse_duplicate_ids(images: list[Image]) -> None:
    counts = Counter(image.id for image in images)
    if len(counts) < len(images):
        twice = next(name for name, count in counts.items() if count > 1)
        first, second, *_ = (image.path for image in images if image.id == twice)
        raise DataError(f"two images have the id {twice}: {first} and {second}", "remove or rename one")


def _refuse_useless_masks(images: list[Image], masks: Path | None) -> None:
    """Notice early that no mask belongs to an image: masks are used after all training."""
    if masks is None:
        return
    masked = Counter(name for image in images if (masks / (name := Path(image.path).name)).exists())
    if not masked:
        raise DataError(
            f"data.masks: no file in {masks} is named like an image (e.g. {Path(images[0].path).name})",
            "name each mask like its image, or set data.masks=null",
        )
    name, count = masked.most_common(1)[0]
    if count > 1:
        raise DataError(
            f"data.masks: {count} images are named like the mask {masks / name}", "rename the images"
        )


def _with_hashes(images: list[Image], on_error: str) -> tuple[list[Image], list[Unusable]]:
    """Return the images with the SHA-256 of their files; leave out, or refuse, those without."""
    if all(image.sha256 for image in images):
        return images, []
    reasons: dict[int, Unusable] = {}

    def sha256(row: int) -> str:
        try:
            return hashlib.sha256(Path(images[row].path).read_bytes()).hexdigest()
        except OSError as error:
            reasons[row] = Unusable(images[row].path, f"cannot be read: {error.strerror}")
            return ""

    with ThreadPoolExecutor() as pool:
        rows = track(pool.map(sha256, range(len(images))), "read files", len(images))
        hashed = [replace(image, sha256=h) for image, h in zip(images, rows, strict=True)]
    if reasons and on_error == "stop":
        raise UnreadableImages(reasons, len(images))
    gone = [reasons[row] for row in sorted(reasons)]
    warn_left_out(gone)
    return [image for image in hashed if image.sha256], gone


def case_in(path: Path, below: str, config: DataConfig) -> str:
    """Return an image's case as its name tells it, or nothing.

    `below` is the path below the folder, table or pattern that named the image.
    """
    return format_of(config).case_in(path, below, config)
