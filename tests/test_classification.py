"""Confusion counts and the classification report."""

import sys

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
    pytest.importorskip("sklearn")
    expected = """\
              precision    recall  f1-score   support

         cat       0.67      1.00      0.80         2
         dog       1.00      0.50      0.67         2

    accuracy                           0.75         4
   macro avg       0.83      0.75      0.73         4
weighted avg       0.83      0.75      0.73         4
"""
    assert cnn.classification_report([0, 0, 1, 1], [0, 0, 0, 1], ["cat", "dog"]) == expected


def test_report_of_outputs():
    """One-hot labels and outputs are taken for the classes they stand for; a class may occur in none of them."""
    pytest.importorskip("sklearn")
    of_classes = cnn.classification_report(TRUE, PREDICTED, ["a", "b", "c", "d"], digits=3)
    assert cnn.classification_report(np.eye(4)[TRUE], 3 * np.eye(4)[PREDICTED] - 1, list("abcd"), 3) == of_classes
    rows = [line.split() for line in of_classes.splitlines()]
    assert ["b", "0.667", "0.667", "0.667", "3"] in rows and ["d", "0.000", "0.000", "0.000", "0"] in rows
    assert rows[-3][-2:] == ["0.667", "6"]


def test_counts_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    y, predicted = np.random.default_rng(0).integers(0, 5, (2, 1000))
    np.testing.assert_array_equal(confusion_counts(y, predicted), metrics.confusion_matrix(y, predicted))


def test_report_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"scikit-learn: pip install pycnn\[plot\]"):
        cnn.classification_report(TRUE, PREDICTED)


def test_a_class_that_is_never_predicted():
    pytest.importorskip("sklearn")
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
