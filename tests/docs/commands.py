"""The command lines that the documentation shows, and whether the programs take them."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator

import click

from stacker.cli.cache import FilledByDefault
from stacker.cli.main import main
from tests.docs.pages import PAGES, ROOT, Page

PROGRAMS = ("stacker", "make", "pip", "python")


def shown(page: Page) -> Iterator[tuple[str, list[str]]]:
    """Yield each command line of a page, from its shell blocks and its inline code, with its place."""
    for block in page.blocks:
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                yield from ((block.where, command) for command in _apart(words))
    for code in page.code:
        if code.split()[0] in PROGRAMS and " " in code:
            yield page.name, shlex.split(code)


def in_messages() -> Iterator[tuple[str, list[str]]]:
    """Yield the `stacker` commands that the package's own texts name, with their place.

    They stand in quotes or backticks, or are a text of their own; what a text fills in is some NAME.
    """
    for path in sorted((ROOT / "stacker").rglob("*.py")):
        for text in _texts(ast.parse(path.read_text(encoding="utf-8"))):
            quoted = re.findall(r"(?<!\w)['`](stacker [a-z][^'`]*)['`]", text)
            whole = re.findall(r"\A(stacker [a-z][-\w]* [^'`;,]*)\Z", text)
            for command in (*quoted, *whole):
                yield str(path.relative_to(ROOT)), shlex.split(command)


def _texts(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a file; those that are put together have NAME for what is filled in."""
    inside = {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "NAME" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def _apart(words: list[str]) -> Iterator[list[str]]:
    """Yield the commands of a line that are joined by pipes and conjunctions."""
    command: list[str] = []
    for word in [*words, "&&"]:
        if word not in ("&&", "|"):
            command.append(word)
            continue
        if command and command[0] in PROGRAMS:
            yield command
        command = []


def check(command: list[str]) -> click.Context | None:
    """Raise where a program would not take a command line; return what `stacker` makes of its own."""
    program, *words = command
    if program == "stacker":
        return _parse(words)
    if program == "make":
        targets = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[0]}:", targets, re.MULTILINE), f"no target {words[0]}"
    elif program == "python":
        assert words[0] == "-m"
        assert importlib.util.find_spec(words[1]), f"no module {words[1]}"
    else:
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        wanted = re.findall(r"\[(.+)\]", words[-1])
        extras = {extra for found in wanted for extra in found.split(",")}
        assert extras <= settings["project"]["optional-dependencies"].keys(), extras
        assert "stacker" not in (re.split(r"[\[=<>]", word)[0] for word in words), (
            "another project on PyPI"
        )
    return None


def _parse(words: list[str]) -> click.Context | None:
    """Parse words as `stacker` does; what is cut short, as `stacker check` in a sentence, is fine."""
    command: click.Command = main
    context = click.Context(main, info_name="stacker")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if isinstance(command, FilledByDefault) and words[0] not in command.commands:
            words = ["fill", *words]
        assert words[0] in command.commands, f"no command {words[0]}"
        command = command.commands[words[0]]
        context = click.Context(command, context, words.pop(0))
    try:
        return command.make_context(context.info_name, words, context.parent)
    except (click.MissingParameter, click.exceptions.NoArgsIsHelpError, click.exceptions.Exit):
        return None


def overrides() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield what the commands of all pages set by `--set`, with the place."""
    for page in PAGES:
        for where, command in shown(page):
            context = check(command)
            if context is not None and context.params.get("overrides"):
                yield where, context.params["overrides"]


def paths(group: click.Group, above: str = "stacker") -> Iterator[tuple[str, click.Command]]:
    """Yield every command below a group, as it is typed."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from paths(command, f"{above} {name}")
        else:
            yield f"{above} {name}", command
