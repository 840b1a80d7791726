"""Simulated base models, to know what stage three should say: `python -m tests.worlds 100`.

A world has cases of very different size, each with an effect of its own, and base models of several
folds that differ in offset and scale. What is true of it is known: nothing (the null), or a signal. The
tables of `docs/statistics.md` are what this prints.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from joblib import Parallel, delayed

from stacker.caches.format import Rows
from stacker.config.stacking import StackConfig
from stacker.data.cuts import cut
from stacker.scores.bootstrap import draw_cases
from stacker.scores.influence import influence, on_log_odds
from stacker.scores.metrics import area_within, weighted_scores
from stacker.scores.predictions import Predictions
from stacker.stacking.finish import Says
from stacker.stacking.fitting import Design, cut_parts, fit
from stacker.stacking.tables import Source, Table, Tables

CLASSES = ("benign", "malignant")
BACKBONES = 3
FEW = ((72, 57, 23, 21, 16), (9, 4, 6, 6, 16, 17, 19, 12, 20, 8, 11, 29))  # images of 17 real cases
TEST_CASES, TEST_IMAGES = 200, 8
METAS = ("logistic", "svm", "random_forest", "xgboost", "mlp")


@dataclass(frozen=True)
class Kind:
    """What a world is like: images by case and class, signal, and how the models of folds differ."""

    sizes: tuple[tuple[int, ...], tuple[int, ...]] = FEW
    signal: float = 0.0
    offset: float = 1.0
    scale: float = 0.3
    folds: int = 5
    noise: float = 1.0


def many(cases: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes of so many cases, two in five of them benign."""
    drawn = np.random.default_rng(cases).lognormal(2.6, 0.6, cases).clip(3, 60).astype(int).tolist()
    benign = max(2, round(0.4 * cases))
    return tuple(drawn[:benign]), tuple(drawn[benign:])


KINDS = {
    "null, folds alike": Kind(offset=0, scale=0),
    "null, folds differ": Kind(),
    "signal": Kind(signal=1.5),
    "signal, 52 cases": Kind(sizes=many(52), signal=1.5),
}


def make(kind: Kind, seed: int) -> Tables:
    """Return the tables of a world: a log-odds column for each of three backbones."""
    rng = np.random.default_rng(seed)
    label_of = np.repeat([0, 1], [len(each) for each in kind.sizes])
    case = np.repeat(np.arange(len(label_of)), np.concatenate(kind.sizes))
    parts = np.zeros(len(case)) if kind.folds == 1 else cut(label_of[case], case, kind.folds, seed)
    assert parts is not None
    fold = parts.astype(int)
    order = np.argsort(fold, kind="stable")
    case, fold = case[order], fold[order]
    offset = kind.offset * rng.normal(size=(kind.folds, BACKBONES))
    scale = np.exp(kind.scale * rng.normal(size=(kind.folds, BACKBONES)))
    sources = tuple(Source(f"fold{number}", {}, {}) for number in range(kind.folds))
    columns = tuple(f"b{number}/logits/malignant-benign" for number in range(BACKBONES))

    def table(labels: np.ndarray, case: np.ndarray, says: np.ndarray, source: np.ndarray) -> Table:
        part = "t" if len(np.unique(case)) == TEST_CASES else "d"
        images = np.array([f"{part}{i}".encode() for i in range(len(case))])
        cases = np.array([f"{part}{each:04d}".encode() for each in case])
        rows = Rows(labels, images, cases, cases, np.full(len(case), part.encode()))
        values = (scale[source] * says + offset[source]).astype(np.float32)
        return Table(sources, source, np.arange(len(case)), rows, {}, CLASSES, columns, values)

    test_label, test_case = np.arange(TEST_CASES) % 2, np.repeat(np.arange(TEST_CASES), TEST_IMAGES)
    development = table(label_of[case], case, _says(label_of, case, kind, rng), fold)
    said = _says(test_label, test_case, kind, rng)
    tests = {
        source.fold: table(test_label[test_case], test_case, said, np.full(len(test_case), number))
        for number, source in enumerate(sources)
    }
    return Tables(development, tests, case, mixed=False)


