"""What a stack needs of its run, or of a pack: the right base models, and whose cases they have seen.

Classify new images with the whole stack: base models, their maps, the meta-learner.

The one place where the torch half and the scikit-learn half meet in a process: what the base models say
of new images goes straight to the meta-learner, through the functions that fill and read the cache. The
base models are held while the images stream past in batches; threads decode the next batches meanwhile,
and a row is there as soon as its batch is done, so that memory does not grow with the number of images.

Cases are finished from the mean raw probability of their images, with a calibration and a threshold of
their own. Confidence is the calibrated probability of the predicted class. Of two classes the threshold
decides, which may be anywhere: a class predicted with a probability of 0.3 has a confidence of 0.3.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stacker.backbones.checkpoint import read_facts
from stacker.backbones.devices import Machine
from stacker.config.maps import name_maps
from stacker.data.formats.registry import case_in
from stacker.errors import BackboneError, ConfigError, StackError
from stacker.figures.heatmaps import Overlays
from stacker.files import file_sha256, read_json
from stacker.maps.cam import Wanted
from stacker.maps.extract import Arrays, Ensemble
from stacker.prediction.inputs import Input, Reading, read_ahead
from stacker.prediction.rows import CasePrediction, Cases, Prediction, Row, Skipped, Vote, named
from stacker.run import BaseModel, Run
from stacker.stacking.blocks import array_of, probabilities, sees_frozen
from stacker.stacking.novelty import UNLIKE, Novelty, load_novelty, novelty_file
from stacker.stacking.saved import Stack, default_meta, load_stack, stack_facts


def fine_tuned(stack: Stack) -> list[BaseModel]:
    """Return the base models of a stack that were trained, fold by fold."""
    return [BaseModel(name, fold) for fold in stack.folds for name in stack.backbones]


def needed(stack: Stack) -> list[BaseModel]:
    """Return the base models that a stack looks at, the frozen ones last."""
    if not sees_frozen(stack.blocks):
        return fine_tuned(stack)
    listed = [BaseModel.named(name) for name in stack.facts["checkpoints"]]
    return fine_tuned(stack) + [base for base in listed if base.is_frozen]


def require_checkpoints(run: Run, stack: Stack) -> None:
    """Raise BackboneError when a base model is not the one that the meta-learner was fitted on."""
    for base in needed(stack):
        path, sha256 = run.model_file(*base), stack.facts["checkpoints"][str(base)]
        if not path.exists():
            raise BackboneError(f"{path}: this base model is missing; run 'stacker run CONFIG' again")
        found = file_sha256(path)
        if found != sha256:
            raise BackboneError(
                f"{path} is not the base model that the meta-learner was fitted on (sha256 "
                f"{found[:12]}, expected {sha256[:12]}); run 'stacker run CONFIG' again"
            )


def fitted_cases(run: Run, stack: Stack) -> tuple[frozenset[str], bool]:
    """Return the cases that base models or stack are known to be fitted on, and whether these are all.

    All are known from the split of a run that goes by case, or from a pack that has kept them.
    """
    found, all_known = set(stack.facts.get("fitted_cases", [])), "fitted_cases" in stack.facts
    for base in needed(stack):
        found |= set(read_facts(run.model_file(*base)).get("training_cases", []))
    if run.folds_file.exists():
        folds = read_json(run.folds_file)
        if folds["group"] == "case":
            parts, all_known = ("train", "validation", "held_out"), True
            found |= {case for fold in folds["folds"] for part in parts for case in fold[part]}
    return frozenset(found), all_known


log = logging.getLogger(__name__)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Predictor:
    """A run's stack with its base models, ready to be asked; `fitted` are the cases it was fitted on."""

    run: Run
    stack: Stack
    novelty: Novelty | None
    fitted: frozenset[str]
    all_known: bool  # whether it was fitted on no other
    abstain: float
    overlays: Overlays | None
    ensemble: Ensemble

    @property
    def bases(self) -> list[BaseModel]:
        """The fine-tuned base models, fold by fold."""
        return fine_tuned(self.stack)

    def stream(self, images: Iterable[Input]) -> Iterator[Row]:
        """Yield a row for each image, in their order, and at the end one for each case that is known."""
        cases = Cases()
        config = self.run.config.images
        for readings in read_ahead(images, config, self.ensemble.portion(config.shape)):
            yield from self._answer(readings, cases)
        for case, raw, votes in cases.means():
            (shares,), (k,) = self.stack.finish_cases(raw[None])
            yield CasePrediction(
                case=case,
                images=int(votes.sum()),
                predicted=self.stack.classes[k],
                confidence=round(float(shares[k]), 6),
                abstained=self._doubt(shares[k]),
                probabilities=named(self.stack.classes, shares),
                shares=named(self.stack.classes, votes / votes.sum()),
            )

    def _answer(self, readings: Sequence[Reading], cases: Cases) -> list[Row]:
        """Return the rows of some images, and count them into their cases."""
        pixels = {n: each.pixels for n, each in enumerate(readings) if each.pixels is not None}
        places, found = np.array(list(pixels), dtype=np.int64), {}
        reasons = {n: each.reason for n, each in enumerate(readings) if each.pixels is None}
        rows: dict[int, Row] = {}
        if pixels:
            found = self.ensemble.ask(list(pixels.values()))
            strange = _not_numbers(found, len(places))
            reasons |= {int(places[n]): reason for n, reason in strange.items()}
            kept = np.array([n for n in range(len(places)) if n not in strange], dtype=np.int64)
            found = {b: {a: values[kept] for a, values in said.items()} for b, said in found.items()}
            places = places[kept]
        if len(places):
            for n, row, raw in self._of_images([readings[n] for n in places], found):
                rows[int(places[n])] = row
                if isinstance(row, Prediction) and row.case is not None:
                    cases.add(row.case, raw, self.stack.classes.index(row.predicted))
        paths = [str(each.image.path) for each in readings]
        return [rows.get(n) or Skipped(path, reasons[n]) for n, path in enumerate(paths)]

    def _of_images(
        self, readings: Sequence[Reading], found: Mapping[BaseModel, Arrays]
    ) -> Iterator[tuple[int, Row, np.ndarray]]:
        """Yield number, row and raw probabilities (K,) of each image."""
        classes = self.stack.classes
        raw = self.stack.raw(_by_fold(self.stack, found))
        stacked, decided = self.stack.finish_images(raw)
        base = {name: probabilities(found[name]["logits"]) for name in self.bases}
        novelty = self._novelty(found)
        for n, (reading, shares, k) in enumerate(zip(readings, stacked, decided, strict=True)):
            image = reading.image
            if not np.isfinite(shares).all():
                reason = f"{self.stack.name} gives it a probability that is no number"
                yield n, Skipped(str(image.path), reason), raw[n]
                continue
            votes = {
                name: Vote(classes[said[n].argmax()], named(classes, said[n]))
                for name, said in base.items()
            }
            against = sum(vote.vote != classes[k] for vote in votes.values())
            row = Prediction(
                path=str(image.path),
                case=image.case or None,
                label=image.label or None,
                predicted=classes[k],
                confidence=round(float(shares[k]), 6),
                abstained=self._doubt(shares[k]),
                probabilities=named(classes, shares),
                disagreement=round(against / len(votes), 6),
                novelty=None if novelty is None else round(float(novelty[n]), 6),
                unlike_training=None if novelty is None else bool(novelty[n] > UNLIKE),
                seen=self._seen(image),
                base={str(base): vote for base, vote in votes.items()},
                overlay=self._draw(reading, int(k), shares, n, found, base),
            )
            yield n, row, raw[n]

    def _seen(self, image: Input) -> bool | None:
        """Say whether the stack was fitted on a case; None where the case, or that, is not known.

        A table may call cases as it likes: what the name of the file tells counts, too.
        """
        cases = {image.case, case_in(image.path, image.below, self.run.config.data)} - {""}
        if cases & self.fitted:
            return True
        return False if cases and self.all_known else None

    def _doubt(self, confidence: float) -> str | None:
        """Return why nothing is decided, if nothing is."""
        if confidence >= self.abstain:
            return None
        return f"confidence {confidence:.3f} is below {self.abstain:g}"

    def _novelty(self, found: Mapping[BaseModel, Arrays]) -> np.ndarray | None:
        if self.novelty is None:
            return None
        embeddings = {base: found[base]["features"] for base in self.novelty.bases}
        return self.novelty.percentile(embeddings)

    def _draw(
        self,
        reading: Reading,
        k: int,
        shares: np.ndarray,
        n: int,
        found: Mapping[BaseModel, Arrays],
        base: Mapping[BaseModel, np.ndarray],
    ) -> str | None:
        """Draw the maps of the predicted class, averaged over the folds; return the file's path."""
        if self.overlays is None or reading.pixels is None:
            return None
        panels, name, folds = {}, self.stack.classes[k], self.stack.folds
        for backbone in self.stack.backbones:
            maps = np.mean([found[BaseModel(backbone, fold)]["maps"][n] for fold in folds], axis=0)
            share = np.mean([base[BaseModel(backbone, fold)][n, k] for fold in folds])
            panels[f"{backbone}\n{name} {share:.2f}"] = maps[min(k, len(maps) - 1)]
        title = f"{reading.image.path.name}\n{self.stack.name}: {name} {shares[k]:.2f}"
        return str(self.overlays.draw(reading.image.path.stem, title, reading.pixels, panels))


