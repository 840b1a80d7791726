"""What an examination reports: findings, the worst first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
MOST_EXAMPLES = 200


@dataclass(frozen=True)
class Finding:
    """One thing found: how bad, what, in how many places, which (the first of them), what to do."""

    severity: Severity
    topic: str
    message: str
    advice: str = ""
    count: int = 1
    examples: tuple[str, ...] = ()


def finding(
    severity: Severity, topic: str, message: str, advice: str = "", examples: Sequence[str] = ()
) -> Finding:
    """Return a finding with as many places as there are examples, keeping the first of them."""
    return Finding(
        severity, topic, message, advice, max(1, len(examples)), tuple(examples[:MOST_EXAMPLES])
    )


def plural(number: int, noun: str) -> str:
    """Return '1 image' or '2 images'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def sort(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings with the errors first; those of one severity stay in their order."""
    return tuple(sorted(findings, key=lambda found: SEVERITIES.index(found.severity)))


def worst(findings: Iterable[Finding]) -> Severity | None:
    """Return the severity of the worst finding."""
    found = {each.severity for each in findings}
    return next((severity for severity in SEVERITIES if severity in found), None)
