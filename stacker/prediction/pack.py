"""A stack that travels: one folder or one zip with all that predicting needs, and none of the data.

    pack.json       what it is, and size and SHA-256 of every other file
    MODEL_CARD.md   written from the run (`card`)
    config.yaml     the run's settings without the paths of the machine that it was made on
    models/         base models, and frozen backbones where the stack looks at them
    stack/          the meta-learner, and what is usual of the images that it was fitted on

No image, no manifest, no cache, nothing that the stack said of single cases. The base models' list of
the cases that trained them is left out unless it is asked for: case numbers are short enough for hashes
of them to be guessed. A pack is compared with pack.json whenever it is opened (`unpack`), which finds
damage; whether it comes from whom it should is for the SHA-256 of pack.json itself to tell, which
`stacker pack` prints.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from stacker.config.learners import RULES
from stacker.config.root import Config
from stacker.errors import RunError
from stacker.files import publish, require_space
from stacker.prediction.card import model_card
from stacker.prediction.predictor import fitted_cases, needed, require_checkpoints
from stacker.prediction.unpack import LIST, PIECE, SCHEMA
from stacker.run import Run
from stacker.stacking.novelty import novelty_file
from stacker.stacking.saved import CENTRES, choose_stack, load_stack

FACTS = ("name", "size", "mean", "std", "classes", "target_layer", "fold", "identity", "versions")
Open = Callable[[str], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True)
class Packed:
    """A pack that was written: how large it is, and the SHA-256 of its list of files."""

    path: Path
    meta: str
    files: int
    bytes: int
    sha256: str


def pack(
    run: Run, out: Path, meta: str | None = None, keep_cases: bool = False, trusted: Sequence[str] = ()
) -> Packed:
    """Write a stack of a run as a folder, or as a zip where the name ends so.

    Raise RunError when something is already there, BackboneError when base models are not those that the
    stack was fitted on.
    """
    if out.exists():
        raise RunError(f"{out} exists already", "give another --out, or remove it")
    name = choose_stack(run, meta)
    stack = load_stack(run, name, trusted)
    models = {str(base): run.model_file(*base) for base in needed(stack)}
    require_checkpoints(run, stack)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    require_space(out.absolute().parent, sum(path.stat().st_size for path in models.values()))
    listed: dict[str, dict[str, Any]] = {}
    with _zip(out) if out.suffix.lower() == ".zip" else _folder(out) as opener:

        def add(where: str, pieces: Iterable[bytes]) -> str:
            listed[where] = _write(opener, where, pieces)
            return str(listed[where]["sha256"])

        facts = stack.facts | {"checkpoints": {}}
        for base, path in models.items():
            pieces = _pieces(path) if keep_cases else _without_cases(path)
            facts["checkpoints"][base] = add(f"models/{base}/{path.name}", pieces)
        if keep_cases:
            cases, all_of_them = fitted_cases(run, stack)
            facts |= {"fitted_cases": sorted(cases)} if all_of_them else {}
        folder = run.stack_folder(name)
        add(f"stack/{folder.name}/stack.json", [_json(facts)])
        for path in [folder / CENTRES, *_members(folder, facts["members"])]:
            add(f"stack/{folder.name}/{path.name}", _pieces(path))
        if novelty_file(run).exists():
            add(f"stack/{novelty_file(run).name}", _pieces(novelty_file(run)))
        add("config.yaml", [_portable(run.config, facts).encode()])
        add("MODEL_CARD.md", [model_card(run, name, stack.facts).encode()])
        content = {"schema": SCHEMA, "meta": name, "classes": stack.classes, "files": listed}
        sha256 = add(LIST, [_json(content)])
    return Packed(out, name, len(listed), sum(file["bytes"] for file in listed.values()), sha256)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _members(folder: Path, counts: Mapping[str, int]) -> list[Path]:
    """Return the files of a stack's members, and of nothing that earlier fits left."""
    stems = (f"{scope}-{number}" for scope, count in counts.items() for number in range(count))
    return sorted(path for stem in stems for path in folder.glob(f"{stem}.*") if path.is_file())


def _portable(config: Config, facts: Mapping[str, Any]) -> str:
    """Return the settings without the paths of this machine, with what makes a stack the pack's own."""
    content = config.model_dump(mode="json")
    content |= {"artifacts": ".", "device": "auto", "tune": None}
    content["data"] |= {"path": ".", "fold_list": None, "masks": None}
    content["stack"] |= {"meta": [facts["meta"]]}
    content["stack"] |= {} if facts["meta"] in RULES else {"features": facts["features"]}
    for settings in (*content["backbones"].values(), *content["frozen"].values()):
        settings["weights"] = Path(settings["weights"]).name
    return yaml.safe_dump(content, sort_keys=False)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from _rest(file)


def _rest(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece


def _without_cases(path: Path) -> Iterator[bytes]:
    """Yield a base model's file with as much in its header as is needed to use it; tensors as they are.

    A safetensors file begins with the length of its header, which is JSON and may end in spaces.
    """
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        facts = json.loads(header["__metadata__"]["stacker"])
        kept = {name: facts[name] for name in FACTS if name in facts} | {"training_cases": []}
        header["__metadata__"] = {"stacker": json.dumps(kept)}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        yield len(text).to_bytes(8, "little") + text
        yield from _rest(file)


def _write(opener: Open, where: str, pieces: Iterable[bytes]) -> dict[str, Any]:
    """Write a file of the pack; return its SHA-256 and size."""
    sha256, size = hashlib.sha256(), 0
    with opener(where) as file:
        for piece in pieces:
            sha256.update(piece)
            size += file.write(piece)
    return {"sha256": sha256.hexdigest(), "bytes": size}


@contextmanager
def _folder(out: Path) -> Iterator[Open]:
    """Yield what opens files below a folder that gets its name when all are written."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")

    def opener(where: str) -> IO[bytes]:
        path = temporary / where
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")

    try:
        yield opener
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _zip(out: Path) -> Iterator[Open]:
    """Yield what opens members of a zip; nothing is compressed, and equal packs are equal files."""
    with publish(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:

        def opener(where: str) -> IO[bytes]:
            member = zipfile.ZipInfo(where)
            member.external_attr = 0o644 << 16
            return archive.open(member, "w", force_zip64=True)

        yield opener
