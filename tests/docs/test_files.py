"""Every file that the documentation names is in a run or the repository, or a command writes it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from stacker.config.maps import name_maps
from stacker.prediction.rows import CasePrediction, Prediction, Skipped
from tests.docs.pages import PAGE, PAGES, ROOT, Page, spans

SUFFIXES = "json|jsonl|csv|h5|npz|npy|png|md|yaml|safetensors|sha256|db|py"
FILE = re.compile(rf"(?:[\w<>*./-]*/)?[\w<>*.-]*[\w>*]\.(?:{SUFFIXES})|[\w<>*/-]+/")
WRITTEN = {  # by commands beside the stages, and the module that says so
    "artifacts/gpu/report.json": "bench/gpu_report.py",
    "artifacts/gpu/report.md": "bench/gpu_report.py",
    "audit.json": "audit/check.py",
    "audit.md": "audit/check.py",
    "tune/history.png": "training/tuning/search.py",
    "tune/importance.png": "training/tuning/search.py",
    "left_out.csv": "data/manifest.py",  # where images are left out
    "probe.json": "comparison/probe.py",
    "tune/best.yaml": "training/tuning/search.py",
    "tune/trials.csv": "training/tuning/search.py",
    "resume.safetensors": "training/jobs.py",  # only while a job lasts
    "compare/leaderboard.csv": "comparison/leaderboard.py",
    "compare/leaderboard.json": "comparison/leaderboard.py",
    "compare/differences.csv": "comparison/leaderboard.py",
    "compare/answers.csv": "comparison/leaderboard.py",
    "compare/controls.csv": "comparison/leaderboard.py",
    "compare/inflation.csv": "comparison/inflation.py",
    "figures/leaderboard.png": "cli/compare.py",
    "figures/inflation.png": "cli/compare.py",
    "cache/resnet50/frozen/": "maps/targets.py",
    "compare/entry/": "comparison/entries.py",
    "pack.json": "prediction/unpack.py",
    "figures/inspect.png": "cli/cache.py",
    "MODEL_CARD.md": "prediction/pack.py",
}
OTHERS = (  # files of users and of other programs
    "SOB_B_A-14-22549AB-100-001.png",
    "train/",
    "val/",
    "test/",
)


def named(page: Page) -> set[str]:
    """Return the files and folders that a page names, in its sentences and in its listings."""
    listings = [block.text for block in page.blocks if block.language == "text"]
    words = [
        word for text in listings for line in text.splitlines() for word in line.split("#")[0].split()
    ]
    return {name for name in (*page.code, *words) if FILE.fullmatch(name)}


def is_among(name: str, files: set[str]) -> bool:
    """Say whether a name, which may have gaps, is the end of one of some paths."""
    ending = re.sub(r"^(artifacts/<run>|RUN)/", "", name)
    gaps = {r"\*": "[^/]*"} | {re.escape(gap): "[^/]+" for gap in re.findall(r"<.+?>", ending)}
    pattern = re.escape(ending)
    for gap, anything in gaps.items():
        pattern = pattern.replace(gap, anything)
    return any(re.fullmatch(f"(.*/)?{pattern}", path) for path in files)


def paths(folder: Path) -> set[str]:
    """Return all files and folders of a run, the latter with a slash behind them."""
    found = {path: path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name + "/" * path.is_dir() for path, name in found.items()}


@pytest.fixture(scope="session")
def files(finished_artifacts: Path, crossed_artifacts: Path) -> set[str]:
    """Return the files and folders of two finished runs."""
    return paths(finished_artifacts / "small") | paths(crossed_artifacts / "small")


def in_repository(name: str, page: Page) -> bool:
    """Say whether the repository has a file, seen from its root, from the package or from the page."""
    pattern = re.sub(r"<.+?>", "*", name)
    return any(list(folder.glob(pattern)) for folder in (ROOT, ROOT / "stacker", page.path.parent))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_are_there(page: Page, files: set[str]) -> None:
    """A finished run has them, or the repository, or a command writes them."""
    assert [
        name
        for name in sorted(named(page) - {*OTHERS})
        if not (is_among(name, files | {*WRITTEN}) or in_repository(name, page))
    ] == []


@pytest.mark.parametrize("name", WRITTEN)
def test_files_of_other_commands_are_written(name: str) -> None:
    """The module that is said to write a file names it, and a page names it."""
    assert Path(name).stem in (ROOT / "stacker" / WRITTEN[name]).read_text(encoding="utf-8")
    assert any(is_among(other, {name}) for page in PAGES for other in named(page))


def test_paths_into_the_repository_exist() -> None:
    """What pages and configs say of sources, tests, pages and configs is not of another time."""
    texts = [page.path for page in PAGES] + sorted((ROOT / "configs").rglob("*.yaml"))
    pattern = r"\b(?:stacker|tests|docs|configs)/[\w/.-]*\.(?:py|md|yaml)"
    mentioned = {
        (path.name, name)
        for path in texts
        for name in re.findall(pattern, path.read_text(encoding="utf-8"))
    }
    assert [pair for pair in sorted(mentioned) if not (ROOT / pair[1]).exists()] == []


def test_a_run_is_listed(finished_artifacts: Path) -> None:
    """Whatever lies at the top of a finished run stands in the listing."""
    (listing,) = [block.text for block in PAGE["docs/files.md"].blocks if block.language == "text"]
    run = finished_artifacts / "small"
    there = [path.name for path in run.iterdir() if not path.name.startswith(".")]
    assert [name for name in sorted(there) if not re.search(rf"\b{re.escape(name)}\b", listing)] == []


def test_datasets_and_attributes_are_those_of_a_cache(finished_artifacts: Path) -> None:
    """docs/cache.md names all datasets with their types, and all attributes, and no other."""
    folder = finished_artifacts / "small" / "cache" / "test_resnet" / "holdout"
    (datasets,), (attributes,) = (
        PAGE["docs/cache.md"].tables(first) for first in ("dataset", "attribute")
    )
    types = {name: (row[1], row[2]) for row in datasets[1:] for name in spans(row[0])}
    possible = {name.replace("layercam", "<method>") for name in name_maps(["gradcam", "layercam"], 1)}
    with h5py.File(folder / "index.h5") as index, h5py.File(folder / "part-00000.h5") as part:
        assert set(types) == {*index, *possible}
        for name, dataset in index.items():
            shape, kind = types[name]
            assert len(shape.strip("()").rstrip(",").split(",")) == dataset.ndim, name
            assert kind == ("UTF-8 text" if dataset.dtype.kind == "S" else dataset.dtype), name
        of_files = {name for row in attributes[1:] if row[1] != "dataset" for name in spans(row[0])}
        assert of_files == {*index.attrs, *part.attrs}
        of_datasets = {name for row in attributes[1:] if row[1] == "dataset" for name in spans(row[0])}
        assert of_datasets == {name for dataset in part.values() for name in dataset.attrs}


def test_the_keys_of_metrics_are_described(finished_artifacts: Path) -> None:
    """docs/statistics.md names every key of metrics.json, and no other."""
    metrics = json.loads((finished_artifacts / "small" / "metrics.json").read_text())
    (table,) = PAGE["docs/statistics.md"].tables("key of `metrics")
    assert {name for row in table[1:] for name in spans(row[0])} == set(metrics)


def test_the_fields_of_rows_are_those_of_predict() -> None:
    """docs/predict.md names what a row has as JSON: an image, a case, or what was skipped."""
    (table,) = PAGE["docs/predict.md"].tables("JSON")
    kinds = (Prediction, CasePrediction, Skipped)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert {name for row in table[1:] for name in spans(row[0])} == {"row", *fields}


def test_the_columns_of_predictions_are_those_of_the_files(finished_artifacts: Path) -> None:
    """docs/files.md names every column of the tables, and every array beside them."""
    run = finished_artifacts / "small"
    columns, arrays = (PAGE["docs/files.md"].tables(first)[0] for first in ("column", "array"))
    named_columns = [spans(row[0])[0] for row in columns[1:]]
    for name in ("predictions.csv", "out_of_fold.csv"):
        header = (run / name).read_text(encoding="utf-8").splitlines()[0].split(",")
        assert list(dict.fromkeys(re.sub("_(benign|malignant)$", "_<class>", c) for c in header)) == (
            named_columns
        )
    with np.load(run / "stack" / "logistic@maps+logits" / "predictions.npz") as stored:
        assert {name for row in arrays[1:] for name in spans(row[0])} == set(stored.files)
