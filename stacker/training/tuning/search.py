"""Search a recipe: the settings in `tune.space`, by Optuna's TPE, in a run that can be interrupted.

What the score is: the development cases of the run (not its test part and, under `holdout`, not its
stack part) are cut into `tune.folds` inner folds. A trial trains every backbone once per inner fold,
chooses the epoch on a slice of the other folds, and answers for the fold that was held out; the score is
that of all these answers, an AUC by pairs within a fold, the mean over the backbones. No model is judged
on what trained it or chose its epoch. The settings, however, have seen the labels of all development
cases, and the best score is the highest of many: it is too good by that. The test cases are never looked
at, so what `stacker run` says of them with `best.yaml` is fair.

    <run>/tune/study.db          Optuna's own record, a study in it for every search space
               best.yaml         the whole config with the best values, a run of its own
               trials.csv history.png importance.png
"""

from __future__ import annotations

import csv
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from stacker.config.root import Config
from stacker.errors import BackboneError, ConfigError, RunError, install_extra, require_one_of
from stacker.figures.canvas import save_figure
from stacker.figures.training import draw_history, draw_importance, trial_caution
from stacker.files import digest, held, publish, sweep
from stacker.progress import bar
from stacker.training.begin import begin
from stacker.training.tuning.score import DivergedError, Search, evaluate, prepare
from stacker.training.tuning.space import Space, short, shorten

if TYPE_CHECKING:
    from optuna import Study as Ledger
    from optuna import Trial
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)
STARTUP = 5  # complete trials before any is given up
KEPT = 75.0  # percent: a fold alone is noisy, and the median of what is left would rise and rise
ENDED = ("complete", "pruned", "failed")  # trials that count
COLUMNS = ("number", "state", "score", "score_so_far", "seconds")
REASON, AGAIN = "reason", "again"  # notes to a trial: why it failed; which interrupted one it repeats


@dataclass(frozen=True)
class Tuned:
    """What a search has found, and where it lies."""

    score: float
    number: int
    parameters: Mapping[str, Any]
    what: str
    complete: int
    pruned: int
    failed: int
    config: Path
    trials: Path
    figures: tuple[Path, ...]


def tune(config: Config, trials: int | None, backbones: Sequence[str]) -> Tuned:
    """Search until `trials` trials (default: `tune.trials`) are done, in all calls together.

    What was interrupted goes on, what is finished is reported. Raise ConfigError, before anything is
    trained, for a space that holds what cannot be.
    """
    optuna = _import_optuna()
    if config.tune is None:
        raise ConfigError(
            "the config has no section 'tune', which says what to search; add one, e.g. "
            "--set 'tune.space={train.lr: {low: 1.0e-5, high: 1.0e-3, log: true}}'"
        )
    require_one_of("backbone of this config", backbones, config.backbones)
    names = tuple(name for name in config.backbones if name in (backbones or [name]))
    space = Space(config, config.tune.space)
    space.check(names)
    search = prepare(begin(config), config.tune, names)
    folder = config.run_path / "tune"
    with held(folder / ".lock") as locked:
        if not locked:
            raise RunError(f"{folder}: another process is searching here; wait for it, or stop it")
        sweep(folder)
        with _open(optuna, search, folder / "study.db") as ledger:
            _take_up(ledger, space)
            _go_on(ledger, search, space, trials or config.tune.trials)
            return _report(ledger, search, space)


def _import_optuna() -> Any:
    """Return optuna, told to be silent; raise ConfigError when it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "stacker tune needs optuna, which is not installed", install_extra("tune")
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


@contextmanager
def _open(optuna: Any, search: Search, path: Path) -> Iterator[Ledger]:
    """Open Optuna's record of this search; whatever happens in it is written at once."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{path.absolute()}")
    pruner = optuna.pruners.PercentilePruner(KEPT, n_startup_trials=STARTUP)
    try:
        yield optuna.create_study(
            storage=storage,
            study_name=search.name,
            direction="maximize",
            load_if_exists=True,
            pruner=pruner if search.tune.prune else optuna.pruners.NopPruner(),
        )
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _take_up(ledger: Ledger, space: Space) -> None:
    """Queue again what a killed process was at; a new search begins with the config as it stands."""
    from optuna.trial import TrialState

    trials, now = ledger.get_trials(), space.values_now()
    if not trials and now is not None:
        ledger.enqueue_trial(now)
    queued = {trial.user_attrs.get(AGAIN) for trial in trials}
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            wanted = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            if wanted and trial.number not in queued:
                ledger.enqueue_trial(wanted, user_attrs={AGAIN: trial.number})
            ledger.tell(trial.number, state=TrialState.FAIL)
            log.info("tune %d: was interrupted and will be repeated", trial.number)


def _go_on(ledger: Ledger, search: Search, space: Space, wanted: int) -> None:
    """Try until so many trials are done.

    Every trial is drawn from a seed of its own: a sampler that started with the process would repeat its
    first draws whenever a search goes on.
    """
    from optuna.samplers import TPESampler

    before, folds = len(_done(ledger)), len(search.inner.folds)
    names = ", ".join(search.backbones)
    log.info("tune %s: %s; %d of %d trials are done", names, search.what, before, wanted)
    with bar("tune", wanted * folds) as advance:
        advance(before * folds)
        while (done := len(_done(ledger))) < wanted:
            advance(0, f"tune {done + 1} of {wanted}")
            seed = int(digest([search.run.config.seed, done]), 16) % 2**31
            ledger.sampler = TPESampler(seed=seed)
            trial = ledger.ask(space.distributions())
            _try(trial, search, space, advance)
            _say(ledger.get_trials()[trial.number], space)
            _write(ledger, search, space)


