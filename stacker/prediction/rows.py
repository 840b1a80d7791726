"""What `stacker predict` says, row by row: of an image, of one that was skipped, of a case.

Rows come out as soon as they are known, as JSON lines, as CSV or as a table with fixed columns, whose
last one is the path; every format has the same rows. In a file they lie under a name of their own until
all are there, so that what bears the file's own name is whole, and nothing that was said is lost.

What `stacker predict` says when all is done: how many images, how many rightly, and what was odd.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np

from stacker.errors import ConfigError, plural

log = logging.getLogger(__name__)
FORMATS = ("table", "jsonl", "csv")
ENDINGS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "table"}


@dataclass(frozen=True)
class Vote:
    """What one base model says by itself: its likeliest class, and its probabilities."""

    vote: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Prediction:
    """What the stack says of one image.

    `confidence` is the calibrated probability of the predicted class; `abstained` is the reason where it
    is too low to decide. `disagreement` is the share of base models that vote for another class,
    `novelty` the share of development images that lie nearer to what is usual, `seen` says whether the
    stack was fitted on images of this case. What is not known is None.
    """

    path: str
    case: str | None
    label: str | None
    predicted: str
    confidence: float
    abstained: str | None
    probabilities: dict[str, float]
    disagreement: float
    novelty: float | None
    unlike_training: bool | None
    seen: bool | None
    base: dict[str, Vote]
    overlay: str | None


@dataclass(frozen=True)
class Skipped:
    """An image that nothing is said of, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class CasePrediction:
    """What the stack says of a case: by the mean of its images' raw probabilities, calibrated for cases.

    `shares` are those of the images that are predicted to be of each class.
    """

    case: str
    images: int
    predicted: str
    confidence: float
    abstained: str | None
    probabilities: dict[str, float]
    shares: dict[str, float]


Row: TypeAlias = Prediction | Skipped | CasePrediction
KINDS = {Prediction: "image", Skipped: "skipped", CasePrediction: "case"}


def named(classes: Sequence[str], shares: np.ndarray) -> dict[str, float]:
    """Return numbers by class, to six digits."""
    return {name: round(float(share), 6) for name, share in zip(classes, shares, strict=True)}


@dataclass
class Cases:
    """The cases so far: sums of raw probabilities, and of how many images each class was predicted."""

    sums: dict[str, np.ndarray] = field(default_factory=dict)
    votes: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, case: str, raw: np.ndarray, predicted: int) -> None:
        """Count one image (K,) of a case."""
        zeros = np.zeros(len(raw))
        self.sums[case] = self.sums.get(case, zeros) + raw
        self.votes[case] = self.votes.get(case, zeros) + np.eye(len(raw))[predicted]

    def means(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield each case with mean raw probabilities (K,), and its images by predicted class (K,)."""
        for case in sorted(self.sums):
            # Equal probabilities stay ties for any number of images: sums differ in the last bit.
            yield case, np.round(self.sums[case] / self.votes[case].sum(), 12), self.votes[case]


@dataclass(frozen=True)
class Format:
    """How rows are written: a line for each, and one above them all where `header` is not None."""

    header: str | None
    line: Callable[[Row], str]


def choose_format(wanted: str | None, output: Path | None) -> str:
    """Return the format that is wanted, or else that of the file's ending, or a table for a person."""
    if wanted is not None:
        return wanted
    if output is None:
        return "table"
    found = ENDINGS.get(output.suffix.lower())
    if found is None:
        raise ConfigError(f"--output {output}: say what to write there, --format jsonl, csv or table")
    return found


def make_format(name: str, classes: Sequence[str], bases: Sequence[str]) -> Format:
    """Return a format for these classes and base models."""
    if name == "jsonl":
        return Format(None, _as_json)
    if name == "csv":
        columns = _columns(classes, bases)
        return Format(_as_csv(columns), lambda row: _as_csv([_cells(row).get(c, "") for c in columns]))
    width = max(len("predicted"), len("skipped"), *map(len, classes))
    header = f"{'predicted':<{width}}  confidence  disagree  novelty  image"
    return Format(header, lambda row: _as_table(row, width))


def _as_json(row: Row) -> str:
    return json.dumps({"row": KINDS[type(row)], **asdict(row)}, ensure_ascii=False)


def _columns(classes: Sequence[str], bases: Sequence[str]) -> list[str]:
    """Return the columns of a CSV: those of images, with those that only the other rows have."""
    first = ["row", "path", "case", "images", "label", "predicted", "confidence", "abstained"]
    first += [f"p_{name}" for name in classes] + [f"share_{name}" for name in classes]
    first += ["disagreement", "novelty", "unlike_training", "seen", "overlay", "reason"]
    own = [f"{base}/{column}" for base in bases for column in ("vote", *(f"p_{c}" for c in classes))]
    return first + own


def _cells(row: Row) -> dict[str, object]:
    """Return what a row has, by the columns of a CSV."""
    found = {"row": KINDS[type(row)], **asdict(row)}
    for key, start in (("probabilities", "p_"), ("shares", "share_")):
        found |= {f"{start}{name}": share for name, share in found.pop(key, {}).items()}
    for base, said in found.pop("base", {}).items():
        found |= {f"{base}/p_{name}": share for name, share in said["probabilities"].items()}
        found[f"{base}/vote"] = said["vote"]
    texts = {True: "true", False: "false", None: ""}
    return {k: texts[v] if v is None or isinstance(v, bool) else v for k, v in found.items()}


def _as_csv(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _as_table(row: Row, width: int) -> str:
    if isinstance(row, Skipped):
        return f"{'skipped':<{width}}  {'':>10}  {'':>8}  {'':>7}  {row.path}: {row.reason}"
    notes = [] if row.abstained is None else [f"abstains: {row.abstained}"]
    start = f"{row.predicted:<{width}}  {row.confidence:>10.3f}"
    if isinstance(row, CasePrediction):
        line = f"{start}  {'':>8}  {'':>7}  case {row.case}, {plural(row.images, 'image')}"
    else:
        novelty = "" if row.novelty is None else f"{row.novelty:.2f}"
        line = f"{start}  {row.disagreement:>8.2f}  {novelty:>7}  {row.path}"
        notes += ["unlike the training images"] if row.unlike_training else []
        notes += ["its case was fitted on"] if row.seen else []
    said = "; ".join(notes)
    return f"{line}  ({said})" if said else line


class RowFile:
    """A file of lines that lies under `<name>.partial` until it is whole.

    Each line is handed over at once; whatever ends the program, those that were written are there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.lines = 0

    def __enter__(self) -> Self:
        """Open it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_dir():
            raise ConfigError(f"--output {self.path} is a folder; give the name of a file")
        self.file = self.partial.open("w", buffering=1, encoding="utf-8")
        return self

    def write(self, line: str) -> None:
        """Write a line."""
        self.file.write(f"{line}\n")
        self.lines += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it its own name, or say where its lines are."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if kind is None:
            self.partial.replace(self.path)
        else:
            log.warning("%s holds the %d lines that were finished", self.partial, self.lines)


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
