"""What is said when all is done: of which images there is an accuracy, and of which there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stacker.prediction.rows import Cases, Prediction, Skipped, make_layout
from stacker.prediction.tally import Tally
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
    assert "accuracy 0.500 on 2 labelled images of cases that were not in the training data" in lines
    assert "accuracy 1.000 on 3 labelled images; it is not known whether their cases were in" in lines
    assert "1 image: the case was in the training data. " in lines
    assert "left out of the accuracy" in lines


def test_what_is_not_known_to_be_new_is_not_called_so() -> None:
    """A pack without cases, or images without: the accuracy comes with its condition alone."""
    lines = said(image("malignant", None))
    assert "were not in the training data" not in lines
    assert "is not known" in lines
    assert "accuracy 1" not in said(image("malignant", True))
    assert "accuracy" not in said(image(None, True), image(None, False))


def test_labels_that_no_class_has_are_told() -> None:
    """How many, the first one and the classes; whatever the spelling, they are not guessed at."""
    lines = said(image("Malignant", False), image("odd", None), image("benign", True))
    assert "warning: 2 labels left out of the accuracy, being no class of the stack" in lines
    assert "'Malignant' of a.png; classes: benign, malignant" in lines
    assert "labelled image" not in lines


def test_a_summary_speaks_of_what_there_is() -> None:
    """Nothing is counted that did not happen; why cases have no verdict is said where there are any."""
    assert said(image(None, False)) == "1 image"
    odd = replace(image(None, False), case="7", unlike_training=True, abstained="too low")
    tally = Tally("No verdict by case: labels are of images.")
    tally.add(image(None, False))
    assert len(list(tally.lines())) == 1
    tally.add(odd)
    lines = list(tally.lines())
    assert lines == [
        "2 images of 1 case: 1 unlike the training images, 1 abstained",
        "No verdict by case: labels are of images.",
    ]


def test_a_table_fits_the_terminal() -> None:
    """Paths lose their middle, notes stand below; without a width nothing is cut."""
    path = "/data/" + "folder/" * 20 + "SOB_B_A-14-22549AB-100-001.png"
    row = replace(image(None, True), path=path, novelty=0.97, unlike_training=True)
    fitting = make_layout("table", ["idc_negative", "malignant"], [], 80)
    lines = [*fitting.line(row).split("\n"), *fitting.line(Skipped(path, "no " * 40)).split("\n")]
    assert fitting.header is not None
    assert all(len(line) <= 80 for line in (fitting.header, *lines))
    assert lines[0].endswith("549AB-100-001.png")
    assert lines[1] == "    unlike the training images; the case was in the training data"
    plain = make_layout("table", ["benign", "malignant"], [])
    assert plain.line(row).split("\n")[0].endswith(path)


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
