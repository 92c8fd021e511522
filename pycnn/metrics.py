"""Metrics: means over samples of what a model gives (N, ...) against its labels."""

from collections.abc import Callable

import numpy as np

from pycnn.losses import INDICES

Metric = Callable[[np.ndarray, np.ndarray, str, bool], float]


def _classes(labels: np.ndarray, kind: str) -> np.ndarray:
    return labels if kind == INDICES else labels.argmax(axis=-1)


def _share(true: np.ndarray) -> float:
    """The share of elements that are true; several times as fast as their mean."""
    return int(np.count_nonzero(true)) / true.size


def accuracy(y: np.ndarray, labels: np.ndarray, kind: str, logits: bool) -> float:
    """The share of samples whose largest output is the label's; one output counts from 0.5 on, a logit from 0."""
    if y.shape[-1] == 1 and kind != INDICES:
        return _share((y >= (0.0 if logits else 0.5)) == (labels >= 0.5))
    return _share(y.argmax(axis=-1) == _classes(labels, kind))


def top_5(y: np.ndarray, labels: np.ndarray, kind: str, logits: bool) -> float:
    """The share of samples whose label is among the five largest outputs."""
    classes = _classes(labels, kind)
    own = np.take_along_axis(y, classes[:, None], axis=1)
    return _share((y > own).sum(axis=1) < 5)


def mae(y: np.ndarray, labels: np.ndarray, kind: str, logits: bool) -> float:
    """The mean absolute difference of outputs and labels, class numbers as one-hot rows."""
    if kind == INDICES:
        labels = np.eye(y.shape[-1], dtype=np.float32)[labels]
    return float(np.abs(y - labels).mean())


METRICS: dict[str, Metric] = {"accuracy": accuracy, "top_5": top_5, "mae": mae}


def check(names: object) -> tuple[str, ...]:
    """Known metric names as a tuple."""
    names = (names,) if isinstance(names, str) else () if names is None else names
    if not isinstance(names, (list, tuple)):
        raise TypeError(f"[compile] metrics must be a list of names, got {names!r}")
    names = tuple(names)
    for name in names:
        if not isinstance(name, str) or name not in METRICS:
            raise ValueError(f"[compile] metrics must be among {', '.join(METRICS)}, got {name!r}")
    return names
