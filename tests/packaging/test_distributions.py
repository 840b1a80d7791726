"""The wheel and the sdist hold what their users need, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from tests.docs.pages import ROOT

pytest.importorskip("hatchling", reason="of the extra 'test': it builds the distributions")
TOPS = {  # of an sdist, what hatchling adds included
    *("stacker", "tests", "configs", "docs", "artifacts", ".ci", ".gitignore", "Makefile"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml", "PKG-INFO"),
}
READERS = (  # tests that read the repository and need no run
    "test_commands.py",
    "test_house.py",
    "test_pages.py",
    "test_settings.py",
    "test_files.py::test_files_of_other_commands_are_written",
    "test_files.py::test_paths_into_the_repository_exist",
    "test_files.py::test_the_fields_of_rows_are_those_of_predict",
    "test_python.py::test_the_page_has_every_name",
)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """Return what pyproject.toml says of the project."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    section: dict[str, Any] = content["project"]
    return section


def built(target: str, folder: Path) -> Path:
    """Build a distribution as pip does, but in this environment, so that no network is needed."""
    code = f"from hatchling.build import build_{target}; print(build_{target}({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new wheel."""
    return built("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a new sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(built("sdist", folder)) as archive:
        archive.extractall(folder, filter="data")
    (root,) = (path for path in folder.iterdir() if path.is_dir())
    return root


def files_below(folder: Path, *suffixes: str) -> set[str]:
    """Return the files of a folder of this repository, as they are called in it."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in suffixes
    }


def test_the_wheel_has_the_modules_and_the_configs_and_no_more(wheel: Path) -> None:
    """Every module, the mark of typed packages and every config; no test, no page, no stray file."""
    modules = files_below(ROOT / "stacker", ".py", ".typed")
    configs = {f"stacker/{name}" for name in files_below(ROOT / "configs", ".yaml")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == modules | configs


def test_the_wheel_says_what_it_is(wheel: Path, project: dict[str, Any]) -> None:
    """Its name is not that of another project on PyPI, and it provides the command and the extras."""
    assert wheel.name.startswith("gradcam_stacker-")
    with zipfile.ZipFile(wheel) as archive:
        (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(about).decode())
        entries = archive.read(about.replace("METADATA", "entry_points.txt")).decode()
    assert metadata["Name"] == "gradcam-stacker"
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert "stacker = stacker.cli.main:main" in entries


def test_the_wheel_runs_away_from_the_clone(wheel: Path, tmp_path: Path) -> None:
    """The command starts from the unpacked wheel, in another folder, and finds the demo's config."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    shutil.unpack_archive(wheel, site, "zip")
    elsewhere.mkdir()
    code = (
        "import stacker; print(stacker.__file__)\n"
        "from stacker.cli.main import main; main(['demo', '--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(site))
    assert "demo" in done.stdout


def test_the_sdist_is_a_clone_without_history(sdist: Path) -> None:
    """Whatever git keeps that tests and pages read is in it, and no result of a run is."""
    parts = ("stacker", "tests", "configs", "docs")
    wanted = set().union(*(files_below(ROOT / part, ".py", ".yaml", ".md", ".png") for part in parts))
    names = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert wanted <= names
    assert {PurePosixPath(name).parts[0] for name in names} == TOPS
    assert {name for name in names if name.startswith("artifacts/")} == {"artifacts/.gitkeep"}
    assert not [name for name in names if name.endswith((".pyc", ".h5", ".safetensors"))]


def test_tests_pass_in_the_sdist(sdist: Path) -> None:
    """Those that read the repository: pages, commands, settings and rooms."""
    files = [f"tests/docs/{name}" for name in READERS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=sdist,
        env={**os.environ, "PYTHONPATH": str(sdist)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
