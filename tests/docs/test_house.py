"""The page on how it is built shows the house that stands, and the glossary is one."""

from __future__ import annotations

import pytest

from tests.docs.house import picture, rooms
from tests.docs.pages import PAGE, PAGES, ROOT, spans
from tests.test_architecture import FLOORS

HOUSE = PAGE["docs/house.md"]
WORDS = (
    *("image", "slide", "case", "group", "manifest", "fold", "part", "development", "base model"),
    *("map", "embedding", "cache", "feature block", "meta-learner", "out of fold", "finish"),
    *("stack", "control", "null", "run", "pack"),
)


def test_the_picture_is_made_from_the_floors() -> None:
    """Where this fails, `python -m tests.docs.house` prints the picture again."""
    assert HOUSE.blocks[0].text == picture()


@pytest.mark.parametrize("room", rooms())
def test_every_room_says_what_it_is(room: str) -> None:
    """In three sentences behind its name: what comes in, what goes out, what it may not know."""
    says = rooms()[room]
    assert f"- **`{room}/`** {says}" in " ".join(HOUSE.prose.split())
    assert says.count(". ") == 2
    assert " may not " in says


def test_every_single_file_is_explained() -> None:
    """What stands on a floor and is no room is named with its ending."""
    files = {name for floor in FLOORS for name in floor if (ROOT / "stacker" / f"{name}.py").is_file()}
    assert {f"{name}.py" for name in files - {"__init__"}} <= set(HOUSE.code)


def test_what_is_added_has_its_place() -> None:
    """Each registry is in one of the files that are named beside it, each list in one of the tests."""
    (table,) = HOUSE.tables("what")
    for what, *columns in table[1:]:
        where, names, tests = (spans(cell) for cell in columns)
        for named, known_in in ((names, where), (tests, tests)):
            texts = [
                file.read_text(encoding="utf-8")
                for path in known_in
                for file in ([ROOT / path] if path.endswith(".py") else (ROOT / path).glob("*.py"))
            ]
            for name in named:
                assert "/" in name or any(name in text for text in texts), f"{what}: {name}"


def test_there_is_one_glossary() -> None:
    """It has the words of the house, each once, and no other page explains them a second time."""
    (table,) = PAGE["docs/glossary.md"].tables("word")
    words = [row[0] for row in table[1:]]
    assert len(words) == len(set(words))
    assert set(WORDS) <= set(words)
    assert [page.name for page in PAGES if page.tables("word")] == ["docs/glossary.md"]
    assert "docs/glossary.md" in PAGE["CONTRIBUTING.md"].links
