"""The stages in order: what to do, in which run, and what is done already.

Stage one and two are lists of jobs, one per backbone and fold, worked off in this process. A job's
result says in itself from what it was made (an identity digest in a checkpoint, the provenance in a
cache); a job whose result is there is skipped, and anything else that lies in its place is refused or
made anew. Torch is imported by the stages that need it, so stage three runs without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stacker.config import Config
from stacker.errors import RunError
from stacker.studies import Study, begin


def train(study: Study, backbones: Sequence[str] = (), folds: Sequence[str] = ()) -> list[str]:
    """Stage one: fine-tune base models that are not there yet; return those that others have in hand."""
    from stacker.jobs import list_jobs, run_jobs

    return [job.name for job in run_jobs(list_jobs(study, backbones, folds))]


def cache(study: Study) -> int:
    """Stage two: fill the caches of all base models with images that they never saw; return how many."""
    from stacker.caching import fill

    return len(fill(study))


def stack(study: Study, metas: Sequence[str]) -> dict[str, Any]:
    """Stage three: fit the meta-learners that are not fitted yet; return the run's metrics."""
    from stacker.stack import fit_stack

    return fit_stack(study.run, study.manifest, study.folds, metas)


def run_all(config: Config) -> dict[str, Any]:
    """Do all three stages, skipping what is done; return the run's metrics."""
    study = begin(config)
    elsewhere = train(study)
    if elsewhere:
        raise RunError(
            f"{', '.join(elsewhere)}: other processes are training these; run this again when "
            "they are done"
        )
    cache(study)
    return stack(study, config.stack.meta)
