"""From caches to tables: named columns, and who made each row.

A table has a row per image and the columns of all backbones side by side, in blocks: maps by the names
of their datasets (`maps`, `maps_layercam`, ...), `logits`, `embeddings`, and `frozen`, the embeddings of
backbones that nobody trained, which lie in one basis whatever the fold. Rows of the development cases
come from the fold whose model never saw them; rows of the test cases come from every fold, one table
each. A row whose case trained the model that produced it is refused here when the split is by case,
whatever the file names say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stacker.cache import AGAIN, FLAGS, Cache, Provenance, Rows, halve, map_classes, open_cache
from stacker.errors import CacheError, LeakError
from stacker.folds import Fold, Folds
from stacker.manifest import Manifest
from stacker.run import FROZEN, Run, digest, file_sha256
from stacker.unseen import rows_of_cache

Arrays = Mapping[str, np.ndarray]
ARRAY_OF_BLOCK = {"embeddings": "features"}  # the other blocks are called what their arrays are called


@dataclass(frozen=True)
class Table:
    """Features (N, F) float32 with their column names, the rows' identities and who made them.

    `made_by` is the fold whose base models made a row: with a backbone's name, a key of `checkpoints`.
    """

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
    precision: str


def assemble(
    arrays: Mapping[str, Arrays], classes: Sequence[str], blocks: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Put the blocks of all backbones side by side: (N, F) float32 and the names of the columns.

    A backbone has the blocks of one that is fine-tuned, or the block of one that is frozen, or both.
    """
    pieces, columns = [], []
    for backbone, found in arrays.items():
        for block in blocks:
            name = ARRAY_OF_BLOCK.get(block, block)
            if name not in found:
                continue
            # Maps that never went through the cache must be rounded as it rounds them.
            values = halve(found[name]) if block.startswith("maps") else found[name]
            values = values.astype(np.float32)
            pieces.append(values.reshape(len(values), -1))
            names = column_names(block, values.shape[1:], classes)
            columns += [f"{backbone}/{name}" for name in names]
    return np.concatenate(pieces, axis=1), tuple(columns)


def column_names(block: str, shape: tuple[int, ...], classes: Sequence[str]) -> list[str]:
    """Return the names of the columns of a block whose rows have this shape, as in maps/benign/r3c7."""
    if block.startswith("maps"):
        number, height, width = shape
        names = map_classes(classes, number)
        return [f"{block}/{c}/r{r}c{k}" for c in names for r in range(height) for k in range(width)]
    names = tuple(classes) if block == "logits" else tuple(f"{i:04d}" for i in range(shape[0]))
    return [f"{block}/{name}" for name in names]


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
    opened: dict[str, Cache] = {}
    frozen: dict[str, Cache] = {}
    if "frozen" in blocks:
        frozen = {name: _open(run, name, None, manifest, folds) for name in run.config.frozen}
        opened |= {f"{name}/{FROZEN}": cache for name, cache in frozen.items()}
    for fold in folds.folds:
        caches = {name: _open(run, name, fold, manifest, folds) for name in backbones}
        opened |= {f"{name}/{fold.name}": cache for name, cache in caches.items()}
        rows = next(iter(caches.values())).rows  # those of all: each was compared with the split
        arrays = {name: _read(cache, blocks) for name, cache in caches.items()}
        for name, cache in frozen.items():
            arrays.setdefault(name, {})["frozen"] = _rows_of(cache, rows)
        is_test = rows.fold == b"test"
        development.append(_table(arrays, ~is_test, rows, manifest.classes, blocks, fold.name))
        tests[fold.name] = _table(arrays, is_test, rows, manifest.classes, blocks, fold.name)
        for name in backbones:
            shares = probabilities(arrays[name]["logits"])
            base_development[name].append(shares[~is_test])
            base_test[name].append(shares[is_test])
    origins = {key: cache.provenance for key, cache in opened.items()}
    _require_one_precision(origins)
    return Tables(
        development=_join(development),
        tests=tests,
        base_development={name: np.concatenate(p) for name, p in base_development.items()},
        base_test={name: np.mean(p, axis=0) for name, p in base_test.items()},
        checkpoints={key: origin.checkpoint_sha256 for key, origin in origins.items()},
        precision=next(iter(origins.values())).precision,
        origins={key: digest({**asdict(o), "versions": None}) for key, o in origins.items()},
    )