def _try(trial: Trial, search: Search, space: Space, advance: Callable[[int], None]) -> None:
    """Score the trial's values, fold by fold, and tell; Ctrl-C leaves it as it is, to be tried again."""
    from optuna.trial import TrialState

    ledger, folds, state = trial.study, len(search.inner.folds), TrialState.COMPLETE
    step, score = 0, float("nan")
    try:
        config = space.put(space.values(trial.params))
        for step, score in enumerate(evaluate(search, config), 1):
            advance(1)
            trial.report(score, step)
            if step < folds and trial.should_prune():
                state = TrialState.PRUNED
                break
    except (DivergedError, ValidationError) as error:
        trial.set_user_attr(REASON, str(error))
        ledger.tell(trial, state=TrialState.FAIL)
    else:
        ledger.tell(trial, score if state == TrialState.COMPLETE else None, state)
    advance(folds - step)


def _state(trial: FrozenTrial) -> str:
    """Say how a trial ended; one that was interrupted has no reason to have failed."""
    name = trial.state.name.lower()
    return {"fail": "failed" if REASON in trial.user_attrs else "interrupted"}.get(name, name)


def _done(ledger: Ledger) -> list[FrozenTrial]:
    """Return the trials that count: complete, pruned, or failed for a reason of their own."""
    return [trial for trial in ledger.get_trials(deepcopy=False) if _state(trial) in ENDED]


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration else 0.0


def _say(trial: FrozenTrial, space: Space) -> None:
    values, seconds = shorten(space.values(trial.params)), _seconds(trial)
    if _state(trial) == "failed":
        reason = trial.user_attrs[REASON]
        log.warning("tune %d: failed, %s, %.1f s: %s", trial.number, values, seconds, reason)
        return
    ended = f"pruned after fold {trial.last_step} at " if _state(trial) == "pruned" else ""
    log.info("tune %d: %s%.4f, %s, %.1f s", trial.number, ended, trial.value, values, seconds)


def _write(ledger: Ledger, search: Search, space: Space) -> None:
    """Publish the table of trials and the best config so far."""
    folder, trials = search.run.path / "tune", ledger.get_trials(deepcopy=False)
    rows = [_row(trial, space) for trial in trials if _state(trial) != "waiting"]
    with publish(folder / "trials.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *space.ranges, REASON])
        writer.writeheader()
        writer.writerows(rows)
    if any(row["state"] == "complete" for row in rows):
        config = space.put(space.values(ledger.best_params))
        tuned = config.model_copy(update={"run": f"{config.run}-tuned", "tune": None})
        with publish(folder / "best.yaml") as temporary:
            temporary.write_text(tuned.to_yaml(), encoding="utf-8")


def _row(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    """Return a trial as a row; the score of some folds alone is not put beside those of all."""
    state, score = _state(trial), "" if trial.value is None else round(trial.value, 6)
    return {
        "number": trial.number,
        "state": state,
        "score_so_far" if state == "pruned" else "score": score,
        "seconds": round(_seconds(trial), 1),
        **space.values(trial.params),
        REASON: trial.user_attrs.get(REASON, ""),
    }


def _report(ledger: Ledger, search: Search, space: Space) -> Tuned:
    """Publish and draw what was found; raise BackboneError when no trial came to its end."""
    _write(ledger, search, space)
    folder, done = search.run.path / "tune", _done(ledger)
    by_state = {state: [t for t in done if _state(t) == state] for state in ENDED}
    counts = {state: len(trials) for state, trials in by_state.items()}
    if not counts["complete"]:
        raise BackboneError(
            f"none of {len(done)} trials was completed, so there is no best one; the last failed "
            f"with: {done[-1].user_attrs[REASON]}; narrow tune.space, and see {folder}/trials.csv"
        )
    complete = {t.number: t.value for t in by_state["complete"] if t.value is not None}
    pruned, failed = ([t.number for t in by_state[state]] for state in ("pruned", "failed"))
    history = folder / "history.png"
    save_figure(draw_history(complete, pruned, failed, search.what), history)
    importance = _draw_importance(ledger, folder / "importance.png", search.run.config.seed)
    best = ledger.best_trial
    return Tuned(
        score=complete[best.number],
        number=best.number,
        parameters=space.values(best.params),
        what=search.what,
        **counts,
        config=folder / "best.yaml",
        trials=folder / "trials.csv",
        figures=(history, *importance),
    )


def _draw_importance(ledger: Ledger, path: Path, seed: int) -> tuple[Path, ...]:
    """Draw which settings the scores depend on; leave it out, and say so, where they hardly differ."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    path.unlink(missing_ok=True)
    scores = [trial.value for trial in _done(ledger) if _state(trial) == "complete"]
    shares: dict[str, float] = {}
    if len(set(scores)) > 1:
        try:
            shares = get_param_importances(ledger, evaluator=FanovaImportanceEvaluator(seed=seed))
        except RuntimeError as error:  # few trials that differ in little
            log.debug("importance: %s", error)
    if not shares:
        log.info("tune: no %s: it needs two complete trials with different scores", path.name)
        return ()
    log.info("tune: %s is drawn from %s", path.name, trial_caution(len(scores)))
    save_figure(draw_importance({short(name): s for name, s in shares.items()}, len(scores)), path)
    return (path,)
