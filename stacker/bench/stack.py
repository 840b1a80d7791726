"""Measured on this machine, in one run: what fitting a meta-learner costs, beside XGBoost on an array.

The cached maps of three backbones are fitted as stage three does it, rows read when they are wanted, and
as people do it: read into an array, then XGBoost's classifier or its `train` with either of its
matrices. All learn from the same rows with equal rounds and parameters, none stops early; the seconds of
the array's ways are those of the fit alone, ours read the files meanwhile. Every way runs in a fresh
interpreter, whose peak of resident memory is its own.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from stacker.bench.table import open_table, write_caches
from stacker.config.learners import MlpConfig, XgboostConfig
from stacker.errors import StackError
from stacker.files import require_space
from stacker.progress import track
from stacker.stacking.learners.contract import row_weights
from stacker.stacking.learners.matrix import Matrix, chunks, whole

OURS, MLP = "stacker xgboost", "stacker mlp"
CLASSIFIER, PLAIN, QUANTILE = "XGBClassifier", "xgboost.train, DMatrix", "xgboost.train, QuantileDMatrix"
UNSEEN = 2000  # rows behind those that are learnt from, to compare the answers on
STREAMED = 1e-9  # stack.memory_gb that makes every way of ours read from the files


@dataclass(frozen=True)
class FitCost:
    """What one way takes: to read the table beforehand, to fit, and at most of memory; its log loss."""

    way: str
    reading_seconds: float
    seconds: float
    rows_per_second: float
    peak_gib: float
    loss: float


@dataclass(frozen=True)
class Apart:
    """How far the probabilities of two ways lie apart on unseen rows: at most, and on average."""

    ways: tuple[str, str]
    maximum: float
    mean: float


@dataclass(frozen=True)
class StackBench:
    """The cost of all ways, and what they mean; `ratio` is ours beside the fastest fit of an array."""

    rows: int
    columns: int
    rounds: int
    epochs: int
    threads: int
    table_gib: float
    costs: tuple[FitCost, ...]
    ratio: float | None
    apart: tuple[Apart, ...]
    verdict: str


@dataclass(frozen=True)
class Task:
    """What a child process is to do."""

    way: str
    folder: Path
    rows: int
    rounds: int
    epochs: int


@dataclass(frozen=True)
class Answer:
    """What a child process found, and the probabilities (n, K) of the unseen rows."""

    reading_seconds: float
    seconds: float
    peak_gib: float
    shares: np.ndarray
    labels: np.ndarray


def bench_stack(
    folder: Path, rows: int, columns: int, rounds: int = 50, epochs: int = 1, peers: bool = True
) -> StackBench:
    """Time all ways on a table of so many rows and columns, or ours alone where an array does not fit.

    The files lie in a folder of their own in `folder` and are removed at the end, whatever happens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, int(2.1 * (rows + UNSEEN) * columns))
    ways = [OURS, *((CLASSIFIER, QUANTILE, PLAIN) if peers else ()), *((MLP,) if epochs else ())]
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=folder) as name:
        write_caches(Path(name), rows + UNSEEN, columns)
        tasks = [Task(way, Path(name), rows, rounds, epochs) for way in ways]
        answers = {task.way: _in_child(task) for task in track(tasks, "bench", len(tasks))}
    costs = [_cost(way, found, rows * (epochs if way == MLP else 1)) for way, found in answers.items()]
    ratio = ratio_of(costs)
    pairs = [(OURS, QUANTILE), (CLASSIFIER, QUANTILE), (PLAIN, QUANTILE)] if peers else []
    return StackBench(
        rows=rows,
        columns=columns,
        rounds=rounds,
        epochs=epochs,
        threads=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        table_gib=round(4 * rows * columns / 2**30, 2),
        costs=tuple(costs),
        ratio=ratio,
        apart=tuple(_apart(answers, pair) for pair in pairs),
        verdict=verdict(costs, ratio),
    )


def ratio_of(costs: Sequence[FitCost]) -> float | None:
    """Return our time as a share of the fastest fit of an array; None where none was fitted."""
    taken = {cost.way: cost.seconds for cost in costs}
    theirs = [taken[way] for way in (CLASSIFIER, QUANTILE, PLAIN) if way in taken]
    return round(taken[OURS] / min(theirs), 3) if theirs else None


def verdict(costs: Sequence[FitCost], ratio: float | None) -> str:
    """Say what reading rows when they are wanted costs, and how much memory it takes."""
    ours = next(cost for cost in costs if cost.way == OURS)
    if ratio is None:
        return f"{ours.seconds:.1f} s and {ours.peak_gib:.2f} GiB at most"
    least = min(cost.peak_gib for cost in costs if cost.way in (CLASSIFIER, QUANTILE, PLAIN))
    return (
        f"{ratio:.2f}x the time of the fastest fit of an array, {ours.peak_gib:.2f} GiB at most "
        f"instead of {least:.2f}"
    )


