"""What is said when all is done: of which images there is an accuracy, and of which there is none."""

from __future__ import annotations

from stacker.outputs import Prediction
from stacker.tally import Tally


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
    found = said(new, image("benign", False), unknown, unknown, unknown, seen)
    assert "accuracy 0.500 on 2 labelled images, of cases that the stack was not fitted on" in found
    assert "accuracy 1.000 on 3 labelled images; whether the stack was fitted on them is not" in found
    assert "1 of the images are of cases that the stack was fitted on" in found


def test_what_is_not_known_to_be_new_is_not_called_so() -> None:
    """A pack without cases, or images without: the accuracy comes with its condition alone."""
    found = said(image("malignant", None))
    assert "was not fitted on" not in found
    assert "is not known" in found
    assert "accuracy" not in said(image("malignant", True)).split("and no accuracy")[0]
    assert "accuracy" not in said(image(None, False))


def test_labels_that_no_class_has_are_told() -> None:
    """How many, the first one and the classes; whatever the spelling, they are not guessed at."""
    found = said(image("Malignant", False), image("odd", None), image("benign", True))
    assert "warning: 2 labels that no class has" in found
    assert "'Malignant' of a.png, the classes are benign, malignant" in found
    assert "labelled image" not in found
