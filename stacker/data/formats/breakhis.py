"""BreakHis: a strict grammar of file names, and the official fold lists.

The name of an image states its subtype, slide and magnification. The case is the accession number: the
letters behind it tell its slides apart. The year is read, not assumed (one slide is of 15).
"""

from __future__ import annotations

import re
from pathlib import Path

from stacker.config.data import DataConfig
from stacker.data.formats.format import Format, case_by_name, named_pictures
from stacker.data.manifest import Image
from stacker.errors import DataError, first_few

SUBTYPES = {
    "A": "adenosis",
    "F": "fibroadenoma",
    "PT": "phyllodes_tumor",
    "TA": "tubular_adenoma",
    "DC": "ductal_carcinoma",
    "LC": "lobular_carcinoma",
    "MC": "mucinous_carcinoma",
    "PC": "papillary_carcinoma",
}
BREAKHIS_NAME = re.compile(
    r"SOB_(?:(?P<benign>B)_(?P<benign_code>A|F|PT|TA)|M_(?P<malignant_code>DC|LC|MC|PC))"
    r"-(?P<case>\d{2}-\d+)(?P<part>[A-Z]*)-(?P<magnification>\d+)-(?P<seq>\d+)\.png"
)


def read_breakhis(config: DataConfig) -> list[Image]:
    """Read BreakHis, as distributed or as a flat folder, from its strict file-name grammar.

    A tree may keep other pictures beside the slides (masks, say): where there is a
    `histology_slides` folder, only what is below it counts.
    """
    trees = sorted(config.path.rglob("histology_slides"))
    if len(trees) > 1:
        raise DataError(
            f"{config.path} holds several data sets: {first_few(trees)}", "set data.path to one of them"
        )
    tree = trees[0] if trees else config.path
    official = {} if config.fold_list is None else read_fold_list(config.fold_list)
    images = []
    for path, match in named_pictures(tree, BREAKHIS_NAME, "BreakHis", "SOB_M_DC-14-10AB-200-001.png"):
        images.append(
            Image(
                id=path.stem,
                path=str(path),
                label="benign" if match["benign"] else "malignant",
                case=match["case"],
                slide=match["case"] + match["part"],
                magnification=int(match["magnification"]),
                subtype=SUBTYPES[match["benign_code"] or match["malignant_code"]],
                split=official.get(path.name, ""),
            )
        )
    return images


def read_fold_list(path: Path) -> dict[str, str]:
    """Read an official BreakHis list of lines `file|magnification|fold|train or test`."""
    parts: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        fields = [field.strip() for field in line.split("|")]
        if line.strip():
            if len(fields) != 4 or fields[3] not in ("train", "test"):
                raise DataError(
                    f"{path}, line {number}: found {line!r}, expected file|magnification|fold|part with "
                    "the part train or test"
                )
            if parts.setdefault(fields[0], fields[3]) != fields[3]:
                raise DataError(f"{path}, line {number}: {fields[0]} is in train and in test")
    return parts


BREAKHIS = Format(
    read_breakhis,
    "named as in BreakHis",
    takes=("fold_list",),
    case_in=case_by_name(BREAKHIS_NAME),
    one_subtype_per_slide=True,
)