def _cost(way: str, answer: Answer, rows: int) -> FitCost:
    likely = answer.shares[np.arange(len(answer.labels)), answer.labels]
    return FitCost(
        way,
        round(answer.reading_seconds, 2),
        round(answer.seconds, 4),
        round(rows / answer.seconds, 1),
        round(answer.peak_gib, 3),
        round(float(-np.log(np.maximum(likely, 1e-12)).mean()), 5),
    )


def _apart(answers: dict[str, Answer], ways: tuple[str, str]) -> Apart:
    gap = np.abs(answers[ways[0]].shares - answers[ways[1]].shares)
    return Apart(ways, round(float(gap.max()), 6), round(float(gap.mean()), 6))


def _in_child(task: Task) -> Answer:
    """Run a task in a fresh interpreter; raise StackError when it was killed."""
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(run_task, task).result()
    except BrokenProcessPool as error:
        raise StackError(
            f"bench: {task.way} was killed, most likely for want of memory; take fewer rows or columns, "
            "or leave the peers out"
        ) from error


def run_task(task: Task) -> Answer:
    """Fit one way in this process, and say what it took."""
    table = open_table(task.folder)
    labels = table.rows.label
    learnt: Matrix = table.take(np.arange(task.rows))
    unseen = table.take(np.arange(task.rows, len(labels)))
    labels, wanted = labels[: task.rows], labels[task.rows :]
    fit = _FITS[task.way]
    import_module(
        "stacker.stacking.learners.networks" if task.way == MLP else "stacker.stacking.learners.boosting"
    )  # not what is timed
    started = time.perf_counter()
    rows = learnt if task.way in (OURS, MLP) else whole(learnt, np.inf, task.way)
    read = time.perf_counter()
    predict = fit(rows, labels, task)
    done = time.perf_counter()
    peak = _peak_gib()  # before predicting, which is the same for all
    shares = np.concatenate([predict(piece) for piece in chunks(unseen)])
    return Answer(read - started, done - read, peak, shares, wanted)


def _peak_gib() -> float:
    """Return the most memory that this process ever had: the kernel's mark, which no parent has set."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def _names(columns: int) -> list[str]:
    return [f"maps/{number}" for number in range(columns)]


def _ours(rows: Any, labels: np.ndarray, task: Task) -> Callable[[np.ndarray], np.ndarray]:
    from stacker.stacking.learners.boosting import BoostedTrees

    how = XgboostConfig(n_estimators=task.rounds)
    model = BoostedTrees(how, _names(rows.shape[1]), memory_gb=STREAMED, device="cpu")
    return _fitted(model, rows, labels)


def _mlp(rows: Any, labels: np.ndarray, task: Task) -> Callable[[np.ndarray], np.ndarray]:
    from stacker.stacking.learners.networks import MlpClassifier

    how = MlpConfig(epochs=task.epochs)
    model = MlpClassifier(how, _names(rows.shape[1]), memory_gb=STREAMED, device="cpu")
    return _fitted(model, rows, labels)


def _fitted(model: Any, rows: Any, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fit on rows of one group, which leaves no inner split, the classes weighing the same."""
    weights = row_weights(labels, labels, "classes")
    found: Callable[[np.ndarray], np.ndarray] = model.fit(
        rows, labels, np.zeros(len(labels)), weights
    ).predict_proba
    return found


def _parameters() -> dict[str, Any]:
    return XgboostConfig().model_dump(exclude={"n_estimators", "patience", "validation"})


def _classifier(rows: Any, labels: np.ndarray, task: Task) -> Callable[[np.ndarray], np.ndarray]:
    import xgboost

    weights = row_weights(labels, labels, "classes")
    model = xgboost.XGBClassifier(n_estimators=task.rounds, tree_method="hist", **_parameters())
    found: Callable[[np.ndarray], np.ndarray] = model.fit(
        rows, labels, sample_weight=weights
    ).predict_proba
    return found


def _train(rows: Any, labels: np.ndarray, task: Task) -> Callable[[np.ndarray], np.ndarray]:
    import xgboost

    weights = row_weights(labels, labels, "classes")
    if task.way == QUANTILE:
        data: Any = xgboost.QuantileDMatrix(
            rows, labels, weight=weights, max_bin=_parameters()["max_bin"]
        )
    else:
        data = xgboost.DMatrix(rows, labels, weight=weights)
    goal = {"objective": "binary:logistic", "tree_method": "hist", "seed": 0}
    booster = xgboost.train({**_parameters(), **goal}, data, num_boost_round=task.rounds)

    def predict(some: np.ndarray) -> np.ndarray:
        second = booster.inplace_predict(some)
        return np.stack([1 - second, second], axis=1)

    return predict


_FITS = {OURS: _ours, MLP: _mlp, CLASSIFIER: _classifier, QUANTILE: _train, PLAIN: _train}
