"""Small pictures that look a little like stained tissue, every seed another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image as Picture

PINK = np.array([215.0, 150.0, 195.0])


def tissue(seed: int, side: int = 64, colour: np.ndarray = PINK) -> Picture.Image:
    """Return a blotchy picture: two scales of noise in the colours of a section."""
    rng = np.random.default_rng(seed)
    coarse, fine = (
        np.asarray(
            Picture.fromarray(rng.normal(size=(cells, cells)).astype(np.float32)).resize(
                (side, side), Picture.Resampling.BICUBIC
            )
        )
        for cells in (6, 16)
    )
    shade = (coarse + fine)[..., None] * np.array([18.0, 26.0, 14.0])
    return Picture.fromarray((colour + shade).clip(0, 255).astype(np.uint8))


def write_all(pictures: Mapping[Path, Picture.Image]) -> None:
    """Save pictures under their paths."""
    for path, picture in pictures.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def write_table(path: Path, columns: str, rows: Iterable[Iterable[object]]) -> Path:
    """Write a CSV of images, and a picture for every row that has none yet; return its path."""
    lines = [columns]
    for seed, row in enumerate(rows):
        cells = [str(cell) for cell in row]
        picture = path.parent / cells[0]
        if not picture.exists():
            write_all({picture: tissue(seed)})
        lines.append(",".join(cells))
    path.write_text("\n".join(lines) + "\n")
    return path
