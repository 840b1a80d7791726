"""The images that `stacker predict` is given: files, folders, patterns, tables, lists.

An image's case comes from the table's own column, or else from the file's name by the grammar of the
run's data format (`data.format`, `data.case_pattern`); where neither tells, it stays empty. An image
that is named twice is predicted once. Lesion masks of the run that a folder or pattern takes in are left
out.
"""

from __future__ import annotations

import glob
import itertools
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from stacker.config.data import DataConfig, ImagesConfig
from stacker.data.formats.registry import case_in
from stacker.data.formats.table import read_table
from stacker.data.images import UnusableError, decode_file, decode_picture
from stacker.data.manifest import PICTURES
from stacker.errors import ConfigError, DataError, plural

log = logging.getLogger(__name__)
STDIN = "-"


@dataclass(frozen=True)
class Input:
    """One picture file; `below` is its path as a pattern of cases looks at it.

    A `picture` in memory takes the place of the file; `path` is then what it is called.
    """

    path: Path
    case: str = ""
    label: str = ""
    below: str = ""
    picture: np.ndarray | Picture.Image | None = field(default=None, compare=False, repr=False)


def find_inputs(arguments: Sequence[str], data: DataConfig, lines: Iterable[str] = ()) -> list[Input]:
    """Return the images that the arguments name, each once; `lines` is what `-` reads.

    Raise ConfigError for an argument that names nothing. A file that a table or a list names need not be
    there: whoever reads it says so.
    """
    images: dict[str, Input] = {}
    for argument in arguments:
        for image in _from_lines(lines) if argument == STDIN else _named_by(argument, data.masks):
            images.setdefault(os.path.realpath(image.path), image)
    return [
        image if image.case else replace(image, case=case_in(image.path, image.below, data))
        for image in images.values()
    ]


def _from_lines(lines: Iterable[str]) -> list[Input]:
    """Return the files of a list, one path per line."""
    paths = [Path(line.strip()) for line in lines if line.strip()]
    if not paths:
        raise ConfigError("stdin is empty; expected a path per line")
    return [Input(path) for path in paths]


def _named_by(argument: str, masks: Path | None) -> list[Input]:
    """Return the images that a file, a folder, a table or a pattern names."""
    path = Path(argument).expanduser()
    if path.is_file():
        return _from_table(path) if path.suffix.lower() == ".csv" else [Input(path)]
    if path.is_dir():
        pictures, where = _below(path), "below this folder"
    elif glob.has_magic(str(path)):
        pictures, where = list(_matching(str(path))), "matches this pattern"
    else:
        raise ConfigError(
            f"{path}: no such file or folder; give a picture, a folder, a .csv or a pattern"
        )
    of_masks = {i.path for i in pictures if masks is not None and _lies_below(i.path, masks)}
    images = [i for i in pictures if i.path not in of_masks]
    if not images:
        but = " but lesion masks (data.masks)" if of_masks else ""
        raise ConfigError(f"{path}: no picture {where}{but}; looked for {', '.join(sorted(PICTURES))}")
    if of_masks:
        log.info("%s: %s left out (data.masks)", path, plural(len(of_masks), "lesion mask"))
    return images


def _lies_below(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _below(folder: Path) -> list[Input]:
    """Return the pictures below a folder, sorted; hidden files and folders do not count."""
    paths: list[Path] = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(where, name) for name in files if not name.startswith(".")]
    pictures = sorted(path for path in paths if path.suffix.lower() in PICTURES)
    return [Input(path, below=path.relative_to(folder).as_posix()) for path in pictures]


def _matching(pattern: str) -> Iterator[Input]:
    """Yield the pictures that a pattern matches, and those below the folders that it matches."""
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)
    root = Path(*fixed)
    for match in map(Path, sorted(glob.glob(pattern, recursive=True))):  # noqa: PTH207  # `**` too
        if match.is_dir():
            paths = [image.path for image in _below(match)]
        else:
            paths = [match] if match.suffix.lower() in PICTURES else []
        for path in paths:
            yield Input(path, below=Path(os.path.relpath(path, root)).as_posix())


def _from_table(table: Path) -> list[Input]:
    """Return the rows of a CSV with a column `path`, and `case` and `label` where it has them."""
    try:
        columns, rows = read_table(table)
    except DataError as error:
        raise ConfigError(error.what, error.advice) from None
    if "path" not in columns:
        raise ConfigError(f"{table} has no column path; expected path[,case,label], found {columns}")
    images = [
        Input(table.parent / row["path"], row.get("case", ""), row.get("label", ""), row["path"])
        for _, row in rows
        if row["path"]
    ]
    if not images:
        raise ConfigError(f"{table} names no image: its column path is empty")
    return images


@dataclass(frozen=True)
class Reading:
    """What came of reading an image: its pixels, or the reason why there are none."""

    image: Input
    pixels: np.ndarray | None
    reason: str = ""


def read_ahead(images: Iterable[Input], config: ImagesConfig, size: int) -> Iterator[list[Reading]]:
    """Yield the images in batches, decoded; threads read the next two while one is worked on."""
    source = iter(images)
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))

    def begin() -> list[Future[Reading]]:
        return [pool.submit(_read, image, config) for image in itertools.islice(source, size)]

    try:
        pending = deque([begin(), begin()])
        while batch := pending.popleft():
            pending.append(begin())
            yield [future.result() for future in batch]
    finally:
        pool.shutdown(cancel_futures=True)


def _read(image: Input, config: ImagesConfig) -> Reading:
    try:
        if image.picture is not None:
            return Reading(image, decode_picture(image.picture, config))
        return Reading(image, decode_file(image.path, config))
    except UnusableError as error:
        return Reading(image, None, str(error))
