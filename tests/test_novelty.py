"""How far new images lie from those that a stack was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from stacker.cache import Rows, fixed_text
from stacker.errors import StackError
from stacker.features import Caches, Source
from stacker.novelty import UNLIKE, Novelty, fit_novelty, keep_novelty, load_novelty, novelty_file
from stacker.run import Run

CASES, IMAGES, WIDTH = 12, 8, 40


@dataclass
class Held:
    """A cache that lies in memory."""

    rows: Rows
    features: np.ndarray

    def read(self, name: str, places: np.ndarray) -> np.ndarray:
        """Return some rows of its one array."""
        assert name == "features"
        found: np.ndarray = self.features[places]
        return found


def draw(seed: int, cases: int, shift: float = 0, images: int = IMAGES) -> np.ndarray:
    """Return embeddings of cases that differ from each other more than their images do."""
    rng, basis = np.random.default_rng(seed), np.random.default_rng(0).normal(size=(6, WIDTH))
    of_case = rng.normal(size=(cases, 1, 6)) + 0.5 * rng.normal(size=(cases, images, 6))
    found = of_case @ basis + 0.3 * rng.normal(size=(cases, images, WIDTH)) + shift
    return np.asarray(found.reshape(cases * images, WIDTH), dtype=np.float32)


def make_caches(folds: int = 3, cases: int = CASES, images: int = IMAGES, turn: int = 0) -> Caches:
    """Return caches of two backbones: each fold has cases of its own, and two cases are for the test."""
    sources = []
    groups: dict[bytes, str] = {}
    for fold in range(folds):
        names = [f"c{fold}-{case}" for case in range(cases)] + ["t0", "t1"]
        ids = [f"{name}/{image}" for name in names for image in range(images)]
        groups |= {each.encode(): each.split("/")[0] for each in ids}
        parts = ["development" if not name.startswith("t") else "test" for name in ids]
        rows = Rows(
            label=np.zeros(len(ids), np.int64),
            image_id=fixed_text(ids),
            case_id=fixed_text([each.split("/")[0] for each in ids]),
            fold=fixed_text(parts),
        )
        held = {
            name: Held(rows, draw(100 * fold + n + turn, cases + 2, images=images))
            for n, name in enumerate(("one", "two"))
        }
        sources.append(Source(f"fold{fold}", cast("Any", held), {}))
    names = [f"{name}/fold{fold}" for fold in range(folds) for name in ("one", "two")]
    origins = dict.fromkeys(names, f"digest{turn}")
    return Caches(tuple(sources), ("benign", "malignant"), groups, {}, origins, "float32")


def ask(novelty: Novelty, embeddings: np.ndarray) -> np.ndarray:
    """Return the novelty of images that look the same to every base model."""
    return novelty.percentile(dict.fromkeys(novelty.bases, embeddings))


def fitted(caches: Caches) -> Novelty:
    """Return what is usual."""
    found = fit_novelty(caches)
    assert found is not None
    return found


def test_new_images_of_the_same_kind_are_usual_and_others_are_not() -> None:
    """New cases spread over the whole range; what lies elsewhere is beyond all of them."""
    novelty = fitted(make_caches())
    same, other = ask(novelty, draw(7, 30)), ask(novelty, draw(8, 30, shift=6))
    assert 0.35 < same.mean() < 0.65
    assert (same > UNLIKE).mean() < 0.1
    assert (other > UNLIKE).all()
    assert ask(novelty, np.zeros((1, WIDTH), np.float32)) < 0.2


def test_reference_distances_come_from_fits_without_the_case() -> None:
    """Fits that knew the cases would call new ones too novel."""
    novelty = fitted(make_caches(folds=1, cases=8))
    percentiles = [ask(novelty, draw(seed, 30)).mean() for seed in range(20, 26)]
    assert abs(np.mean(percentiles) - 0.5) < 0.15


def test_what_is_kept_reads_back_and_tells_no_image(tmp_path: Path) -> None:
    """Equal to the last bit; no array has the embedding of an image."""
    caches = make_caches()
    novelty = fitted(caches)
    path = tmp_path / "novelty.npz"
    novelty.save(path)
    again = load_novelty(path)
    new = draw(9, 4)
    assert np.array_equal(ask(again, new), ask(novelty, new))
    assert again.origins == caches.origins
    with np.load(path, allow_pickle=False) as file:
        kept = [file[name] for name in file if name.startswith(("mean", "axes"))]
    embeddings = np.concatenate([c.features for s in caches.sources for c in held(s).values()])
    for array in kept:
        for row in np.atleast_2d(array):
            assert np.abs(embeddings - row).max(axis=1).min() > 0.05


def held(source: Source) -> Mapping[str, Held]:
    """Return a source's caches as what they are here."""
    return cast("Mapping[str, Held]", source.caches)


def test_too_few_cases_or_images_say_nothing() -> None:
    """A mean of a handful of images would tell them."""
    assert fit_novelty(make_caches(cases=1)) is None
    assert fit_novelty(make_caches(cases=3, images=2)) is None


def test_it_is_fitted_again_when_the_caches_change(tmp_path: Path) -> None:
    """And only then; where nothing can be said any more, there is no file."""
    run = Run(tmp_path, cast("Any", None))
    path = novelty_file(run)
    keep_novelty(run, make_caches())
    before = path.stat().st_mtime_ns
    keep_novelty(run, make_caches())
    assert path.stat().st_mtime_ns == before
    keep_novelty(run, make_caches(turn=1))
    assert path.stat().st_mtime_ns != before
    path.write_bytes(b"damaged")
    with pytest.raises(StackError, match="damaged"):
        load_novelty(path)
    keep_novelty(run, make_caches(turn=1))
    assert load_novelty(path).origins == make_caches(turn=1).origins
    keep_novelty(run, make_caches(cases=1))
    assert not path.exists()
