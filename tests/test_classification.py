"""Confusion counts and the classification report."""

import re

import numpy as np
import pytest

import pycnn as cnn
from pycnn.classification import confusion_counts

TRUE = [0, 0, 1, 1, 1, 2]
PREDICTED = [0, 1, 1, 1, 0, 2]
COUNTS = [[1, 1, 0], [1, 2, 0], [0, 0, 1]]


def test_counts():
    assert confusion_counts(TRUE, PREDICTED).tolist() == COUNTS
    assert confusion_counts(np.eye(3)[TRUE], np.eye(3)[PREDICTED] * 7 - 3).tolist() == COUNTS
    assert confusion_counts(TRUE, PREDICTED, 4).shape == (4, 4)
    assert confusion_counts([[0], [1], [1]], np.float32([[0.2], [0.5], [0.4]])).tolist() == [[1, 0], [1, 1]]


def test_report_of_two_classes():
    expected = """\
              precision    recall  f1-score   support

         cat       0.67      1.00      0.80         2
         dog       1.00      0.50      0.67         2

    accuracy                           0.75         4
   macro avg       0.83      0.75      0.73         4
weighted avg       0.83      0.75      0.73         4
"""
    assert cnn.classification_report([0, 0, 1, 1], [0, 0, 0, 1], ["cat", "dog"]) == expected


@pytest.mark.parametrize("names", [None, ["a", "b", "c", "d", "a very long name"]])
@pytest.mark.parametrize("digits", [2, 4])
def test_the_report_is_scikit_learns(names, digits):
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for n in (5, 20, 1000):
        y, predicted = np.append(rng.integers(0, 5, n), range(5)), np.append(rng.integers(0, 4, n), range(1, 6)) % 5
        ours = cnn.classification_report(y, predicted, names, digits)
        theirs = sklearn.classification_report(y, predicted, target_names=names, digits=digits, zero_division=0)
        # Some of its versions write the number of samples as 3.0.
        assert ours == re.sub(r"  (\d+)\.0$", r"    \1", theirs, flags=re.MULTILINE)
        np.testing.assert_array_equal(confusion_counts(y, predicted), sklearn.confusion_matrix(y, predicted))


def test_a_class_that_is_never_predicted():
    line = cnn.classification_report([0, 1], [0, 0]).splitlines()[3]
    assert line.split() == ["1", "0.00", "0.00", "0.00", "1"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([0, 1], [0]), "y_true has 2 labels, y_pred has 1"),
        (([0, -1], [0, 0]), "y_true must not be negative"),
        (([], []), "y_true must be classes"),
        (([0, 1], np.zeros((2, 2, 2))), "y_pred must be classes"),
        (([0, 1], ["a", "b"]), "y_pred must be classes"),
        (([0, 1], [0.5, 1.5]), "y_pred with one output must hold probabilities"),
        (([0, 2], [0, 1], ["a", "b"]), r"a class is 2, expected 0\.\.1"),
    ],
)
def test_wrong_values_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        cnn.classification_report(*arguments)
