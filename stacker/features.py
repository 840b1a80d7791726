"""From caches to tables: named columns, and who made each row.

A table has a row per image and the columns of all backbones side by side, in blocks: `maps`, `logits`,
`embeddings`. Rows of the development cases come from the fold whose model never saw them; rows of the
test cases come from every fold, one table each. A row whose case trained the model that produced it is
refused here when the split is by case, whatever the file names say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from stacker.cache import ARRAYS, Cache, Provenance, Rows, open_cache
from stacker.errors import CacheError, LeakError
from stacker.folds import Fold, Folds
from stacker.manifest import Manifest
from stacker.run import Run, digest, file_sha256

Arrays = Mapping[str, np.ndarray]
ARRAY_OF_BLOCK = {"maps": "maps", "logits": "logits", "embeddings": "features"}


@dataclass(frozen=True)
class Table:
    """Features (N, F) float32 with their column names, the rows' identities and who made them."""

    values: np.ndarray
    columns: tuple[str, ...]
    rows: Rows
    made_by: np.ndarray


@dataclass(frozen=True)
class Tables:
    """What stage three works on: development rows, test rows per fold, and each base model's say.

    `base_test` and `base_development` hold probabilities (N, K) per backbone; on test cases they are
    averaged over the folds. `checkpoints` and `origins` hold the SHA-256 and the digest of the whole
    provenance behind each cache, by "backbone/fold".
    """

    development: Table
    tests: dict[str, Table]
    base_development: dict[str, np.ndarray]
    base_test: dict[str, np.ndarray]
    checkpoints: dict[str, str]
    origins: dict[str, str]


