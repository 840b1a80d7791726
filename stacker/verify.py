"""Examine the caches of a run to the last byte, and say of each what is wrong with it.

Everything that stage three relies on is looked at: that all parts are there and are what was written,
that they belong to this run's base models, images, split and settings, that no row's case trained its
model, that the index shows to others what the parts hold, and, where a Grad-CAM map sums to its logit
minus the bias, that it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np

from stacker.cache import (
    AGAIN,
    INDEX,
    ROWS,
    Provenance,
    Rows,
    opened,
    part_file,
    read_dataset,
    read_digest,
    read_provenance,
    read_rows,
)
from stacker.errors import CacheError
from stacker.features import refuse_leaks
from stacker.folds import FROZEN
from stacker.studies import Study
from stacker.targets import Target, list_targets

SUMMING = ("gradcam", "hirescam")  # the methods whose maps sum to the logit behind an average


@dataclass(frozen=True)
class Verdict:
    """What was found of one cache: nothing, if it is as it should be."""

    name: str
    parts: int
    images: int
    problems: tuple[str, ...]


def verify(study: Study) -> list[Verdict]:
    """Examine every cache that a run should have; raise RunError when a base model is not there."""
    trained = {
        fold.name: _trained_images(study, (*fold.fit, *fold.validation)) for fold in study.folds.folds
    }
    return [
        Verdict(target.name, len(target.pieces), target.images, tuple(_problems(target, trained)))
        for target in list_targets(study)
    ]


def _trained_images(study: Study, groups: tuple[str, ...]) -> set[bytes]:
    rows = study.manifest.rows_of(study.folds.group, groups)
    return {study.manifest.images[row].id.encode() for row in rows}


def _problems(target: Target, trained: dict[str, set[bytes]]) -> Iterator[str]:
    """Yield what is wrong with a cache, its parts first."""
    paths = [part_file(target.folder, number) for number in range(len(target.pieces))]
    found = []
    for path, piece in zip(paths, target.pieces, strict=True):
        found += _said(lambda: _examine_part(path, piece.rows, target.provenance))  # noqa: B023
    if not found:
        found = _said(lambda: _examine_index(target.folder / INDEX, paths))
    yield from found
    for stray in sorted(set(target.folder.glob("part-*.h5")) - set(paths)):
        yield f"{stray} is none of its parts; {AGAIN}"
    seen = trained.get(target.fold, set()) if target.fold != FROZEN else set()
    leaked = [i for piece in target.pieces for i in piece.rows.image_id if i in seen]
    if leaked:
        yield f"{target.name}: {len(leaked)} images trained their own model, e.g. {leaked[0].decode()}"


def _said(examine: Callable[[], None]) -> list[str]:
    """Return what an examination complains about."""
    try:
        examine()
    except CacheError as error:
        return [str(error)]
    return []


def _examine_part(path: Path, rows: Rows, expected: Provenance) -> None:
    """Raise CacheError for whatever is wrong with a part."""
    with opened(path) as file:
        read_digest(file)
        found = read_provenance(file)
        wanted = asdict(expected)
        for name, value in asdict(found).items():
            if name not in ("versions", "lower_layers", "classifier_bias") and value != wanted[name]:
                raise CacheError(
                    f"{path} was made with another {name} ({_short(value)}, this run: "
                    f"{_short(wanted[name])}); {AGAIN}"
                )
        if not read_rows(file).equals(rows):
            raise CacheError(f"{path} holds other images than it should; {AGAIN}")
        refuse_leaks(rows, found, f"{expected.backbone}/{expected.model_fold}")
        for name in file.keys() - set(ROWS):
            read_dataset(file, name)
        _examine_sums(file, found)


def _examine_sums(file: h5py.File, origin: Provenance) -> None:
    """Raise CacheError when maps do not add up to their logits, as far as float16 can tell."""
    if not (origin.classifier_bias and origin.methods and origin.methods[0] in SUMMING):
        return
    maps_NKhw = file["maps"][:].astype(np.float64)
    logits_NK = file["logits"][:]
    sums_NK = maps_NKhw.sum(axis=(2, 3))
    rounding_NK = np.abs(maps_NKhw).sum(axis=(2, 3)) * 2.0**-11 + maps_NKhw[0, 0].size * 2.0**-24
    gap_NK = np.abs(sums_NK - (logits_NK - np.array(origin.classifier_bias)))
    wrong = np.flatnonzero((gap_NK > 2 * rounding_NK + 1e-4 * np.abs(logits_NK) + 1e-4).any(axis=1))
    if len(wrong):
        image = file["image_id"][wrong[0]].decode()
        raise CacheError(
            f"{file.filename}: maps of {len(wrong)} images do not sum to logit - bias, first {image}; "
            "delete the file and run 'stacker cache CONFIG' again"
        )


def _examine_index(path: Path, parts: Sequence[Path]) -> None:
    """Raise CacheError when the index does not show what the parts hold."""
    with opened(path) as index:
        if [str(name) for name in index.attrs["parts"]] != [part.name for part in parts]:
            raise CacheError(f"{path} lists other parts; {AGAIN}")
        start = 0
        for part, digest in zip(parts, index.attrs["part_digests"], strict=True):
            with opened(part) as file:
                end = start + len(file["label"])
                if file.attrs["digest"] != digest or index.keys() != file.keys():
                    raise CacheError(f"{path} was made of another {part.name}; {AGAIN}")
                for name in file:
                    if index[name][start:end].tobytes() != file[name][:].tobytes():
                        raise CacheError(f"{path} shows other {name} than {part.name} has; {AGAIN}")
                start = end


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
