"""A search goes on where it stopped, looks at development cases alone, and leaves a config to run."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from matplotlib.image import imread
from optuna.trial import FrozenTrial, TrialState

from stacker.backbones.devices import Subset
from stacker.cli.train import tune as command
from stacker.config.load import load_config
from stacker.config.root import Config
from stacker.config.training import TuneConfig
from stacker.data.manifest import make_manifest
from stacker.errors import BackboneError, ConfigError, DataError, RunError
from stacker.files import held
from stacker.training.begin import begin
from stacker.training.loop import finetune
from stacker.training.measures import logits_of
from stacker.training.tuning import score as tune_score
from stacker.training.tuning.score import DivergedError, Search
from stacker.training.tuning.search import Tuned, tune
from stacker.training.tuning.space import Space
from tests.conftest import MakeConfig

LR, DROP = "train.lr", "train.dropout"
SPACE: dict[str, Any] = {
    LR: {"low": 1e-4, "high": 1e-2, "log": True},
    DROP: {"choices": [None, 0.2, 0.4]},
}
ONE = {"test_resnet": {"weights": "random"}}
TWO = {**ONE, "test_efficientnet": {"weights": "random"}}
Skills = list["float | Exception"]
MakeSearch = Callable[..., Config]


@pytest.fixture
def make_search(make_config: MakeConfig) -> MakeSearch:
    """Return a function that makes a config with a search of seconds, with some of it changed."""

    def make(tune: dict[str, Any] | None = None, **changes: Any) -> Config:
        asked = {"space": SPACE, "trials": 3, "folds": 2, **(tune or {})}
        return make_config(**{"backbones": ONE, "train": {"epochs": 1}, "tune": asked, **changes})

    return make


@pytest.fixture
def skills(monkeypatch: pytest.MonkeyPatch) -> Skills:
    """Take no time for training: return a list of how good each model's answers shall be, else poor."""
    wanted: Skills = []

    def answer(_job: Any, search: Search, rows: np.ndarray) -> np.ndarray:
        skill = wanted.pop(0) if wanted else 0.2
        if isinstance(skill, BaseException):
            raise skill
        labels = search.run.manifest.labels[rows]
        noise = np.random.default_rng(0).random(len(search.run.manifest.labels))[rows]
        chance = skill * labels + (1 - skill) * noise
        return np.stack([1 - chance, chance], axis=1)

    monkeypatch.setattr(tune_score, "probabilities_of", answer)
    return wanted


def trials_of(config: Config) -> list[FrozenTrial]:
    """Return the trials of a config's only search."""
    return opened(config).trials


