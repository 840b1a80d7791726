"""Tests of differences against brute force, published values and sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from stacker.scores.influence import difference_of_areas
from stacker.scores.predictions import Predictions, by_case
from stacker.scores.significance import (
    TESTS,
    clustered_delong,
    compare_pair,
    delong,
    exchange_test,
    holm,
    mcnemar,
)
from tests.predictions import brute_variance, clustered_pair, predictions


def test_delong_by_hand() -> None:
    """Three images of each class, worked out in fractions.

    The first model wins all pairs but one, (0.4 against 0.5): components 1, 1, 2/3 and 1, 1, 2/3. The
    second loses all pairs of its lowest positive and one more: 1, 2/3, 0 and 2/3, 2/3, 1/3. The
    differences 0, 1/3, 2/3 and 1/3, 1/3, 1/3 have sample variances 1/9 and 0, so that the variance is
    1/9/3 = 1/27 and z = (1/3) / sqrt(1/27) = sqrt(3).
    """
    labels = np.array([1, 1, 1, 0, 0, 0])
    first = predictions(labels, np.array([0.9, 0.8, 0.4, 0.1, 0.2, 0.5]))
    second = predictions(labels, np.array([0.9, 0.5, 0.1, 0.2, 0.3, 0.7]))
    assert delong(first, second) == pytest.approx(0.0832645, abs=1e-6)
    assert delong(second, first) == delong(first, second)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_areas_are_compared_by_definition(seed: int, mixed: bool) -> None:
    """Midranks give what counting all pairs gives, ties included, by image and by case.

    Cases may be of one class, or of both.
    """
    first, second = clustered_pair(seed, mixed=mixed)
    areas = [roc_auc_score(model.labels, model.probabilities[:, 1]) for model in (first, second)]
    gap = abs(areas[0] - areas[1])
    z = gap / brute_variance(first, second, np.arange(len(first.labels))) ** 0.5
    assert delong(first, second) == pytest.approx(2 * stats.norm.sf(z))
    carriers = min(len(np.unique(first.cases[first.labels == k])) for k in range(2))
    z = gap / brute_variance(first, second, first.cases) ** 0.5
    assert clustered_delong(first, second) == pytest.approx(2 * stats.t.sf(z, carriers - 1))


@pytest.mark.parametrize("seed", range(3))
def test_clustered_delong_is_delong_of_single_images(seed: int) -> None:
    """One image in each case leaves DeLong's variance exactly; p is by t, and the larger."""
    first, second = clustered_pair(seed)
    names = np.array([f"case {i:03}" for i in range(len(first.labels))])
    by_case = clustered_delong(*(replace(model, cases=names) for model in (first, second)))
    by_image = delong(first, second)
    assert by_case is not None
    assert by_image is not None
    freedom = min(np.bincount(first.labels)) - 1
    z = stats.t.isf(by_case / 2, freedom)
    assert by_image == pytest.approx(2 * stats.norm.sf(z), rel=1e-9)
    assert by_case > by_image


@pytest.mark.parametrize("cuts", [1, 2])
def test_areas_are_compared_within_parts(cuts: int) -> None:
    """Parts are put together by their pairs: a shift of a part changes nothing, other parts do."""
    first, second = clustered_pair(2, mixed=True)
    rng = np.random.default_rng(cuts)
    parts = rng.integers(3, size=(cuts, len(first.labels)))
    raws = rng.integers(8, size=(2, cuts, len(first.labels), 2)) / 8 + first.labels[:, None] / 4
    one, other = (
        replace(model, raw=raw + 2 * parts[..., None], parts=parts)
        for model, raw in zip((first, second), raws, strict=True)
    )
    gain = difference_of_areas(one, other)
    assert gain is not None
    p = clustered_delong(one, other)
    assert p == gain.p
    assert delong(replace(one, raw=raws[0]), other) == pytest.approx(delong(one, other))
    gaps, pairs = [], []
    for r in range(cuts):
        for part in range(3):
            inside = parts[r] == part
            areas = [roc_auc_score(first.labels[inside], raw[r, inside, 1]) for raw in raws]
            gaps.append(areas[0] - areas[1])
            pairs.append(np.prod(np.bincount(first.labels[inside])))
    assert gain.area == pytest.approx(np.average(gaps, weights=pairs))
    whole = difference_of_areas(replace(one, parts=parts * 0), replace(other, parts=parts * 0))
    assert whole is not None
    assert whole.area != pytest.approx(gain.area, abs=1e-4)
    assert clustered_delong(one, replace(other, parts=parts % 2)) == pytest.approx(p)


