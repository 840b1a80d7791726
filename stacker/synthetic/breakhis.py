"""A synthetic breast-histology set, written in the layout and file names of BreakHis.

The demo and the tests need images that the real BreakHis reader accepts, whose diagnosis can be
learned within minutes, and of which it is known where the evidence lies. What separates the classes
is the look of the nuclei in dense foci: large, irregular and coarse in malignant images; small and
regular (hyperplasia, lymphocytes) in benign ones. Stain, light, the area of the foci and their
haematoxylin vary alike in both, so that colour alone does not tell the class. The pixels depend on the
settings and the seed only.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stacker.errors import DataError
from stacker.synthetic.lesions import BACKDROPS, FOCI
from stacker.synthetic.tissue import ATYPICAL, EPITHELIAL, FIBROBLAST, LYMPHOCYTE, Array, Nuclei, Scene

VERSION = 1
SETTINGS = "synthetic.json"
MAGNIFICATIONS = (100, 200)
INFLAMED = 0.6  # share of benign images whose haematoxylin is not in foci but in scattered lymphocytes
INFILTRATE = 48.0  # lymphocytes per 1000 square units that hold as much of it as foci of the whole area
SUBTYPES = {
    "benign": {
        "A": "adenosis",
        "F": "fibroadenoma",
        "PT": "phyllodes_tumor",
        "TA": "tubular_adenoma",
    },
    "malignant": {
        "DC": "ductal_carcinoma",
        "LC": "lobular_carcinoma",
        "MC": "mucinous_carcinoma",
        "PC": "papillary_carcinoma",
    },
}
HAEMATOXYLIN = np.array([0.62, 0.74, 0.26])
EOSIN = np.array([0.14, 0.90, 0.34])


@dataclass(frozen=True)
class _Job:
    """One image to draw: who it is, and where it goes below the root."""

    label: str
    code: str
    case: int
    slide: int
    image: int
    magnification: int
    path: Path


def _stain(job: _Job, seed: int) -> tuple[Array, Array]:
    """Optical densities of the stains (2, 3) and background light (3,), by slide and by image."""
    stains, light = np.stack([HAEMATOXYLIN, EOSIN]), np.full(3, 0.95)
    for stream in ((1, job.slide), (2, job.image)):
        rng = np.random.default_rng((seed, job.case, *stream))
        hue, strength = 0.025 * rng.standard_normal((2, 3)), 0.08 * rng.standard_normal((2, 1))
        stains *= np.exp(hue + strength)
        light += 0.012 * rng.standard_normal(3)
    return stains.astype(np.float32), light.astype(np.float32)


def _look(job: _Job, rng: np.random.Generator, seed: int) -> Nuclei:
    """The nuclei of the dense foci: how atypical they are is a matter of the case."""
    patient = np.random.default_rng((seed, job.case, 3))
    low, high = (0.8, 1.05) if job.label == "malignant" else (0.0, 0.1)
    look = EPITHELIAL.towards(ATYPICAL, patient.uniform(low, high))
    if job.label == "benign" and rng.random() < 0.35:
        look = LYMPHOCYTE
    # stain uptake, chromatin and crowding vary from field to field, alike in both classes
    dark, coarse, pitch = np.exp(rng.normal(0, (0.18, 0.45, 0.09)))
    return look._replace(dark=look.dark * dark, coarse=look.coarse * coarse, pitch=look.pitch * pitch)


def _draw(job: _Job, size: tuple[int, int], seed: int) -> tuple[Array, Array]:
    """The picture (height, width, 3) and its mask (height, width), both uint8."""
    rng = np.random.default_rng((seed, job.case, 4, job.image))
    malignant = job.label == "malignant"
    look = _look(job, rng, seed)
    scene = Scene(rng, size, job.magnification)
    scene.scatter(rng.uniform(1.0, 2.6), FIBROBLAST, along_grain=True)
    scene.scatter(rng.uniform(0.0, 0.8), LYMPHOCYTE)
    for _ in range(rng.integers(0, 2)):
        scene.fat()
    if rng.random() < 0.3:
        scene.gland(
            scene.outline(rng.uniform(11, 24), 0.15, rng.uniform(1, 1.8)), int(rng.integers(1, 3))
        )
    # The subtype fixes the backdrop of a benign image and the foci of a malignant one; the other is
    # drawn at random. In some of the malignant images nests have taken the place of the glands.
    foci = rng.uniform(0.20, 0.32)
    if not malignant:
        BACKDROPS[job.code](scene)
    elif rng.random() < 0.7:
        BACKDROPS[rng.choice(list(BACKDROPS))](scene)
    else:
        foci *= 1.2
    if not malignant and rng.random() < INFLAMED:
        scene.scatter(INFILTRATE * foci, LYMPHOCYTE)
    else:
        share = foci * rng.dirichlet(np.full(rng.integers(1, 4), 6.0))
        radii = np.sqrt(share * scene.width * scene.height / np.pi)
        FOCI[job.code if malignant else rng.choice(list(FOCI))](scene, radii, look, malignant)
    stains, light = _stain(job, seed)
    picture = scene.rgb(stains, light)
    return picture, np.where(scene.mask > 0.5, 255, 0).astype(np.uint8)


@dataclass(frozen=True)
class SyntheticSet:
    """A written set: image paths in the order of the cases, and cases such as 14-10003."""

    root: Path
    masks: Path
    images: tuple[Path, ...]
    cases: tuple[str, ...]


def write_breakhis(
    root: Path,
    *,
    cases: int = 48,
    images_per_case: int = 8,
    size: tuple[int, int] = (350, 230),
    seed: int = 0,
    workers: int | None = None,
) -> SyntheticSet:
    """Write the set below root and return it; a complete one of the same settings is left alone.

    The pixels depend on the settings only, not on workers. The folder appears when all is written;
    a killed run leaves at most a hidden `.NAME.partial-*` folder beside it. With more than one worker
    a calling script needs the usual `if __name__ == "__main__"`. Raises DataError for settings that
    cannot work and for a root that holds anything else.
    """
    root = Path(root)
    if cases < 8 or images_per_case < 1 or min(size) < 32:
        raise DataError(
            f"cases={cases}, images_per_case={images_per_case}, size={size[0]}x{size[1]}, expected at "
            "least 8 cases (one per subtype), 1 image per case and 32 x 32 pixels"
        )
    settings = {
        "generator": VERSION,
        "cases": cases,
        "images_per_case": images_per_case,
        "size": list(size),
        "seed": seed,
    }
    names, jobs = _plan(cases, images_per_case, seed)
    written = SyntheticSet(root, root / "masks", tuple(root / job.path for job in jobs), names)
    if not _is_written(written, jobs, settings):
        # a worker costs half a second to start: one for every 40 or so images of the default size
        wanted = 1 + len(jobs) * size[0] * size[1] // 3_000_000
        workers = workers or min(os.cpu_count() or 1, wanted)
        _write(root, jobs, size, settings, workers)
    return written


def _plan(cases: int, images_per_case: int, seed: int) -> tuple[tuple[str, ...], list[_Job]]:
    """The case names and the images to draw; every fifth case owns two slides, some of them three."""
    rng = np.random.default_rng((seed, 0))
    accessions = np.sort(rng.choice(np.arange(9000, 30000), cases, replace=False))
    names, jobs = [], []
    for case, accession in enumerate(accessions):
        label = ("benign", "malignant")[case % 2]
        code = list(SUBTYPES[label])[case // 2 % 4]
        year = rng.choice([13, 14, 15], p=[0.1, 0.8, 0.1])
        letters = (
            ("AB", "CD", "G")[: 2 + (case % 15 == 10)]
            if case % 5 == 0
            else (rng.choice(["", "A", "CD"]),)
        )
        names.append(f"{year}-{accession}")
        drawn: dict[tuple[int, int], int] = {}
        for image in range(images_per_case):
            nth, slide = divmod(image, len(letters))
            magnification = MAGNIFICATIONS[(nth + slide) % 2]
            sequence = drawn[slide, magnification] = drawn.get((slide, magnification), 0) + 1
            kind, owner = f"SOB_{label[0].upper()}_{code}", f"{year}-{accession}{letters[slide]}"
            path = Path("histology_slides", "breast", label, "SOB", SUBTYPES[label][code])
            path = (
                path
                / f"{kind}_{owner}"
                / f"{magnification}X"
                / f"{kind}-{owner}-{magnification}-{sequence:03d}.png"
            )
            jobs.append(_Job(label, code, case, slide, image, magnification, path))
    return tuple(names), jobs


def _is_written(written: SyntheticSet, jobs: list[_Job], settings: dict[str, Any]) -> bool:
    """Whether the root holds this very set; DataError when it holds something else or misses a file."""
    root, advice = written.root, "choose another folder, or delete this one and run again"
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        present = json.loads((root / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        what = f"{root} holds something other than a synthetic set (no {SETTINGS})"
        raise DataError(what, advice) from None
    if present != settings:
        raise DataError(f"{root} holds a synthetic set made with {present}, expected {settings}", advice)
    files = [
        *written.images,
        *(written.masks / job.path.name for job in jobs if job.label == "malignant"),
    ]
    missing = [path for path in files if not path.is_file()]
    if missing:
        what = f"{root} lacks {len(missing)} of {len(files)} files, e.g. {missing[0]}"
        raise DataError(what, advice)
    return True


def _write(
    root: Path,
    jobs: list[_Job],
    size: tuple[int, int],
    settings: dict[str, Any],
    workers: int | None,
) -> None:
    """Draw all images into a hidden sibling folder, then rename it: the root is whole or absent."""
    folder = root.parent / f".{root.name}.partial-{secrets.token_hex(4)}"
    try:
        (folder / "masks").mkdir(parents=True)
        for below in {job.path.parent for job in jobs}:
            (folder / below).mkdir(parents=True)
        save = partial(_save, folder=folder, size=size, seed=settings["seed"])
        if workers == 1:
            list(map(save, jobs))
        else:
            # spawned, as a fork of a process that runs torch's threads can hang; threads are no faster
            with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
                list(pool.map(save, jobs, chunksize=4))
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if root.exists():
            root.rmdir()
        folder.rename(root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _save(job: _Job, folder: Path, size: tuple[int, int], seed: int) -> None:
    """Draw one image and write it, with its mask when it is malignant."""
    picture, mask = _draw(job, size, seed)
    Image.fromarray(picture).save(folder / job.path, compress_level=1)
    if job.label == "malignant":
        Image.fromarray(mask).save(folder / "masks" / job.path.name)
