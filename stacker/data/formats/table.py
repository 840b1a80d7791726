"""CSV tables of images: of a data set, or of what predictions are asked for."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

from stacker.config.data import DataConfig
from stacker.data.formats.format import Format, with_cases
from stacker.data.manifest import SPLIT_NAMES, SPLITS, Image
from stacker.errors import DataError, first_few

log = logging.getLogger(__name__)
COLUMNS = ("path", "label", "id", "case", "slide", "magnification", "subtype", "split")
PLACEHOLDERS = {"nan", "na", "n/a", "none", "null", "unknown", "?", "-"}


def read_csv(config: DataConfig) -> list[Image]:
    """Read a table of images; relative paths are taken from the table's folder.

    All errors are reported at once.
    """
    table = config.path
    columns, rows = read_table(table)
    missing = [name for name in ("path", "label") if name not in columns]
    if missing or not rows:
        lacks = f"column {' and '.join(missing)}" if missing else "rows"
        raise DataError(f"{table} has no {lacks}, expected path,label[,case,slide,...], found {columns}")
    unused = [name for name in columns if name not in COLUMNS]
    if unused:
        hint = "" if "case" in columns else "; if one of them is the case, rename it to 'case'"
        text = "%s: columns not used: %s (known are %s)%s"
        log.warning(text, table, first_few(unused), ", ".join(COLUMNS), hint)
    if config.case_pattern is not None and "case" in columns:
        raise DataError(
            f"{table} has a column 'case', and data.case_pattern is set", "remove one of them"
        )
    images, faults = [], []
    for number, cells in rows:
        try:
            images.append(_csv_image(table.parent, cells))
        except DataError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        shown = faults[:20] + ([f"and {len(faults) - 20} more"] if len(faults) > 20 else [])
        raise DataError("\n  ".join([f"{table}: errors in {len(faults)} of {len(rows)} rows:", *shown]))
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
        raise DataError(f"{table} is not a CSV in UTF-8: {error}", "save it as one") from None


def _csv_image(folder: Path, cells: dict[str | None, str]) -> Image:
    """Turn a row into an image; raise DataError for what is wrong with it."""
    if None in cells:
        raise DataError("more cells than columns", "quote texts that contain the separator")
    for name in ("path", "label"):
        if not cells[name]:
            raise DataError(f"no {name}")
    path = (folder / cells["path"]).absolute()
    if not path.is_file():
        raise DataError(f"no file at {path}")
    split = cells.get("split", "").lower()
    if split and split not in SPLIT_NAMES:
        raise DataError(f"split is {split!r}, expected {', '.join(SPLITS)} or nothing")
    magnification = cells.get("magnification", "").upper().removesuffix("X")
    if magnification and not magnification.isdecimal():
        raise DataError(f"magnification is {cells['magnification']!r}, expected e.g. 200")
    for name in ("case", "slide", "subtype"):
        if cells.get(name, "").lower() in PLACEHOLDERS:
            raise DataError(f"{name} is {cells[name]!r}", "leave it empty if it is unknown")
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