@pytest.mark.slow
def test_tests_by_case_keep_their_level_and_those_by_image_do_not() -> None:
    """Of models that are equally good, one in twenty differs at 5 %, if cases are reckoned with.

    A model that is better is found by those tests, too.
    """
    rejected = dict.fromkeys(("delong", "clustered_delong", "mcnemar", "exchange"), 0.0)
    found_out = dict.fromkeys(("clustered_delong", "exchange"), 0.0)
    simulations = 300
    for seed in range(simulations):
        rng = np.random.default_rng(seed)
        of = np.repeat(np.arange(40), 12)
        labels = of % 2
        shared = 2 * labels - 1 + rng.normal(size=40)[of]
        first, second = (
            predictions(labels, stats.norm.cdf(shared + own), of)
            for own in rng.normal(size=(2, 40))[:, of] + rng.normal(size=(2, len(of)))
        )
        p_values = compare_pair(first, second)
        for name in rejected:
            rejected[name] += (p_values[name] or 1) < 0.05
        if seed < 50:
            better = stats.norm.ppf(first.probabilities[:, 1]) + 2 * (2 * labels - 1)
            planted = compare_pair(predictions(labels, stats.norm.cdf(better), of), second)
            for name in found_out:
                found_out[name] += (planted[name] or 0) < 0.05
    level = {name: count / simulations for name, count in rejected.items()}
    assert 0.01 < level["clustered_delong"] < 0.08
    assert 0.01 < level["exchange"] < 0.08
    assert level["delong"] > 0.20
    assert level["mcnemar"] > 0.20
    assert min(found_out.values()) > 45


def test_areas_that_cannot_be_compared() -> None:
    """Three classes, one class, one image of a class or one case of it: there is nothing to say."""
    labels = np.array([0, 0, 1, 1])
    p = predictions(labels, np.array([0.1, 0.6, 0.5, 0.9]), np.array([0, 1, 2, 2]))
    assert delong(p, p) is not None
    assert clustered_delong(p, p) is None
    for few in ([0, 1], [0, 1, 2], [1, 2, 3]):
        assert delong(p.at(np.array(few)), p.at(np.array(few))) is None
    three = Predictions(np.arange(6) % 3, np.arange(6), np.eye(3)[np.arange(6) % 3])
    assert delong(three, three) is None


def test_areas_that_do_not_vary() -> None:
    """A model is as good as itself; a perfect one against a constant has no variance to go by."""
    labels = np.array([0, 0, 1, 1])
    perfect = predictions(labels, np.array([0.1, 0.2, 0.8, 0.9]))
    assert delong(perfect, perfect) == 1
    assert delong(perfect, predictions(labels, np.full(4, 0.5))) is None
    # Interleaved one place apart, each image wins a third of its pairs more, up to the last bit.
    labels = np.array([0, 1, 0, 1, 0, 1])
    lower = predictions(labels, np.array([1, 0, 3, 2, 5, 4]) / 10)
    assert delong(predictions(labels, np.arange(6) / 10), lower) is None


def test_other_images_are_refused() -> None:
    """Tests are paired: the same images in the same order."""
    first, second = clustered_pair(0)
    for test in (delong, clustered_delong, exchange_test):
        with pytest.raises(ValueError, match="the same images"):
            test(first, second.at(np.arange(len(second.labels))[::-1]))


