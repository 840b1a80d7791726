"""Feature blocks: what a backbone said of some images, as named columns.

A block is a view of something cached: maps by the names of their datasets (`maps`, `maps_layercam`,
...), `map_stats` (what the maps come to, in a few numbers), `logits`, `probabilities`, `embeddings`,
`frozen` (embeddings of backbones that nobody trained), or one that the config defines under
`stack.blocks`. Blocks look at one image at a time and learn nothing, so they may be made before anything
is split; what is learnt from rows (scales, principal components) is `preparation`'s.

Of two classes there is one log-odds and one map, the difference: what logits and maps of both classes
have in common differs between the models of two folds, and says nothing of the class.

A column says what it is: `vgg16/maps/malignant-benign/r3c7`, `resnet50/logits/malignant-benign`,
`resnet50/frozen/0012`, `resnet50/map_stats/malignant-benign/entropy`, and, between backbones,
`resnet50+vgg16/map_stats/malignant-benign/overlap`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from stacker.caches.format import cell_names, halve, map_classes, resample, unit_names
from stacker.config.stacking import BlockConfig, StackConfig
from stacker.run import FROZEN

Arrays = Mapping[str, np.ndarray]
Blocks = Mapping[str, BlockConfig | None]  # None: logits, probabilities or embeddings as they are
Piece = tuple[np.ndarray, list[str]]  # values (N, F) and the names of their columns
STATS = ("peak", "mass", "entropy", "spread", "row", "column", "sum")
PAIR_STATS = ("overlap", "correlation")
TINY = 1e-12


def resolve(features: Sequence[str], config: StackConfig) -> dict[str, BlockConfig | None]:
    """Return how each named block is made."""
    blocks: dict[str, BlockConfig | None] = {}
    for name in features:
        if name in config.blocks:
            blocks[name] = config.blocks[name]
        elif name == "map_stats":
            blocks[name] = BlockConfig(of="maps", view="stats")
        else:
            blocks[name] = BlockConfig(of=name) if name.startswith("maps") else None
    return blocks


def array_of(name: str, block: BlockConfig | None) -> str:
    """Return the name of the array, as `assemble` takes it, that a block is made of."""
    source = name if block is None else block.of
    return {"embeddings": "features", "probabilities": "logits"}.get(source, source)


def sees_frozen(blocks: Blocks) -> bool:
    """Say whether some blocks are made of frozen backbones."""
    return any(array_of(name, block) == FROZEN for name, block in blocks.items())


def assemble(
    arrays: Mapping[str, Arrays], classes: Sequence[str], blocks: Blocks
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Put the blocks of all backbones side by side: (N, F) float32 and the names of the columns.

    A backbone has the arrays of one that is fine-tuned, or the array `frozen`, or both.
    """
    pieces = [
        (values, f"{backbone}/{block}", names)
        for backbone, of_backbone in arrays.items()
        for block, (values, names) in _of_one(of_backbone, classes, blocks)
    ]
    pieces += _between(arrays, classes, blocks)
    columns = [f"{start}/{name}" for _, start, names in pieces for name in names]
    return np.concatenate([values for values, _, _ in pieces], axis=1), tuple(columns)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits (N, K)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def log_odds_of(logits: np.ndarray, classes: Sequence[str]) -> Piece:
    """Return what logits (N, K) say of the class: of two the difference, else each less their mean.

    Softmax leaves their sum free: it says which fold's model made a row, and nothing of the class.
    """
    if len(classes) == 2:
        return logits[:, 1:] - logits[:, :1], [f"{classes[1]}-{classes[0]}"]
    return logits - logits.mean(axis=1, keepdims=True), list(classes)


def _of_one(arrays: Arrays, classes: Sequence[str], blocks: Blocks) -> Iterator[tuple[str, Piece]]:
    """Yield the blocks that a backbone has."""
    for name, block in blocks.items():
        array = array_of(name, block)
        if array not in arrays:
            continue
        values = arrays[array]
        if array.startswith("maps"):
            yield name, _of_maps(values, classes, block or BlockConfig(of=array))
        elif name == "probabilities":
            yield name, (probabilities(values).astype(np.float32), list(classes))
        elif name == "logits":
            yield name, log_odds_of(values.astype(np.float32), classes)
        else:
            yield name, (values.astype(np.float32), unit_names(values.shape[1]))


def _of_maps(maps: np.ndarray, classes: Sequence[str], block: BlockConfig) -> Piece:
    viewed, names = view(maps, classes, block)
    if block.view == "stats":
        summed = [f"{n}/{stat}" for n in names for stat in STATS]
        return describe(viewed).reshape(len(viewed), len(summed)), summed
    cells = cell_names(names, *viewed.shape[2:])
    return viewed.reshape(len(viewed), len(cells)), cells


