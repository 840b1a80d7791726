"""Calling the command line in the test's own process."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner, Result

from stacker.cli.main import main


def call(*arguments: object, **options: Any) -> Result:
    """Run a command; a traceback fails the test. `options` are CliRunner's, e.g. `input`."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def expect_refusal(result: Result, code: int, *texts: str) -> None:
    """Expect a short message with these texts and this exit code."""
    assert result.exit_code == code, result.output
    for text in texts:
        assert text in result.stderr
    assert "Traceback" not in result.output
