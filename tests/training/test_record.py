"""What the log says of an epoch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from stacker.training.record import Watch


@pytest.mark.parametrize(
    ("rate", "said"), [(0.04, "0.04"), (0.4, "0.4"), (4.56, "4.6"), (9.99, "10"), (123.45, "123")]
)
def test_a_slow_training_has_a_speed(
    rate: float, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Below 10 images per second, two significant digits are shown: never 0."""
    losses = ("train_loss", "val_loss", "val_accuracy", "val_auc", "val_majority_share")
    epoch: dict[str, Any] = {"epoch": 1, **dict.fromkeys(losses, 0.5)}
    epoch |= {"val_majority": "benign", "images_per_second": rate, "lr": 1e-3, "lr_by_step": [[0, 1e-3]]}
    watch = Watch(tmp_path, "resnet50/fold0", 2)
    with caplog.at_level(logging.INFO):
        watch.see(epoch)
    watch.close()
    assert f"  {said} img/s" in caplog.text
