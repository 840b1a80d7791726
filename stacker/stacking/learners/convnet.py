"""A small convolutional network that looks at the maps of all backbones as one picture.

Every map is a channel. Maps whose grids differ are brought to one grid by the share that a cell has in
another, so that no mean is changed. A channel is standardised by the mean and the spread over all rows
and all cells: standardising each cell by itself would make every place look alike, and it is the place
and the shape that this network is for. Two channels more say where a cell lies. Columns that are no maps
are standardised one by one and join before the last layer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from stacker.caches.format import areas
from stacker.config.learners import ConvnetConfig
from stacker.errors import StackError
from stacker.stacking.learners.matrix import Matrix, chunks
from stacker.stacking.learners.networks import NetworkClassifier

CELL = re.compile(r"(?P<map>.+)/r(?P<row>\d+)c(?P<column>\d+)")


@dataclass(frozen=True)
class Layout:
    """Where the cells of each map (h, w) lie among the columns, and which columns are none."""

    maps: dict[str, np.ndarray]
    others: np.ndarray


def lay_out(columns: Sequence[str]) -> Layout:
    """Read the names of the columns; raise StackError when no map is among them, or a part of one."""
    cells: dict[str, dict[tuple[int, int], int]] = {}
    others = []
    for number, name in enumerate(columns):
        cell = CELL.fullmatch(name)
        if cell:
            place = int(cell["row"]), int(cell["column"])
            cells.setdefault(cell["map"], {})[place] = number
        else:
            others.append(number)
    if not cells:
        raise StackError(
            f"convnet looks at maps, and none of the {len(columns)} columns is a cell of one (as in "
            "resnet50/maps/malignant/r0c0); put maps, or a block of signed maps without pca, into "
            "stack.features, or take the mlp"
        )
    return Layout({name: _grid(name, of) for name, of in cells.items()}, np.array(others, np.int64))


def _grid(name: str, cells: dict[tuple[int, int], int]) -> np.ndarray:
    """Return the columns of a map (h, w) by row and column."""
    height, width = (1 + max(places) for places in zip(*cells, strict=True))
    if len(cells) != height * width:
        raise StackError(
            f"convnet: the map {name} has {len(cells)} of {height} x {width} cells; give it whole maps"
        )
    return np.array([[cells[row, column] for column in range(width)] for row in range(height)])


class MapNetwork(nn.Module):
    """Conv, BatchNorm, ReLU and Dropout over the maps; mean and maximum over the grid; one linear layer.

    Shapes: B rows, F columns, M maps of h x w cells, g x g cells of the common grid, K classes.
    """

    def __init__(self, layout: Layout, settings: ConvnetConfig, classes: int) -> None:
        super().__init__()
        self.others: Tensor
        self.order: Tensor
        self.place: Tensor
        self._lay(layout, settings.grid)
        for name, number in (("maps", len(layout.maps)), ("others", len(layout.others))):
            self.register_buffer(f"{name}_mean", torch.zeros(number))
            self.register_buffer(f"{name}_scale", torch.ones(number))
        blocks: list[nn.Module] = []
        inputs = len(layout.maps) + len(self.place)
        for width in settings.channels:
            blocks += [
                nn.Conv2d(inputs, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Dropout(settings.dropout),
            ]
            inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(2 * inputs + len(layout.others), classes)

    def _lay(self, layout: Layout, grid: int) -> None:
        """Fix where maps are found and how they come to the common grid; equal sizes go together."""
        grids = list(layout.maps.values())
        self.sizes = list(dict.fromkeys(of.shape for of in grids))
        order: list[int] = []
        for height, width in self.sizes:
            members = [number for number, of in enumerate(grids) if of.shape == (height, width)]
            order += members
            self._fix(f"cells_{height}x{width}", np.stack([grids[number] for number in members]))
            self._fix(f"down_{height}x{width}", areas(height, grid))
            self._fix(f"along_{height}x{width}", areas(width, grid).T)
        self._fix("order", np.argsort(order))
        self._fix("others", layout.others)
        line = np.linspace(-1, 1, grid)
        self._fix("place", np.stack(np.meshgrid(line, line, indexing="ij")))

    def _fix(self, name: str, values: np.ndarray) -> None:
        """Keep what the names of the columns say: it moves with the network and is not stored."""
        kind = np.float32 if values.dtype.kind == "f" else np.int64
        self.register_buffer(name, torch.from_numpy(values.astype(kind)), persistent=False)

    def channels(self, rows_BF: Tensor) -> Tensor:
        """Return the maps of some rows on the common grid, (B, M, g, g), standardised."""
        resampled = []
        for height, width in self.sizes:
            size = f"{height}x{width}"
            maps_BMhw = rows_BF[:, self.get_buffer(f"cells_{size}")]
            resampled.append(
                self.get_buffer(f"down_{size}") @ maps_BMhw @ self.get_buffer(f"along_{size}")
            )
        maps_BMgg = torch.cat(resampled, dim=1)[:, self.order]
        mean, scale = self.get_buffer("maps_mean"), self.get_buffer("maps_scale")
        return (maps_BMgg - mean[:, None, None]) / scale[:, None, None]

    def forward(self, rows_BF: Tensor) -> Tensor:
        """Return logits (B, K)."""
        place_B2gg = self.place.expand(len(rows_BF), -1, -1, -1)
        seen_BCgg = self.blocks(torch.cat([self.channels(rows_BF), place_B2gg], dim=1))
        mean, scale = self.get_buffer("others_mean"), self.get_buffer("others_scale")
        others = (rows_BF[:, self.others] - mean) / scale
        pooled = [seen_BCgg.mean(dim=(2, 3)), seen_BCgg.amax(dim=(2, 3)), others]
        logits: Tensor = self.last(torch.cat(pooled, dim=1))
        return logits


class ConvnetClassifier(NetworkClassifier):
    """A convolutional network over the columns that are cells of maps; the others join at the end."""

    kind: ClassVar[str] = "convnet"
    settings: ConvnetConfig

    def check(self) -> None:
        """Raise StackError where no column is a cell of a map."""
        lay_out(self.columns)

    def _network(self, classes: int) -> MapNetwork:
        return MapNetwork(lay_out(self.columns), self.settings, classes)

    def prepare(self, network: nn.Module, table: Matrix) -> None:
        """Let the network standardise: each map over rows and cells, each other column by itself."""
        sums, squares = np.zeros(table.shape[1]), np.zeros(table.shape[1])
        for piece in chunks(table):
            sums += piece.sum(axis=0, dtype=np.float64)
            squares += np.einsum("nf,nf->f", piece, piece, dtype=np.float64)
        layout, rows = lay_out(self.columns), table.shape[0]
        sets = {"maps": list(layout.maps.values()), "others": [np.array([n]) for n in layout.others]}
        for name, members in sets.items():
            mean = np.array([sums[of].mean() / rows for of in members])
            square = np.array([squares[of].mean() / rows for of in members])
            spread = np.sqrt(np.maximum(square - mean**2, 0))
            spread[spread < 1e-6 * np.abs(mean) + 1e-12] = 1  # it says nothing: leave it at nought
            network.get_buffer(f"{name}_mean").copy_(torch.from_numpy(mean))
            network.get_buffer(f"{name}_scale").copy_(torch.from_numpy(spread))
