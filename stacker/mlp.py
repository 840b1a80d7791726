"""The BatchNorm/Dropout multi-layer perceptron.

Each hidden layer is Linear, BatchNorm, ReLU, Dropout. With a few hundred rows and many columns it is
dropout, weight decay and an early stop that keep it honest. Columns come standardised.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from stacker.networks import NetworkClassifier
from stacker.settings import MlpConfig


class MlpClassifier(NetworkClassifier):
    """A multi-layer perceptron over all columns."""

    kind: ClassVar[str] = "mlp"
    settings: MlpConfig

    def _network(self, classes: int) -> nn.Sequential:
        inputs = len(self.columns)
        layers: list[nn.Module] = []
        for width in self.settings.hidden:
            dropout = nn.Dropout(self.settings.dropout)
            layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), dropout]
            inputs = width
        return nn.Sequential(*layers, nn.Linear(inputs, classes))