def open_predictor(
    run: Run,
    meta: str | None = None,
    abstain: float | None = None,
    overlays: Path | None = None,
    trusted: Sequence[str] = (),
) -> Predictor:
    """Return a run's stack, ready to be asked; raise StackerError when some part of it is not as it was.

    `abstain` takes the place of `stack.abstain`; `trusted` are the packages whose classes a custom
    meta-learner may be made of.
    """
    name = meta or default_meta(run)
    run.config.stack.require(name)
    facts = stack_facts(run, name)
    stack = load_stack(run, name, trusted)
    require_checkpoints(run, stack)
    limit = run.config.stack.abstain if abstain is None else abstain
    if not 0 <= limit < 1:
        raise ConfigError(f"--abstain {limit}: expected a probability from 0 to below 1, e.g. 0.8")
    ensemble = Ensemble(
        files={base: run.model_file(*base) for base in needed(stack)},
        wanted=_wanted(stack, drawn=overlays is not None),
        machine=Machine.of(run.config).set_up(),
        precision=_precision(facts["precision"], run.stack_folder(name)),
        batch_size=run.config.cam.batch_size,
        memory_gb=run.config.cam.memory_gb,
    )
    drawn = None if overlays is None else Overlays(overlays)
    fitted, all_known = fitted_cases(run, stack)
    return Predictor(run, stack, _usual(run, stack), fitted, all_known, limit, drawn, ensemble)