def right_and_wrong(both: int, b: int, c: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two lists of right and wrong with the given counts."""
    counts = (both, b, c, neither)
    return (
        np.repeat(np.array([True, True, False, False]), counts),
        np.repeat(np.array([True, False, True, False]), counts),
    )


@pytest.mark.parametrize(
    ("table", "p"),
    [
        # Agresti's approval ratings: (|150 - 86| - 1)^2 / 236. R without the correction: 17.3559.
        ((794, 150, 86, 570), 4.115e-05),
        ((0, 20, 49, 12), 0.0007495),  # R's mcnemar.test
        ((71, 46, 9, 74), 1.208499116e-06),
        ((41, 8, 17, 12), 0.1095986),  # 25 discordant pairs are enough
        ((5, 20, 20, 5), 1),
    ],
)
def test_mcnemar_equals_r(table: tuple[int, int, int, int], p: float) -> None:
    """Chi-square with continuity correction, from 25 discordant pairs on."""
    assert mcnemar(*right_and_wrong(*table)) == pytest.approx(p, rel=1e-3)


@pytest.mark.parametrize(("b", "c"), [(8, 16), (0, 5), (3, 3), (1, 9)])
def test_mcnemar_is_exact_when_few_differ(b: int, c: int) -> None:
    """The binomial test of b out of b + c at one half, and its textbook value for 1 against 9."""
    p = mcnemar(*right_and_wrong(10, b, c, 4))
    assert p == pytest.approx(stats.binomtest(b, b + c, 0.5).pvalue)
    if (b, c) == (1, 9):
        assert p == pytest.approx(22 / 1024)


def test_models_that_never_differ_are_alike() -> None:
    """No discordant pair, no evidence."""
    assert mcnemar(*right_and_wrong(3, 0, 0, 2)) == 1
    first, _ = clustered_pair(1)
    assert exchange_test(first, first) == 1


@pytest.mark.parametrize("seed", range(4))
def test_exchange_test_goes_through_all_swaps(seed: int) -> None:
    """The convolution counts what listing all 2^cases swaps counts."""
    first, second = clustered_pair(seed, cases=11)
    gain = (first.predicted == first.labels) * 1 - (second.predicted == second.labels) * 1
    by_case = np.bincount(first.cases, gain)
    signs = np.array(list(product((-1, 1), repeat=len(by_case))))
    expected = (np.abs(signs @ by_case) >= abs(by_case.sum())).mean()
    assert exchange_test(first, second) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_exchange_test_of_single_images_is_mcnemars(rights: list[tuple[bool, bool]]) -> None:
    """One image in each case: the exact binomial of the discordant pairs."""
    one, other = np.array(rights).T
    labels = np.zeros(len(one), dtype=int)
    p = exchange_test(
        predictions(labels, np.where(one, 0, 1)), predictions(labels, np.where(other, 0, 1))
    )
    b, c = int((one & ~other).sum()), int((other & ~one).sum())
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert p == pytest.approx(expected)


def test_holm_equals_r() -> None:
    """R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []
    assert holm([None, 0.02, None, 0.01]) == [None, 0.02, None, 0.02]


def test_a_pair_is_compared_by_image_and_by_case() -> None:
    """Every test that has a name; thresholds decide what McNemar's test sees."""
    first, second = clustered_pair(3)
    p_values = compare_pair(first, second)
    assert list(p_values) == list(TESTS)
    one, other = by_case(first), by_case(second)
    assert one is not None
    assert other is not None
    assert p_values["case_delong"] == delong(one, other)
    right = (one.predicted == one.labels, other.predicted == other.labels)
    assert p_values["case_mcnemar"] == mcnemar(*right)
    never = replace(first, threshold=1.1)
    assert compare_pair(never, never)["mcnemar"] == 1
    right = (first.predicted == first.labels, first.labels == 0)
    assert compare_pair(first, never)["mcnemar"] == mcnemar(*right)


def test_cases_of_two_labels_are_not_compared() -> None:
    """Without one label for each case there is no vote; the images can still be compared."""
    p_values = compare_pair(*clustered_pair(2, mixed=True))
    assert p_values["case_delong"] is None
    assert p_values["case_mcnemar"] is None
    assert p_values["clustered_delong"] is not None
