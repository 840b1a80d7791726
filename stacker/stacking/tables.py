"""From caches to tables: which rows there are, who made them, and what a meta-learner reads of them.

A table has a row per image and the columns of all backbones side by side (`blocks`). Rows of the
development cases come from the fold whose model never saw them; rows of the test cases come from every
fold, one table each. A table lies in the caches and is read piece by piece, or held in memory where it
is small. Whether the caches may be stacked at all is `admission`'s question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from stacker.caches.format import NOT_A_NUMBER, Rows
from stacker.caches.reader import Cache
from stacker.config.stacking import StackConfig
from stacker.errors import CacheError, require_one_of
from stacker.run import FROZEN, BaseModel
from stacker.stacking.blocks import Arrays, Blocks, array_of, assemble, probabilities, resolve
from stacker.stacking.learners.matrix import size_gb, whole


@dataclass(frozen=True)
class Source:
    """The caches of one fold's base models, and the frozen ones with the place of each of its rows."""

    fold: str
    caches: dict[str, Cache]
    frozen: dict[str, tuple[Cache, np.ndarray]]

    @cached_property
    def rows(self) -> Rows:
        """The rows of all these caches, which were compared with the split."""
        return next(iter(self.caches.values())).rows

    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Return the shape of a row of every array, by backbone."""
        shapes = {name: dict(cache.shapes) for name, cache in self.caches.items()}
        for name, (cache, _) in self.frozen.items():
            shapes.setdefault(name, {})[FROZEN] = cache.shapes["features"]
        return shapes

    def read(self, wanted: set[str], places: np.ndarray) -> dict[str, Arrays]:
        """Return the wanted arrays of some rows, by backbone."""
        arrays: dict[str, dict[str, np.ndarray]] = {
            name: {array: cache.read(array, places) for array in sorted(wanted - {FROZEN})}
            for name, cache in self.caches.items()
        }
        if FROZEN in wanted:
            for name, (cache, place_of) in self.frozen.items():
                arrays.setdefault(name, {})[FROZEN] = cache.read("features", place_of[places])
        return dict(arrays)


@dataclass(frozen=True)
class Table:
    """Features (N, F) with their column names, the rows' identities and who made them.

    `source` and `place` say where each row lies, `made_by` is the fold whose base models made it.
    `centres` (sources, F) are taken off the columns of each source. A table is a `matrix.Matrix`: `read`
    gives float32, from memory where `values` (centred already) are held.
    """

    sources: tuple[Source, ...]
    source: np.ndarray
    place: np.ndarray
    rows: Rows
    blocks: Blocks
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray | None = field(default=None, compare=False)
    centres: np.ndarray | None = field(default=None, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), len(self.columns)

    @property
    def made_by(self) -> np.ndarray:
        """The fold whose base models made each row."""
        folds: np.ndarray = np.array([source.fold for source in self.sources])[self.source]
        return folds

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return some rows, (n, F) float32."""
        if self.values is not None:
            return self.values[start:stop]
        source, place = self.source[start:stop], self.place[start:stop]
        wanted = {array_of(name, block) for name, block in self.blocks.items()}
        values = np.empty((len(source), len(self.columns)), dtype=np.float32)
        for number in np.unique(source):
            rows = source == number
            arrays = self.sources[number].read(wanted, place[rows])
            values[rows], _ = assemble(arrays, self.classes, self.blocks)
        return values if self.centres is None else values - self.centres[source]

    def centred(self, centres: np.ndarray) -> Table:
        """Return the table with what each source has in common (sources, F) taken off."""
        if self.values is None:
            return replace(self, centres=centres)
        values = self.values - centres[self.source]
        return replace(self, values=values.astype(np.float32), centres=centres)

    def take(self, rows: np.ndarray) -> Table:
        """Return some of the rows, by mask or by rising index."""
        return replace(
            self,
            source=self.source[rows],
            place=self.place[rows],
            rows=self.rows.take(rows),
            values=None if self.values is None else self.values[rows],
        )

    def hold(self, limit_gb: float) -> Table:
        """Return the table with its values in memory, where they need no more than so much."""
        if self.values is not None or size_gb(self) > limit_gb:
            return self
        return replace(self, values=whole(self, limit_gb, "a table"))


