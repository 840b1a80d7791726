"""What TensorBoard shows of a training: tensorboard --logdir RUN/models.

    loss/train loss/val accuracy/val auc/val ...   by epoch
    learning_rate/by_step                          by step
    map_of_<class>/<image>                         validation images beside their Grad-CAM map
    the tab HPARAMS                                the recipe with the scores of the epoch that was kept

Maps are drawn of a few images, after the first epoch and for the epoch that was kept: that costs two
passes over these images.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stacker.backbones.backbone import Backbone
from stacker.backbones.devices import Machine, Subset
from stacker.config.training import TrainConfig
from stacker.data.manifest import Manifest
from stacker.figures.evidence import lay_over, upsample
from stacker.maps.cam import look
from stacker.training.measures import Epoch

TAGS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "val_accuracy": "accuracy/val",
    "val_balanced_accuracy": "balanced_accuracy/val",
    "val_auc": "auc/val",
    "val_precision": "precision/val",
    "val_recall": "recall/val",
    "val_f1": "f1/val",
    "val_majority_share": "majority_share/val",
    "images_per_second": "speed/images_per_second",
    "accumulate": "memory/slices_per_batch",
    "gpu_gb": "memory/gpu_gb",
}
KEPT = ("epoch", "val_loss", "val_auc", "val_accuracy", "val_balanced_accuracy", "val_f1")
SHOWN = 4  # validation images whose maps are drawn


class Board:
    """The event file of one training."""

    def __init__(self, folder: Path) -> None:
        """Start an empty one."""
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self.writer = SummaryWriter(folder)

    def add(self, epoch: Epoch) -> None:
        """Write the scores of an epoch, and the learning rates of its steps."""
        for name, tag in TAGS.items():
            if name in epoch:
                self.writer.add_scalar(tag, epoch[name], epoch["epoch"])
        for step, rate in epoch["lr_by_step"]:
            self.writer.add_scalar("learning_rate/by_step", rate, step)
        self.writer.flush()

    def show(self, pictures: Mapping[str, np.ndarray], epoch: int) -> None:
        """Write pictures (H, W, 3) by their tags."""
        for tag, pixels_HWC in pictures.items():
            self.writer.add_image(tag, pixels_HWC, epoch, dataformats="HWC")

    def end(self, job: str, recipe: TrainConfig, best: Epoch) -> None:
        """Write the recipe beside the scores of the epoch that was kept."""
        from torch.utils.tensorboard.summary import hparams

        scores = {f"best/{name.removeprefix('val_')}": float(best[name]) for name in KEPT}
        backbone, _, fold = job.partition("/")
        settings = {"backbone": backbone, "fold": fold, **_flat(recipe.model_dump(mode="json"))}
        for summary in hparams(settings, scores):
            # add_hparams would make a run of its own of them, under the time of the day
            self.writer._get_file_writer().add_summary(summary)  # noqa: SLF001
        for tag, score in scores.items():
            self.writer.add_scalar(tag, score, best["epoch"])

    def close(self) -> None:
        """Let go of the file."""
        self.writer.close()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted names; what is no number, text or switch as text."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            flat[prefix + name] = value if plain else str(value)
    return flat


@contextmanager
def lent(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a model other weights while the block runs, such as their moving average."""
    own = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in weights}
    model.load_state_dict(weights, strict=False)
    try:
        yield
    finally:
        model.load_state_dict(own, strict=False)


def draw_maps(
    backbone: Backbone, subset: Subset, manifest: Manifest, machine: Machine
) -> dict[str, np.ndarray]:
    """Return, by tag, a few images beside their Grad-CAM map of the last class, the positive of two."""
    rows, group = _choose(subset), f"map_of_{manifest.classes[-1]}"
    pixels_BHWC = subset.pixels[rows]
    backbone.model.eval()
    images_BCHW = backbone.normalise(torch.from_numpy(pixels_BHWC).to(machine.device))
    output = look(backbone, images_BCHW, {"maps": ("gradcam", 0)}, machine.precision)
    maps_Bhw = output.maps["maps"][:, -1].cpu().numpy()  # a single logit is of the last class, too
    return {
        f"{group}/{manifest.images[row].id.replace('/', '_')}": np.hstack(
            [pixels, lay_over(pixels, upsample(heat, pixels.shape[:2]), float(heat.max()), signed=False)]
        )
        for row, pixels, heat in zip(rows, pixels_BHWC, maps_Bhw, strict=True)
    }


def _choose(subset: Subset) -> np.ndarray:
    """Return a few rows, of every class as many and far from each other in the data set."""
    labels = subset.labels[subset.rows]
    present = np.unique(labels)
    share = math.ceil(SHOWN / len(present))
    chosen = []
    for label in present:
        members = subset.rows[labels == label]
        places = np.linspace(0, len(members) - 1, min(share, len(members))).round()
        chosen.append(members[places.astype(int)])
    return np.concatenate(chosen)[:SHOWN]
