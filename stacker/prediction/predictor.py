"""Classify new images with the whole stack: base models, their maps, the meta-learner.

The one place where the torch half and the scikit-learn half meet in a process: what the base models say
of new images goes straight to the meta-learner, through the functions that fill and read the cache. The
base models must be those that the stack was fitted on. They are held while the images stream past in
batches; threads decode the next batches meanwhile, and a row is there as soon as its batch is done, so
that memory does not grow with the number of images.

Cases are finished from the mean raw probability of their images, with a calibration and a threshold of
their own. Confidence is the calibrated probability of the predicted class. Of two classes the threshold
decides, which may be anywhere: a class predicted with a probability of 0.3 has a confidence of 0.3.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stacker.backbones.devices import Machine
from stacker.backbones.sources import read_facts
from stacker.config.maps import name_maps
from stacker.data.formats.registry import case_in
from stacker.errors import BackboneError, ConfigError, StackError
from stacker.figures.overlays import Overlays
from stacker.files import file_sha256, read_json
from stacker.maps.cam import Wanted
from stacker.maps.extract import Arrays, Ensemble
from stacker.prediction.drawing import draw
from stacker.prediction.inputs import Input, Reading, read_ahead
from stacker.prediction.rows import CasePrediction, Cases, Prediction, Row, Skipped, Vote, named
from stacker.prediction.tally import no_verdict
from stacker.run import BaseModel, Run
from stacker.stacking.blocks import array_of, probabilities, sees_frozen
from stacker.stacking.novelty import UNLIKE, Novelty, load_novelty, novelty_file
from stacker.stacking.saved import Stack, choose_stack, load_stack

log = logging.getLogger(__name__)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Outputs = Mapping[BaseModel, Arrays]  # what base models say of some images


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
    name = choose_stack(run, meta)
    stack = load_stack(run, name, trusted)
    require_checkpoints(run, stack)
    limit = run.config.stack.abstain if abstain is None else abstain
    if not 0 <= limit < 1:
        raise ConfigError(f"--abstain {limit}: expected a probability from 0 to below 1, e.g. 0.8")
    precision = _precision(stack.facts["precision"], run.stack_folder(name))
    ensemble = Ensemble(
        files={base: run.model_file(*base) for base in needed(stack)},
        wanted=_wanted(stack, drawn=overlays is not None),
        machine=replace(Machine.of(run.config), precision=precision).set_up(),
        precision=precision,
        batch_size=run.config.cam.batch_size,
        memory_gb=run.config.cam.memory_gb,
    )
    drawn = None if overlays is None else Overlays(overlays)
    fitted, all_known = fitted_cases(run, stack)
    return Predictor(run, stack, _novelty_of(run, stack), fitted, all_known, limit, drawn, ensemble)


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

    @property
    def no_cases(self) -> str:
        """Say why nothing is said of cases; empty where something is."""
        return no_verdict(self.stack.facts["cases"])

    def stream(self, images: Iterable[Input]) -> Iterator[Row]:
        """Yield a row for each image, in their order, and at the end one for each case that is known.

        Where labels are of images, not of cases, there are no rows of cases.
        """
        cases = Cases()
        config = self.run.config.images
        for batch in read_ahead(images, config, self.ensemble.portion(config.shape)):
            readings, outputs = self._ask(batch)
            rows = self._of_images([r for r in readings if r.pixels is not None], outputs, cases)
            for reading in readings:
                if reading.pixels is None:
                    yield Skipped(str(reading.image.path), reading.reason)
                else:
                    yield next(rows)
        if self.no_cases:
            return
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

    def _ask(self, readings: Sequence[Reading]) -> tuple[list[Reading], Outputs]:
        """Return what the base models say of the images that were read, row by row.

        An image that a base model fails on counts as one that was not read.
        """
        places = [n for n, reading in enumerate(readings) if reading.pixels is not None]
        pixels = [reading.pixels for reading in readings if reading.pixels is not None]
        outputs = self.ensemble.ask(pixels) if pixels else {}
        failures = _not_numbers(outputs, len(places))
        asked = list(readings)
        for row, reason in failures.items():
            asked[places[row]] = replace(readings[places[row]], pixels=None, reason=reason)
        kept = np.array([row for row in range(len(places)) if row not in failures], dtype=np.int64)
        return asked, {
            base: {name: values[kept] for name, values in arrays.items()}
            for base, arrays in outputs.items()
        }

    def _of_images(self, readings: Sequence[Reading], outputs: Outputs, cases: Cases) -> Iterator[Row]:
        """Yield the row of each image, and count it into its case."""
        if not readings:
            return
        classes = self.stack.classes
        raw = self.stack.raw(_by_fold(self.stack, outputs))
        stacked, decided = self.stack.finish_images(raw)
        by_base = {base: probabilities(outputs[base]["logits"]) for base in self.bases}
        embeddings = {base: arrays["features"] for base, arrays in outputs.items()}
        novelty = None if self.novelty is None else self.novelty.percentile(embeddings)
        for n, (reading, shares, k) in enumerate(zip(readings, stacked, decided, strict=True)):
            image = reading.image
            if not np.isfinite(shares).all():
                reason = f"{self.stack.name} returns a NaN or infinite probability for it"
                yield Skipped(str(image.path), reason)
                continue
            votes = {
                str(base): Vote(classes[of_base[n].argmax()], named(classes, of_base[n]))
                for base, of_base in by_base.items()
            }
            against = sum(vote.vote != classes[k] for vote in votes.values())
            if image.case:
                cases.add(image.case, raw[n], int(k))
            yield Prediction(
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
                base=votes,
                overlay=self._draw(image, (int(k), float(shares[k])), n, outputs, by_base),
            )

    def _draw(
        self,
        image: Input,
        predicted: tuple[int, float],
        row: int,
        outputs: Outputs,
        by_base: Mapping[BaseModel, np.ndarray],
    ) -> str | None:
        """Draw the maps of an image where overlays are wanted; return the file's path."""
        if self.overlays is None:
            return None
        maps = {base: outputs[base]["maps"][row] for base in by_base}
        shares = {base: of_base[row] for base, of_base in by_base.items()}
        images = self.run.config.images
        path = draw(self.overlays, self.stack, image, predicted, maps, shares, images)
        return None if path is None else str(path)

    def _seen(self, image: Input) -> bool | None:
        """Say whether the stack was fitted on a case; None where the case, or that, is not known.

        A table may call cases as it likes: what the name of the file tells counts, too.
        """
        told = (
            "" if image.picture is not None else case_in(image.path, image.below, self.run.config.data)
        )
        cases = {image.case, told} - {""}
        if cases & self.fitted:
            return True
        return False if cases and self.all_known else None

    def _doubt(self, confidence: float) -> str | None:
        """Return why nothing is decided, if nothing is."""
        if confidence >= self.abstain:
            return None
        return f"confidence {confidence:.3f} is below {self.abstain:g}"


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
    again = "run 'stacker run CONFIG' again"
    for base in needed(stack):
        path, expected = run.model_file(*base), stack.facts["checkpoints"][str(base)]
        if not path.exists():
            raise BackboneError(f"{path}: this base model is missing", again)
        sha256 = file_sha256(path)
        if sha256 != expected:
            raise BackboneError(
                f"{path} is not the base model that the meta-learner was fitted on (sha256 "
                f"{sha256[:12]}, expected {expected[:12]})",
                again,
            )


