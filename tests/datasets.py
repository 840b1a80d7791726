"""Small data sets of every format, and what is asked of them."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image as Picture

from stacker.audit.report import Audit, Finding, Report
from stacker.config.data import DataConfig
from stacker.data.formats.registry import read_manifest
from stacker.data.manifest import Image, Manifest

LABELS = ("benign", "malignant")
MAGNIFICATIONS = (40, 100, 200, 400)
TABLE = Path(__file__).parent / "data" / "formats" / "breakhis_slides.csv"
with TABLE.open(newline="", encoding="utf-8") as table:
    SLIDES = list(csv.DictReader(table))
CHUNKED = {"chunks": (2, 96, 96, 3), "compression": "gzip"}
PATCH_LABELS = (0, 1, 1, 0, 1)


def listen(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caplog hear the package, though the command line may have cut it off from the root."""
    monkeypatch.setattr(logging.getLogger("stacker"), "propagate", True)
    caplog.set_level(logging.WARNING, "stacker")


def draw(path: Path, shade: int = 0) -> Path:
    """Write a picture of one shade, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)
    return path


def tree(root: Path, *names: str) -> Path:
    """Write pictures of different shades below a folder, and return it."""
    for shade, name in enumerate(names):
        draw(root / name, shade)
    return root


def by_id(manifest: Manifest) -> dict[str, Image]:
    """Return the images by their ids."""
    return {image.id: image for image in manifest.images}


def case_rows(cases: int = 16, images: int = 3) -> list[list[str]]:
    """Return rows `path,label,case` of cases of both classes in turn."""
    return [
        [f"{case:02d}-{n}.png", LABELS[case % 2], f"case{case:02d}"]
        for case in range(cases)
        for n in range(images)
    ]


def names_of(slide: dict[str, str]) -> list[str]:
    """Return the file names of one row of the table, numbered from one per magnification."""
    return [
        f"SOB_{slide['subtype']}-{slide['slide']}-{magnification}-{number:03d}.png"
        for magnification in MAGNIFICATIONS
        for number in range(1, int(slide[f"m{magnification}"]) + 1)
    ]


def touch_all(root: Path) -> Path:
    """Fill a folder with 7,909 empty files of BreakHis's names."""
    for slide in SLIDES:
        for name in names_of(slide):
            (root / name).touch()
    return root


def write_part(
    root: Path,
    split: str,
    labels: tuple[int, ...] = PATCH_LABELS,
    meta: list[str] | None = None,
    **how: Any,
) -> np.ndarray:
    """Write one part of PatchCamelyon and return its pixels; `meta` gives each row's slide."""
    stem = f"camelyonpatch_level_2_split_{split}"
    seed = sum(map(ord, split))
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 96, 96, 3), dtype=np.uint8)
    with h5py.File(root / f"{stem}_x.h5", "w") as file:
        file.create_dataset("x", data=pixels, **how)
    with h5py.File(root / f"{stem}_y.h5", "w") as file:
        file.create_dataset("y", data=np.array(labels, np.uint8).reshape(-1, 1, 1, 1))
    if meta is not None:
        with (root / f"{stem}_meta.csv").open("w", newline="", encoding="utf-8") as table:
            writer = csv.writer(table)
            writer.writerow(["", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"])
            for row, (wsi, label) in enumerate(zip(meta, labels, strict=False)):
                writer.writerow([row, 0, 0, True, bool(label), wsi])
    return pixels


def pcam(path: Path) -> Manifest:
    """Read PatchCamelyon."""
    return read_manifest(DataConfig(format="pcam", path=path))


def of_topic(result: Audit | Report, topic: str) -> Finding:
    """Return the one finding of a topic."""
    (finding,) = (finding for finding in result.findings if finding.topic == topic)
    return finding
