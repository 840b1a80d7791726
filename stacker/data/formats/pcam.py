"""PatchCamelyon where it lies: HDF5 arrays of 96x96 patches, with their labels and meta CSVs.

Its 327,680 images are never unpacked: a manifest row names the file and the row in it, and pixels are
read from there. The slide (`wsi` in the meta CSVs) is the case; without those CSVs the case is unknown.
The three files are the data set's own split.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from stacker.config.data import DataConfig
from stacker.data.formats.format import Format
from stacker.data.images import open_array
from stacker.data.manifest import SPLITS, Image
from stacker.errors import DataError
from stacker.progress import bar

log = logging.getLogger(__name__)
CLASSES = ("normal", "tumour")
MAGNIFICATION = 10  # the patches are Camelyon16's slides at 10x
BLOCK = 512


def read_pcam(config: DataConfig) -> list[Image]:
    """Read the parts that are there; raise DataError for files that are missing or do not fit."""
    root = config.path
    images: list[Image] = []
    for split in SPLITS:
        stem = f"camelyonpatch_level_2_split_{split}"
        if (root / f"{stem}_x.h5").is_file():
            images += _read_part(root, stem, split)
        elif (root / f"{stem}_x.h5.gz").is_file():
            raise DataError(f"{root / stem}_x.h5.gz is compressed", "unpack it first (gunzip)")
    if not images:
        raise DataError(
            f"no PatchCamelyon file in {root}, expected camelyonpatch_level_2_split_train_x.h5",
            "check data.path",
        )
    return images


def _read_part(root: Path, stem: str, split: str) -> list[Image]:
    file = (root / f"{stem}_x.h5").absolute()
    pixels, labels = open_array(file, "x"), open_array(root / f"{stem}_y.h5", "y")
    if pixels.dtype != np.uint8 or len(pixels.shape) != 4 or pixels.shape[3] != 3:
        raise DataError(
            f"{file}: x is {pixels.dtype} of shape {pixels.shape}, expected uint8 of (N, 96, 96, 3)"
        )
    classes = np.asarray(labels[:]).reshape(len(labels), -1)[:, 0]
    if len(labels) != len(pixels) or not np.isin(classes, (0, 1)).all():
        raise DataError(
            f"{root / stem}_y.h5: {len(labels)} labels, expected {len(pixels)} of them, each 0 or 1"
        )
    slides = _slides(root / f"{stem}_meta.csv", len(pixels), classes)
    path = str(file)
    return [
        Image(
            id=f"{split}-{row:06d}",
            path=path,
            label=CLASSES[int(label)],
            case=slide,
            slide=slide,
            magnification=MAGNIFICATION,
            split=split,
            index=row,
            sha256=sha256,
        )
        for row, (label, slide, sha256) in enumerate(
            zip(classes, slides, _hashes(pixels, f"read {split}"), strict=True)
        )
    ]


def _hashes(pixels: Any, label: str) -> list[str]:
    """Return the SHA-256 of every row's pixels."""
    hashes: list[str] = []
    with bar(label, len(pixels)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(pixels), BLOCK):
            block = np.ascontiguousarray(pixels[start : start + BLOCK])
            hashes += pool.map(lambda row: hashlib.sha256(row).hexdigest(), block)
            advance(len(block))
    return hashes


def _slides(meta: Path, count: int, classes: np.ndarray) -> Sequence[str]:
    """Return each row's slide, or nothing where there is no meta CSV."""
    if not meta.is_file():
        log.warning("no file at %s: the slides, and so the cases, are unknown", meta)
        return [""] * count
    with meta.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        if "wsi" not in (reader.fieldnames or []):
            raise DataError(f"{meta} has no column wsi, found {reader.fieldnames}")
        rows = [(row["wsi"] or "", row.get("center_tumor_patch")) for row in reader]
    if len(rows) != count:
        raise DataError(f"{meta} has {len(rows)} rows, expected {count}")
    strange = sum(
        text is not None and (text.lower() == "true") != bool(label)
        for (_, text), label in zip(rows, classes, strict=True)
    )
    if strange:
        text = "%s: center_tumor_patch differs from the label in %d of %d rows"
        log.warning(text, meta, strange, count)
    names = {wsi: wsi for wsi, _ in rows}  # each held once
    return [names[wsi] for wsi, _ in rows]


PCAM = Format(read_pcam, "stored as in PatchCamelyon")
