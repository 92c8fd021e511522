"""How well classes were told apart: counts of each mistake, and scikit-learn's report of rates."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pycnn import shapes


def class_indices(op: str, name: str, values: Any) -> np.ndarray:
    """Class numbers (N,) from themselves, from one-hot rows or outputs (N, classes), or from probabilities of class 1.

    Probabilities are floats of shape (N,) or (N, 1) in 0..1, and count as class 1 from 0.5 on.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2) or 0 in array.shape:
        raise ValueError(f"[{op}] {name} must be classes (N,) or outputs (N, classes), got shape {array.shape}")
    if array.ndim == 2 and array.shape[1] > 1:
        return array.argmax(axis=1)
    array = array.reshape(len(array))
    if array.dtype.kind == "f" and not np.array_equal(array, np.floor(array)):
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"[{op}] {name} with one output must hold probabilities in 0..1 or class numbers")
        return (array >= 0.5).astype(np.int64)
    if array.min() < 0:
        raise ValueError(f"[{op}] {name} must not be negative, got {array.min()}")
    return array.astype(np.int64)


def confusion_counts(y_true: Any, y_pred: Any, classes: int | None = None) -> np.ndarray:
    """int64 (classes, classes): how many of class i (row) were taken for class j (column).

    Both arguments may be class numbers, one-hot rows, or outputs (N, classes). `classes` is as many as occur unless
    given.
    """
    op = "confusion_counts"
    true, predicted = class_indices(op, "y_true", y_true), class_indices(op, "y_pred", y_pred)
    if len(true) != len(predicted):
        raise ValueError(f"[{op}] y_true has {len(true)} labels, y_pred has {len(predicted)}")
    occurring = int(max(true.max(), predicted.max())) + 1
    classes = occurring if classes is None else shapes.integer(op, "classes", classes, 1)
    if occurring > classes:
        raise ValueError(f"[{op}] a class is {occurring - 1}, expected 0..{classes - 1}")
    return np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)


def checked_names(op: str, names: Sequence[str] | None, counts: np.ndarray) -> list[str]:
    """The classes' names: their numbers unless given."""
    names = [str(i) for i in range(len(counts))] if names is None else [str(name) for name in names]
    if len(names) != len(counts):
        raise ValueError(f"[{op}] class_names has {len(names)} names for {len(counts)} classes")
    return names


def classification_report(y_true: Any, y_pred: Any, class_names: Sequence[str] | None = None, digits: int = 2) -> str:
    """scikit-learn's table: precision, recall, F1 score and number of samples of each class, and their means.

    The arguments may be class numbers, one-hot rows, or outputs (N, classes). Precision is the share of what was taken
    for a class that is of it, recall the share of a class that was taken for it, F1 their harmonic mean; where nothing
    is to be shared, 0. Needs scikit-learn (pip install pycnn[plot]).
    """
    op = "classification_report"
    counts = confusion_counts(y_true, y_pred, None if class_names is None else len(class_names))
    names, digits = checked_names(op, class_names, counts), shapes.integer(op, "digits", digits)
    try:
        from sklearn import metrics
    except ImportError:
        raise ImportError(f"[{op}] needs scikit-learn: pip install pycnn[plot]") from None
    true, predicted = class_indices(op, "y_true", y_true), class_indices(op, "y_pred", y_pred)
    return metrics.classification_report(
        true, predicted, labels=range(len(names)), target_names=names, digits=digits, zero_division=0.0
    )
