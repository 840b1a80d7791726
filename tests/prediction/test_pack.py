"""Packs: what goes in and what does not, that they say the same elsewhere, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stacker import pipeline
from stacker.backbones.sources import read_facts
from stacker.config.root import Config
from stacker.errors import RunError, StackError
from stacker.files import read_json
from stacker.prediction.card import model_card
from stacker.prediction.inputs import Input
from stacker.prediction.pack import Packed, pack
from stacker.prediction.predictor import open_predictor
from stacker.prediction.rows import Prediction
from stacker.prediction.unpack import opened
from stacker.run import Run, open_run, reopen
from stacker.stacking.admission import open_caches
from stacker.stacking.novelty import keep_novelty
from stacker.stacking.saved import stack_facts
from tests.commands import call, expect_refusal
from tests.pictures import write_table


@pytest.fixture
def run(finished: Config) -> Run:
    """Return a finished run that knows what is usual."""
    run = reopen(finished)
    keep_novelty(run, open_caches(run, frozen=False))
    return run


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    """Return a pack in a folder."""
    return pack(run, tmp_path / "packed").path


@pytest.fixture
def zipped(run: Run, tmp_path: Path) -> Path:
    """Return a pack in a zip."""
    return pack(run, tmp_path / "packed.zip").path


def images_of(run: Run) -> list[Input]:
    """Return some test images."""
    rows = run.manifest.rows_of("case", run.folds.test)[:5]
    return [Input(Path(run.manifest.images[n].path), run.manifest.images[n].case) for n in rows]


def say(run: Run, images: list[Input], meta: str | None = None) -> list[Prediction]:
    """Return what a run or pack says, but for what only a run can know."""
    rows = [row for row in open_predictor(run, meta).stream(images) if isinstance(row, Prediction)]
    return [replace(row, seen=None) for row in rows]


def rewrite(path: Path, changes: dict[str, bytes | None], more: dict[str, bytes] | None = None) -> None:
    """Write a zip again with some members changed, left out (None) or added."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content |= {name: new for name, new in changes.items() if new is not None}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**content, **(more or {})}.items():
            if changes.get(name, b"") is not None:
                archive.writestr(name, data)


@pytest.mark.parametrize("meta", ["logistic", "mlp", "xgboost"])
def test_a_pack_says_the_same_as_the_run(run: Run, tmp_path: Path, meta: str) -> None:
    """To the last bit, from the folder and from the zip, when the run is gone."""
    images = images_of(run)
    before = say(run, images, meta)
    packs = [pack(run, tmp_path / name, meta).path for name in ("packed", "packed.zip")]
    (tmp_path / "artifacts").rename(tmp_path / "gone")
    for path in packs:
        elsewhere = tmp_path / "elsewhere" / path.name
        elsewhere.parent.mkdir(exist_ok=True)
        path.rename(elsewhere)
        with opened(elsewhere) as moved:
            assert say(moved, images) == before


def test_probabilities_are_equal_to_the_last_bit(run: Run, folder: Path) -> None:
    """Before they are rounded, too."""
    pixels = list(reopen(run.config).pixels()[np.arange(6)])
    with opened(folder) as unpacked:
        packed, original = open_predictor(unpacked), open_predictor(run)
        for name, said in original.ensemble.ask(pixels).items():
            for array, values in packed.ensemble.ask(pixels)[name].items():
                np.testing.assert_array_equal(values, said[array])


