"""What is said when all is done: of which images there is an accuracy, and of which there is none."""

from __future__ import annotations

import numpy as np

from stacker.prediction.rows import Cases, Prediction, Tally
from stacker.scores.predictions import Predictions, by_case


def image(label: str | None, seen: bool | None, predicted: str = "malignant") -> Prediction:
    """Return a row of an image."""
    return Prediction(
        path="a.png",
        case=None,
        label=label,
        predicted=predicted,
        confidence=0.9,
        abstained=None,
        probabilities={"benign": 0.1, "malignant": 0.9},
        disagreement=0.0,
        novelty=None,
        unlike_training=None,
        seen=seen,
        base={},
        overlay=None,
    )


def said(*rows: Prediction) -> str:
    """Return what a tally says of rows."""
    tally = Tally()
    for row in rows:
        tally.add(row)
    return "\n".join(tally.lines())


def test_new_unknown_and_seen_images_are_kept_apart() -> None:
    """Only an accuracy on cases that are known to be new stands without a doubt."""
    new, unknown, seen = (image("malignant", seen) for seen in (False, None, True))
    lines = said(new, image("benign", False), unknown, unknown, unknown, seen)
    assert "accuracy 0.500 on 2 labelled images, of cases that the stack was not fitted on" in lines
    assert "accuracy 1.000 on 3 labelled images; whether the stack was fitted on them is not" in lines
    assert "1 of the images are of cases that the stack was fitted on" in lines


def test_what_is_not_known_to_be_new_is_not_called_so() -> None:
    """A pack without cases, or images without: the accuracy comes with its condition alone."""
    lines = said(image("malignant", None))
    assert "was not fitted on" not in lines
    assert "is not known" in lines
    assert "accuracy" not in said(image("malignant", True)).split("and no accuracy")[0]
    assert "accuracy" not in said(image(None, False))


def test_labels_that_no_class_has_are_told() -> None:
    """How many, the first one and the classes; whatever the spelling, they are not guessed at."""
    lines = said(image("Malignant", False), image("odd", None), image("benign", True))
    assert "warning: 2 labels that no class has" in lines
    assert "'Malignant' of a.png, the classes are benign, malignant" in lines
    assert "labelled image" not in lines


def test_a_case_has_the_mean_of_raw_probabilities() -> None:
    """Images are added as they come, cases come out by name, each with how its images were decided."""
    cases = Cases()
    assert list(cases.means()) == []
    for case, raw, predicted in (
        *(("b", [0.9, 0.1], 0), ("a", [0.2, 0.8], 1), ("b", [0.3, 0.7], 1)),
        *(("b", [0.6, 0.4], 1), ("c", [1.0, 0.0], 0)),  # decided by a threshold of its own
    ):
        cases.add(case, np.array(raw), predicted)
    names, means, votes = zip(*cases.means(), strict=True)
    assert names == ("a", "b", "c")
    np.testing.assert_allclose(np.array(means), np.array([[0.2, 0.8], [0.6, 0.4], [1.0, 0.0]]))
    assert np.array(votes).tolist() == [[0, 1], [1, 2], [1, 0]]


def test_cases_are_told_as_a_run_tells_its_own() -> None:
    """Means are those of `by_case`, to the bit, however many images there are and in whatever order."""
    rng = np.random.default_rng(0)
    names = rng.choice([b"x", b"y", b"z"], 40)
    shares = rng.dirichlet([1, 1, 1], 40)
    cases = Cases()
    for row in range(40):
        cases.add(names[row].decode(), shares[row], 0)
    labels = np.zeros(40, dtype=np.int64)
    plain = by_case(Predictions(labels, names, shares))
    assert plain is not None
    assert np.array_equal([raw for _, raw, _ in cases.means()], plain.probabilities)
    for count in (1, 3, 7, 10):
        ties = Cases()
        for _ in range(count):
            ties.add("x", np.array([0.3, 0.7]), 1)
        ((_, raw, _),) = ties.means()
        assert raw.tolist() == [0.3, 0.7]
