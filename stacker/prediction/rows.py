"""What `stacker predict` says, row by row.

A row is about an image, about one that was skipped, or about a case. Rows come out as soon as they are
known, as JSON lines, as CSV or as a table with fixed columns, whose last one is the path; every format
has the same rows. A file is written as `<name>.partial` and renamed when all rows are there, so that a
file of that name is whole, and an interruption loses no row.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from stacker.errors import ConfigError, plural
from stacker.figures.lettering import shorten

log = logging.getLogger(__name__)
ENDINGS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "table"}
BLANK = " " * 19  # below disagree and novelty, which a case does not have
MOST_SHORT = 20  # characters of a path that are always shown


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


class Layout(NamedTuple):
    """How rows are written: a line for each, and one above them all where `header` is not None."""

    header: str | None
    line: Callable[[Row], str]


def choose_format(wanted: str | None, output: Path | None) -> str:
    """Return the format that is wanted, or else that of the file's ending, or a table for a person."""
    if wanted is not None:
        return wanted
    if output is None:
        return "table"
    if output.suffix.lower() not in ENDINGS:
        raise ConfigError(f"--output {output}: say what to write there, --format jsonl, csv or table")
    return ENDINGS[output.suffix.lower()]


def make_layout(
    format_name: str, classes: Sequence[str], bases: Iterable[str], columns: int | None = None
) -> Layout:
    """Return how rows of these classes and base models are written in a format.

    A table is made to fit into so many columns, where a number is given: paths lose their middle.
    """
    if format_name == "jsonl":
        return Layout(None, _as_json)
    if format_name == "csv":
        names = _columns(classes, bases)
        return Layout(_as_csv(names), lambda row: _as_csv([_cells(row).get(c, "") for c in names]))
    width = max(len("predicted"), len("skipped"), *map(len, classes))
    header = f"{'predicted':<{width}}  confidence  disagree  novelty  image"
    return Layout(header, lambda row: _as_table(row, width, columns))


def _as_json(row: Row) -> str:
    return json.dumps({"row": KINDS[type(row)], **asdict(row)}, ensure_ascii=False)


def _columns(classes: Sequence[str], bases: Iterable[str]) -> list[str]:
    """Return the columns of a CSV: those of images, with those that only the other rows have."""
    columns = ["row", "path", "case", "images", "label", "predicted", "confidence", "abstained"]
    columns += [f"p_{name}" for name in classes] + [f"share_{name}" for name in classes]
    columns += ["disagreement", "novelty", "unlike_training", "seen", "overlay", "reason"]
    of_base = ["vote", *(f"p_{name}" for name in classes)]
    return columns + [f"{base}/{column}" for base in bases for column in of_base]


def _cells(row: Row) -> dict[str, object]:
    """Return what a row has, by the columns of a CSV."""
    cells = {"row": KINDS[type(row)], **asdict(row)}
    for key, start in (("probabilities", "p_"), ("shares", "share_")):
        cells |= {f"{start}{name}": share for name, share in cells.pop(key, {}).items()}
    for base, vote in cells.pop("base", {}).items():
        cells |= {f"{base}/p_{name}": share for name, share in vote["probabilities"].items()}
        cells[f"{base}/vote"] = vote["vote"]
    return {k: str(v).lower() if isinstance(v, bool) else v for k, v in cells.items()}


def _as_csv(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _as_table(row: Row, width: int, columns: int | None) -> str:
    """Return the line of a row, and below it what else is to be known of the image."""
    if isinstance(row, Skipped):
        start, named, notes = f"{'skipped':<{width}}{'':>12}{BLANK}", row.path, [row.reason]
    else:
        notes = [] if row.abstained is None else [f"abstains: {row.abstained}"]
        start = f"{row.predicted:<{width}}  {row.confidence:>10.3f}"
        if isinstance(row, CasePrediction):
            start, named = start + BLANK, f"case {row.case}, {plural(row.images, 'image')}"
        else:
            novelty = "" if row.novelty is None else f"{row.novelty:.2f}"
            start, named = f"{start}  {row.disagreement:>8.2f}  {novelty:>7}", row.path
            notes += ["unlike the training images"] if row.unlike_training else []
            notes += ["the case was in the training data"] if row.seen else []
    room = max(MOST_SHORT, columns - len(start) - 2) if columns else len(named)
    lines = [f"{start}  {shorten(named, room, len)}"]
    if notes:
        note = "; ".join(notes)
        lines += textwrap.wrap(note, columns - 4) if columns else [note]
    return "\n    ".join(lines)


@contextmanager
def row_file(path: Path) -> Iterator[Callable[[str], None]]:
    """Yield what writes a line to a file that lies under `<name>.partial` until it is whole.

    Each line is handed over at once; whatever ends the program, those that were written are there.
    """
    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, lines = path.with_name(f"{path.name}.partial"), 0
    with partial.open("w", buffering=1, encoding="utf-8") as file:

        def write(line: str) -> None:
            nonlocal lines
            file.write(f"{line}\n")
            lines += 1

        try:
            yield write
        except BaseException:
            log.warning("%s holds the %d lines that were finished", partial, lines)
            raise
        finally:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)
