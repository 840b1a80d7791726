"""The networks among the meta-learners: one visible training loop, how they are stored, and the MLP.

Batches are drawn from all rows where the table may be held in memory. From a larger one, blocks of
rows that lie side by side are read in random order, some are pooled and shuffled, and an epoch reads
every row once. How long to train is decided on an inner split by whole cases: the state with the least
validation loss is kept. Rows have their weights in both losses. Nothing here touches the state of
anybody's random numbers.

The multi-layer perceptron has Linear, BatchNorm, ReLU and Dropout in each hidden layer; its columns come
standardised. With a few hundred rows and many columns it is dropout, weight decay and an early stop that
keep it honest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import ClassVar, Self, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stacker.config.learners import MlpConfig, NetworkConfig
from stacker.data.cuts import validation_rows
from stacker.errors import StackError
from stacker.stacking.learners.contract import (
    MetaLearner,
    choose_device,
    count_classes,
    or_ones,
    say_once,
)
from stacker.stacking.learners.matrix import (
    Matrix,
    Rows2D,
    as_matrix,
    size_gb,
    spans,
    whole,
)

BLOCK_BYTES = 8_000_000  # rows that are read together
POOL = 32  # blocks that are shuffled together
PREDICTED = 1024  # rows that go through a network at once
Batches: TypeAlias = Iterator[tuple[Tensor, Tensor, Tensor]]  # values, labels, weights


class NetworkClassifier(MetaLearner):
    """A network as a classifier; `network_`, `classes_` and `epochs_` are what fitting leaves behind.

    `epochs_` is the number of epochs that led to the state that is kept.
    """

    suffix: ClassVar[str] = ".safetensors"
    kind: ClassVar[str]
    settings: NetworkConfig

    def _network(self, classes: int) -> nn.Module:
        """Return the network that takes rows (B, F) and gives logits (B, K)."""
        raise NotImplementedError

    def prepare(self, network: nn.Module, table: Matrix) -> None:
        """Let the network see the table before it learns, without the labels."""

    def fit(
        self,
        X: Rows2D,
        y: np.ndarray,
        groups: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Self:
        """Learn from rows (N, F) and class indices (N,), stopping by whole `groups` (N,)."""
        labels = np.asarray(y).astype(np.int64)
        classes, weights = count_classes(labels), or_ones(weights, labels)
        if X.shape[1] != len(self.columns):
            raise StackError(
                f"{self.kind}: the table has {X.shape[1]} columns, names are given for "
                f"{len(self.columns)}"
            )
        device = torch.device(choose_device(self.device, torch.cuda.is_available))
        with _seeded(self.seed, device):
            network = self._network(classes)
            self.prepare(network, as_matrix(X))
            self.epochs_ = self._learn(network.to(device), X, labels, groups, weights, device)
        self.network_ = network.cpu().eval()
        self.classes_ = np.arange(classes)
        return self

    def _learn(
        self,
        network: nn.Module,
        X: Rows2D,
        labels: np.ndarray,
        groups: np.ndarray | None,
        weights: np.ndarray,
        device: torch.device,
    ) -> int:
        """Train until the validation loss has not fallen for `patience` epochs; keep the best state."""
        how, rng = self.settings, np.random.default_rng(self.seed)
        apart = validation_rows(labels, groups, how.validation, self.seed)
        draw, watch = _feeds(X, labels, weights, apart, self.memory_gb, device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=how.lr, weight_decay=how.weight_decay)
        best, best_epoch, state = np.inf, 0, None
        for epoch in range(1, how.epochs + 1):
            network.train()
            for values, wanted, weight in draw(how.batch_size, rng):
                loss = _weighted(network(values), wanted, weight).sum() / weight.sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            if watch is None:
                continue
            loss_apart = _loss(network, watch())
            if loss_apart < best:
                best, best_epoch, state = loss_apart, epoch, deepcopy(network.state_dict())
            if epoch - best_epoch >= how.patience:
                break
        if watch is None:
            say_once(
                f"{self.kind}: no inner split by case is possible, it trains for all {how.epochs} epochs"
            )
            return how.epochs
        if state is None:
            raise StackError(
                f"{self.kind}: the validation loss was never finite; lower stack.{self.kind}.lr "
                f"(it is {how.lr:g}) or look for NaN and infinite values in the features"
            )
        network.load_state_dict(state)
        return best_epoch

    @torch.no_grad()
    def _probabilities(self, rows: np.ndarray) -> np.ndarray:
        values = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
        logits = torch.cat([self.network_(some) for some in values.split(PREDICTED)])
        shares: np.ndarray = logits.double().softmax(dim=1).numpy()
        return shares

    def save(self, path: Path) -> None:
        """Write the network and what it was built from as one safetensors file."""
        about = {
            "kind": self.kind,
            "settings": self.settings.model_dump(),
            "columns": list(self.columns),
            "classes": len(self.classes_),
            "epochs": self.epochs_,
        }
        tensors = {name: value.contiguous() for name, value in self.network_.state_dict().items()}
        save_file(tensors, path, metadata={"stacker": json.dumps(about)})

    def restore(self, path: Path, trusted: Sequence[str] = ()) -> Self:  # noqa: ARG002  # nothing to run
        """Take the network that `save` wrote; raise StackError when it is not one for these columns."""
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["stacker"])
            tensors = load_file(path)
        except (SafetensorError, KeyError, ValueError) as error:
            raise StackError(
                f"{path} is not a stored {self.kind} ({error!r}); run 'stacker stack' again"
            ) from error
        if about["kind"] != self.kind or about["columns"] != list(self.columns):
            raise StackError(
                f"{path} holds a {about['kind']} of {len(about['columns'])} columns, expected a "
                f"{self.kind} of these {len(self.columns)}; run 'stacker stack' again"
            )
        self.settings = type(self.settings).model_validate(about["settings"])
        self.network_ = self._network(about["classes"])
        self.network_.load_state_dict(tensors)
        self.network_.eval()
        self.classes_, self.epochs_ = np.arange(about["classes"]), about["epochs"]
        return self


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed while the block runs, and go on as if nothing had been drawn."""
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        torch.default_generator.manual_seed(seed)
        if cards:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _feeds(
    X: Rows2D,
    labels: np.ndarray,
    weights: np.ndarray,
    apart: np.ndarray | None,
    memory_gb: float,
    device: torch.device,
) -> tuple[Callable[[int, np.random.Generator], Batches], Callable[[], Batches] | None]:
    """Return how batches to learn from are drawn, and how the rows kept apart are gone through."""
    rows = np.arange(len(labels))
    learnt, watched = (rows, rows[:0]) if apart is None else (rows[~apart], rows[apart])
    wanted = torch.from_numpy(labels).to(device)
    weighed = torch.from_numpy(weights.astype(np.float32)).to(device)
    table, values = as_matrix(X), None
    if size_gb(X) <= memory_gb:
        held = np.ascontiguousarray(whole(X, memory_gb, ""), dtype=np.float32)
        values = torch.from_numpy(held).to(device)

    def draw(size: int, rng: np.random.Generator) -> Batches:
        if values is None:
            for piece, places in pooled(table.take(learnt), size, rng):
                chosen = torch.from_numpy(learnt[places]).to(device)
                yield torch.from_numpy(piece).to(device), wanted[chosen], weighed[chosen]
            return
        for places in cut_batches(rng.permutation(learnt), size):
            chosen = torch.from_numpy(places).to(device)
            yield values[chosen], wanted[chosen], weighed[chosen]

    def watch() -> Batches:
        kept = table.take(watched)
        for start, stop in spans(kept, PREDICTED):
            chosen = torch.from_numpy(watched[start:stop]).to(device)
            some = (
                torch.from_numpy(kept.read(start, stop)).to(device) if values is None else values[chosen]
            )
            yield some, wanted[chosen], weighed[chosen]

    return draw, watch if len(watched) else None