def test_nothing_of_the_data_goes_along(run: Run, folder: Path) -> None:
    """No image, no manifest, no cache, no path of this machine, no id of a case or an image."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    models = {f"models/{b}/holdout/model.safetensors" for b in run.config.backbones}
    once = {
        "pack.json",
        "MODEL_CARD.md",
        "config.yaml",
        "stack/novelty.npz",
        "stack/logistic@maps+logits/stack.json",
    }
    parts = {
        f"stack/logistic@maps+logits/{name}"
        for name in ("all-0.npz", "all-0.safetensors", "centres.npz")
    }
    assert names == once | models | parts
    secrets = {image.case for image in run.manifest.images}
    secrets |= {image.id for image in run.manifest.images}
    secrets |= {str(run.path.parent), str(run.config.data.path)}
    for name in names:
        content = (folder / name).read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], name


def test_cases_go_along_where_they_are_asked_for(run: Run, tmp_path: Path) -> None:
    """The base models are then the very files of the run, which tell whom they have seen."""
    done = pack(run, tmp_path / "with", keep_cases=True)
    file = Path("models") / "test_resnet" / "holdout" / "model.safetensors"
    assert (done.path / file).read_bytes() == (run.path / file).read_bytes()
    known = read_facts(done.path / file)["training_cases"]
    image = next(i for i in run.manifest.images if i.case in known)
    with opened(done.path) as unpacked:
        rows = list(open_predictor(unpacked).stream([Input(Path(image.path), image.case)]))
    assert isinstance(rows[0], Prediction)
    assert rows[0].seen


def test_a_pack_with_cases_knows_what_the_run_knows(run: Run, tmp_path: Path) -> None:
    """Those that the meta-learner alone was fitted on, too, and that any other case is new."""
    images = run.manifest.images
    fold = run.folds.folds[0]
    wanted = [
        next(image for image in images if image.case in cases)
        for cases in (fold.train, fold.held_out, run.folds.test)
    ]
    inputs = [Input(Path(image.path), image.case) for image in wanted]
    for keep, expected in ((True, [True, True, False]), (False, [None] * 3)):
        path = pack(run, tmp_path / f"keep-{keep}", keep_cases=keep).path
        with opened(path) as unpacked:
            rows = open_predictor(unpacked).stream(inputs)
            assert [row.seen for row in rows if isinstance(row, Prediction)] == expected


def test_a_pack_calls_no_accuracy_its_own(run: Run, zipped: Path, tmp_path: Path) -> None:
    """It cannot know whether it was fitted on labelled images, and says so beside the number."""
    image = run.manifest.images[0]
    table = write_table(tmp_path / "list.csv", "path,label", [[image.path, image.label]])
    result = call("predict", zipped, table, "--no-overlays")
    assert result.exit_code == 0, result.stderr
    told = " ".join(result.stderr.split())
    assert "on 1 labelled image; it is not known whether their cases were in the training" in told


def test_equal_packs_are_equal_files(run: Run, tmp_path: Path) -> None:
    """The SHA-256 of its list, which is printed, stands for a pack."""
    first, second = (pack(run, tmp_path / name) for name in ("1.zip", "2.zip"))
    assert first.path.read_bytes() == second.path.read_bytes()
    with zipfile.ZipFile(first.path) as archive:
        assert hashlib.sha256(archive.read("pack.json")).hexdigest() == first.sha256
    assert isinstance(first, Packed)
    result = call("pack", run.path, "--out", tmp_path / "3.zip", "--meta", "mlp")
    assert result.exit_code == 0, result.stderr
    assert "3.zip: mlp, " in result.stdout
    again = call("pack", run.path, "--out", tmp_path / "3.zip")
    expect_refusal(again, 1, "exists already")
    outside = tmp_path / "outside" / "stack.json"
    outside.parent.mkdir()
    outside.write_text("{}")
    name = f"../../../{outside.parent.name}"
    strange = call("pack", run.path, "--out", tmp_path / "4.zip", "--meta", name)
    expect_refusal(strange, 2, f"no meta-learner '{name}'")


def test_a_zip_is_asked_like_a_run(run: Run, zipped: Path, tmp_path: Path) -> None:
    """By the same command; pictures of maps go where they are wanted, never into the pack."""
    path = images_of(run)[0].path
    result = call("predict", zipped, path, "--out", tmp_path / "out", "--format", "jsonl")
    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout.splitlines()[0])
    assert Path(row["overlay"]).parent == tmp_path / "out"
    assert row["seen"] is None


def test_overlays_of_a_pack_lie_beside_its_rows(
    run: Run, zipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or, where rows go to stdout, in a folder of the pack's name; the command says where."""
    path, where = images_of(run)[0].path, tmp_path / "where"
    where.mkdir()
    monkeypatch.chdir(where)
    written = call("predict", zipped, path, "--output", tmp_path / "out" / "rows.csv")
    assert f"1 overlay in {tmp_path / 'out' / 'rows-overlays'}" in written.stderr
    assert len(list((tmp_path / "out" / "rows-overlays").iterdir())) == 1
    printed = call("predict", zipped, path)
    assert "1 overlay in packed-overlays" in printed.stderr
    assert [folder.name for folder in where.iterdir()] == ["packed-overlays"]


