"""Which caches a run has, and what is said where none of them is complete."""

from __future__ import annotations

import shutil

import pytest

from stacker.caches.summary import find_caches
from stacker.config.root import Config
from stacker.errors import CacheError
from stacker.run import open_run


def test_no_cache_and_no_complete_cache_are_told_apart(finished: Config) -> None:
    """Parts without an index are caches that were begun; a folder without caches has none yet."""
    run = open_run(finished.run_path)
    for index in run.path.glob("cache/*/*/index.h5"):
        index.unlink()
    with pytest.raises(CacheError, match="none of 2 caches is complete"):
        find_caches(run)
    shutil.rmtree(run.path / "cache")
    with pytest.raises(CacheError, match="no cache yet"):
        find_caches(run)
