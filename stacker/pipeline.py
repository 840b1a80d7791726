"""The stages in order: what to do, in which run, and what is already done.

Stage one and two are lists of jobs, one per backbone and fold, worked off in this process. A job's
result says in itself from what it was made (an identity digest in a checkpoint, the provenance in a
cache); a job whose result is there is skipped, and anything else that lies in its place is refused or
made again. Torch is imported by the stages that need it, so stage three runs without it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stacker.config.load import load_config
from stacker.config.root import Config
from stacker.errors import ConfigError, RunError
from stacker.run import Run, open_run

log = logging.getLogger(__name__)
PICTURES = 4  # that the demo draws


def train(run: Run, backbones: Sequence[str] = (), folds: Sequence[str] = ()) -> list[str]:
    """Stage one: fine-tune base models that are not there yet; return those that others have in hand."""
    from stacker.training.plan import list_jobs

    left = []
    for job in list_jobs(run, backbones, folds):
        if job.is_done():
            log.info("train %s: already done", job.base)
        else:
            left.append(job)
    if not left:  # and torch is not loaded
        return []
    from stacker.training.jobs import run_jobs

    return [str(job.base) for job in run_jobs(left)]


def cache(run: Run) -> int:
    """Stage two: fill the caches of all base models with images that they never saw; return how many."""
    from stacker.maps.fill import fill
    from stacker.training.plan import require_trained

    require_trained(run)
    return len(fill(run))


def stack(run: Run, metas: str | Sequence[str] = ()) -> dict[str, Any]:
    """Stage three: fit the meta-learners that are not fitted yet; return the run's metrics.

    Those of `stack.meta` are fitted where none is named.
    """
    from stacker.stacking.stage import fit_stack

    names = [metas] if isinstance(metas, str) else metas
    return fit_stack(run, names or run.config.stack.meta)


def run_all(config: Config) -> dict[str, Any]:
    """Do all three stages, skipping what is done; return the run's metrics."""
    from stacker.training.begin import begin

    run = begin(config)
    elsewhere = train(run)
    if elsewhere:
        raise RunError(
            f"{', '.join(elsewhere)}: other processes are training these; run this again when "
            "they are done"
        )
    cache(run)
    return stack(run, config.stack.meta)


def _demo_config() -> Path:
    """Return configs/demo.yaml, of the source tree or of the installed package."""
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "demo.yaml").exists():
            return folder / "demo.yaml"
    raise ConfigError(f"configs/demo.yaml is missing beside {package}; install stacker again")


def run_demo(overrides: tuple[str, ...] = ()) -> tuple[Run, dict[str, Any]]:
    """Write the data set where the demo config expects it, run the stages, draw figures/heatmaps.png."""
    from stacker.caches import summary
    from stacker.figures.canvas import save_figure
    from stacker.figures.heatmaps import draw
    from stacker.synthetic.breakhis import write_breakhis

    config = load_config(_demo_config(), overrides)
    write_breakhis(config.data.path, seed=config.seed)
    metrics = run_all(config)
    run = open_run(config.run_path)
    caches = summary.find_caches(run)
    images = summary.sample(caches, PICTURES, config.seed)
    save_figure(draw(run, caches, images), run.figures / "heatmaps.png")
    return run, metrics
