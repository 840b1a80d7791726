"""What an image costs in every way: medians, ratios with their range, and what bfloat16 changes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stacker.bench.timing import Ratio, digits, is_rough, ratio
from stacker.errors import plural

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
    rough: bool


@dataclass(frozen=True)
class Ratios:
    """Stage two's time as a multiple of a bare forward pass, and grad-cam's of stage two's."""

    of: str
    bare: Ratio
    batched: Ratio | None
    loop: Ratio | None


def cost_of(way: str, of: str, images: int, repeats: Sequence[float]) -> Cost:
    """Return what a way takes per image, in milliseconds, from all that was measured."""
    rounded = tuple(round(value, 3) for value in repeats)
    rough = is_rough(len(repeats), images * sum(repeats) / 1000)
    return Cost(way, of, images, round(statistics.median(repeats), 3), rounded, rough)


def sums(costs: Sequence[Cost], names: Sequence[str]) -> list[Cost]:
    """Return what grad-cam takes for all base models, where it could be run on all of them."""
    total = []
    for way in (BATCHED, LOOP):
        single = [cost for cost in costs if cost.way == way]
        if len(names) > 1 and len(single) == len(names):
            repeats = [sum(taken) for taken in zip(*(cost.repeats for cost in single), strict=False)]
            total.append(cost_of(way, TOGETHER, min(cost.images for cost in single), repeats))
    return total


def ratios_of(costs: Sequence[Cost], of: str) -> Ratios:
    """Compare stage two with the other ways, for one base model or for all together."""
    taken = {cost.way: cost for cost in costs if cost.of == of}

    def compared(above: str, below: str) -> Ratio:
        one, other = taken[above], taken[below]
        return ratio(one.repeats, other.repeats, one.rough or other.rough)

    longer = (compared(way, OURS) if way in taken else None for way in (BATCHED, LOOP))
    return Ratios(of, compared(OURS, BARE), *longer)


def verdict(ratios: Ratios) -> str:
    """Say what stage two costs beside the others."""
    said = [f"{ratios.of}: {ratios.bare.times('the time of a bare forward pass')}"]
    if ratios.batched is not None:
        said.append(f"{BATCHED}, takes {ratios.batched.times('as long as stage two')}")
    if ratios.loop is not None:
        said.append(f"{LOOP}, takes {ratios.loop.times('as long')}")
    return "; ".join(said)


def describe_costs(costs: Sequence[Cost], of: str) -> str:
    """Return one line with what an image costs in every way that was measured."""
    shown = (f"{cost.way} {digits(cost.milliseconds)} ms" for cost in costs if cost.of == of)
    return f"{of}, per image: {'; '.join(shown)}"


def describe_work(images: int, repeats: int) -> str:
    """Say how much a comparison rests on."""
    return f"medians of {plural(repeats, 'repeat')} on {plural(images, 'image')}"


def deviation(
    name: str, rounded: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return how far a base model's answers in bfloat16 are from those in float32.

    Logits as they are; maps and embeddings as shares of the largest absolute value in float32.
    """
    gaps = {}
    for key, values in exact.items():
        scale = 1.0 if key == "logits" else float(np.abs(values).max()) or 1.0
        apart = np.abs(rounded[key] - values) / scale
        gaps[key] = {"maximum": float(apart.max()), "mean": float(apart.mean())}
    changed = rounded["logits"].argmax(axis=1) != exact["logits"].argmax(axis=1)
    return {
        "backbone": name,
        "images": len(changed),
        "logits": gaps.pop("logits"),
        "embeddings": gaps.pop("features"),
        "maps": gaps,
        "changed_predictions": int(changed.sum()),
    }
