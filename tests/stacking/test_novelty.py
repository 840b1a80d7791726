"""How far new images lie from those that a stack was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from stacker.caches.format import Rows, fixed_text
from stacker.errors import StackError
from stacker.run import BaseModel, Run
from stacker.stacking.novelty import (
    UNLIKE,
    Novelty,
    fit_novelty,
    keep_novelty,
    load_novelty,
    novelty_file,
)
from stacker.stacking.tables import Caches, Source

CASES, IMAGES, WIDTH = 12, 8, 40
BACKBONES = ("one", "two")


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
    found = look(latents(np.random.default_rng(seed), cases, images), base=0, noise=seed)
    return found + np.float32(shift)


def latents(rng: np.random.Generator, cases: int, images: int = IMAGES) -> np.ndarray:
    """Return what there is to see in the images of some cases, (N, 6)."""
    found = rng.normal(size=(cases, 1, 6)) + 0.5 * rng.normal(size=(cases, images, 6))
    return np.asarray(found.reshape(cases * images, 6))


def look(seen: np.ndarray, base: int, noise: int) -> np.ndarray:
    """Return the embeddings of images by a base model: each has a basis of its own, and noise."""
    basis = np.random.default_rng(base).normal(size=(6, WIDTH))
    rest = 0.3 * np.random.default_rng([base, noise]).normal(size=(len(seen), WIDTH))
    return np.asarray(seen @ basis + rest, dtype=np.float32)


def make_caches(
    folds: int = 3,
    cases: int = CASES,
    images: int = IMAGES,
    turn: int = 0,
    tests: int = 2,
    *,
    agree: bool = True,
) -> Caches:
    """Return caches of two backbones: each fold has cases of its own, and all have those for the test.

    The base models of a backbone have a basis in common, or one in each fold.
    """
    sources = []
    tested = latents(np.random.default_rng([turn, 99]), tests, images)
    for fold in range(folds):
        names = [f"c{fold}-{case}" for case in range(cases)] + [f"t{case}" for case in range(tests)]
        ids = [f"{name}/{image}" for name in names for image in range(images)]
        parts = ["test" if name.startswith("t") else "development" for name in ids]
        rows = Rows(
            label=np.zeros(len(ids), np.int64),
            image_id=fixed_text(ids),
            case_id=fixed_text([each.split("/")[0] for each in ids]),
            group_id=fixed_text([each.split("/")[0] for each in ids]),
            fold=fixed_text(parts),
        )
        own = latents(np.random.default_rng([turn, fold]), cases, images)
        seen = np.concatenate([own, tested])
        bases = [base_of(fold, name, agree=agree) for name in BACKBONES]
        held = {
            name: Held(rows, look(seen, base, 2 * turn + 1))
            for name, base in zip(BACKBONES, bases, strict=True)
        }
        sources.append(Source(f"fold{fold}", cast("Any", held), {}))
    bases_of_all = [BaseModel(name, f"fold{fold}") for fold in range(folds) for name in BACKBONES]
    origins = dict.fromkeys(bases_of_all, f"digest{turn}")
    return Caches(tuple(sources), ("benign", "malignant"), {}, origins, "float32")


def base_of(fold: int, backbone: str, *, agree: bool) -> int:
    """Return the number of a base model; those that agree look with the same eyes."""
    return 0 if agree else 10 * fold + BACKBONES.index(backbone) + 1


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
    assert (again.origins, again.ratio) == (caches.origins, novelty.ratio)
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


def test_what_lacks_a_part_is_rebuilt(tmp_path: Path) -> None:
    """Nothing is said by a file that is damaged, and stage three makes it again."""
    run = Run(tmp_path, cast("Any", None))
    path = novelty_file(run)
    keep_novelty(run, make_caches())
    with np.load(path) as file:
        rest = {name: file[name] for name in file if name != "ratio"}
    np.savez(path, **rest)
    with pytest.raises(StackError, match="damaged"):
        load_novelty(path)
    keep_novelty(run, make_caches())
    assert 0 < load_novelty(path).ratio < 1


def ask_again(novelty: Novelty, seen: np.ndarray, shift: float = 0, *, agree: bool) -> np.ndarray:
    """Return the novelty of new images, which every base model sees with its own eyes."""
    looks = {
        BaseModel(name, fold): look(seen, base_of(int(fold[4:]), name, agree=agree), noise=0)
        + np.float32(shift)
        for name, fold in novelty.bases
    }
    return novelty.percentile(looks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folds", "cases", "agree"),
    [(3, 12, False), (5, 12, False), (5, 12, True), (5, 5, False), (1, 12, False), (1, 30, True)],
)
def test_one_image_in_twenty_of_the_same_kind_is_called_unlike(
    folds: int, cases: int, *, agree: bool
) -> None:
    """Whatever the folds, whether their models agree, with cases that differ; and a shift is seen."""
    usual, shifted = [], []
    for turn in range(40):
        novelty = fitted(make_caches(folds, cases, turn=turn, tests=4, agree=agree))
        seen = latents(np.random.default_rng([turn, 100]), 100)
        usual.append((ask_again(novelty, seen, agree=agree) > UNLIKE).mean())
        shifted.append((ask_again(novelty, seen, shift=6, agree=agree) > UNLIKE).mean())
    assert 0.035 < np.mean(usual) < 0.065
    assert np.mean(shifted) > 0.9


@pytest.mark.parametrize("tests", [0, 1])
def test_without_test_images_the_reference_stays_as_wide_as_it_is(tests: int) -> None:
    """Nothing says how much averaging narrows; then fewer images are called unlike, not more."""
    few = fitted(make_caches(tests=tests, images=7))
    assert few.ratio == 1
    many = fitted(make_caches(tests=2, images=7))
    assert many.ratio < 1
    spread = [np.ptp(each.reference) for each in (few, many)]
    assert spread[1] == pytest.approx(many.ratio * spread[0])


def test_test_images_that_all_look_the_same_narrow_nothing() -> None:
    """A spread of nought says nothing of how much it would have narrowed."""
    caches = make_caches()
    for source in caches.sources:
        for each in held(source).values():
            each.features[each.rows.fold == b"test"] = 0
    assert fitted(caches).ratio == 1
