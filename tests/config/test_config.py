"""The config is checked whole before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stacker.config.load import load_config
from stacker.config.root import Config
from stacker.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))  # recipes: test_recipes


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path: Path) -> None:
    """A config that ships with the program loads without a fault."""
    assert load_config(path).backbones


def test_resolved_yaml_loads_to_the_same_config(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """What a run stores as its config is the config."""
    config = load_config(write_config(images={"size": 48}))
    (tmp_path / "resolved.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "resolved.yaml") == config


def test_data_is_found_from_another_working_directory(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is relative to where the run was started, wherever it is looked at later."""
    monkeypatch.chdir(tmp_path)
    config = load_config(write_config(data={"path": "here", "masks": "there"}))
    assert config.data.path == tmp_path / "here"
    assert config.data.masks == tmp_path / "there"


def test_all_faults_are_named_at_once(write_config: Callable[..., Path]) -> None:
    """A typo, a wrong type, a value out of bounds and a wrong choice are four lines of one message."""
    path = write_config(
        train={"epocs": 3, "batch_size": "many"},
        folds={"test": 1.5},
        stack={"meta": ["xgbost"]},
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "4 faults" in message
    assert "train.epocs: unknown key; did you mean 'epochs'?" in message
    assert "train.batch_size" in message
    assert "folds.test" in message
    assert "did you mean 'xgboost'?" in message


def test_unknown_key_of_a_backbone_is_named_with_the_nearest(write_config: Callable[..., Path]) -> None:
    """Settings below a backbone's own name are checked like all others."""
    path = write_config(backbones={"test_resnet": {"wieghts": "random"}})
    with pytest.raises(ConfigError, match=r"test_resnet\.wieghts: unknown key; did you mean 'weights'"):
        load_config(path)


def test_overrides_reach_nested_settings(write_config: Callable[..., Path]) -> None:
    """--set a.b.c=value sets a number, a list and a backbone's setting."""
    overrides = ("train.epochs=7", "stack.meta=[mlp]", "backbones.test_resnet.train.lr=1e-5")
    config = load_config(write_config(), overrides)
    assert config.train.epochs == 7
    assert config.stack.meta == ["mlp"]
    assert config.recipe("test_resnet").lr == 1e-5
    assert config.recipe("test_resnet").epochs == 7


def test_a_backbone_changes_the_recipe_in_sections(write_config: Callable[..., Path]) -> None:
    """What it does not name stays as `train` has it, within sections too; faults name their place."""
    changes = {"lr": 1e-3, "augment": {"flips": False}, "unfreeze": {1: "all"}}
    path = write_config(
        train={"augment": {"rotation": 5}, "unfreeze": {2: 1}, "epochs": 3},
        backbones={"test_resnet": {"train": changes}, "test_vit": None},
    )
    recipe = load_config(path).recipe("test_resnet")
    assert (recipe.augment.flips, recipe.augment.rotation, recipe.unfreeze) == (False, 5, {1: "all"})
    assert load_config(path).recipe("test_vit").unfreeze == {2: 1}
    path = write_config(backbones={"test_resnet": {"train": {"lr": -1, "epocs": 2}}})
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "backbones.test_resnet.train.lr: input should be greater than 0" in str(caught.value)
    assert "backbones.test_resnet.train.epocs: unknown key; did you mean 'epochs'" in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"trainable": "some"}, "expected all, head, or a number of last stages"),
        ({"trainable": True}, "expected all, head, or a number of last stages"),
        ({"unfreeze": {5: "all"}, "epochs": 5}, "unfreeze after 5 epochs has no effect"),
        ({"accumulate": 8, "batch_size": 8}, "steps of fewer than two images; the maximum is 4"),
        ({"monitor": "last", "patience": 3}, "monitor=last uses none"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(
    write_config: Callable[..., Path], setting: dict[str, object], reason: str
) -> None:
    """Each refusal says why."""
    with pytest.raises(ConfigError, match=reason):
        load_config(write_config(train=setting))


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        (["malignant", "benign"], "positive is 'malignant' but classes ends with 'benign'"),
        (["benign", "normal"], "'malignant' is not one of the classes benign, normal"),
        (["benign", "normal", "malignant"], "for two classes; classes has 3"),
    ],
)
def test_a_positive_class_against_the_classes_is_refused(
    write_config: Callable[..., Path], classes: list[str], reason: str
) -> None:
    """Both settings are named, and a positive class that is the last of two agrees with them."""
    with pytest.raises(ConfigError, match=reason):
        load_config(write_config(data={"positive": "malignant", "classes": classes}))
    agreed = {"positive": "malignant", "classes": ["benign", "malignant"]}
    assert load_config(write_config(data=agreed)).data.positive == "malignant"


