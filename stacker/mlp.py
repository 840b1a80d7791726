"""The BatchNorm/Dropout multi-layer perceptron, the only meta-learner that loads torch.

A scikit-learn classifier in manners: parameters in `__init__`, fitted state ending in `_`. Features are
standardised by the training rows, then each hidden layer is Linear, BatchNorm, ReLU, Dropout. With a few
hundred rows and many columns it is dropout and weight decay that keep it honest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class MlpClassifier:
    """A standardising MLP; `network_`, `mean_` and `scale_` are what fitting leaves behind."""

    def __init__(
        self,
        hidden: tuple[int, ...] | list[int] = (64,),
        dropout: float = 0.5,
        epochs: int = 100,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray) -> MlpClassifier:
        """Learn from features (N, F) and class indices (N,), each class weighing the same."""
        features = torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32))
        labels = torch.from_numpy(y)
        self.mean_ = features.mean(dim=0)
        self.scale_ = features.std(dim=0, correction=0).clamp_min(1e-6)
        counts = torch.bincount(labels)
        weights = len(labels) / (len(counts) * counts.float())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network_ = self._network(features.shape[1], len(counts))
            optimizer = torch.optim.AdamW(
                self.network_.parameters(), lr=self.lr, weight_decay=self.weight_decay
            )
            standardised = self._standardise(features)
            self.network_.train()
            for _ in range(self.epochs):
                for chosen in torch.randperm(len(labels)).split(self.batch_size):
                    if len(chosen) == 1:  # BatchNorm cannot train on a single row
                        continue
                    loss = cross_entropy(self.network_(standardised[chosen]), labels[chosen], weights)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
        self.network_.eval()
        return self

    @torch.no_grad()
    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return class probabilities (N, K)."""
        features = torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32))
        found: np.ndarray = self.network_(self._standardise(features)).softmax(dim=1).numpy()
        return found

    def _standardise(self, features: Tensor) -> Tensor:
        return (features - self.mean_) / self.scale_

    def _network(self, inputs: int, classes: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width in self.hidden:
            layers += [
                nn.Linear(inputs, width),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                nn.Dropout(self.dropout),
            ]
            inputs = width
        return nn.Sequential(*layers, nn.Linear(inputs, classes))

    def save(self, path: Path) -> None:
        """Write the network, the standardisation and the parameters as one safetensors file."""
        tensors = {f"network.{k}": v.contiguous() for k, v in self.network_.state_dict().items()}
        tensors |= {"mean": self.mean_, "scale": self.scale_}
        parameters: dict[str, Any] = {
            name: value for name, value in vars(self).items() if not name.endswith("_")
        }
        save_file(tensors, path, metadata={"mlp": json.dumps(parameters)})

    @classmethod
    def load(cls, path: Path) -> MlpClassifier:
        """Read what `save` wrote."""
        with safe_open(path, "pt") as file:
            model = cls(**json.loads(file.metadata()["mlp"]))
        tensors = load_file(path)
        model.mean_, model.scale_ = tensors.pop("mean"), tensors.pop("scale")
        state = {k.removeprefix("network."): v for k, v in tensors.items()}
        last_layer = max((k for k in state if k.endswith(".bias")), key=lambda k: int(k.split(".")[0]))
        model.network_ = model._network(len(model.mean_), len(state[last_layer]))
        model.network_.load_state_dict(state)
        model.network_.eval()
        return model