def _precision(name: str, folder: Path) -> torch.dtype:
    """Return the precision that a stack says it was fitted in; raise StackError for what is none."""
    if name in PRECISIONS:
        return PRECISIONS[name]
    known = ", ".join(PRECISIONS)
    raise StackError(f"{folder}: its precision is {name!r}, expected {known}; run 'stacker stack' again")


def _wanted(stack: Stack, drawn: bool) -> dict[BaseModel, Wanted]:
    """Return the maps that the stack looks at, and those that are drawn, by base model."""
    facts = stack.facts
    arrays = {array_of(name, block) for name, block in stack.blocks.items()}
    arrays |= {"maps"} if drawn else set()
    every = name_maps(facts["methods"], facts["lower"])
    maps = {name: made for name, made in every.items() if name in arrays}
    return {base: {} if base.is_frozen else maps for base in needed(stack)}


def _by_fold(stack: Stack, found: Mapping[BaseModel, Arrays]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the arrays of every fold's backbones, with those of frozen ones beside them."""
    frozen = {
        base.backbone: {"frozen": arrays["features"]} for base, arrays in found.items() if base.is_frozen
    }
    by_fold = {}
    for fold in stack.folds:
        own = {name: dict(found[BaseModel(name, fold)]) for name in stack.backbones}
        beside = {name: own.get(name, {}) | arrays for name, arrays in frozen.items()}
        by_fold[fold] = {**own, **beside}
    return by_fold


def _not_numbers(found: Mapping[BaseModel, Arrays], rows: int) -> dict[int, str]:
    """Return the images of which some base model says what is no number, with the reason."""
    reasons: dict[int, str] = {}
    for name, arrays in found.items():
        for array, values in arrays.items():
            for row in np.flatnonzero(~np.isfinite(values.reshape(rows, -1)).all(axis=1)):
                reason = f"{array} of {name} are not numbers: this base model fails on it"
                reasons.setdefault(int(row), reason)
    return reasons


def _usual(run: Run, stack: Stack) -> Novelty | None:
    """Return what is usual of development images; None where it is not known of these base models."""
    path = novelty_file(run)
    if not path.exists():
        return None
    found = load_novelty(path)
    origins = {base: stack.facts["origins"].get(str(base)) for base in found.origins}
    if found.origins != origins or set(found.bases) != set(fine_tuned(stack)):
        log.warning("%s is of other caches than the stack: novelty is not known", path)
        return None
    return found


def predict(
    run: Run, paths: Sequence[Path], meta: str | None = None, overlays: Path | None = None
) -> tuple[list[Prediction], list[str]]:
    """Return a prediction for each image that can be read, and the reasons for the others."""
    rows = list(open_predictor(run, meta, overlays=overlays).stream(map(Input, paths)))
    reasons = [f"{row.path}: {row.reason}" for row in rows if isinstance(row, Skipped)]
    return [row for row in rows if isinstance(row, Prediction)], reasons
