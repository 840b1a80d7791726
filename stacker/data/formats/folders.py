"""Folders that tell the class: the IDC patches, and a folder per class as torchvision's ImageFolder."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from stacker.config.data import DataConfig
from stacker.data.formats.format import Format, case_by_name, named_pictures, with_cases
from stacker.data.manifest import PICTURES, SPLIT_NAMES, Image
from stacker.errors import DataError

log = logging.getLogger(__name__)

IDC_NAME = re.compile(r"(?P<case>\d+)_idx\d+_x\d+_y\d+_class(?P<label>[01])\.png")


def read_idc(config: DataConfig) -> list[Image]:
    """Read the IDC patches; the leading number of a name is the patient, and there is one slide each.

    The usual archive holds everything twice, once more below IDC_regular_ps50_idx5: one copy is read.
    """
    inner = config.path / "IDC_regular_ps50_idx5"
    images = []
    tree = inner if inner.is_dir() else config.path
    for path, match in named_pictures(tree, IDC_NAME, "IDC", "10253_idx5_x1001_y1001_class0.png"):
        folder = path.parent.name
        if folder in ("0", "1") and folder != match["label"]:
            raise DataError(
                f"{path} is in folder {folder}, but its name says class{match['label']}",
                "move or rename the file",
            )
        images.append(
            Image(
                id=path.stem,
                path=str(path),
                label=("idc_negative", "idc_positive")[int(match["label"])],
                case=match["case"],
                slide=match["case"],
            )
        )
    return images


IDC = Format(read_idc, "named as in the IDC patches", case_in=case_by_name(IDC_NAME))


def read_folder(config: DataConfig) -> list[Image]:
    """Read a folder per class, below a folder per part where they are called train, val and test."""
    root = config.path.absolute()
    pictures = _pictures_by_folder(root)
    parts = {top: SPLIT_NAMES.get(top.name.lower(), "") for top in pictures}
    by_part = all(parts.values())
    if not by_part and sum(map(bool, parts.values())) > 1:
        raise DataError(
            f"{root} mixes folders of a split with others: {', '.join(top.name for top in parts)}",
            "keep either train, val and test, or only class folders",
        )
    images = []
    for top, paths in pictures.items():
        for path in paths:
            place = path.relative_to(top).parts
            if by_part and len(place) < 2:
                raise DataError(f"{path} is in no class folder, expected {top}/<class>/{path.name}")
            images.append(
                Image(
                    id=path.relative_to(root).as_posix(),
                    path=str(path),
                    label=place[0] if by_part else top.name,
                    split=parts[top] if by_part else "",
                )
            )
    return with_cases(images, config.case_pattern, root)


def _pictures_by_folder(root: Path) -> dict[Path, list[Path]]:
    """Return the pictures below each folder of the root that has some; hidden files do not count."""
    files = {path: path.relative_to(root).parts for path in sorted(root.rglob("*")) if path.is_file()}
    shown = {path: parts for path, parts in files.items() if not any(p.startswith(".") for p in parts)}
    pictures: dict[Path, list[Path]] = {}
    for path, parts in shown.items():
        top = root / parts[0]
        if path.suffix.lower() in PICTURES and path != top:
            pictures.setdefault(top, []).append(path)
    others = len(shown) - sum(map(len, pictures.values()))
    if others:
        log.warning("left out: %d files in %s that are not images in a class folder", others, root)
    if not pictures:
        raise DataError(f"no image in {root}, expected {root}/<class>/<image>.png", "check data.path")
    return pictures


FOLDER = Format(read_folder, "in a folder per class", takes=("case_pattern",))
