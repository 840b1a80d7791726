"""Links lead somewhere, code has a language, and the Python that is shown runs."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import pytest

from tests.docs.pages import BLOCKS, PAGE, PAGES, ROOT, Page

LANGUAGES = {"bash", "python", "text", "yaml"}
SCRIPTS = [  # docs/python.md has a test of its own
    page
    for page in PAGES
    if page.name != "docs/python.md" and any(block.language == "python" for block in page.blocks)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    """A file of the repository is there, and a heading where one is named."""
    for link in page.links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        assert target.exists(), link
        if anchor:
            assert anchor in PAGE[str(target.relative_to(ROOT))].anchors, link


def test_every_page_is_in_the_index() -> None:
    """docs/README.md leads to all pages beside it, and the README to it."""
    beside = {page.path.name for page in PAGES if page.name.startswith("docs/")}
    assert beside - {"README.md"} <= set(PAGE["docs/README.md"].links)
    assert "docs/README.md" in PAGE["README.md"].links


def test_code_has_a_language() -> None:
    """Every block is fenced, and says what it is: what is indented would be checked by nothing."""
    assert {block.where: block.language for block in BLOCKS if block.language not in LANGUAGES} == {}
    indented = [page.name for page in PAGES if re.search(r"\n\n {4}\S", page.prose)]
    assert indented == []


@pytest.mark.parametrize("page", SCRIPTS, ids=lambda page: page.name)
def test_python_runs(
    page: Page, finished_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page are one script, run beside the configs and a finished run named `demo`.

    `<!-- not run: needs ... -->` on the line before a block leaves it out.
    """
    demo = shutil.copytree(finished_artifacts / "small", tmp_path / "artifacts" / "demo")
    (demo / "cache" / "resnet50").symlink_to("test_resnet")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    script = tmp_path / "page.py"
    run = [block.text for block in page.blocks if block.language == "python" and block.is_run]
    script.write_text("\n".join(run), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert runpy.run_path(str(script))
