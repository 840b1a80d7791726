"""The recipes that ship with the program: their settings are those of their names, and they train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stacker import pipeline
from stacker.backbones.backbone import require_known
from stacker.config.load import load_config
from stacker.config.root import Config
from stacker.data.folds import make_folds
from stacker.data.formats.registry import read_manifest
from stacker.errors import DataError
from stacker.training.begin import begin
from stacker.training.optimizer import require_optimizer
from tests.datasets import touch_all

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "recipes").glob("*.yaml"))
NAMED = {path.stem: path for path in RECIPES}
SEVEN = "[fibroadenoma,phyllodes_tumor,tubular_adenoma,ductal_carcinoma,lobular_carcinoma,"
SEVEN += "mucinous_carcinoma,papillary_carcinoma]"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_known_to_timm(path: Path) -> None:
    """Backbones and optimizers are there, and a run is not named like another's."""
    config = load_config(path)
    require_known(list(config.backbones))
    for name in config.backbones:
        require_optimizer(name, config.recipe(name))
    assert [load_config(other).run for other in RECIPES].count(config.run) == 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains(path: Path, data: Path, tmp_path: Path) -> None:
    """Its whole `train` section, shortened, on a small model and synthetic images."""
    settings: dict[str, Any] = yaml.safe_load(path.read_text())
    train = {**settings["train"], "batch_size": 8, "epochs": 2}
    train |= {"unfreeze": {1: "all"}} if "unfreeze" in train else {}
    config = Config.model_validate(
        {
            "run": "short",
            "artifacts": str(tmp_path),
            "data": {"path": str(data)},
            "images": {"size": 32},
            "folds": {"protocol": "holdout", "validation": 0.25},
            "backbones": {"test_resnet": {"weights": "random"}},
            "train": train,
        }
    )
    assert pipeline.train(begin(config)) == []
    assert list(config.run_path.glob("models/*/*/model.safetensors"))


def test_recipes_say_what_their_names_promise() -> None:
    """The figures by which these recipes are known."""
    three = load_config(NAMED["three-backbones"])
    assert set(three.backbones) == {"densenet121", "resnet50", "vgg16"}
    assert (three.train.epochs, three.train.optimizer) == (10, "adam")
    large = load_config(NAMED["efficientnetv2-384"])
    recipe = large.recipe("tf_efficientnetv2_s")
    assert large.images.shape == (384, 384)
    assert (recipe.optimizer, recipe.lr, recipe.loss, recipe.batch_size) == ("nadam", 0.002, "bce", 16)
    assert (recipe.schedule, recipe.decay_rate, recipe.decay_patience) == ("plateau", 0.3, 7)
    assert (recipe.patience, recipe.epochs, recipe.monitor) == (12, 60, "loss")
    for name in ("convnextv2-binary", "convnextv2-subtypes"):
        assert load_config(NAMED[name]).train.unfreeze == {2: 1, 4: 2, 6: "all"}
    seven = load_config(NAMED["pcam-seven"])
    assert len(seven.backbones) == 7
    assert all(seven.recipe(name).trainable == "head" for name in seven.backbones)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 7,909 empty files with BreakHis's names."""
    return touch_all(tmp_path_factory.mktemp("names"))


def split(folder: Path, *overrides: str) -> str:
    """Split the names of BreakHis as the recipe of the subtypes does; return the split's label."""
    wanted = (f"data.path={folder}", *overrides)
    config = load_config(NAMED["convnextv2-subtypes"], wanted)
    manifest = read_manifest(config.data)
    folds = make_folds(manifest, config.folds, config.seed)
    assert len(manifest.classes) == (7 if "data.classes" in " ".join(overrides) else 8)
    return folds.label


def test_eight_subtypes_need_slides_and_seven_do_not(folder: Path) -> None:
    """What the recipe's comment says of the whole of BreakHis is so."""
    assert "leaks across cases" in split(folder)
    with pytest.raises(DataError, match="adenosis"):
        split(folder, "folds.group=case")
    assert "leaks" not in split(folder, "folds.group=case", f"data.classes={SEVEN}")
