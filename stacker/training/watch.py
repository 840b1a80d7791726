"""What is seen of a training: metrics.jsonl, TensorBoard, the log, the curves, and warnings.

models/<backbone>/<fold>/metrics.jsonl    one line per epoch
                         tensorboard/     the same as scalars: tensorboard --logdir RUN/models
                         curves.png       the same as a picture, when the training has ended
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from stacker.figures.canvas import save_figure
from stacker.figures.training import draw_curves
from stacker.files import publish
from stacker.training.measures import Epoch

log = logging.getLogger(__name__)
COLLAPSED = 3  # epochs in a row with one answer for all images before it is called a collapse


class Watch:
    """Everything that is written down about one training."""

    def __init__(self, folder: Path, name: str, total: int, before: Sequence[Epoch] = ()) -> None:
        """Start anew, or with the epochs that a resumed training has behind it."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.name, self.total = folder, name, total
        self.epochs: list[Epoch] = []
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self.scalars = SummaryWriter(folder / "tensorboard")
        with publish(folder / "metrics.jsonl") as temporary:
            temporary.touch()
        for epoch in before:
            self._keep(epoch)

    def see(self, epoch: Epoch) -> None:
        """Write an epoch down, log it, and warn of what looks wrong."""
        self._keep(epoch)
        gpu = f"  {epoch['gpu_gb']:.1f} GB" if "gpu_gb" in epoch else ""
        log.info(
            "train %s: epoch %d/%d  loss %.3f  val loss %.3f  acc %.3f  AUC %.3f  %.0f img/s%s",
            *(self.name, epoch["epoch"], self.total, epoch["train_loss"], epoch["val_loss"]),
            *(epoch["val_accuracy"], epoch["val_auc"], epoch["images_per_second"], gpu),
        )
        if not math.isfinite(epoch["val_loss"]):
            log.warning("train %s: the validation loss is %s", self.name, epoch["val_loss"])
        last = [seen["val_commonest"] == 1 for seen in self.epochs[-COLLAPSED:]]
        if len(last) == COLLAPSED and all(last):
            log.warning(
                "train %s: collapsed, every validation image has had one class for %d epochs; "
                "a lower learning rate, a longer warmup or train.balance may help",
                *(self.name, COLLAPSED),
            )

    def close(self) -> None:
        """Let go of the file of scalars."""
        self.scalars.close()

    def end(self, best: Epoch) -> None:
        """Draw the curves; warn when the epoch that is kept cannot tell the classes apart."""
        save_figure(draw_curves(self.epochs, best["epoch"], self.name), self.folder / "curves.png")
        if best["val_commonest"] == 1:
            log.warning(
                "train %s: the epoch that is kept (%d) gives every validation image the same class",
                *(self.name, best["epoch"]),
            )

    def _keep(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)
        numbers = {name: value if math.isfinite(value) else None for name, value in epoch.items()}
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(numbers) + "\n")  # JSON has no NaN
        for name, value in epoch.items():
            if name != "epoch":
                self.scalars.add_scalar(name, value, epoch["epoch"])
        self.scalars.flush()
