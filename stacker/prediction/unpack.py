"""Opening what `stacker pack` wrote, wherever it came from: a folder, or a zip that is unzipped.

Every file is compared with the pack's own list before anything is made of it. A zip's members are those
of the list, below the folder and nowhere else, and none has a byte more than the list says. They are
stored as they are, as `pack` stores them: what is compressed may grow to anything while it is read.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from stacker.config.load import load_config
from stacker.errors import RunError
from stacker.files import file_sha256
from stacker.run import Run, open_run

SCHEMA = 2
LIST = "pack.json"
MOST_LIST_BYTES = 8_000_000
ENCRYPTED = 1  # among the flags of a member
PIECE = 1 << 20
NAME = re.compile(r"config\.yaml|MODEL_CARD\.md|(models|stack)(/[\w.+@-]+)+")
AGAIN = "copy the pack again, or rebuild it with 'stacker pack'"


@contextmanager
def opened(path: Path) -> Iterator[Run]:
    """Yield the run at a path: a run directory, a pack's folder, or a pack's zip, which is unzipped.

    Raise RunError for a pack that is not what was packed.
    """
    if path.is_file():
        with tempfile.TemporaryDirectory(prefix="stacker-") as folder:
            _unzip(path, Path(folder))
            yield _open(Path(folder), path)
    elif (path / LIST).exists():
        yield _open(path, path)
    else:
        yield open_run(path)


def is_pack(path: Path) -> bool:
    """Say whether a path is a pack's, not a run's."""
    return path.is_file() or (path / LIST).exists()


def _open(folder: Path, named: Path) -> Run:
    """Return a pack as a run, once every file was compared with the list."""
    listed = _listed((folder / LIST).read_bytes(), named)
    for where, expected in listed.items():
        path = folder / where
        if not path.is_file():
            raise RunError(f"{named}: {where} is missing", AGAIN)
        if path.stat().st_size != expected["bytes"] or file_sha256(path) != expected["sha256"]:
            raise RunError(f"{named}: {where} is not the file that was packed", AGAIN)
    for part in ("models", "stack"):
        for path in (folder / part).rglob("*"):
            if path.is_file() and path.relative_to(folder).as_posix() not in listed:
                raise RunError(f"{named}: {path.relative_to(folder)} was not packed; remove it")
    return Run(folder, load_config(folder / "config.yaml"), packed=True)


def _listed(content: bytes, named: Path) -> dict[str, dict[str, Any]]:
    """Return the files that a pack lists; raise RunError for what is no such list."""
    try:
        pack = json.loads(content)
        version, files = pack["schema"], dict(pack["files"])
        sound = "config.yaml" in files and all(
            NAME.fullmatch(where)
            and not {".", ".."} & set(where.split("/"))
            and isinstance(file["bytes"], int)
            and file["bytes"] >= 0
            and isinstance(file["sha256"], str)
            for where, file in files.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RunError(f"{named}: its {LIST} cannot be read", AGAIN) from None
    if version != SCHEMA:
        raise RunError(
            f"{named} has schema {version}, this version of stacker reads {SCHEMA}; pack the run again"
        )
    if not sound:
        raise RunError(f"{named}: its {LIST} is not a list that stacker pack writes", AGAIN)
    return files


def _unzip(path: Path, folder: Path) -> None:
    """Write the members of a pack below a folder: those that its list has, and no byte more."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist() if not member.is_dir()}
            if LIST not in members:
                raise RunError(
                    f"{path}: no {LIST} at its top; this is not a pack, or not all of it", AGAIN
                )
            _refuse_compressed(path, members)
            with archive.open(LIST) as source:
                content = source.read(MOST_LIST_BYTES + 1)
            if len(content) > MOST_LIST_BYTES:
                raise RunError(f"{path}: its {LIST} is larger than a pack can have", AGAIN)
            listed = _listed(content, path)
            _refuse_strange(path, members, listed)
            (folder / LIST).write_bytes(content)
            for where, expected in listed.items():
                target = folder / where
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(where) as source, target.open("wb") as file:
                    _copy(source, file, expected["bytes"])
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise RunError(f"{path} cannot be read as a zip ({error})", AGAIN) from None


def _refuse_compressed(path: Path, members: Mapping[str, zipfile.ZipInfo]) -> None:
    """Raise RunError for a zip with a member that is not stored as it is."""
    for name, member in members.items():
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & ENCRYPTED:
            raise RunError(
                f"{path}: {name!r} is compressed or encrypted, 'stacker pack' stores files as they are; "
                "take the zip that it wrote, or unzip this one yourself and give the folder"
            )


def _refuse_strange(
    path: Path, members: Mapping[str, zipfile.ZipInfo], listed: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise RunError for a zip whose members are not those that it lists, or that is too large."""
    strange = sorted(set(members) ^ {LIST, *listed})
    if strange:
        state = "is in the zip and not listed" if strange[0] in members else "is missing"
        raise RunError(f"{path}: {strange[0]!r} {state}", AGAIN)
    total = sum(file["bytes"] for file in listed.values())
    if total > path.stat().st_size:
        raise RunError(f"{path} lists {total:,} bytes, more than the zip has", AGAIN)
    where = tempfile.gettempdir()
    space = shutil.disk_usage(where).free
    if total > space:
        raise RunError(
            f"{path} needs {total / 1e6:.0f} MB in {where}, where {space / 1e6:.0f} MB are free; point "
            "TMPDIR at another disk, or unzip it yourself and give the folder"
        )


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    """Copy a member, and not more than it is said to have: what is wrong its SHA-256 will tell."""
    while size > 0 and (piece := source.read(min(PIECE, size))):
        target.write(piece)
        size -= len(piece)