@pytest.mark.parametrize("size", [16, [64], [64, 64], [64, 96], [64, 96, 3], "large", [64, 9]])
def test_image_size_is_a_side_or_height_and_width(
    write_config: Callable[..., Path], size: object
) -> None:
    """Squares are written as one number; what is neither is one fault, not one per possibility."""
    path = write_config(images={"size": size})
    if size in ([64], [64, 64], [64, 96]):
        config = load_config(path)
        assert config.images.shape == ((64, 96) if size == [64, 96] else (64, 64))
        assert isinstance(config.images.size, int) == (size != [64, 96])
    else:
        with pytest.raises(ConfigError, match=r"1 fault in the config\s+images.size: expected a side"):
            load_config(path)


def test_a_bare_backbone_name_means_the_defaults(write_config: Callable[..., Path]) -> None:
    """`resnet50:` with nothing behind it is a backbone with default settings."""
    config = load_config(write_config(), ("backbones.resnet50=null",))
    assert config.backbones["resnet50"].weights == "hub"


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train..epochs=3", "run.name=3", "seed=["])
def test_malformed_override_is_refused(write_config: Callable[..., Path], override: str) -> None:
    """An override that is not section.key=value says so."""
    with pytest.raises(ConfigError, match="--set"):
        load_config(write_config(), (override,))


def test_a_fault_of_an_override_is_not_blamed_on_the_file(write_config: Callable[..., Path]) -> None:
    """What --set gave is marked, below a section too; the file is named only for its own faults."""
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(), ("train.epoch=3", "images={sise: 48}"))
    heading, *faults = str(caught.value).splitlines()
    assert heading == "2 faults in the settings given by --set"
    assert sorted(fault.split(": ")[0].strip() for fault in faults) == [
        "--set images.sise",
        "--set train.epoch",
    ]
    path = write_config(train={"epocs": 3})
    with pytest.raises(ConfigError) as caught:
        load_config(path, ("train.lr=-1",))
    heading, *faults = str(caught.value).splitlines()
    assert heading == f"{path}: 2 faults in the config"
    assert sorted(fault.split(": ")[0].strip() for fault in faults) == ["--set train.lr", "train.epocs"]


def test_a_run_in_place_of_a_config_is_told_its_config(finished: Config) -> None:
    """The commands that take a RUN and those that take a CONFIG are easily mixed up."""
    run = finished.run_path
    with pytest.raises(ConfigError) as caught:
        load_config(run)
    assert str(caught.value) == f"{run} is a run, not a config file; give {run / 'config.yaml'}"