def view(maps: np.ndarray, classes: Sequence[str], block: BlockConfig) -> tuple[np.ndarray, list[str]]:
    """Return maps (N, M, h, w) as a block looks at them, and what each of the M is for.

    Maps that never went through the cache are rounded as it rounds them. Methods that know no class have
    one map for all, which is taken whatever classes are wanted.
    """
    names = list(map_classes(classes, maps.shape[1]))
    maps = halve(maps).astype(np.float32)
    if len(names) == len(classes):
        if block.classes == "difference":
            maps, names = _differences(maps, classes)
        elif block.classes != "all":
            maps, names = maps[:, [classes.index(c) for c in block.classes]], list(block.classes)
    if block.grid is not None:
        maps = resample(maps, block.grid)
    if block.view in ("relu", "normalised"):
        maps = maps.clip(min=0)
    if block.view == "normalised":
        maps = maps / np.maximum(maps.max(axis=(2, 3), keepdims=True), TINY)
    return maps, names


def _differences(maps: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the maps of what speaks for a class and against the others."""
    if len(classes) == 2:
        return maps[:, 1:] - maps[:, :1], [f"{classes[1]}-{classes[0]}"]
    others = (maps.sum(axis=1, keepdims=True) - maps) / (len(classes) - 1)
    return maps - others, [f"{name}-rest" for name in classes]


def describe(maps: np.ndarray) -> np.ndarray:
    """Return what maps (N, M, h, w) come to, (N, M, 7), in the order of STATS.

    Peak, mass (the mean), entropy (of 1, spread evenly), spread (mean distance from the centroid) and
    centroid are of what speaks for the class; row and column reach from 0 to 1. The sum is that of the
    signed map. A map without any positive cell has its centroid in the middle.
    """
    height, width = maps.shape[2:]
    positive = maps.clip(min=0)
    mass = positive.sum(axis=(2, 3))
    empty = mass <= TINY
    share = positive / np.where(empty, 1, mass)[..., None, None]
    rows, columns = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    row = np.where(empty, 0.5, (share.sum(axis=3) * rows).sum(axis=2))
    column = np.where(empty, 0.5, (share.sum(axis=2) * columns).sum(axis=2))
    away = np.hypot(rows[:, None] - row[..., None, None], columns - column[..., None, None])
    entropy = -(share * np.log(share + TINY)).sum(axis=(2, 3)) / np.log(max(2, height * width))
    stats = (
        positive.max(axis=(2, 3)),
        positive.mean(axis=(2, 3)),
        np.where(empty, 0, entropy),
        (share * away).sum(axis=(2, 3)),
        row,
        column,
        maps.sum(axis=(2, 3)),
    )
    return np.stack(stats, axis=2).astype(np.float32)


def _between(
    arrays: Mapping[str, Arrays], classes: Sequence[str], blocks: Blocks
) -> Iterator[tuple[np.ndarray, str, list[str]]]:
    """Yield how far the maps of every two backbones agree, for the blocks of statistics."""
    for name, block in blocks.items():
        if block is None or block.view != "stats":
            continue
        viewed = {
            backbone: view(of_backbone[block.of], classes, block)
            for backbone, of_backbone in arrays.items()
            if block.of in of_backbone
        }
        for (first, (ours, names)), (second, (theirs, _)) in combinations(viewed.items(), 2):
            pairs = [f"{name_of_map}/{stat}" for name_of_map in names for stat in PAIR_STATS]
            values = agreement(ours, theirs).reshape(len(ours), len(pairs))
            yield values, f"{first}+{second}/{name}", pairs


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return overlap and correlation (N, M, 2) of two backbones' maps, on the finer of their grids.

    Overlap is the mass that both have in the same place once each has 1 in all; correlation that of the
    signed maps, cell by cell. Both are 0 where a map is empty or the same everywhere.
    """
    grid = max(*first.shape[2:], *second.shape[2:])
    a, b = (resample(maps, grid).reshape(*maps.shape[:2], grid * grid) for maps in (first, second))
    p, q = (_over_sum(maps.clip(min=0)) for maps in (a, b))
    overlap = np.minimum(p, q).sum(axis=2)
    a, b = a - a.mean(axis=2, keepdims=True), b - b.mean(axis=2, keepdims=True)
    size = np.sqrt((a**2).sum(axis=2) * (b**2).sum(axis=2))
    correlation = np.where(size > TINY, (a * b).sum(axis=2) / np.maximum(size, TINY), 0)
    return np.stack([overlap, correlation], axis=2).astype(np.float32)


def _over_sum(values: np.ndarray) -> np.ndarray:
    total = values.sum(axis=2, keepdims=True)
    return np.where(total > TINY, values / np.maximum(total, TINY), 0)
