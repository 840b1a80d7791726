"""CSV tables of images: of a data set, or of what predictions are asked for."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

from stacker.config.data import DataConfig
from stacker.data.formats.format import Format, with_cases
from stacker.data.manifest import SPLIT_NAMES, SPLITS, Image
from stacker.errors import DataError

log = logging.getLogger(__name__)
COLUMNS = ("path", "label", "id", "case", "slide", "magnification", "subtype", "split")
PLACEHOLDERS = {"nan", "na", "n/a", "none", "null", "unknown", "?", "-"}


def read_csv(config: DataConfig) -> list[Image]:
    """Read a table of images; relative paths are taken from the table's folder.

    All faults are reported at once.
    """
    table = config.path
    columns, rows = read_table(table)
    missing = [name for name in ("path", "label") if name not in columns]
    if missing or not rows:
        lacks = f"column {' and '.join(missing)}" if missing else "rows"
        raise DataError(f"{table} has no {lacks}; expected path,label[,case,slide,...], found {columns}")
    unused = [name for name in columns if name not in COLUMNS]
    if unused:
        hint = "" if "case" in columns else "; is one of them the case?"
        log.warning("%s: columns %s are not used (known: %s)%s", table, unused, list(COLUMNS), hint)
    if config.case_pattern is not None and "case" in columns:
        raise DataError(f"{table} has a column 'case', and data.case_pattern is set: drop one of them")
    images, faults = [], []
    for number, cells in rows:
        try:
            images.append(_csv_image(table.parent, cells))
        except DataError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        shown = faults[:20] + ([f"and {len(faults) - 20} more"] if len(faults) > 20 else [])
        raise DataError("\n  ".join([f"{table}: faults in {len(faults)} of {len(rows)} rows:", *shown]))
    return with_cases(images, config.case_pattern, table.parent.absolute())


def read_table(table: Path) -> tuple[list[str], list[tuple[int, dict[str | None, str]]]]:
    """Return the columns, in lower case, and the rows with their line numbers.

    Commas, semicolons and tabs separate. Cells beyond the columns are under None. Raise DataError for
    what is no CSV in UTF-8.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            separator = max(",;\t", key=header.count)
            columns = [name.strip().strip('"').lower() for name in header.strip().split(separator)]
            reader = csv.DictReader(file, columns, restval="", delimiter=separator)
            return columns, [  # more than one cell comes as a list
                (reader.line_num + 1, {name: "".join(text).strip() for name, text in row.items()})
                for row in reader
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not a CSV in UTF-8: {error}", "save it again as such") from None


def _csv_image(folder: Path, cells: dict[str | None, str]) -> Image:
    """Turn a row into an image; raise DataError for what is wrong with it."""
    if None in cells:
        raise DataError("more cells than columns; quote texts that hold the separator")
    for name in ("path", "label"):
        if not cells[name]:
            raise DataError(f"no {name}")
    path = (folder / cells["path"]).absolute()
    if not path.is_file():
        raise DataError(f"no file at {path}")
    split = cells.get("split", "").lower()
    if split and split not in SPLIT_NAMES:
        raise DataError(f"split {split!r}; expected one of {', '.join(SPLITS)}, or nothing")
    magnification = cells.get("magnification", "").upper().removesuffix("X")
    if magnification and not magnification.isdecimal():
        raise DataError(f"magnification {cells['magnification']!r}; expected such as 200")
    for name in ("case", "slide", "subtype"):
        if cells.get(name, "").lower() in PLACEHOLDERS:
            raise DataError(f"{name} {cells[name]!r} is no name; leave it empty if it is not known")
    return Image(
        id=cells.get("id") or cells["path"],
        path=str(path),
        label=cells["label"],
        case=cells.get("case", ""),
        slide=cells.get("slide", ""),
        magnification=int(magnification) if magnification else None,
        subtype=cells.get("subtype", ""),
        split=SPLIT_NAMES.get(split, ""),
    )


TABLE = Format(read_csv, "listed in a table", given="file", takes=("case_pattern",))