def pooled(
    table: Matrix, size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches of all rows with their places, shuffled within pools of blocks in random order."""
    blocks = spans(table, max(1, BLOCK_BYTES // (4 * table.shape[1])))
    order = rng.permutation(len(blocks))
    values, places = np.empty((0, table.shape[1]), np.float32), np.empty(0, np.int64)
    for start in range(0, len(order), POOL):
        some = [blocks[number] for number in order[start : start + POOL]]
        values = np.concatenate([values, *(table.read(*block) for block in some)])
        places = np.concatenate([places, *(np.arange(*block) for block in some)])
        shuffled = rng.permutation(len(places))
        more_to_come = start + POOL < len(order)
        ready = len(places) - len(places) % size if more_to_come else len(places)
        for rows in cut_batches(shuffled[:ready], size):
            yield values[rows], places[rows]
        values, places = values[shuffled[ready:]], places[shuffled[ready:]]


def cut_batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut rows into batches; a single row left over joins the last: BatchNorm has no use for one row."""
    return list(np.split(rows, range(size, len(rows) - 1, size))) if len(rows) else []


def _weighted(logits: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted loss of each row."""
    return cross_entropy(logits, wanted, reduction="none") * weight


@torch.no_grad()
def _loss(network: nn.Module, batches: Batches) -> float:
    """Return the weighted mean loss over all batches."""
    network.eval()
    total, weighed = torch.zeros(2, dtype=torch.float64)
    for values, wanted, weight in batches:
        total += _weighted(network(values), wanted, weight).sum().double().cpu()
        weighed += weight.sum().double().cpu()
    return float(total / weighed)


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