def _open(run: Run, backbone: str, fold: Fold | None, manifest: Manifest, folds: Folds) -> Cache:
    """Open the cache of a base model, or of a frozen backbone, and look whether it may be stacked."""
    name = FROZEN if fold is None else fold.name
    cache = open_cache(run.cache_folder(backbone, name))
    _check_origin(cache, backbone, name, run, manifest, folds)
    refuse_leaks(cache.rows, cache.provenance, f"{backbone}/{name}")
    if fold is not None:
        _refuse_trained_images(cache, f"{backbone}/{name}", fold, manifest, folds)
    if not cache.rows.equals(rows_of_cache(manifest, folds, fold)):
        raise CacheError(f"{cache.folder} holds other images than the split of this run says; {AGAIN}")
    _check_model(cache, run.model_file(backbone, name))
    return cache


def _read(cache: Cache, blocks: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays of a base model that the blocks need, and its logits.

    Raise CacheError for maps that are not numbers.
    """
    wanted = {"logits", *(ARRAY_OF_BLOCK.get(block, block) for block in blocks if block != "frozen")}
    found = {name: cache.read(name) for name in sorted(wanted)}
    not_a_number = next(bit for bit, meaning in FLAGS.items() if meaning == "not a number")
    flags = cache.read("flags")
    for column, name in enumerate(cache.maps):
        bad = np.flatnonzero(flags[:, column] & not_a_number)
        if name in wanted and len(bad):
            image = cache.rows.image_id[bad[0]].decode()
            raise CacheError(
                f"{cache.folder}: {name} of {len(bad)} images are not numbers, first {image}; take "
                "another method (cam.methods), or leave these maps out of stack.features"
            )
    return found


def _rows_of(cache: Cache, rows: Rows) -> np.ndarray:
    """Return a frozen backbone's embeddings of some images."""
    place = {image: row for row, image in enumerate(cache.rows.image_id)}
    missing = [image for image in rows.image_id if image not in place]
    if missing:
        raise CacheError(f"{cache.folder}: {missing[0].decode()} is not among its images; {AGAIN}")
    return cache.read("features")[[place[image] for image in rows.image_id]]


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
    return replace(
        tables[0],
        values=np.concatenate([t.values for t in tables]),
        rows=Rows.join(t.rows for t in tables),
        made_by=np.concatenate([t.made_by for t in tables]),
    )


def _check_origin(
    cache: Cache, backbone: str, fold: str, run: Run, manifest: Manifest, folds: Folds
) -> None:
    """Raise CacheError unless the cache is of this run's images, split and settings."""
    found, cam = cache.provenance, run.config.cam
    expected: dict[str, Any] = {
        "backbone": backbone,
        "model_fold": fold,
        "manifest_digest": manifest.digest,
        "folds_digest": folds.digest,
        "classes": manifest.classes,
        "group": folds.group,
    }
    if fold != FROZEN:
        expected |= {"methods": tuple(cam.methods), "lower": cam.lower}
    for name, value in expected.items():
        if getattr(found, name) != value:
            raise CacheError(
                f"cache {backbone}/{fold} was made with {name} {_plain(getattr(found, name))}, this run "
                f"uses {_plain(value)}; run 'stacker cache CONFIG' again"
            )


def _require_one_precision(origins: Mapping[str, Provenance]) -> None:
    """Raise CacheError for a table of columns in different precision."""
    found = {origin.precision: key for key, origin in origins.items()}
    if len(found) > 1:
        named = ", ".join(f"{key} in {precision}" for precision, key in found.items())
        raise CacheError(f"caches differ in precision: {named}; run 'stacker cache CONFIG' again")


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


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