def test_damaged_and_changed_packs_are_refused(folder: Path, zipped: Path) -> None:
    """With the file that is not what was packed, and what to do."""
    card = folder / "MODEL_CARD.md"
    card.write_text(card.read_text() + " ")
    refuse(folder, r"packed: MODEL_CARD\.md is not the file that was packed; copy the pack again")
    card.unlink()
    refuse(folder, r"MODEL_CARD\.md is missing")
    extra = folder / "stack" / "other" / "stack.json"
    extra.parent.mkdir()
    extra.write_text("{}")
    card.write_bytes(zipfile.ZipFile(zipped).read("MODEL_CARD.md"))
    refuse(folder, r"stack/other/stack\.json was not packed; remove it")
    rewrite(zipped, {"config.yaml": b"run: evil\n"})
    refuse(zipped, r"config\.yaml is not the file that was packed")
    zipped.write_bytes(zipped.read_bytes()[:-100])
    refuse(zipped, "cannot be read as a zip|this is not a pack")
    zipped.write_bytes(b"no zip at all")
    refuse(zipped, "cannot be read as a zip")


def refuse(path: Path, text: str) -> None:
    """Expect that a pack is not opened."""
    with pytest.raises(RunError, match=text), opened(path):
        pass


def listing(path: Path, change: dict[str, Any], files: dict[str, Any]) -> bytes:
    """Return the list of a zipped pack with changes."""
    with zipfile.ZipFile(path) as archive:
        content = json.loads(archive.read("pack.json"))
    content |= change
    content["files"] |= files
    return json.dumps(content).encode()


def test_zips_that_reach_outside_or_grow_are_refused(zipped: Path, tmp_path: Path) -> None:
    """Nothing is written outside, and nothing that would fill the disk."""
    original = zipped.read_bytes()
    fact = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    for name in ("../evil", "/evil", "a/../../evil", "..", "a//b", "a\\b", "C:evil"):
        zipped.write_bytes(original)
        rewrite(zipped, {"pack.json": listing(zipped, {}, {name: fact})}, {name: b"x"})
        refuse(zipped, "is not a list that stacker pack writes")
    zipped.write_bytes(original)
    rewrite(zipped, {}, {"../evil": b"x"})
    refuse(zipped, r"'\.\./evil' is in the zip and not listed")
    zipped.write_bytes(original)
    rewrite(zipped, {"config.yaml": None})
    refuse(zipped, r"'config\.yaml' is missing")
    zipped.write_bytes(original)
    huge = {"sha256": fact["sha256"], "bytes": 10**15}
    rewrite(zipped, {"pack.json": listing(zipped, {}, {"config.yaml": huge})})
    refuse(zipped, "lists 1,000,0")
    zipped.write_bytes(original)
    small = {"sha256": fact["sha256"], "bytes": 3}
    rewrite(zipped, {"pack.json": listing(zipped, {}, {"config.yaml": small})})
    refuse(zipped, r"config\.yaml is not the file that was packed")
    zipped.write_bytes(original)
    rewrite(zipped, {"pack.json": b"{}"})
    refuse(zipped, r"its pack\.json cannot be read")
    zipped.write_bytes(original)
    rewrite(zipped, {"pack.json": listing(zipped, {"schema": 99}, {})})
    refuse(zipped, "has schema 99, this version of stacker reads 2")
    zipped.write_bytes(original)
    rewrite(zipped, {"pack.json": None})
    refuse(zipped, r"no pack\.json at its top; this is not a pack, or not all of it")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("name", ["manifest.csv", "folds.json", "metrics.json", "models", "other/x"])
