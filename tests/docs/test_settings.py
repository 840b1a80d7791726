"""Every setting that the documentation names exists, with the default and the values that it gives."""

from __future__ import annotations

import re
from typing import get_args

import pytest
import yaml

from stacker.config.learners import META_NAMES
from stacker.config.maps import MethodName
from stacker.config.root import Config
from stacker.config.stacking import BLOCKS as BLOCKS_OF_FEATURES
from stacker.data.formats.registry import FORMATS
from tests.docs.pages import BLOCKS, PAGE, PAGES, Block, Page, spans
from tests.docs.settings import LEAST, default, known_as, listing, takes

LIST = "docs/settings.md"
FILES = re.compile(r".*\.(json|jsonl|csv|h5|yaml|md|png|py|npz|safetensors)")
DOTTED = re.compile(rf"({'|'.join(Config.model_fields)})(\.[\w<>]+)+")
VALUED = re.compile(r"([a-z][\w.]*)(?:: |=)(\S.*)")
DEFAULT = re.compile(r"`([\w.]+)`\s+\(default\s+`([^`]+)`")


def test_the_list_of_settings_is_the_codes() -> None:
    """docs/settings.md shows every setting with its default: print it again where this fails."""
    (block,) = PAGE[LIST].blocks
    assert block.text.splitlines() == list(listing())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_exist(page: Page) -> None:
    """What looks like the dotted name of a setting is one."""
    named = {code for code in page.code if DOTTED.fullmatch(code) and not FILES.fullmatch(code)}
    assert [name for name in sorted(named) if not known_as(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_take_the_values_that_are_shown(page: Page) -> None:
    """`name: value` and `name=value` are a setting and a value that it may have."""
    pairs = [found.groups() for code in page.code if (found := VALUED.fullmatch(code))]
    assert [
        f"{name}: {value}"
        for name, value in pairs
        if not any(takes(setting, yaml.safe_load(value)) for setting in known_as(name))
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_defaults_in_sentences_are_the_codes(page: Page) -> None:
    """`name` (default `value`) is the default of the one setting of that name."""
    for name, value in DEFAULT.findall(page.prose):
        (setting,) = known_as(name)
        assert default(setting) == yaml.safe_load(value), name


def test_defaults_in_tables_are_the_codes() -> None:
    """A table whose columns are settings of a section and their defaults names each with its own."""
    tables = [table for page in PAGES for table in page.tables("settings of")]
    assert tables
    for headings, *rows in tables:
        (section,) = spans(headings[0])
        for names, defaults, _ in rows:
            for name, value in zip(spans(names), defaults.split(", "), strict=True):
                assert default(f"{section}.{name}") == yaml.safe_load(value), name


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "yaml"], ids=lambda block: block.where
)
def test_yaml_is_part_of_a_config(block: Block) -> None:
    """What a block shows is valid, beside the few settings that have no default."""
    assert Config.model_validate({**LEAST, **yaml.safe_load(block.text)}).run


def test_every_section_is_explained() -> None:
    """Each name at the top of a config stands in a sentence or an example, not in the list alone."""
    words = {re.split(r"[.:=]", code)[0] for page in PAGES for code in page.code}
    blocks = [block for page in PAGES if page.name != LIST for block in page.blocks]
    examples = [yaml.safe_load(block.text) for block in blocks if block.language == "yaml"]
    assert set(Config.model_fields) - words - {name for example in examples for name in example} == set()


@pytest.mark.parametrize(
    ("page", "heading", "choices"),
    [
        ("docs/data.md", "`format`", tuple(FORMATS)),
        ("docs/cache.md", "methods", get_args(MethodName)),
        ("docs/stacking.md", "block", ("maps", *BLOCKS_OF_FEATURES)),
        ("docs/stacking.md", "name", META_NAMES),
    ],
)
def test_tables_have_all_choices(page: str, heading: str, choices: tuple[str, ...]) -> None:
    """Formats, methods, feature blocks and meta-learners stand in their tables, and no other."""
    (table,) = PAGE[page].tables(heading)
    assert sorted(name for row in table[1:] for name in spans(row[0])) == sorted(choices)
