"""Export the caches of a run to other tools: one file or folder per base model, with its provenance.

npz    numpy archives: every array, the rows, and `provenance` as JSON
csv    one line per image: image, case, label, part, made_by, then every value under its column's name
zarr   a zarr group per base model: arrays, and the provenance as attributes
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stacker.caches.format import ROWS, column_names
from stacker.caches.reader import Cache, opened
from stacker.errors import ConfigError, install_extra
from stacker.files import publish
from stacker.run import BaseModel


def export_caches(caches: Mapping[BaseModel, Cache], kind: str, out: Path) -> list[Path]:
    """Write every cache under `out` in one kind; return the files."""
    written = []
    for (backbone, fold), cache in caches.items():
        path = out / f"{backbone}-{fold}.{kind}"
        KINDS[kind](cache, path)
        written.append(path)
    return written


def _arrays(cache: Cache) -> dict[str, np.ndarray]:
    """Return every array and row of a cache; text as numpy's own."""
    rows = {name: getattr(cache.rows, name) for name in ROWS}
    text = {
        name: np.char.decode(v.astype("S"), "utf-8") for name, v in rows.items() if v.dtype.kind == "S"
    }
    return {**rows, **text, **{name: cache.read(name) for name in cache.shapes}}


def _attributes(cache: Cache, name: str) -> dict[str, Any]:
    """Return what a dataset says of itself, as plain data."""
    with opened(cache.parts[0]) as file:
        attributes = {key: value for key, value in file[name].attrs.items() if key != "sha256"}
    return {key: list(v) if isinstance(v, np.ndarray) else str(v) for key, v in attributes.items()}


def _npz(cache: Cache, path: Path) -> None:
    with publish(path) as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = _arrays(cache)
        np.savez(file, provenance=json.dumps(asdict(cache.provenance)), **arrays)


def _columns(cache: Cache, name: str) -> list[str]:
    if name == "flags":
        return [f"flags/{kind}" for kind in cache.maps]
    return column_names(name, cache.shapes[name], cache.provenance.classes)


def _csv(cache: Cache, path: Path) -> None:
    arrays = _arrays(cache)
    names = list(cache.shapes)
    origin = cache.provenance
    columns = [column for name in names for column in _columns(cache, name)]
    made_by = BaseModel(origin.backbone, origin.model_fold)
    with publish(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "case_id", "label", "part", "made_by", *columns])
        values = np.concatenate(
            [arrays[n].reshape(len(cache.rows), -1).astype(np.float32) for n in names], 1
        )
        for row, numbers in enumerate(values):
            image, case, part = (arrays[name][row] for name in ("image_id", "case_id", "fold"))
            label = origin.classes[arrays["label"][row]]
            writer.writerow([image, case, label, part, made_by, *(f"{v:.9g}" for v in numbers)])


def _zarr(cache: Cache, path: Path) -> None:
    try:
        import zarr
    except ImportError:
        raise ConfigError("--zarr needs the zarr package", install_extra("zarr")) from None
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    group = zarr.open_group(path, mode="w", zarr_format=2)  # which specifies text
    for name, values in _arrays(cache).items():
        group.create_array(name, data=values).attrs.update(_attributes(cache, name))
    group.attrs.update(asdict(cache.provenance))


KINDS: dict[str, Callable[[Cache, Path], None]] = {"npz": _npz, "csv": _csv, "zarr": _zarr}