def test_a_pack_lists_nothing_that_only_a_run_has(name: str, zipped: Path, folder: Path) -> None:
    """Neither a zip nor a folder: a pack may not pass for a run."""
    fact = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    content = listing(zipped, {}, {name: fact})
    rewrite(zipped, {"pack.json": content}, {name: b"x"})
    refuse(zipped, "is not a list that stacker pack writes")
    (folder / "pack.json").write_bytes(content)
    refuse(folder, "is not a list that stacker pack writes")


def test_a_pack_does_not_vouch_for_itself(run: Run, tmp_path: Path) -> None:
    """Its config names the class as that of the run does, and a manifest lies there: that is nothing."""
    estimator = "sklearn.ensemble.ExtraTreesClassifier"
    custom = {"trees": {"estimator": estimator, "parameters": {"n_estimators": 3}}}
    settings = run.config.model_dump()
    settings["stack"] |= {"custom": custom, "meta": ["trees"], "features": ["logits"]}
    own = reopen(Config.model_validate(settings))
    pipeline.stack(own, ["trees"])
    assert open_predictor(open_run(own.path)).stack.name == "trees"
    path = pack(own, tmp_path / "trees").path
    shutil.copy(run.manifest_file, path / "manifest.csv")
    with opened(path) as unpacked:
        with pytest.raises(StackError, match=r"not trusted: sklearn\..*add --trust sklearn"):
            open_predictor(unpacked)
        assert open_predictor(unpacked, trusted=["sklearn"]).stack.name == "trees"


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_is_compressed_is_refused_unread(zipped: Path, method: int) -> None:
    """It may grow to anything, whatever size it claims: neither the list nor another file is opened."""
    original = zipped.read_bytes()
    for name in ("pack.json", "config.yaml"):
        zipped.write_bytes(original)
        with zipfile.ZipFile(zipped) as archive:
            content = {member: archive.read(member) for member in archive.namelist()}
        with zipfile.ZipFile(zipped, "w") as archive:
            for member, data in content.items():
                kind = method if member == name else zipfile.ZIP_STORED
                archive.writestr(member, data, compress_type=kind)
        refuse(zipped, f"'{name}' is compressed or encrypted")


