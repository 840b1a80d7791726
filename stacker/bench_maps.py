"""Stage two's maps beside those of the grad-cam package: the same images, the same base models.

Maps are compared as the package shows them: the negative cut off, scaled to 0 to 1 image by image, and
enlarged to the image by the package's own functions. Once in float32, which should be equal but for
rounding, and once as stage two computes them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stacker.backbone import Backbone
from stacker.bench_peers import package_cam, peer_layer, require_package
from stacker.bench_setup import normalised, set_up
from stacker.cam import look
from stacker.config import Config
from stacker.errors import BackboneError
from stacker.figures import Picture, heatmap_sheet, save_figure

LAST_GRID = {"maps": ("gradcam", 0)}


@dataclass(frozen=True)
class Apart:
    """How far a base model's shown maps are from the package's: between 0 and 1, in float32 and here."""

    backbone: str
    start: str
    layer: str
    precision: str
    exact_maximum: float
    maximum: float
    mean: float


def bench_maps(config: Config, images: int, out: Path) -> list[Apart]:
    """Compare Grad-CAM maps of the last class, and draw them side by side.

    Raise ConfigError where the package is not installed.
    """
    require_package()
    setup = set_up(config, images)
    pixels = setup.part.pixels[setup.part.rows]
    pictures = [
        Picture(f"{image.decode()}\ntrue label: {setup.classes[label]}", shown)
        for image, label, shown in zip(setup.rows.image_id, setup.rows.label, pixels, strict=True)
    ]
    panels: dict[str, Sequence[np.ndarray]] = {}
    found = []
    for name, images_BCHW in normalised(setup).items():
        base = setup.bases[name]
        layer = peer_layer(base.backbone, images_BCHW[:1])
        if layer is None:
            raise BackboneError(f"{name}: no module gives its last grid; the package has no maps of it")
        theirs = _theirs(base.backbone, layer, images_BCHW, len(setup.classes) - 1)
        exact = _ours(base.backbone, images_BCHW, torch.float32)
        ours = _ours(base.backbone, images_BCHW, setup.how.precision)
        precision = str(setup.how.precision).removeprefix("torch.")
        exact_gap, gap = np.abs(exact - theirs), np.abs(ours - theirs)
        gaps = (float(exact_gap.max()), float(gap.max()), float(gap.mean()))
        found.append(Apart(name, base.start, layer, precision, *gaps))
        panels[f"{name}, {setup.classes[-1]}\nstacker"] = list(ours)
        panels[f"{name}, {setup.classes[-1]}\ngrad-cam"] = list(theirs)
    save_figure(heatmap_sheet(pictures, panels, signed=False), out)
    return found


def _theirs(backbone: Backbone, layer: str, images_BCHW: Tensor, label: int) -> np.ndarray:
    """Return the package's maps of a class, (N, height, width) between 0 and 1."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = package_cam(backbone, layer, images_BCHW, "contiguous")
    found: np.ndarray = cam(images_BCHW, [ClassifierOutputTarget(label)] * len(images_BCHW))
    return found


def _ours(backbone: Backbone, images_BCHW: Tensor, precision: torch.dtype) -> np.ndarray:
    """Return stage two's maps of the last class as the package shows its own."""
    from pytorch_grad_cam.utils.image import scale_cam_image

    height, width = images_BCHW.shape[2:]
    maps_Bhw = look(backbone, images_BCHW, LAST_GRID, precision).maps["maps"][:, -1].cpu().numpy()
    found: np.ndarray = scale_cam_image(scale_cam_image(maps_Bhw.clip(min=0), (width, height)))
    return found
