"""What fitting a meta-learner costs, beside XGBoost on an array.

The cached maps of three backbones are fitted as stage three does it, rows read when they are wanted, and
as people do it: read into an array, then XGBoost's classifier or its `train` with either of its
matrices. All learn from the same rows with equal rounds and parameters, none stops early; the seconds of
the array's ways are those of the fit alone, ours read the files meanwhile. Every way runs in a fresh
interpreter, whose peak of resident memory is its own. The caches are drawn, and written and read as a
run's are.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stacker.bench.timing import MINUTES, Budget, plan
from stacker.caches.format import Provenance, Rows, part_file
from stacker.caches.reader import open_cache
from stacker.caches.writer import write_index, write_part
from stacker.config.learners import MlpConfig, XgboostConfig
from stacker.config.stacking import BlockConfig, StackConfig
from stacker.errors import StackError
from stacker.files import require_space
from stacker.progress import track
from stacker.stacking.learners.contract import row_weights
from stacker.stacking.learners.matrix import chunks, whole
from stacker.stacking.tables import Caches, Source, Table

log = logging.getLogger(__name__)
OURS, MLP = "stacker xgboost", "stacker mlp"
CLASSIFIER, QUANTILE, PLAIN = PEERS = (
    "XGBClassifier",
    "xgboost.train, QuantileDMatrix",
    "xgboost.train, DMatrix",
)
ROWS = (20_000, 10_000, 5000, 2000, 1000)  # best first
WARM_UP = 500  # rows
UNSEEN = 2000  # rows behind those that are learnt from, to compare the answers on
STREAMED = 1e-9  # stack.memory_gb that makes every way of ours read from the files
BACKBONES, CLASSES, FOLD = ("densenet121", "resnet50", "vgg16"), ("benign", "malignant"), "bench"
PART_ROWS = 1024
TELLING = 10  # every so many columns one tells the label

Predict = Callable[[np.ndarray], np.ndarray]
Fit = Callable[[Any, np.ndarray, np.ndarray], Predict]  # of rows, labels and weights


@dataclass(frozen=True)
class FitCost:
    """What one way takes: to read the table beforehand, to fit, and at most of memory; its log loss."""

    way: str
    reading_seconds: float
    seconds: float
    rows_per_second: float
    peak_gib: float
    loss: float


def bench_stack(
    folder: Path,
    rows: int | None = None,
    columns: int = 2000,
    rounds: int = 50,
    epochs: int = 1,
    peers: bool = True,
    minutes: float = MINUTES,
) -> dict[str, Any]:
    """Time all ways on a table of so many rows and columns, or ours alone where an array does not fit.

    Without `rows`, as many as fit into the minutes. Return what was timed, the costs, our time as a
    multiple of the fastest fit of an array, and how far the probabilities of unseen rows lie apart. The
    files lie in a folder of their own in `folder` and are removed at the end, whatever happens.
    """
    budget = Budget.of("stack", minutes)
    ways = [OURS, *(PEERS if peers else ()), *((MLP,) if epochs else ())]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=folder) as name:
        rows = _plan(Path(name, "warm-up"), rows, columns, rounds, len(ways), budget)
        require_space(folder, int(2.1 * (rows + UNSEEN) * columns))
        write_caches(Path(name, "table"), rows + UNSEEN, columns)
        fits = {}
        for way in track(ways, "bench", len(ways)):
            fits[way] = in_child(way, Path(name, "table"), rows, rounds, epochs)
            log.info("%s: fitted in %.2f s", way, fits[way][0].seconds)
    return {
        "rows": rows,
        "columns": columns,
        "rounds": rounds,
        "epochs": epochs,
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "table_gib": round(4 * rows * columns / 2**30, 2),
        **_compare(fits, peers),
    }


def _compare(fits: Mapping[str, tuple[FitCost, np.ndarray]], peers: bool) -> dict[str, Any]:
    """Return costs, ratio, gaps between probabilities and the verdict."""
    costs = [cost for cost, _ in fits.values()]
    ratio = ratio_of(costs)
    pairs = [(way, QUANTILE) for way in (OURS, CLASSIFIER, PLAIN)] if peers else []
    return {
        "costs": costs,
        "ratio": ratio,
        "apart": [_apart(pair, *(fits[way][1] for way in pair)) for pair in pairs],
        "verdict": verdict(costs, ratio),
    }


def _plan(folder: Path, rows: int | None, columns: int, rounds: int, ways: int, budget: Budget) -> int:
    """Choose how many rows fit into the time, by a fit on a few in a process of its own."""
    few = min(WARM_UP, rows or WARM_UP)
    started = time.perf_counter()
    write_caches(folder, few + UNSEEN, columns)
    fit, _ = in_child(OURS, folder, few, rounds, 0)
    fixed = time.perf_counter() - started - fit.seconds

    def cost(number: int, _: int) -> float:
        return ways * (fixed + number * (fit.seconds / few))

    return plan(cost, budget, [rows] if rows else ROWS, [1], "row").images


def ratio_of(costs: Sequence[FitCost]) -> float | None:
    """Return our time as a multiple of the fastest fit of an array; None where none was fitted."""
    taken = {cost.way: cost.seconds for cost in costs}
    theirs = [taken[way] for way in PEERS if way in taken]
    return round(taken[OURS] / min(theirs), 3) if theirs else None


def verdict(costs: Sequence[FitCost], ratio: float | None) -> str:
    """Say what reading rows when they are wanted costs, and how much memory it takes."""
    ours = next(cost for cost in costs if cost.way == OURS)
    if ratio is None:
        return f"{ours.seconds:.1f} s, {ours.peak_gib:.2f} GiB at the peak; one fit, rough"
    least = min(cost.peak_gib for cost in costs if cost.way in PEERS)
    return (
        f"{ratio:.2f}x the time of the fastest fit of an array, {ours.peak_gib:.2f} GiB at the peak "
        f"instead of {least:.2f}; one fit of each, rough"
    )


def _apart(ways: tuple[str, str], one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Return how far the probabilities of two ways lie apart: at most, and on average."""
    gap = np.abs(one - other)
    return {"ways": ways, "maximum": round(float(gap.max()), 6), "mean": round(float(gap.mean()), 6)}