def opened(config: Config) -> optuna.Study:
    """Open the record of a config's only search."""
    storage = f"sqlite:///{config.run_path}/tune/study.db"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def table(result: Tuned) -> list[dict[str, str]]:
    """Return the rows of trials.csv."""
    with result.trials.open(newline="") as file:
        return list(csv.DictReader(file))


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let the training of one model, counted from 1, be stopped by Ctrl-C."""
    calls: list[Any] = []

    def stopped(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == at:
            raise KeyboardInterrupt
        return finetune(*arguments)

    monkeypatch.setattr(tune_score, "finetune", stopped)


def test_a_search_ends_with_a_config_to_run(make_search: MakeSearch, tmp_path: Path) -> None:
    """The best trial is the highest of all, and best.yaml is the config with its values, untuned."""
    config = make_search()
    done = CliRunner().invoke(command, [str(tmp_path / "config.yaml"), "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    rows = table(Tuned(**{**result, "trials": Path(result["trials"])}))
    assert [row["state"] for row in rows] == ["complete"] * 3
    assert len({row[LR] for row in rows}) == 3
    best = max(rows, key=lambda row: float(row["score"]))
    assert result["score"] == pytest.approx(float(best["score"]), abs=1e-6)
    assert result["number"] == int(best["number"])
    assert float(best[LR]) == result["parameters"][LR]
    assert best[DROP] == str(result["parameters"][DROP] or "")
    tuned = load_config(Path(result["config"]))
    values = {"lr": result["parameters"][LR], "dropout": result["parameters"][DROP]}
    train = config.train.model_copy(update=values)
    assert tuned == config.model_copy(update={"run": "small-tuned", "tune": None, "train": train})
    for figure in result["figures"]:
        assert imread(figure).std() > 0
    assert begin(tuned).path.name == "small-tuned"


def test_a_finished_search_is_reported_and_more_can_be_asked_for(
    make_search: MakeSearch, skills: Skills, tmp_path: Path
) -> None:
    """The second call trains nothing and says the same; `--trials` adds to what is there."""
    config = make_search()
    first = tune(config, None, [])
    skills.append(AssertionError("trained again"))
    assert tune(config, None, []) == first
    assert tune(config, 2, []) == first
    skills.clear()
    done = CliRunner().invoke(command, [str(tmp_path / "config.yaml"), "--trials", "4"])
    assert "4 trials: 4 complete, 0 pruned, 0 failed" in done.stdout
    assert f"stacker run {first.config}" in done.stdout


def test_the_config_as_it_stands_is_tried_first(make_search: MakeSearch, skills: Skills) -> None:
    """The best is then never worse than what was there; a space without it begins at random."""
    del skills[:]
    config = make_search()
    tune(config, 1, [])
    assert trials_of(config)[0].params == {LR: config.train.lr, DROP: None}
    away = make_search({"space": {LR: {"low": 1e-3, "high": 1e-2}}}, run="away")
    tune(away, 1, [])
    assert trials_of(away)[0].params[LR] > 1e-3


@pytest.mark.parametrize("at", [1, 3, 4])
def test_an_interrupted_search_ends_like_one_that_was_not(
    make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Ctrl-C in any trial and fold: the second call tries its values again, and then the same ones."""
    straight = tune(make_search(run="straight"), None, [])
    config = make_search()
    with monkeypatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(KeyboardInterrupt):
            tune(config, None, [])
    assert trials_of(config)[-1].state == TrialState.RUNNING
    result = tune(config, None, [])
    columns = ("state", "score", LR, DROP)
    ended = [[row[c] for c in columns] for row in table(result) if row["state"] != "interrupted"]
    assert ended == [[row[c] for c in columns] for row in table(straight)]
    assert result.score == straight.score
    assert [row["state"] for row in table(result)].count("interrupted") == 1


def test_what_a_killed_process_was_at_is_tried_again_once(
    make_search: MakeSearch, skills: Skills
) -> None:
    """A trial that is left running has failed without counting; its values are the next ones."""
    config = make_search()
    tune(config, 1, [])
    assert config.tune is not None
    killed = opened(config).ask(Space(config, config.tune.space).distributions())
    skills.append(KeyboardInterrupt())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        tune(config, 2, [])
    result = tune(config, 2, [])
    states = [trial.state.name for trial in trials_of(config)]
    assert states == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert trials_of(config)[2].params == trials_of(config)[3].params == killed.params
    assert (result.complete, result.failed) == (2, 0)


@pytest.mark.parametrize("protocol", ["holdout", "crossfit"])
@pytest.mark.parametrize("group", ["case", "image"])
def test_only_development_cases_are_looked_at(
    make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch, protocol: str, group: str
) -> None:
    """Neither test nor (holdout) stack rows are trained on or asked about; no group is on two sides."""
    folds = {"protocol": protocol, "group": group, "k": 3}
    config = make_search(folds=folds, stack={"features": ["maps"]})
    seen: list[list[np.ndarray]] = []

    def spy_on_training(backbone: Any, fit: Subset, validation: Subset, *rest: Any) -> Any:
        seen.append([fit.rows, validation.rows])
        return finetune(backbone, fit, validation, *rest)

    def spy_on_answers(model: Any, backbone: Any, subset: Subset, *rest: Any) -> Any:
        seen[-1].append(subset.rows)
        return logits_of(model, backbone, subset, *rest)

    monkeypatch.setattr(tune_score, "finetune", spy_on_training)
    monkeypatch.setattr(tune_score, "logits_of", spy_on_answers)
    tune(config, 2, [])
    run = begin(config)
    manifest, groups = run.manifest, np.array(run.manifest.groups(group))
    forbidden = set(run.folds.test)
    forbidden |= set(run.folds.folds[0].held_out) if protocol == "holdout" else set()
    assert len(seen) == 4
    for parts in seen:
        sides = [set(groups[rows]) for rows in parts]
        assert all(sides)
        assert sum(map(len, sides)) == len(set.union(*sides))
        assert not set.union(*sides) & forbidden
    answered = np.concatenate([parts[2] for parts in seen[:2]])
    development = np.flatnonzero([name not in forbidden for name in groups])
    assert sorted(answered) == list(development)
    assert [[list(rows) for rows in parts] for parts in seen[:2]] == [
        [list(rows) for rows in parts] for parts in seen[2:]
    ]
    assert len(forbidden) > 3
    assert set(manifest.labels[answered]) == {0, 1}


