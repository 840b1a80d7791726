"""Small caches for tests: their origin, their rows and numbers to fill them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stacker.caches.format import Provenance, Rows, fixed_text
from stacker.caches.reader import index_sha256

ORIGIN = Provenance(
    backbone="resnet50",
    model_fold="fold0",
    classes=("benign", "malignant"),
    group="case",
    checkpoint_sha256="c0ffee",
    manifest_digest="3f2a",
    folds_digest="9c41",
    training_cases=("14-1", "14-2"),
    target_layer="forward_features",
    methods=("gradcam",),
    lower=0,
    preprocessing="{}",
    precision="float32",
    versions="{}",
)


def sign(folder: Path) -> None:
    """Write the SHA-256 of an index that was edited, as who edits it on purpose would."""
    (folder / "index.sha256").write_text(f"{index_sha256(folder)}  index.h5\n")


def some_rows(count: int, start: int = 0) -> Rows:
    """Return rows of images in held-out cases."""
    numbers = range(start, start + count)
    return Rows(
        np.arange(count) % 2,
        fixed_text([f"image-{i:04d}" for i in numbers]),
        fixed_text([f"15-{i % 3}" for i in numbers]),
        fixed_text([f"15-{i % 3}" for i in numbers]),
        fixed_text(["fold0"] * count),
    )


def some_arrays(count: int) -> dict[str, np.ndarray]:
    """Return maps, features and logits of random numbers."""
    rng = np.random.default_rng(count)
    shapes = {"maps": (count, 2, 3, 4), "features": (count, 5), "logits": (count, 2)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