@pytest.mark.parametrize("text", ["run: [", "just text", "- a\n- b", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    """Broken YAML, text, a list and an empty file are refused with the path."""
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_config(path)


def test_missing_config_file_is_refused(tmp_path: Path) -> None:
    """A wrong path is an error of usage."""
    with pytest.raises(ConfigError, match="no config file"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_block_of_what_is_not_cached_is_refused(write_config: Callable[..., Path]) -> None:
    """Views of one's own need something to look at, in the features as in the comparison."""
    blocks = {"view": {"of": "maps_layercam", "grid": 3}}
    with pytest.raises(ConfigError, match=r"blocks\.view\.of: 'maps_layercam' is not cached"):
        load_config(write_config(stack={"features": ["view"], "blocks": blocks}))
    with pytest.raises(ConfigError, match="'view' is neither cached nor one of"):
        load_config(write_config(stack={"compare": {"features": [["logits"], ["view"]]}}))
    config = load_config(write_config(stack={"features": ["view"], "blocks": {"view": {"of": "maps"}}}))
    assert config.stack.blocks["view"].of == "maps"


def test_blocks_and_custom_estimators_survive_the_runs_own_config(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """What the documentation shows is written out with all defaults, and reads as it was."""
    stack = {
        "features": ["relu4", "deep", "logits"],
        "blocks": {
            "relu4": {"of": "maps", "view": "relu", "grid": 4, "classes": ["malignant"]},
            "deep": {"of": "frozen", "pca": 32},
            "apart": {"of": "maps", "classes": "difference"},
        },
        "meta": ["trees", "sklearn.neighbors.KNeighborsClassifier"],
        "custom": {"trees": {"estimator": "sklearn.ensemble.ExtraTreesClassifier"}},
        "compare": {"features": [["deep"], ["relu4", "logits"]]},
    }
    config = load_config(write_config(stack=stack, frozen={"test_vit": {"weights": "random"}}))
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config


def test_names_that_have_a_meaning_are_not_given_another(write_config: Callable[..., Path]) -> None:
    """Blocks and meta-learners of one's own have names of their own; options fit what they are of."""
    for stack, message in (
        ({"blocks": {"logits": {"of": "maps"}}}, "is a built-in block"),
        ({"custom": {"mean": {"estimator": "a.B"}}}, "is a built-in meta-learner"),
        ({"custom": {"constant": {"estimator": "a.B"}}}, "'constant' has a row of scores already"),
        ({"custom": {"test_resnet": {"estimator": "a.B"}}}, "'test_resnet' has a row of scores"),
        ({"blocks": {"view": {"of": "maps", "classes": []}}}, "classes"),
        ({"compare": {"features": [["logits", "maps"], ["maps", "logits"]]}}, "lists a name twice"),
        ({"meta": ["../../x.y"]}, r"no meta-learner '\.\./\.\./x\.y'"),
        ({"blocks": {"view": {"of": "logits"}}}, "'logits' has no views"),
        ({"blocks": {"view": {"of": "frozen", "grid": 3}}}, "grid: only for maps"),
        (
            {"blocks": {"view": {"of": "maps", "view": "stats", "grid": 3}}},
            "which uses the maps' own grid",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(write_config(stack=stack))


def test_holdout_leaves_cases_to_train_on(write_config: Callable[..., Path]) -> None:
    """Shares that leave nothing for training are refused with the sum."""
    with pytest.raises(ConfigError, match="95 % of the cases"):
        load_config(write_config(folds={"test": 0.5, "stack": 0.45}))


def test_only_what_decides_results_is_frozen(make_config: Callable[..., Config]) -> None:
    """The stack section and the device may change within a run, the training recipe may not."""
    config = make_config()
    assert make_config(stack={"meta": ["mlp"]}, device="cpu").results() == config.results()
    assert make_config(train={"epochs": 9}).results() != config.results()


def test_unknown_keys_of_a_range_are_explained(write_config: Callable[..., Path]) -> None:
    """The section may be absent, which does not hide what it knows."""
    path = write_config(tune={"space": {"train.lr": {"lo": 1, "high": 2}}, "trails": 3})
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "tune.space.train.lr.lo: unknown key; did you mean 'low'" in str(caught.value)
    assert "tune.trails: unknown key; did you mean 'trials'" in str(caught.value)


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"low": 1}, "set either low and high, or choices"),
        ({"low": 1, "high": 2, "choices": [1, 2]}, "set either low and high, or choices"),
        ({"low": 2, "high": 1}, "low=2.0 is not below high=1.0"),
        ({"low": 0, "high": 1, "log": True}, "log=true needs low above 0"),
        ({"low": 1, "high": 2.5, "whole": True}, "whole=true needs whole numbers, found 1.0 and 2.5"),
    ],
)
def test_ranges_that_are_none_are_refused(
    write_config: Callable[..., Path], bounds: dict[str, object], reason: str
) -> None:
    """What `tune` may choose from is bounds or choices, and they make sense."""
    with pytest.raises(ConfigError, match=reason):
        load_config(write_config(tune={"space": {"train.lr": bounds}}))
