"""Every command that the documentation shows can be typed, and every command is shown."""

from __future__ import annotations

import shlex

import click
import pytest

from stacker.cli.main import main
from stacker.config.load import load_config
from tests.docs.commands import check, in_messages, overrides, paths, shown
from tests.docs.pages import PAGE, PAGES, ROOT, Page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_options(page: Page) -> None:
    """Programs, commands, options and their values are there, and no argument is too many."""
    faults = []
    for where, command in shown(page):
        try:
            check(command)
        except Exception as error:  # noqa: BLE001  # all faults of a page at once
            faults.append(f"{where}: {' '.join(command)}: {error}")
    assert faults == []


def test_commands_in_messages_exist_with_their_options() -> None:
    """What an error, a log line or a help text tells a user to run can be run."""
    found, faults = list(in_messages()), []
    for where, command in found:
        try:
            check(command)
        except Exception as error:  # noqa: BLE001  # all faults at once
            faults.append(f"{where}: {' '.join(command)}: {error}")
    assert faults == []
    assert ["stacker", "train", "CONFIG"] in [command for _, command in found]
    assert len(found) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_sentences_exist(page: Page) -> None:
    """An option that is named by itself is one of some command."""
    known = {option for _, command in paths(main) for p in command.params for option in p.opts}
    known |= {
        option for _, command in paths(main) for p in command.params for option in p.secondary_opts
    }
    named = {
        code.split()[0].split("=")[0] for code in page.code if code.startswith("-") and len(code) > 1
    }
    assert named <= {*known, "--help"}


def test_what_commands_set_can_be_set() -> None:
    """Every `--set` of the pages changes BreakHis's config to a valid one."""
    found = list(overrides())
    assert found
    for where, changes in found:
        assert load_config(ROOT / "configs" / "breakhis.yaml", changes).run, where


def test_every_command_is_listed() -> None:
    """Its table has a line for each, with all parts of its name; caches are filled by the bare name."""
    (table,) = PAGE["docs/commands.md"].tables("command")
    listed = "\n".join(row[0] for row in table[1:])
    missing = [name for name, _ in paths(main) if f"`{name.removesuffix(' fill')}" not in listed]
    assert missing == []


@pytest.mark.parametrize(
    "command",
    [
        "stacker trane CONFIG",
        "stacker train CONFIG --fould 2",
        "stacker export RUN --to keras",
        "stacker pack RUN more --out PATH",
        "stacker bench nothing",
        "make nothing",
        "pip install -e '.[nothing]'",
        "pip install stacker",
    ],
)
def test_what_cannot_be_typed_is_found(command: str) -> None:
    """The check itself refuses unknown programs, options, values, arguments, targets and extras."""
    with pytest.raises((click.UsageError, AssertionError)):
        check(shlex.split(command))