def _says(label_of: np.ndarray, case: np.ndarray, kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """Return what the backbones see (N, B): the class, the case, and noise that they share or do not."""
    shared = kind.signal * (label_of - 0.5) + rng.normal(size=len(label_of))
    own = 0.5 * rng.normal(size=(len(label_of), BACKBONES))
    of_image = 0.7 * rng.normal(size=(len(case), 1)) + 0.7 * rng.normal(size=(len(case), BACKBONES))
    found: np.ndarray = shared[case, None] + own[case] + kind.noise * of_image
    return found


def mean_of(tables: Tables, config: StackConfig) -> Predictions:
    """Return the mean of the backbones' probabilities, in the parts that a stack is estimated in."""
    table = tables.development
    assert table.values is not None
    share = (1 / (1 + np.exp(-table.values.astype(np.float64)))).mean(axis=1)
    parts = cut_parts(tables, config, 0)
    assert parts is not None
    shares = np.stack([1 - share, share], axis=1)
    raw = np.repeat(shares[None], len(parts), axis=0)
    return Predictions(table.rows.label, table.rows.case_id, shares, raw=raw, parts=parts)


def said_of(meta: str, kind: Kind, seed: int, config: StackConfig) -> tuple[Says, Predictions]:
    """Return what a stack says of a world, and the mean of the probabilities."""
    tables = make(kind, seed)
    return fit(Design.of(meta, ["logits"], config, seed, "cpu"), tables).says, mean_of(tables, config)


def areas(meta: str, kind: Kind, seed: int, config: StackConfig) -> list[float]:
    """Return AUCs, pooled and within parts: a stack out of fold, then the mean; the stack on test."""
    says, mean = said_of(meta, kind, seed, config)
    assert says.development is not None
    found = [each for one in (says.development, mean) for each in (pooled(one), area_within(one))]
    return [*found, area_within(says.test)]


def pooled(found: Predictions) -> float:
    """Return the AUC over all pairs."""
    rows = np.arange(len(found.labels))
    scores = weighted_scores(found, rows, np.ones((1, len(rows))), {"auc_pooled"})
    return float(scores["auc_pooled"][0])


def held(kind: Kind, seed: int, config: StackConfig) -> list[bool | float]:
    """Say whether the interval of a stack's AUC out of fold holds what the stack is worth on new cases.

    Then the same of percentiles, its width, and the two of the mean of the probabilities.
    """
    says, mean = said_of("logistic", kind, seed, config)
    assert says.development is not None
    found: list[bool | float] = []
    for one, worth in ((says.development, area_within(says.test)), (mean, expected(kind))):
        names, unit = np.unique(one.cases, return_inverse=True)
        known = influence(one, unit, len(names))
        assert known is not None
        low, high = on_log_odds(known.area, known.error, known.freedom)
        values = weighted_scores(one, unit, draw_cases(unit, 400, seed), {"auc"})["auc"]
        ends = np.nanquantile(values, [0.025, 0.975])
        found += [low <= worth <= high, bool(ends[0] <= worth <= ends[1]), high - low]
    return found


_worth: dict[Kind, float] = {}


def expected(kind: Kind) -> float:
    """Return the AUC of the mean of the probabilities in a large world of one fold."""
    if kind not in _worth:
        alike = replace(kind, sizes=((8,) * 3000, (8,) * 3000), folds=1, offset=0, scale=0)
        config = StackConfig.model_validate({"seeds": 1, "parts": 2})
        found = mean_of(make(alike, 1), config)
        _worth[kind] = area_within(replace(found, raw=None, parts=None))
    return _worth[kind]


def repeat(function: Callable[[int], Sequence[float]], worlds: int) -> np.ndarray:
    """Return what a function says of so many worlds, (worlds, ...), two processes side by side."""
    found = Parallel(n_jobs=2)(delayed(function)(seed) for seed in range(worlds))
    return np.array(found, dtype=float)


def table_of_areas(worlds: int, metas: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the first table: nothing and signal, with centring and without."""
    yield "| | " + " | ".join(KINDS) + " |"
    for meta in metas:
        for centre in (True, False) if meta == "logistic" else (True,):
            config = StackConfig.model_validate({"seeds": 1, "calibration": "none", "centre": centre})
            means = [
                repeat(lambda s, k=kind, m=meta, c=config: areas(m, k, s, c), worlds).mean(axis=0)  # type: ignore[misc]
                for kind in KINDS.values()
            ]
            name = meta + ("" if centre else ", not centred")
            yield f"| {name} | " + " | ".join(f"{m[0]:.3f} / {m[1]:.3f}" for m in means) + " |"
    yield "| mean of probabilities | " + " | ".join(f"{m[2]:.3f} / {m[3]:.3f}" for m in means) + " |"


def table_of_coverage(worlds: int) -> Iterator[str]:
    """Yield the lines of the second table: how often 95 % intervals hold the truth."""
    yield "| cases | cut | stack: shipped, percentiles, width | mean: shipped, percentiles, width |"
    for cases in (12, 23, 44, 70):
        for folds, named in ((min(5, round(0.4 * cases)), "folds"), (1, "three times by case")):
            kind = Kind(sizes=many(cases), signal=1.5, folds=folds)
            config = StackConfig.model_validate({"seeds": 3, "calibration": "none"})
            m = repeat(lambda s, k=kind, c=config: held(k, s, c), worlds).mean(axis=0)  # type: ignore[misc]
            shown = [f"{m[i]:.2f}, {m[i + 1]:.2f}, {m[i + 2]:.2f}" for i in (0, 3)]
            yield f"| {cases} | {named} | {shown[0]} | {shown[1]} |"


if __name__ == "__main__":
    for line in table_of_areas(int(sys.argv[1]), sys.argv[2:] or METAS):
        print(line, flush=True)  # noqa: T201
    for line in table_of_coverage(2 * int(sys.argv[1])):
        print(line, flush=True)  # noqa: T201