def in_child(way: str, folder: Path, rows: int, rounds: int, epochs: int) -> tuple[FitCost, np.ndarray]:
    """Fit one way in a fresh interpreter; raise StackError when it was killed."""
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(fit_way, way, folder, rows, rounds, epochs).result()
    except BrokenProcessPool as error:
        raise StackError(
            f"bench: {way} was killed, most likely as memory ran out",
            "ask for fewer --rows or --columns, or for --no-peers",
        ) from error


def fit_way(way: str, folder: Path, rows: int, rounds: int, epochs: int) -> tuple[FitCost, np.ndarray]:
    """Fit one way in this process; return what it took, and the probabilities (n, K) of unseen rows."""
    table = open_table(folder)
    labels, wanted = table.rows.label[:rows], table.rows.label[rows:]
    learnt, unseen = (table.take(span) for span in np.split(np.arange(len(table.rows)), [rows]))
    fit = _learner(way, len(table.columns), rounds, epochs)
    started = time.perf_counter()
    values = whole(learnt, np.inf, way) if way in PEERS else learnt
    read = time.perf_counter()
    predict = fit(values, labels, row_weights(labels, labels, "classes"))
    seconds = time.perf_counter() - read
    peak = _peak_gib()  # before predicting, which is the same for all
    shares = np.concatenate([predict(piece) for piece in chunks(unseen)])
    likely = shares[np.arange(len(wanted)), wanted]
    cost = FitCost(
        way,
        reading_seconds=round(read - started, 2),
        seconds=round(seconds, 4),
        rows_per_second=round(rows * (epochs if way == MLP else 1) / seconds, 1),
        peak_gib=round(peak, 3),
        loss=round(float(-np.log(np.maximum(likely, 1e-12)).mean()), 5),
    )
    return cost, shares