@dataclass(frozen=True)
class Tables:
    """What a meta-learner works on: the development rows, and the test rows as each fold has them.

    `groups` is what the split keeps together, of each development row. Where columns lie in `mixed`
    bases, those of several folds mean different things, and each fold's rows need a fit of their own.
    """

    development: Table
    tests: dict[str, Table]
    groups: np.ndarray
    mixed: bool

    @property
    def crossed(self) -> bool:
        """Say whether one fit learns from rows of several folds' models."""
        return len(self.tests) > 1 and not self.mixed


@dataclass(frozen=True)
class Caches:
    """The opened caches of a run, compared with its split: tables are made from them.

    `checkpoints` and `origins` hold the SHA-256 and the digest of the provenance behind each cache.
    """

    sources: tuple[Source, ...]
    classes: tuple[str, ...]
    checkpoints: dict[BaseModel, str]
    origins: dict[BaseModel, str]
    precision: str

    @property
    def backbones(self) -> list[str]:
        """The backbones that were fine-tuned."""
        return list(self.sources[0].caches)

    @property
    def folds(self) -> list[str]:
        """The folds that have base models of their own."""
        return [source.fold for source in self.sources]

    def tables(self, features: Sequence[str], config: StackConfig) -> Tables:
        """Return the tables of some feature blocks; raise CacheError where a block is not cached."""
        blocks = resolve(features, config)
        self._require(blocks)
        empty = {
            backbone: {name: np.empty((0, *shape), np.float32) for name, shape in shapes.items()}
            for backbone, shapes in self.sources[0].shapes().items()
        }
        _, columns = assemble(empty, self.classes, blocks)
        tests = self._tests()
        development = self._table([(i, ~test) for i, test in enumerate(tests)], blocks, columns)
        return Tables(
            development=development,
            tests={
                fold: self._table([(i, test)], blocks, columns)
                for i, (fold, test) in enumerate(zip(self.folds, tests, strict=True))
            },
            groups=np.char.decode(development.rows.group_id.astype("S"), "utf-8"),
            mixed=len(self.sources) > 1
            and any(array_of(name, block) == "features" for name, block in blocks.items()),
        )

    def _table(
        self, parts: Sequence[tuple[int, np.ndarray]], blocks: Blocks, columns: tuple[str, ...]
    ) -> Table:
        return Table(
            sources=self.sources,
            source=np.concatenate([np.full(int(mask.sum()), i) for i, mask in parts]),
            place=np.concatenate([np.flatnonzero(mask) for _, mask in parts]),
            rows=Rows.join(self.sources[i].rows.take(mask) for i, mask in parts),
            blocks=blocks,
            classes=self.classes,
            columns=columns,
        )

    def _require(self, blocks: Blocks) -> None:
        """Raise CacheError for a block that is not cached, or whose maps are not numbers."""
        for name, block in blocks.items():
            array = array_of(name, block)
            if block is not None and isinstance(block.classes, list):
                require_one_of(f"class of stack.blocks.{name}", block.classes, self.classes)
            if array == FROZEN:
                if not self.sources[0].frozen:
                    raise CacheError(f"{name}: no backbone is named under 'frozen' in the config")
                continue
            for source in self.sources:
                for cache in source.caches.values():
                    if array not in cache.shapes:
                        raise CacheError(
                            f"{cache.folder}: has no {array}, which {name} is made of; it has "
                            f"{', '.join(cache.shapes)} (cam.methods, cam.lower)"
                        )
                    if array.startswith("maps"):
                        _require_numbers(cache, array)

    def base(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return each base model's probabilities: (N, K) on development, (folds, N, K) on test rows."""
        development, tests = {}, {}
        for name in self.backbones:
            shares = [probabilities(source.caches[name].read("logits")) for source in self.sources]
            by_fold = list(zip(shares, self._tests(), strict=True))
            development[name] = np.concatenate([of_fold[~test] for of_fold, test in by_fold])
            tests[name] = np.stack([of_fold[test] for of_fold, test in by_fold])
        return development, tests

    def _tests(self) -> list[np.ndarray]:
        """Return which rows of each source are of test cases."""
        return [source.rows.fold == b"test" for source in self.sources]


def _require_numbers(cache: Cache, name: str) -> None:
    """Raise CacheError for maps that are not numbers."""
    bad = np.flatnonzero(cache.read("flags")[:, cache.maps.index(name)] & NOT_A_NUMBER)
    if len(bad):
        image = cache.rows.image_id[bad[0]].decode()
        raise CacheError(
            f"{cache.folder}: {name} of {len(bad)} images are not numbers, first {image}; take "
            "another method (cam.methods), or leave these maps out of stack.features"
        )
