"""The pages of the documentation, taken apart: code blocks, inline code, tables, links and headings."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
NOT_RUN = re.compile(r"<!-- not run: .+ -->")


class Block(NamedTuple):
    """A fenced block: where it begins, its language, its text, and whether it is marked not to run."""

    where: str
    language: str
    text: str
    is_run: bool


class Page:
    """One Markdown file: its fenced blocks, and the prose around them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path.relative_to(ROOT))
        self.blocks: list[Block] = []
        self.lines: list[str] = []
        lines = iter(enumerate(path.read_text(encoding="utf-8").splitlines(), start=1))
        for number, line in lines:
            if not line.startswith("```"):
                self.lines.append(line)
                continue
            text = []
            for _, inside in lines:
                if inside == "```":
                    break
                text.append(inside)
            before = self.lines[-1] if self.lines else ""
            self.blocks.append(
                Block(f"{self.name}:{number}", line[3:], "\n".join(text), not NOT_RUN.fullmatch(before))
            )

    @cached_property
    def prose(self) -> str:
        """All that is not in a fenced block."""
        return "\n".join(self.lines)

    @cached_property
    def code(self) -> list[str]:
        """Inline code, on one line each."""
        return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", self.prose)]

    @cached_property
    def links(self) -> list[str]:
        """Where links and pictures lead to."""
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    @cached_property
    def anchors(self) -> set[str]:
        """The names under which headings can be linked to, as GitHub makes them."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def tables(self, first: str) -> list[list[list[str]]]:
        """Return the tables whose first heading begins so: rows of cells, the headings first."""
        grouped = re.findall(r"(?:^\|.*\|$\n?)+", self.prose, re.MULTILINE)
        tables = [
            [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
            for table in grouped
        ]
        return [[table[0], *table[2:]] for table in tables if table[0][0].startswith(first)]


def spans(cell: str) -> list[str]:
    """Return the inline code of a cell of a table."""
    return re.findall(r"`([^`]+)`", cell)


PAGES = [
    Page(path)
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
]
PAGE = {page.name: page for page in PAGES}
BLOCKS = [block for page in PAGES for block in page.blocks]