def _learner(way: str, columns: int, rounds: int, epochs: int) -> Fit:
    """Return what is to be timed, with all that it needs imported, and nothing that others need."""
    names = [f"maps/{number}" for number in range(columns)]
    model: Any
    if way == MLP:
        from stacker.stacking.learners.networks import MlpClassifier

        model = MlpClassifier(MlpConfig(epochs=epochs), names, memory_gb=STREAMED, device="cpu")
    else:
        from stacker.stacking.learners.boosting import BoostedTrees

        trees = XgboostConfig(n_estimators=rounds)
        model = BoostedTrees(trees, names, memory_gb=STREAMED, device="cpu")
    return partial(_fit_peer, way, rounds) if way in PEERS else partial(_fit_ours, model)


def _fit_ours(model: Any, values: Any, labels: np.ndarray, weights: np.ndarray) -> Predict:
    """Fit on rows of one group, which leaves no inner split."""
    predict: Predict = model.fit(values, labels, np.zeros(len(labels)), weights).predict_proba
    return predict


def _fit_peer(way: str, rounds: int, values: Any, labels: np.ndarray, weights: np.ndarray) -> Predict:
    """Fit XGBoost on an array."""
    import xgboost

    parameters = XgboostConfig().model_dump(exclude={"n_estimators", "patience", "validation"})
    parameters["tree_method"] = "hist"
    if way == CLASSIFIER:
        model = xgboost.XGBClassifier(n_estimators=rounds, **parameters)
        predict: Predict = model.fit(values, labels, sample_weight=weights).predict_proba
        return predict
    quantile = partial(xgboost.QuantileDMatrix, max_bin=parameters["max_bin"])
    data = (quantile if way == QUANTILE else xgboost.DMatrix)(values, labels, weight=weights)
    goal = {"objective": "binary:logistic", "seed": 0}
    booster = xgboost.train(parameters | goal, data, num_boost_round=rounds)
    return lambda rows: np.stack([1 - (second := booster.inplace_predict(rows)), second], axis=1)


def _peak_gib() -> float:
    """Return the most memory that this process ever had: the kernel's mark, which no parent has set."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def write_caches(folder: Path, rows: int, columns: int) -> None:
    """Write caches whose maps are so many columns, an even number for each backbone, mostly noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=rows)
    images = np.array([f"image-{number:08d}".encode() for number in range(rows)])
    every_row = Rows(labels, images, images, images, np.full(rows, FOLD.encode()))
    cells = columns // 2  # of the maps of both classes
    for number, name in enumerate(BACKBONES):
        width = cells // len(BACKBONES) + (number < cells % len(BACKBONES))
        strength = np.zeros(2 * width, dtype=np.float32)
        strength[::TELLING] = 2 / np.sqrt(columns)
        origin = Provenance(
            *(name, FOLD, CLASSES, "case", "", "", "", (), "", ("gradcam",), 0, "", "float32")
        )
        parts = []
        for start in range(0, rows, PART_ROWS):
            piece = every_row.take(slice(start, start + PART_ROWS))
            side = piece.label[:, None] - np.float32(0.5)
            noise = rng.standard_normal((len(piece), 2 * width), dtype=np.float32)
            arrays = {
                "maps": (noise + side * strength).reshape(-1, 2, 1, width),
                "logits": np.concatenate([-side, side], axis=1),
                "features": side,
            }
            parts.append(part_file(folder / name, start // PART_ROWS))
            write_part(parts[-1], arrays, piece, origin)
        write_index(folder / name, parts)


def open_table(folder: Path) -> Table:
    """Return the maps of the caches that `write_caches` wrote, as stage three reads a run's."""
    caches = {name: open_cache(folder / name) for name in BACKBONES}
    both = StackConfig(blocks={"both": BlockConfig(of="maps", classes="all")})  # all that is cached
    source = Source(FOLD, caches, {})
    return Caches((source,), CLASSES, {}, {}, "float32").tables(["both"], both).development
