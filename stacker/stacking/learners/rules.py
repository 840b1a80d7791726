"""What needs no learning: the base models' probabilities, averaged, counted as votes, or the best one's.

They are what a meta-learner has to beat, and are fitted, stored and scored as one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from stacker.errors import StackError
from stacker.scores.metrics import area_within
from stacker.scores.predictions import Predictions
from stacker.stacking.learners.contract import MetaLearner, count_classes
from stacker.stacking.learners.matrix import Rows2D, predict_in_pieces

PROBABILITY = re.compile(r"(?P<backbone>.+)/probabilities/(?P<name>[^/]+)")
TIE = 1e-6  # what the mean probability counts beside a vote: it decides a tie, and nothing else


class Rule(MetaLearner):
    """One of `config.learners.RULES` over columns of probabilities.

    `best_` is the backbone that best_base relies on. Votes are the shares of base models that say so.
    A millionth of the mean probability is added, for a tie must be decided somehow.
    """

    suffix: ClassVar[str] = ".json"
    weighs = False

    def __init__(self, rule: str, columns: Sequence[str]) -> None:
        self.rule = rule
        self.columns = columns

    def fit(
        self,
        X: Rows2D,
        y: np.ndarray,
        groups: np.ndarray | None = None,
        weights: np.ndarray | None = None,  # noqa: ARG002  # a rule weighs nothing
    ) -> Self:
        """Find the best base model on rows (N, F) with class indices (N,), the first of equal ones.

        Rows are compared within their groups, if they have any: those of another fold's models are on
        another scale.
        """
        places, labels = self._places(), np.asarray(y).astype(np.int64)
        classes = count_classes(labels)
        for backbone, columns in places.items():
            if len(columns) != classes:
                raise StackError(
                    f"{self.rule}: {backbone} has probabilities of {len(columns)} classes, the labels "
                    f"have {classes}; cache its base models again with 'stacker cache'"
                )
        self.best_ = next(iter(places))
        if self.rule == "best_base":
            shares = {
                backbone: predict_in_pieces(partial(np.take, indices=of, axis=1), X)
                for backbone, of in places.items()
            }
            areas = _areas(shares, labels, groups)
            if not all(np.isfinite(area) for area in areas.values()):  # no group has both classes
                areas = _areas(shares, labels, None)
            self.best_ = max(areas, key=lambda backbone: areas[backbone])
        self.classes_ = np.arange(classes)
        return self

    def _probabilities(self, rows: np.ndarray) -> np.ndarray:
        places = self._places()
        if self.rule == "best_base":
            return rows[:, places[self.best_]].astype(np.float64)
        bases_MNK = np.stack([rows[:, of] for of in places.values()]).astype(np.float64)
        mean: np.ndarray = bases_MNK.mean(axis=0)
        if self.rule == "mean":
            return mean
        votes = np.eye(mean.shape[1])[bases_MNK.argmax(axis=2)].mean(axis=0)
        votes += TIE * mean
        shares: np.ndarray = votes / votes.sum(axis=1, keepdims=True)
        return shares

    def _places(self) -> dict[str, list[int]]:
        """Return where each backbone's probabilities are, in the order of the first one's classes."""
        places: dict[str, dict[str, int]] = {}
        for number, name in enumerate(self.columns):
            parts = PROBABILITY.fullmatch(name)
            if parts is not None:
                places.setdefault(parts["backbone"], {})[parts["name"]] = number
        if not places:
            raise StackError(
                f"{self.rule} needs the base models' probabilities, and none of the {len(self.columns)} "
                "columns is one (such as resnet50/probabilities/malignant); add probabilities to "
                "stack.features"
            )
        names = list(next(iter(places.values())))
        for backbone, of in places.items():
            if set(of) != set(names):
                raise StackError(
                    f"{self.rule}: {backbone} has probabilities of {', '.join(of)}, "
                    f"expected {', '.join(names)}"
                )
        return {backbone: [of[name] for name in names] for backbone, of in places.items()}

    def save(self, path: Path) -> None:
        """Write the rule as JSON."""
        about = {
            "rule": self.rule,
            "columns": list(self.columns),
            "classes": len(self.classes_),
            "best": self.best_,
        }
        path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def restore(self, path: Path, trusted: Sequence[str] = ()) -> Self:  # noqa: ARG002  # no code in JSON
        """Take what `save` wrote; raise StackError when it is another rule or of other columns."""
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            same = about["rule"] == self.rule and about["columns"] == list(self.columns)
            self.best_, self.classes_ = about["best"], np.arange(about["classes"])
        except (ValueError, KeyError, TypeError) as error:
            raise StackError(f"{path} is not a stored rule; run 'stacker stack' again") from error
        if not same or self.best_ not in self._places():
            raise StackError(
                f"{path} holds the rule {about['rule']} over {len(about['columns'])} columns, expected "
                f"{self.rule} over these {len(self.columns)}; run 'stacker stack' again"
            )
        return self


def _areas(
    shares: Mapping[str, np.ndarray], labels: np.ndarray, groups: np.ndarray | None
) -> dict[str, float]:
    """Return the AUC of every backbone's probabilities (N, K), by pairs of rows of one group."""
    within = np.zeros(len(labels), int) if groups is None else groups
    parts = np.unique(within, return_inverse=True)[1][None]
    return {
        name: area_within(Predictions(labels, labels, of_rows, raw=of_rows[None], parts=parts))
        for name, of_rows in shares.items()
    }