def test_the_score_is_that_of_all_answers(make_search: MakeSearch, skills: Skills) -> None:
    """Perfect answers score one; the mean is over the backbones, or those that are asked for."""
    both = make_search(backbones=TWO)
    skills += [1.0, 0.0, 1.0, 0.0]  # by fold, then by backbone
    mixed = tune(both, 1, [])
    skills += [1.0, 1.0]
    alone = tune(both, 1, ["test_resnet"])
    assert alone.score == 1.0
    assert 0.5 < mixed.score < 1.0
    skills += [0.0, 0.0]
    noise = tune(both, 1, ["test_efficientnet"])
    assert mixed.score == pytest.approx((1.0 + noise.score) / 2)
    with pytest.raises(ConfigError, match="did you mean 'test_resnet'"):
        tune(both, 1, ["test_resnt"])


def test_models_of_two_scales_lose_nothing(make_search: MakeSearch, skills: Skills) -> None:
    """The AUC counts pairs within a fold: what all answers of one are raised by does not matter."""
    del skills[:]
    run = begin(make_search())
    search = tune_score.prepare(run, TuneConfig(space=SPACE, folds=2), ("test_resnet",))
    rows = [run.manifest.rows_of("case", fold.held_out) for fold in search.inner.folds]
    rng = np.random.default_rng(0)
    labels = [run.manifest.labels[held_out] for held_out in rows]
    chances = [0.2 * of_fold + 0.2 * rng.random(len(of_fold)) for of_fold in labels]
    asked = [np.stack([1 - chance, chance], axis=1) for chance in chances]
    raised = [asked[0], asked[1] + np.array([-0.5, 0.5])]
    assert search.score(rows, raised) == pytest.approx(search.score(rows, asked))
    pairs = [np.prod(np.bincount(of_fold)) for of_fold in labels]
    alone = [search.score([r], [a]) for r, a in zip(rows, asked, strict=True)]
    assert search.score(rows, asked) == pytest.approx(np.average(alone, weights=pairs))


def test_a_loss_of_one_logit_is_scored_too(make_search: MakeSearch) -> None:
    """After training with bce the model answers for two classes again."""
    config = make_search(train={"epochs": 1, "loss": "bce"}, tune={"unit": "case", "score": "accuracy"})
    assert 0 <= tune(config, 1, []).score <= 1


def test_another_search_does_not_mix_with_the_old_trials(
    make_search: MakeSearch, skills: Skills
) -> None:
    """A changed space, score, unit or number of folds starts again in the same file; trials do not."""
    del skills[:]
    tune(make_search(), None, [])
    changes: list[dict[str, Any]] = [
        {"space": {LR: SPACE[LR]}},
        {"score": "accuracy"},
        {"unit": "case"},
        {"folds": 3},
    ]
    for change in changes:
        assert tune(make_search(change), 1, []).complete == 1
    assert tune(make_search({"prune": False, "trials": 4}), None, []).complete == 4


def test_what_is_worse_than_the_rest_is_given_up(make_search: MakeSearch, skills: Skills) -> None:
    """After five complete trials, one far below them stops after a fold, and is not the best."""
    config = make_search({"trials": 7})
    skills += [0.8] * 10 + [0.0] + [0.9] * 2
    result = tune(config, None, [])
    assert (result.complete, result.pruned, result.failed) == (6, 1, 0)
    rows = table(result)
    assert rows[5]["state"] == "pruned"
    assert rows[5]["score"] == ""
    assert float(rows[5]["score_so_far"]) < result.score
    assert not skills
    skills += [0.8] * 10 + [0.0] * 2
    all_complete = make_search({"trials": 6, "prune": False}, run="unpruned")
    assert tune(all_complete, None, []).complete == 6


