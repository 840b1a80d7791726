"""The page on Python is true: its code runs, from top to bottom, beside a small run called demo."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import stacker
from tests.conftest import small_settings
from tests.docs.pages import PAGE

PYTHON = PAGE["docs/python.md"]
NEEDS_PANDAS = ".frame()"


@pytest.fixture
def demo(crossed_artifacts: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that has configs/demo.yaml and its finished run by crossfit, artifacts/demo."""
    shutil.copytree(crossed_artifacts, tmp_path / "artifacts")
    run = tmp_path / "artifacts" / "demo"
    (tmp_path / "artifacts" / "small").rename(run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings |= {"run": "demo", "artifacts": "artifacts"}
    assert settings["data"]["path"] == small_settings(Path(), data)["data"]["path"]
    (tmp_path / "configs").mkdir()
    for path in (run / "config.yaml", tmp_path / "configs" / "demo.yaml"):
        path.write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_code_of_the_page_runs(demo: Path) -> None:
    """Every block in order, in one namespace, and what it says of its values holds."""
    found: dict[str, Any] = {}
    for code in (block.text for block in PYTHON.blocks if block.language == "python"):
        if NEEDS_PANDAS not in code or find_spec("pandas") is not None:
            exec(compile(code, "docs/python.md", "exec"), found)  # noqa: S102  # our own page
    assert found["run"].path == Path("artifacts/demo")
    assert found["run"].path.samefile(demo)
    assert found["maps"].dtype == np.float32  # of the last block that names it
    assert found["every"].shape[1:] == (2, 1, 1)
    assert found["said"].shape == (len(found["table"].y), 2)
    assert found["row"].seen is None
    assert found["board"]["failures"] == {}
    assert found["found"].maps.shape == (8, 3, 3, 3)


def test_the_page_has_every_name() -> None:
    """What can be imported is described, and nothing else is."""
    text = PYTHON.path.read_text(encoding="utf-8")
    listed = text[text.index("| name |") : text.index("## A run")]
    named = set(re.findall(r"`(\w+)[`(]", listed))
    assert named | {"StackerError", "__version__"} == set(stacker.__all__)
