"""The summary of a prediction: how many images there were, how many were right, and what was odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from stacker.errors import plural
from stacker.prediction.rows import CasePrediction, Prediction, Row, Skipped

MOST_REASONS = 20  # of skipped images that are listed


def no_verdict(cases: Mapping[str, int]) -> str:
    """Say why a stack gives no verdict by case; empty if it does. `cases` are counts of its data."""
    if not cases["mixed"]:
        return ""
    return (
        f"No verdict by case: {cases['mixed']} of the {plural(cases['development'], 'case')} in the "
        "training data have images of more than one class, so the labels are of images, not of cases."
    )


@dataclass
class Tally:
    """Counts of the rows so far; `no_cases` is why there are no rows of cases, if so.

    `new` and `unknown` count the labelled images that were decided, by whether that was right. Images of
    cases that were not in the training data (`new`) are kept apart from those of which nobody knows;
    images whose case was in it have no accuracy.
    """

    no_cases: str = ""
    images: int = 0
    cases: set[str] = field(default_factory=set)
    abstained: int = 0
    unlike: int = 0
    seen: int = 0
    labelled: int = 0
    new: Counter[bool] = field(default_factory=Counter)
    unknown: Counter[bool] = field(default_factory=Counter)
    strange: int = 0
    strange_first: str = ""
    overlays: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Count a row; images that are decided, and not known to be seen, count as right or wrong."""
        if isinstance(row, Skipped):
            self.skipped += 1
            if len(self.reasons) < MOST_REASONS:
                self.reasons.append(f"{row.path}: {row.reason}")
        elif not isinstance(row, CasePrediction):
            self.images += 1
            self.cases |= {row.case} if row.case else set()
            self.abstained += row.abstained is not None
            self.unlike += bool(row.unlike_training)
            self.seen += bool(row.seen)
            self.overlays += row.overlay is not None
            if row.label is not None:
                self.labelled += 1
                self._compare(row, row.label)

    def _compare(self, row: Prediction, label: str) -> None:
        """Count whether an image is what its label says."""
        if label not in row.probabilities:
            self.strange += 1
            classes = ", ".join(row.probabilities)
            self.strange_first = self.strange_first or f"{label!r} of {row.path}; classes: {classes}"
        elif row.abstained is None and not row.seen:
            (self.unknown if row.seen is None else self.new)[label == row.predicted] += 1

    def lines(self) -> Iterator[str]:
        """Yield the summary, a paragraph each."""
        of = f" of {plural(len(self.cases), 'case')}" if self.cases else ""
        odd = {"unlike the training images": self.unlike, "abstained": self.abstained}
        counts = ", ".join(f"{count} {what}" for what, count in odd.items() if count)
        yield f"{plural(self.images, 'image')}{of}" + (f": {counts}" if counts else "")
        decided = " (those that were decided)" if self.abstained else ""
        if self.new:
            yield f"{_accuracy(self.new)}{decided} of cases that were not in the training data"
        if self.unknown:
            doubt = "it is not known whether their cases were in the training data"
            yield f"{_accuracy(self.unknown)}{decided}; {doubt}"
        if self.strange:
            yield (
                f"warning: {plural(self.strange, 'label')} left out of the accuracy, being no class of "
                f"the stack (first: {self.strange_first}); fix the column label"
            )
        if self.seen:
            left_out = "; they are left out of the accuracy" if self.labelled else ""
            yield (
                f"{plural(self.seen, 'image')}: the case was in the training data. The stack does "
                f"better on such images than on new ones{left_out}."
            )
        if self.cases and self.no_cases:
            yield self.no_cases

    def skips(self) -> Iterator[str]:
        """Yield how many images were skipped, and why the first of them were."""
        yield f"{plural(self.skipped, 'image')} skipped:"
        yield from self.reasons
        if self.skipped > len(self.reasons):
            yield f"and {self.skipped - len(self.reasons)} more"


def _accuracy(right: Counter[bool]) -> str:
    labelled = right.total()
    return f"accuracy {right[True] / labelled:.3f} on {plural(labelled, 'labelled image')}"