def test_a_failed_trial_counts_and_says_why(
    make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A training that diverges does not stop the search; it is in the table with its reason."""
    config, calls = make_search(), []

    def diverge(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise BackboneError("the loss is nan")
        return finetune(*arguments)

    monkeypatch.setattr(tune_score, "finetune", diverge)
    with caplog.at_level(logging.INFO, "stacker"):
        result = tune(config, None, [])
    assert (result.complete, result.failed) == (2, 1)
    assert [row["reason"] for row in table(result)] == ["", "the loss is nan", ""]
    told = [r for r in caplog.records if r.message.startswith(("tune 0:", "tune 1:", "tune 2:"))]
    assert [r.levelname for r in told] == ["INFO", "WARNING", "INFO"]
    assert "lr=" in told[0].message
    assert "the loss is nan" in told[1].message


def test_answers_that_are_not_numbers_are_a_failure(
    make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every trial fails there is no best one, and the last reason is told."""
    config = make_search()
    monkeypatch.setattr(tune_score, "logits_of", lambda *a: logits_of(*a) * np.nan)
    with pytest.raises(BackboneError, match=r"none of 2 trials .* not finite"):
        tune(config, 2, [])
    assert not (config.run_path / "tune" / "best.yaml").exists()


def test_a_model_that_cannot_be_built_stops_the_search(
    make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing of the settings, so it does not count, and is tried again once it is fixed."""
    config = make_search()
    with monkeypatch.context() as patch:
        patch.setattr(
            "stacker.backbones.backbone.create",
            lambda *_: (_ for _ in ()).throw(BackboneError("no hub")),
        )
        with pytest.raises(BackboneError, match="no hub"):
            tune(config, 1, [])
    assert tune(config, 1, []).failed == 0


def test_importance_takes_scores_that_differ(
    make_search: MakeSearch, skills: Skills, caplog: pytest.LogCaptureFixture
) -> None:
    """Equal scores leave the figure out, and say so; others draw it."""
    config = make_search()
    with caplog.at_level(logging.INFO, "stacker"):
        result = tune(config, None, [])
    assert [path.name for path in result.figures] == ["history.png"]
    assert "no importance.png" in caplog.text
    skills += [0.9, 0.9]
    with caplog.at_level(logging.INFO, "stacker"):
        result = tune(config, 4, [])
    assert [path.name for path in result.figures] == ["history.png", "importance.png"]
    assert "importance.png is drawn from 4 complete trials: too few to rank settings" in caplog.text


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"images.size": {"choices": [32, 64]}}, "change.* the data or the split"),
    ({"folds.k": {"low": 2, "high": 5, "whole": True}}, "only train"),
    ({"seed": {"choices": [1, 2]}}, "only train"),
    ({"train.lrr": {"low": 0.1, "high": 1}}, r"did you mean 'train\.lr'\?"),
    ({"train.augment.rotatoin": {"low": 1, "high": 9}}, r"did you mean 'train\.augment\.rotation'"),
    ({"backbones.test_resne.train.lr": {"low": 0.1, "high": 1}}, "did you mean 'backbones.test_resnet"),
    ({"backbones.test_resnet.partial": {"choices": [True, False]}}, "did you mean"),
    ({"train.epochs": {"low": 1, "high": 5}}, r"train\.epochs: input should be a valid integer"),
    ({"train.dropout": {"low": 0, "high": 1}}, r"train\.dropout: .* less than 1; found 1\.0"),
    ({"train.schedule": {"choices": ["cosine", "cosin"]}}, r"train\.schedule: .*found 'cosin'"),
    ({"train.optimizer": {"choices": ["adamw", "adamww"]}}, "did you mean 'adamw'"),
    ({"train.trainable": {"choices": ["all", "hed"]}}, "expected all, head, or a number"),
    ({"backbones.test_resnet.train.lr": {"low": -1, "high": 1}}, r"backbones\.test_resnet\.train\.lr"),
    (
        {
            "train.batch_size": {"low": 4, "high": 16, "whole": True},
            "train.accumulate": {"low": 1, "high": 8, "whole": True},
        },
        "accumulate=8 splits a batch of 4",
    ),
    (
        {LR: SPACE[LR], "backbones.test_resnet.train.lr": SPACE[LR]},
        r"train\.lr has no effect on test_resnet",
    ),
]


@pytest.mark.parametrize(("space", "text"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_searched_is_refused_before_anything_is_made(
    make_search: MakeSearch, space: dict[str, Any], text: str
) -> None:
    """Other sections, unknown names, values and combinations that the config refuses, no effect."""
    config = make_search({"space": space})
    with pytest.raises(ConfigError, match=text):
        tune(config, None, [])
    assert not config.run_path.exists()


def test_weights_that_are_not_there_are_refused(make_search: MakeSearch) -> None:
    """A file is looked for before the first trial, not in it."""
    space = {"backbones.test_resnet.weights": {"choices": ["random", "/nowhere.safetensors"]}}
    with pytest.raises(BackboneError, match="no file at /nowhere"):
        tune(make_search({"space": space}), None, [])


def test_choices_may_be_anything_that_the_config_takes(make_search: MakeSearch, skills: Skills) -> None:
    """A plan of unfreezing is a choice too, and a backbone's name may hold a dot."""
    del skills[:]
    name = "test_resnet.r160_in1k"
    space = {
        "train.unfreeze": {"choices": [{}, {1: "all"}]},
        f"backbones.{name}.train.augment.rotation": {"low": 0, "high": 10},
    }
    config = make_search(
        {"space": space, "trials": 6}, backbones={name: ONE["test_resnet"]}, train={"epochs": 2}
    )
    result = tune(config, None, [])
    tuned = load_config(result.config)
    assert tuned.train.unfreeze == result.parameters["train.unfreeze"]
    rotation = result.parameters[f"backbones.{name}.train.augment.rotation"]
    assert tuned.recipe(name).augment.rotation == rotation
    assert {str(row["train.unfreeze"]) for row in table(result)} == {"{}", "{1: 'all'}"}


def test_cases_of_two_classes_have_no_score(make_search: MakeSearch, skills: Skills) -> None:
    """Scoring by case is refused where a case has no label of its own, or is not known."""
    del skills[:]
    run, asked = begin(make_search()), TuneConfig(space=SPACE, folds=2, unit="case")
    images = run.manifest.images
    others = [image for image in images if image.label != images[0].label]
    mixed = [*images, *(type(i)(f"x{i.id}", i.path, images[0].label, i.case, i.slide) for i in others)]
    unknown = [type(i)(i.id, i.path, i.label) for i in images]
    tune_score.prepare(run, asked, ("test_resnet",))
    with pytest.raises(DataError, match="several classes"):
        tune_score.prepare(run.with_split(make_manifest(mixed), run.folds), asked, ("test_resnet",))
    rows = np.arange(len(images))
    with pytest.raises(DataError, match="only the images"):
        tune_score.predictions_of(
            make_manifest(unknown), rows, np.ones((len(rows), 1)), "case", 0 * rows
        )


def test_too_many_inner_folds_are_refused(make_search: MakeSearch) -> None:
    """The message names the setting of the search, not that of the run alone."""
    with pytest.raises(DataError, match=r"tune\.folds=20: the development cases cannot be cut"):
        tune(make_search({"folds": 20}), None, [])


def test_two_processes_do_not_search_at_once(make_search: MakeSearch) -> None:
    """The second one would take the first one's trials for abandoned."""
    config = make_search()
    begin(config)
    with held(config.run_path / "tune" / ".lock"), pytest.raises(RunError, match="another process"):
        tune(config, None, [])


def test_what_is_missing_is_said(make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a section 'tune', and without optuna, a line says what to do."""
    config = make_search()
    with pytest.raises(ConfigError, match=r"tune\.space=\{train\.lr"):
        tune(config.model_copy(update={"tune": None}), None, [])
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[tune\]'"):
        tune(config, None, [])


def test_a_diverged_training_is_an_error_of_its_backbone() -> None:
    """Whoever calls the scoring alone meets an error that a user can fix."""
    assert issubclass(DivergedError, BackboneError)
