"""What data sets consist of, and ways to take parts of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pycnn import shapes

Part = tuple[np.ndarray, np.ndarray]
Parts = tuple[Part, Part]


def checked_per_class(name: str, per_class: Any) -> int | None:
    return None if per_class is None else shapes.integer(name, "per_class", per_class, 1)


def first(part: Part, per_class: int | None) -> Part:
    """The first `per_class` samples of each class, in their order."""
    x, y = part
    if per_class is None:
        return part
    kept = np.sort(np.concatenate([np.flatnonzero(y == label)[:per_class] for label in np.unique(y)]))
    return x[kept], y[kept]


def scaled(part: Part, white: int) -> Part:
    x, y = part
    return np.divide(x, np.float32(white), dtype=np.float32), y.astype(np.int64)


def split(x: Any, y: Any, fractions: Sequence[float] = (0.7, 0.2, 0.1), seed: int | None = 0) -> list[Part]:
    """Shuffled parts of (x, y), one for each fraction, each with the classes in the same proportions.

    x is of shape (N, ...), y holds N integer labels. No sample is in two parts; with fractions that sum to 1,
    each is in one. `seed=None` gives another split each time. ValueError if a part would be empty.
    """
    x, y = np.asarray(x), np.asarray(y)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(f"[split] y must be integer labels of shape (N,), got {y.dtype} of shape {y.shape}")
    if x.ndim == 0 or len(x) != len(y):
        raise ValueError(f"[split] x has shape {x.shape}, expected ({len(y)}, ...) as y holds {len(y)} labels")
    shares = _checked_fractions(fractions)
    rng = np.random.default_rng(None if seed is None else shapes.integer("split", "seed", seed))

    # Spread each class evenly over 0..1, by chance within its spacing: any cut of that line is stratified.
    position = np.empty(len(y))
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
    order = np.argsort(position, kind="stable")

    stops = [round(float(total) * len(y)) for total in np.cumsum(shares)]
    parts = []
    for share, start, stop in zip(shares, [0, *stops], stops, strict=False):
        if start == stop:
            raise ValueError(f"[split] fractions: {share:g} of {len(y)} samples leaves a part empty")
        chosen = rng.permutation(order[start:stop])
        parts.append((x[chosen], y[chosen]))
    return parts


def _checked_fractions(fractions: Any) -> list[float]:
    if not isinstance(fractions, (Sequence, np.ndarray)) or isinstance(fractions, str) or len(fractions) == 0:
        raise TypeError(f"[split] fractions must be a sequence of numbers, got {fractions!r}")
    shares = [shapes.number("split", f"fractions[{i}]", share, 0, 1) for i, share in enumerate(fractions)]
    # The margin is for rounding: 0.7 + 0.2 + 0.1 and the like need not be exactly 1.
    if 0 in shares or sum(shares) > 1 + 1e-9:
        raise ValueError(f"[split] fractions must be positive and sum to at most 1, got {fractions!r}")
    return shares
