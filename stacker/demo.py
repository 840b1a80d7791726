"""The demo: a synthetic data set, all three stages on it, and a picture of the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacker import inspection, pipeline, studies
from stacker.configfile import load_config
from stacker.errors import ConfigError
from stacker.figures import save_figure
from stacker.synthetic import write_breakhis

PICTURES = 4


@dataclass(frozen=True)
class Demo:
    """What the demo made and where it lies."""

    run: Path
    metrics: dict[str, Any]
    heatmaps: Path


def demo_config() -> Path:
    """Return configs/demo.yaml, of the source tree or of the installed package."""
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "demo.yaml").exists():
            return folder / "demo.yaml"
    raise ConfigError(f"configs/demo.yaml is missing beside {package}; install stacker again")


def run_demo(overrides: tuple[str, ...] = ()) -> Demo:
    """Write the data set where the demo config expects it, run the stages, draw the heatmaps."""
    config = load_config(demo_config(), overrides)
    write_breakhis(config.data.path, seed=config.seed)
    metrics = pipeline.run_all(config)
    run = studies.open_study(config.run_path).run
    caches = inspection.find_caches(run)
    images = inspection.sample(caches, PICTURES, config.seed)
    heatmaps = run.figures / "heatmaps.png"
    save_figure(inspection.draw(run, caches, images), heatmaps)
    return Demo(run.path, metrics, heatmaps)