def fitted_cases(run: Run, stack: Stack) -> tuple[frozenset[str], bool]:
    """Return the cases that base models or stack are known to be fitted on, and whether these are all.

    All are known from the split of a run that goes by case, or from a pack that has kept them.
    """
    cases, all_known = set(stack.facts.get("fitted_cases", [])), "fitted_cases" in stack.facts
    for base in needed(stack):
        cases |= set(read_facts(run.model_file(*base)).get("training_cases", []))
    if run.folds_file.exists():
        folds = read_json(run.folds_file)
        if folds["group"] == "case":
            parts, all_known = ("train", "validation", "held_out"), True
            cases |= {case for fold in folds["folds"] for part in parts for case in fold[part]}
    return frozenset(cases), all_known


def _precision(name: str, folder: Path) -> torch.dtype:
    """Return the precision that a stack says it was fitted in; raise StackError for what is none."""
    if name in PRECISIONS:
        return PRECISIONS[name]
    known = ", ".join(PRECISIONS)
    raise StackError(
        f"{folder}: its precision is {name!r}, expected {known}", "run 'stacker stack' again"
    )


def _wanted(stack: Stack, drawn: bool) -> dict[BaseModel, Wanted]:
    """Return the maps that the stack looks at, and those that are drawn, by base model."""
    arrays = {array_of(name, block) for name, block in stack.blocks.items()}
    arrays |= {"maps"} if drawn else set()
    every = name_maps(stack.facts["methods"], stack.facts["lower"])
    maps = {name: wanted for name, wanted in every.items() if name in arrays}
    return {base: {} if base.is_frozen else maps for base in needed(stack)}


def _by_fold(stack: Stack, outputs: Outputs) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the arrays of every fold's backbones, with those of frozen ones beside them."""
    frozen = {
        base.backbone: {"frozen": arrays["features"]}
        for base, arrays in outputs.items()
        if base.is_frozen
    }
    by_fold = {}
    for fold in stack.folds:
        tuned = {name: dict(outputs[BaseModel(name, fold)]) for name in stack.backbones}
        beside = {name: tuned.get(name, {}) | arrays for name, arrays in frozen.items()}
        by_fold[fold] = {**tuned, **beside}
    return by_fold


def _not_numbers(outputs: Outputs, rows: int) -> dict[int, str]:
    """Return the images for which some base model returns NaN or infinity, with the reason."""
    reasons: dict[int, str] = {}
    for base, arrays in outputs.items():
        for array, values in arrays.items():
            for row in np.flatnonzero(~np.isfinite(values.reshape(rows, -1)).all(axis=1)):
                reason = f"{base} returns NaN or infinite {array} for it"
                reasons.setdefault(int(row), reason)
    return reasons


def _novelty_of(run: Run, stack: Stack) -> Novelty | None:
    """Return what is usual of development images; None where it is not known of these base models."""
    path = novelty_file(run)
    if not path.exists():
        return None
    novelty = load_novelty(path)
    origins = {base: stack.facts["origins"].get(str(base)) for base in novelty.origins}
    if novelty.origins != origins or set(novelty.bases) != set(fine_tuned(stack)):
        log.warning("%s was made from other caches than the stack: novelty is not known", path)
        return None
    return novelty
