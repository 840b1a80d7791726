"""A reader per data-set format: folders, names and lists become the rows of a manifest.

    breakhis   SOB_<B|M>_<subtype>-<year>-<slide>-<magnification>-<seq>.png, in a tree or flat
    pcam       camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5, read in place (module pcam)
    idc        <patient>/<class>/<patient>_idx5_x<X>_y<Y>_class<0|1>.png
    folder     [<train|valid|test>/]<class>/.../<image>, as torchvision's ImageFolder
    csv        path,label and, where known, id, case, slide, magnification, subtype, split

What a name states is read by a strict grammar; a picture outside it stops the reading, because a case
that is guessed wrong leaks.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from stacker.config.data import DataConfig
from stacker.data.formats.names import named_pictures, with_cases
from stacker.data.manifest import PICTURES, SPLIT_NAMES, Image
from stacker.errors import DataError

log = logging.getLogger(__name__)

IDC_NAME = re.compile(r"(?P<patient>\d+)_idx\d+_x\d+_y\d+_class(?P<label>[01])\.png")


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
            raise DataError(f"{path} lies in folder {folder} and is named class{match['label']}")
        images.append(
            Image(
                id=path.stem,
                path=str(path),
                label=("idc_negative", "idc_positive")[int(match["label"])],
                case=match["patient"],
                slide=match["patient"],
            )
        )
    return images


def read_folder(config: DataConfig) -> list[Image]:
    """Read a folder per class, below a folder per part where they are called train, val and test."""
    root = config.path.absolute()
    pictures = _pictures_by_folder(root)
    parts = {top: SPLIT_NAMES.get(top.name.lower(), "") for top in pictures}
    by_part = all(parts.values())
    if not by_part and sum(map(bool, parts.values())) > 1:
        raise DataError(
            f"{root} holds {', '.join(top.name for top in parts)}: parts of a split and others; leave "
            "only train, val and test there, or only classes"
        )
    images = []
    for top, paths in pictures.items():
        for path in paths:
            place = path.relative_to(top).parts
            if by_part and len(place) < 2:
                raise DataError(f"{path} is in no class folder; expected {top}/<class>/{path.name}")
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
    files = sorted(p for p in root.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(root)))
    pictures: dict[Path, list[Path]] = {}
    for path in files:
        top = root / path.relative_to(root).parts[0]
        if path.suffix.lower() in PICTURES and path != top:
            pictures.setdefault(top, []).append(path)
    others = len(files) - sum(map(len, pictures.values()))
    if others:
        log.warning("%d files in %s are no pictures of a class and are left out", others, root)
    if not pictures:
        raise DataError(f"no picture in {root}; expected {root}/<class>/<image>.png")
    return pictures


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
