"""What the measured times and answers of stage two say: ratios and deviations, by arithmetic alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

OURS, BARE, BATCHED, LOOP = "stacker cache", "bare forward", "grad-cam, batched", "grad-cam, naive loop"
TOGETHER = "all together"


@dataclass(frozen=True)
class Cost:
    """What one way takes per image: the median of the repeats, and all of them."""

    way: str
    of: str
    images: int
    milliseconds: float
    repeats: tuple[float, ...]


@dataclass(frozen=True)
class Ratio:
    """Stage two's time as a share of a bare forward pass, and how many times longer grad-cam takes."""

    of: str
    bare: float
    batched: float | None
    loop: float | None


@dataclass(frozen=True)
class Gap:
    """How far bfloat16 is from float32: at most, and on average."""

    maximum: float
    mean: float


@dataclass(frozen=True)
class Deviation:
    """What bfloat16 does to a base model's answers.

    Logits as they are; maps and embeddings as shares of the largest absolute value in float32.
    """

    backbone: str
    logits: Gap
    embeddings: Gap
    maps: dict[str, Gap]
    changed_predictions: int


def cost(way: str, of: str, images: int, repeats: Sequence[float]) -> Cost:
    """Return what a way takes per image, in milliseconds, from all that was measured."""
    rounded = tuple(round(each, 3) for each in repeats)
    return Cost(way, of, images, round(statistics.median(repeats), 3), rounded)


def sums(costs: Sequence[Cost], names: Sequence[str]) -> list[Cost]:
    """Return what grad-cam takes for all base models, where it could be run on all of them."""
    found = []
    for way in (BATCHED, LOOP):
        each = [c for c in costs if c.way == way]
        if len(names) > 1 and len(each) == len(names):
            repeats = [sum(taken) for taken in zip(*(c.repeats for c in each), strict=True)]
            found.append(cost(way, TOGETHER, min(c.images for c in each), repeats))
    return found


def ratios(costs: Sequence[Cost]) -> list[Ratio]:
    """Compare stage two with the other ways, for each base model and, last, for all."""
    taken = {(c.way, c.of): c.milliseconds for c in costs}
    found = []
    for of in dict.fromkeys(c.of for c in costs):
        own = taken[OURS, of]
        longer = [
            round(taken[way, of] / own, 2) if (way, of) in taken else None for way in (BATCHED, LOOP)
        ]
        found.append(Ratio(of, round(own / taken[BARE, of], 3), *longer))
    return found


def verdict(ratio: Ratio) -> str:
    """Say what stage two costs beside the others."""
    said = [f"{ratio.of}: {ratio.bare:.2f}x the time of a bare forward pass"]
    if ratio.batched is not None:
        said.append(f"{BATCHED} takes {ratio.batched:.1f}x as long")
    if ratio.loop is not None:
        said.append(f"{LOOP} {ratio.loop:.1f}x as long")
    return "; ".join(said)


def deviation(
    name: str, rounded: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]
) -> Deviation:
    """Compare a base model's answers in bfloat16 with those in float32."""
    gaps = {key: _gap(rounded[key], exact[key], shares=key != "logits") for key in exact}
    changed = rounded["logits"].argmax(axis=1) != exact["logits"].argmax(axis=1)
    logits, embeddings = gaps.pop("logits"), gaps.pop("features")
    return Deviation(name, logits, embeddings, gaps, int(changed.sum()))


def _gap(rounded: np.ndarray, exact: np.ndarray, shares: bool) -> Gap:
    """Return the largest and the mean absolute difference, of the largest exact value if wanted."""
    scale = float(np.abs(exact).max()) if shares else 1.0
    apart = np.abs(rounded - exact) / (scale or 1.0)
    return Gap(float(apart.max()), float(apart.mean()))
