"""A run's caches for the bench of stage three, written and read as a run's are, without images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stacker.caches.format import Provenance, Rows, part_file
from stacker.caches.reader import open_cache
from stacker.caches.writer import write_index, write_part
from stacker.config.stacking import BlockConfig, StackConfig
from stacker.stacking.tables import Caches, Source, Table

BACKBONES = ("densenet121", "resnet50", "vgg16")
CLASSES = ("benign", "malignant")
FOLD = "bench"
PART_ROWS = 1024
TELLING = 10  # every so many columns one tells the label


def write_caches(folder: Path, rows: int, columns: int, seed: int = 0) -> None:
    """Write caches whose maps are so many columns, an even number for each backbone, mostly noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=rows)
    images = np.array([f"image-{number:08d}".encode() for number in range(rows)])
    all_rows = Rows(labels, images, images, images, np.full(rows, FOLD.encode()))
    cells = columns // 2  # of the maps of both classes
    for number, name in enumerate(BACKBONES):
        width = cells // len(BACKBONES) + (number < cells % len(BACKBONES))
        strength = np.zeros(2 * width, dtype=np.float32)
        strength[::TELLING] = 2 / np.sqrt(columns)
        parts = []
        for start in range(0, rows, PART_ROWS):
            mine = slice(start, start + PART_ROWS)
            some = labels[mine, None] - np.float32(0.5)
            noise = rng.standard_normal((len(some), 2 * width), dtype=np.float32)
            arrays = {
                "maps": (noise + some * strength).reshape(-1, 2, 1, width),
                "logits": np.concatenate([-some, some], axis=1),
                "features": some,
            }
            path = part_file(folder / name, start // PART_ROWS)
            write_part(path, arrays, all_rows.take(mine), _provenance(name))
            parts.append(path)
        write_index(folder / name, parts)


def _provenance(backbone: str) -> Provenance:
    return Provenance(
        backbone=backbone,
        model_fold=FOLD,
        classes=CLASSES,
        group="case",
        checkpoint_sha256="",
        manifest_digest="",
        folds_digest="",
        training_cases=(),
        target_layer="",
        methods=("gradcam",),
        lower=0,
        preprocessing="",
        precision="float32",
    )


def open_table(folder: Path) -> Table:
    """Return the maps of the caches that `write_caches` wrote, as stage three reads a run's."""
    found = {name: open_cache(folder / name) for name in BACKBONES}
    caches = Caches((Source(FOLD, found, {}),), CLASSES, {}, {}, "float32")
    both = StackConfig(blocks={"both": BlockConfig(of="maps", classes="all")})  # all that is cached
    return caches.tables(["both"], both).development