def test_a_list_is_not_read_further_than_a_list_goes(
    zipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever size it claims to have."""
    monkeypatch.setattr("stacker.prediction.unpack.MOST_LIST_BYTES", 100)
    refuse(zipped, r"pack\.json is larger than a pack can have")
    monkeypatch.undo()
    rewrite(zipped, {"pack.json": b"[" * 1_000_000})
    refuse(zipped, r"its pack\.json cannot be read")


def test_a_pack_that_fails_leaves_nothing_behind(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither under its name nor under another."""

    def fail(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("stacker.prediction.pack.model_card", fail)
    for name in ("one", "one.zip"):
        with pytest.raises(KeyboardInterrupt):
            pack(run, tmp_path / "out" / name)
        assert list((tmp_path / "out").iterdir()) == []


def test_the_card_has_the_numbers_of_the_run(run: Run, folder: Path) -> None:
    """Each score with its interval, the split, the counts; and no identity of a case."""
    card = (folder / "MODEL_CARD.md").read_text()
    metrics = read_json(run.path / "metrics.json")
    for part in ("test", "development"):
        for unit in ("image", "case"):
            scores = metrics[part]["logistic"][unit]
            assert f"{scores['accuracy']:.3f} [{scores['withheld']['accuracy']}]" in card
    facts = stack_facts(run, "logistic")
    for finish in ("finish", "case_finish"):
        assert f"from a probability of {facts[finish]['threshold']:.4f} on" in card
    assert "Holdout split by case." in card
    assert "WARNING" not in card
    assert f"{len(run.manifest.images)} images named as in BreakHis" in card
    assert "Not for diagnosis" in card
    tests = run.manifest.rows_of("case", run.folds.test)
    cases = {run.manifest.images[n].case for n in tests}
    assert f"The test set has {len(cases)} cases: the scores are uncertain" in card
    assert "The positive class is `malignant`: sensitivity is" in card
    recipe = run.config.recipe("test_resnet")
    assert f"| `test_resnet` | random | all | {recipe.epochs} | {recipe.batch_size} |" in card
    assert "does not record the licence" in card
    assert "Cases: probabilities" in card
    mixed = facts | {"cases": {"development": 18, "mixed": 3}, "case_finish": None}
    assert "No verdict by case: 3 of the 18 cases in" in model_card(run, "logistic", mixed)
    for sha256 in facts["checkpoints"].values():
        assert sha256 in card


def test_the_card_says_what_is_wrong_with_a_split(run: Run) -> None:
    """A leak in bold, unknown cases, a model that says one thing, scores that are not there."""
    facts = stack_facts(run, "logistic")
    group = replace(run.folds, group="image", test=tuple(i.id for i in run.manifest.images[:9]))
    card = model_card(run.with_split(run.manifest, group), "logistic", facts)
    assert "**WARNING: this split goes by image, not by case." in card
    unknown = tuple(replace(image, case="", slide="") for image in run.manifest.images)
    nameless = run.with_split(replace(run.manifest, images=unknown), group)
    card = model_card(nameless, "logistic", facts)
    assert "**WARNING: the cases of the images are not known." in card
    assert "not known |" in card
    path = run.path / "metrics.json"
    metrics = read_json(path)
    metrics["test"]["logistic"]["constant_prediction"] = True
    path.write_text(json.dumps(metrics))
    assert "predicts the same class for every test image" in model_card(run, "logistic", facts)
    path.unlink()
    assert "has not been scored" in model_card(run, "logistic", facts)


def test_the_card_has_no_scores_of_another_stack(run: Run) -> None:
    """Where `stack.features` has changed, metrics.json and predictions.csv are of what had the name."""
    settings = run.config.model_dump()
    settings["stack"] |= {"features": ["logits"], "meta": ["logistic"]}
    before = (run.path / "metrics.json").read_bytes(), (run.path / "predictions.csv").read_bytes()
    pipeline.stack(run, ["logistic: logits"])
    other = reopen(Config.model_validate(settings))
    for name, content in zip(("metrics.json", "predictions.csv"), before, strict=True):
        (run.path / name).write_bytes(content)
    card = model_card(other, "logistic", stack_facts(other, "logistic"))
    assert "has not been scored with the run's current settings" in card
    assert "### Test images by true and predicted class" not in card
    assert "| `logistic` |" not in card


def test_a_stack_of_other_backbones_is_told(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By predict and by pack, and the card has the backbones of the stack, not those of the config."""
    open_predictor(run)
    assert "was fitted on" not in caplog.text
    kept = {"test_resnet": run.config.backbones["test_resnet"]}
    changed = replace(run, config=run.config.model_copy(update={"backbones": kept}))
    expected = "logistic was fitted on test_resnet, test_efficientnet, and the config has test_resnet:"
    for opens in (open_predictor, lambda run: pack(run, tmp_path / "packed")):
        caplog.clear()
        opens(changed)
        assert expected in caplog.text
    card = (tmp_path / "packed" / "MODEL_CARD.md").read_text()
    assert "The settings of `test_efficientnet` are no longer in the config" in card
    more = dict.fromkeys(("other", *run.config.backbones), run.config.backbones["test_resnet"])
    grown = replace(run, config=run.config.model_copy(update={"backbones": more}))
    assert "| `other` |" not in model_card(grown, "logistic", stack_facts(run, "logistic"))
