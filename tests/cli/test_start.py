"""What each command loads: heavy packages are what a short command would spend its time on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stacker.config.root import Config

TORCH = {"torch", "torchvision", "timm"}
FITTING = {"sklearn", "skops", "xgboost", "optuna"}
DRAWING = {"matplotlib"}
COMPILER = {"torch._dynamo"}
SCIPY = {"scipy.stats"}
ALL = TORCH | FITTING | DRAWING | COMPILER | SCIPY
COMMANDS = {  # each with what it may not load; RUN, CONFIG, IMAGE and OUT are put in
    "predict --help": ALL,
    "data describe --help": ALL,
    "inspect RUN": ALL,
    "cache info RUN": ALL,
    "data describe CONFIG": ALL,
    "inspect RUN --sample 1 --out OUT": ALL - DRAWING,
    "data split CONFIG --out OUT": ALL - DRAWING,
    "stack CONFIG": TORCH | COMPILER | FITTING,
    "predict RUN IMAGE --meta logistic --no-overlays": FITTING | COMPILER | SCIPY,
    "predict RUN IMAGE --meta mlp --no-overlays": FITTING | COMPILER | SCIPY,
    "runs RUN": ALL,
    "train CONFIG": ALL,
    "features RUN --importance logistic": ALL,
    "cache verify RUN": FITTING | COMPILER | SCIPY | DRAWING,
}
CODE = """
import json, sys
from stacker.cli.main import main
sys.argv[0] = "stacker"
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_loads_what_it_needs(
    command: str, finished: Config, data: Path, tmp_path: Path
) -> None:
    """A command that only reads a run loads no large package, a prediction nothing but torch's."""
    places = {
        "RUN": finished.run_path,
        "CONFIG": finished.run_path / "config.yaml",
        "IMAGE": next((data / "histology_slides").rglob("*.png")),
        "OUT": tmp_path / "out.png",
    }
    words = [str(places.get(word, word)) for word in command.split()]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert loaded & COMMANDS[command] == set()


@pytest.mark.parametrize("words", ["no*such.png", "IMAGE --meta xgbost", "IMAGE --meta svm"])
def test_predict_refuses_before_it_loads_torch(words: str, finished: Config, data: Path) -> None:
    """An image or a stack that is not there is reported at once."""
    image = str(next((data / "histology_slides").rglob("*.png")))
    arguments = [image if word == "IMAGE" else word for word in words.split()]
    done = subprocess.run(
        [sys.executable, "-c", CODE, "predict", str(finished.run_path), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2), done.stderr
    assert set(json.loads(done.stderr.splitlines()[-1])) & ALL == set()
