"""What `stacker predict` says when all is done: how many images, how many rightly, and what was odd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from stacker.findings import plural
from stacker.outputs import CasePrediction, Prediction, Row, Skipped

MOST_REASONS = 20


@dataclass
class Right:
    """How many labelled images were decided, and how many of them rightly."""

    labelled: int = 0
    right: int = 0

    def add(self, right: bool) -> None:
        """Count an image."""
        self.labelled += 1
        self.right += right

    def __str__(self) -> str:
        """Return the accuracy."""
        return f"accuracy {self.right / self.labelled:.3f} on {plural(self.labelled, 'labelled image')}"


@dataclass
class Tally:
    """What is to be said when all is done: how many images of which kind.

    Images of cases that the stack was not fitted on (`new`) are kept apart from those of which nobody
    knows whether it was (`unknown`); those that it was fitted on have no accuracy.
    """

    images: int = 0
    cases: int = 0
    abstained: int = 0
    unlike: int = 0
    seen: int = 0
    new: Right = field(default_factory=Right)
    unknown: Right = field(default_factory=Right)
    strange: int = 0
    strange_first: str = ""
    overlays: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Count a row; only labels of images that are decided, and are not known to be seen, count."""
        if isinstance(row, Skipped):
            self.skipped += 1
            if len(self.reasons) < MOST_REASONS:
                self.reasons.append(f"{row.path}: {row.reason}")
        elif isinstance(row, CasePrediction):
            self.cases += 1
        else:
            self.images += 1
            self.abstained += row.abstained is not None
            self.unlike += bool(row.unlike_training)
            self.seen += bool(row.seen)
            self.overlays += row.overlay is not None
            if row.label is not None:
                self._compare(row, row.label)

    def _compare(self, row: Prediction, label: str) -> None:
        """Count whether an image is what its label says."""
        if label not in row.probabilities:
            known = f"{label!r} of {row.path}, the classes are {', '.join(row.probabilities)}"
            self.strange, self.strange_first = self.strange + 1, self.strange_first or known
        elif row.abstained is None and not row.seen:
            (self.unknown if row.seen is None else self.new).add(label == row.predicted)

    def lines(self) -> Iterator[str]:
        """Yield what was found, a sentence each."""
        of = f" of {plural(self.cases, 'case')}" if self.cases else ""
        found = f"{self.abstained} abstained, {self.unlike} unlike the training images"
        yield f"{plural(self.images, 'image')}{of}, {found}"
        decided = " that were decided" if self.abstained else ""
        if self.new.labelled:
            yield f"{self.new}{decided}, of cases that the stack was not fitted on"
        if self.unknown.labelled:
            yield f"{self.unknown}{decided}; whether the stack was fitted on them is not known"
        if self.strange:
            yield (
                f"warning: {plural(self.strange, 'label')} that no class has, counted for no accuracy "
                f"(the first: {self.strange_first}); mend the column label"
            )
        if self.seen:
            yield (
                f"{self.seen} of the images are of cases that the stack was fitted on: it does better "
                "on them than on new ones, and no accuracy counts them"
            )
