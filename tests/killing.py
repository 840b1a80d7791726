"""Kill stage two again and again, in children of one process that has loaded everything already.

Called by test_survival with a config, a number of trials and a seed; prints what was found as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stacker import pipeline
from stacker.caches.format import INDEX
from stacker.caches.reader import opened, read_digest
from stacker.config.load import load_config
from stacker.files import file_sha256
from stacker.maps.verify import verify
from stacker.run import reopen


def start(work: Callable[[], object]) -> int:
    """Do something in a child; return its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def finish(child: int) -> int:
    """Wait for a child; return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of the caches."""
    return {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*.h5"))}


def main(config_file: str, trials: str, seed: str) -> None:
    """Kill stage two at random moments; each time look at what is there, and go on."""
    config = load_config(Path(config_file))
    folder = config.run_path / "cache"

    def fill() -> None:
        pipeline.cache(reopen(config))

    def examine() -> None:
        problems = [problem for verdict in verify(reopen(config)) for problem in verdict.problems]
        if problems:
            raise RuntimeError(problems)

    started = time.monotonic()
    if finish(start(fill)) != 0:
        raise RuntimeError("stage two fails undisturbed")
    seconds = time.monotonic() - started
    undisturbed = contents(folder)
    rng = random.Random(int(seed))  # noqa: S311  # moments, not secrets
    outcomes = []
    for _ in range(int(trials)):
        shutil.rmtree(folder)
        child = start(fill)
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        killed = finish(child) == -signal.SIGKILL
        parts = sorted(folder.rglob("part-*.h5"))
        for part in parts:
            with opened(part) as file:
                read_digest(file)
        early = [
            str(index)
            for index in folder.rglob(INDEX)
            if {*index.parent.glob("*.h5")}
            != {folder / n for n in undisturbed if Path(n).parent == index.parent.relative_to(folder)}
        ]
        resumed = finish(start(fill))
        outcomes.append(
            {
                "killed": killed,
                "parts": len(parts),
                "equal": [
                    undisturbed.get(str(part.relative_to(folder))) == file_sha256(part) for part in parts
                ],
                "early_indices": early,
                "resumed": resumed,
                "same": contents(folder) == undisturbed,
                "left_over": [str(path) for path in folder.rglob("*.tmp")],
            }
        )
    sys.stdout.write(
        json.dumps({"files": len(undisturbed), "trials": outcomes, "verified": finish(start(examine))})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