def assemble(
    arrays: Mapping[str, Arrays], classes: Sequence[str], blocks: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Put the blocks of all backbones side by side: (N, F) float32 and the names of the columns."""
    pieces, columns = [], []
    for backbone, caches in arrays.items():
        for block in blocks:
            # The cache keeps maps as float16: values that never went through it must be rounded alike.
            dtype = np.float16 if block == "maps" else np.float32
            values = caches[ARRAY_OF_BLOCK[block]].astype(dtype).astype(np.float32)
            pieces.append(values.reshape(len(values), -1))
            columns += [f"{backbone}/{block}/{name}" for name in _names(block, values.shape, classes)]
    return np.concatenate(pieces, axis=1), tuple(columns)


def _names(block: str, shape: tuple[int, ...], classes: Sequence[str]) -> list[str]:
    if block == "maps":
        _, _, height, width = shape
        return [f"{c}/r{r}c{k}" for c in classes for r in range(height) for k in range(width)]
    if block == "logits":
        return list(classes)
    return [f"{i:04d}" for i in range(shape[1])]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits (N, K)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def load_tables(run: Run, manifest: Manifest, folds: Folds, blocks: Sequence[str]) -> Tables:
    """Read the caches of a run; raise CacheError or LeakError when one is not what it should be."""
    backbones = list(run.config.backbones)
    development, tests = [], {}
    base_development: dict[str, list[np.ndarray]] = {name: [] for name in backbones}
    base_test: dict[str, list[np.ndarray]] = {name: [] for name in backbones}
    checkpoints, origins = {}, {}
    for fold in folds.folds:
        caches = {name: open_cache(run.cache_folder(name, fold.name)) for name in backbones}
        for name, cache in caches.items():
            _check_origin(cache, name, fold.name, manifest, folds, run.config.cam.method)
            _refuse_trained_images(cache, f"{name}/{fold.name}", fold, manifest, folds)
            _check_model(cache, run.model_file(name, fold.name))
            checkpoints[f"{name}/{fold.name}"] = cache.provenance.checkpoint_sha256
            origins[f"{name}/{fold.name}"] = digest({**asdict(cache.provenance), "versions": None})
        arrays = {name: {a: c.read(a) for a in _arrays_of(blocks)} for name, c in caches.items()}
        rows = _common_rows(caches)
        is_test = rows.fold == b"test"
        development.append(_table(arrays, ~is_test, rows, manifest.classes, blocks, fold.name))
        tests[fold.name] = _table(arrays, is_test, rows, manifest.classes, blocks, fold.name)
        for name in backbones:
            shares = probabilities(arrays[name]["logits"])
            base_development[name].append(shares[~is_test])
            base_test[name].append(shares[is_test])
    return Tables(
        development=_join(development),
        tests=tests,
        base_development={name: np.concatenate(p) for name, p in base_development.items()},
        base_test={name: np.mean(p, axis=0) for name, p in base_test.items()},
        checkpoints=checkpoints,
        origins=origins,
    )


def _arrays_of(blocks: Sequence[str]) -> list[str]:
    wanted = {"logits", *(ARRAY_OF_BLOCK[block] for block in blocks)}
    return [name for name in ARRAYS if name in wanted]


def _table(
    arrays: Mapping[str, Arrays],
    mask: np.ndarray,
    rows: Rows,
    classes: Sequence[str],
    blocks: Sequence[str],
    fold: str,
) -> Table:
    chosen = {name: {a: v[mask] for a, v in found.items()} for name, found in arrays.items()}
    values, columns = assemble(chosen, classes, blocks)
    return Table(values, columns, rows.take(mask), np.full(int(mask.sum()), fold))


def _join(tables: Sequence[Table]) -> Table:
    rows = [
        np.concatenate(parts) for parts in zip(*(vars(t.rows).values() for t in tables), strict=True)
    ]
    return replace(
        tables[0],
        values=np.concatenate([t.values for t in tables]),
        rows=Rows(*rows),
        made_by=np.concatenate([t.made_by for t in tables]),
    )


def _common_rows(caches: Mapping[str, Cache]) -> Rows:
    """Return the rows that the caches of all backbones share; raise CacheError when they differ."""
    first, *others = caches.values()
    for other in others:
        if not np.array_equal(first.rows.image_id, other.rows.image_id):
            raise CacheError(
                f"{first.folder} and {other.folder} hold different images; "
                "run 'stacker cache CONFIG' again"
            )
    return first.rows


def _check_origin(
    cache: Cache, backbone: str, fold: str, manifest: Manifest, folds: Folds, method: str
) -> None:
    """Raise CacheError unless the cache belongs here, LeakError when its model saw one of its cases."""
    found = cache.provenance
    expected = {
        "backbone": backbone,
        "model_fold": fold,
        "manifest_digest": manifest.digest,
        "folds_digest": folds.digest,
        "classes": manifest.classes,
        "method": method,
    }
    for name, value in expected.items():
        if getattr(found, name) != value:
            raise CacheError(
                f"cache {backbone}/{fold} was made with {name} {getattr(found, name)}, this run uses "
                f"{value}; run 'stacker cache CONFIG' again"
            )
    refuse_leaks(cache.rows, found, f"{backbone}/{fold}")


def _refuse_trained_images(
    cache: Cache, where: str, fold: Fold, manifest: Manifest, folds: Folds
) -> None:
    """Raise LeakError when a row is an image that trained its model, by whatever unit the split goes."""
    trained = manifest.rows_of(folds.group, (*fold.fit, *fold.validation))
    ids = {manifest.images[row].id for row in trained}
    leaked = sorted(ids & {image.decode() for image in cache.rows.image_id})
    if leaked:
        raise LeakError(
            f"cache {where}: {len(leaked)} images trained the model that produced their rows, e.g. "
            f"{leaked[0]}; these rows cannot be stacked: run 'stacker cache CONFIG' again"
        )


def _check_model(cache: Cache, model: Path) -> None:
    """Raise CacheError when the base model was trained again after it was cached."""
    if model.exists() and file_sha256(model) != cache.provenance.checkpoint_sha256:
        raise CacheError(
            f"{cache.folder} was made by another model than {model}; run 'stacker cache CONFIG' again"
        )


def refuse_leaks(rows: Rows, provenance: Provenance, where: str) -> None:
    """Raise LeakError when a case of the rows trained the model that produced them.

    A split by slide or by image leaks across cases by its nature: it was asked for, and its
    label says so, hence it passes.
    """
    if provenance.group != "case":
        return
    trained = set(provenance.training_cases)
    leaked = sorted({case.decode() for case in rows.case_id} & trained)
    if leaked:
        raise LeakError(
            f"cache {where}: {len(leaked)} cases trained the model that produced their rows, e.g. case "
            f"{leaked[0]}; these rows cannot be stacked: run 'stacker cache CONFIG' again"
        )
