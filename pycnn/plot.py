"""Pictures of training and of what a model has learned. Needs matplotlib: pip install pycnn[plot].

Each function returns a matplotlib Figure, and saves it if given a `path` (its suffix says the format).
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycnn import shapes
from pycnn.classification import checked_names, class_indices, classification_report, confusion_counts
from pycnn.executor import Dropouts, Executors
from pycnn.layers.base import Layer, below

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FilePath = str | os.PathLike[str]
MOST_CLASSES_WITH_NUMBERS = 20
DPI = 120


def history(history: Any, path: FilePath | None = None) -> "Figure":
    """The loss and each metric over the epochs, of training and of validation.

    `history` is what `fit` returns, or a dict of lists like its `history`.
    """
    values = _history(history)
    names = [name for name in values if not name.startswith("val_") and name not in ("lr", "seconds")]
    if not names:
        raise ValueError(f"[history] holds nothing to draw, only {', '.join(values) or 'no values'}")
    figure, panels = _panels(1, len(names), (4.8, 3.6))
    for axes, name in zip(panels, names, strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key in values:
                axes.plot(
                    range(1, len(values[key]) + 1), values[key], marker="." * (len(values[key]) < 30), label=label
                )
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return _saved(figure, path)


def learning_rate(lr: Any, epochs: float | None = None, path: FilePath | None = None) -> "Figure":
    """The learning rate over the epochs: of a schedule, a number, or what `fit` returned.

    A schedule is any callable of the epoch as a float, and needs to know for how many `epochs`.
    """
    if callable(lr) or isinstance(lr, (int, float)):
        if epochs is None:
            raise ValueError("[learning_rate] epochs must say over how many epochs to draw a schedule")
        x = np.linspace(0, shapes.number("learning_rate", "epochs", epochs, 0), 1000, endpoint=False)
        y, line = [float(lr(epoch)) if callable(lr) else lr for epoch in x], "-"
    else:
        y, line = _history(lr).get("lr", []), ".-"
        x = np.arange(1, len(y) + 1)
    figure, (axes,) = _panels(1, 1, (6, 3.6))
    axes.plot(x, y, line)
    axes.set(title="learning rate", xlabel="epoch", ylim=(0, None))
    axes.grid(alpha=0.3)
    return _saved(figure, path)


def confusion_matrix(
    y_true: Any, y_pred: Any, class_names: Sequence[str] | None = None, path: FilePath | None = None
) -> "Figure":
    """How many of each class (row) were taken for which (column): the counts, and their shares of the row.

    `y_true` and `y_pred` are class numbers (N,), one-hot rows or a model's outputs (N, classes).
    """
    counts = confusion_counts(y_true, y_pred, None if class_names is None else len(class_names))
    names = checked_names("confusion_matrix", class_names, counts)
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.62 * min(len(counts), 30)
    figure, (axes,) = _panels(1, 1, (side + 0.6, side))
    image = axes.imshow(rates, cmap="Blues", vmin=0, vmax=1)
    if len(counts) <= MOST_CLASSES_WITH_NUMBERS:
        for (i, j), count in np.ndenumerate(counts):
            text = f"{count}\n{rates[i, j]:.1%}" if count else "0"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if rates[i, j] > 0.5 else "black")
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}
    axes.set_xticks(range(len(names)), names, **slanted)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true", title=f"accuracy {counts.trace() / counts.sum():.2%} of {counts.sum()}")
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046)
    return _saved(figure, path)


def filters(
    model: Layer, layer: str | int | Layer | None = None, most: int = 64, path: FilePath | None = None
) -> "Figure":
    """The filters of a convolution, the first one of the model unless `layer` names another (or is its number).

    Filters of three channels are shown in colour, others in one row a filter, a column a channel, blue below 0 and
    red above. At most `most` pictures are shown.
    """
    chosen = _layer("filters", model, layer, _has_filters)
    weights, most = chosen.params["weight"], shapes.integer("filters", "most", most, 1)
    k, c, *size = weights.shape
    bound = float(np.abs(weights).max()) or 1.0
    if c == 3:
        pictures = [(w.transpose(1, 2, 0) / (2 * bound) + 0.5, f"{i}") for i, w in enumerate(weights)]
    else:
        pictures = [(w[j], f"{i}, {j}" if c > 1 else f"{i}") for i, w in enumerate(weights) for j in range(c)]
    shown = pictures[:most]
    columns = c if c != 3 and 1 < c <= most else _columns(len(shown))
    title = f"{chosen.name}: {_share(len(shown), len(pictures))} filters of {size[0]} x {size[1]}"
    title += "" if c in (1, 3) else " (filter, channel)"
    return _saved(_gallery(shown, columns, title, cmap="RdBu_r", vmin=-bound, vmax=bound), path)


def feature_maps(
    model: Layer, x: Any, layer: str | int | Layer | None = None, most: int = 64, path: FilePath | None = None
) -> "Figure":
    """What a layer gives for an image x (C, H, W), or for the first of a batch: the image, then a map a channel.

    The layer is the first one of the model, unless `layer` names another (or is its number).
    """
    op = "feature_maps"
    x = shapes.array(op, "x", x)
    x = x[np.newaxis] if x.ndim == 3 else x[:1]
    if x.ndim != 4 or len(x) == 0:
        raise ValueError(f"[{op}] x must be an image (C, H, W) or a batch of them, got shape {np.shape(x)}")
    model.build(x.shape[1:])
    chosen = _layer(op, model, layer, lambda layer: True)
    maps = _output_of(model, chosen, x)
    if maps.ndim != 4:
        raise ValueError(f"[{op}] {chosen.name} gives {maps.shape[1:]}, expected maps (C, H, W)")
    channels = maps[0][: shapes.integer(op, "most", most, 1)]
    pictures = [(_picture(x[0]), "image"), *((channel, f"{i}") for i, channel in enumerate(channels))]
    title = f"{chosen.name}: {_share(len(channels), maps.shape[1])} maps of {maps.shape[2]} x {maps.shape[3]}"
    return _saved(_gallery(pictures, _columns(len(pictures)), title, cmap="gray"), path)


def predictions(
    model: Any,
    x: Any,
    y: Any,
    class_names: Sequence[str] | None = None,
    wrong: bool = True,
    most: int = 25,
    path: FilePath | None = None,
) -> "Figure":
    """Images x (N, C, H, W) that a model takes for another class than y, with both names; the surest mistakes first.

    `model` may also be its outputs for x, or classes. wrong=False shows right and wrong ones in the order of x.
    """
    op = "predictions"
    x = shapes.array(op, "x", x, 4)
    outputs = np.asarray(model.predict(x) if isinstance(model, Layer) else model)
    predicted, true = class_indices(op, "the model's output", outputs), class_indices(op, "y", y)
    if not len(x) == len(predicted) == len(true):
        raise ValueError(f"[{op}] x has {len(x)} images, y {len(true)} labels, and there are {len(predicted)} outputs")
    classes = int(max(true.max(), predicted.max())) + 1
    names = range(classes) if class_names is None else class_names
    if len(names) < classes:
        raise ValueError(f"[{op}] class_names has {len(names)} names for {classes} classes")
    sure = _certainty(outputs)
    shown = np.arange(len(x))
    if shapes.boolean(op, "wrong", wrong):
        shown = np.flatnonzero(predicted != true)
        shown = shown[np.argsort(-sure[shown], kind="stable")]
    total = len(shown)
    shown = shown[: shapes.integer(op, "most", most, 1)]
    pictures = [
        (_picture(x[i]), f"{names[predicted[i]]}" + f", not {names[true[i]]}" * bool(predicted[i] != true[i]))
        for i in shown
    ]
    title = f"{_share(len(shown), total)} " + (f"mistakes in {len(x)} images" if wrong else "images")
    return _saved(_gallery(pictures, _columns(len(pictures)), title, size=1.25, cmap="gray", vmin=0, vmax=1), path)


def profile(measured: Any, path: FilePath | None = None) -> "Figure":
    """A bar a layer of what `model.profile` gave, cut into forward, backward and update."""
    rows = measured.ordered()
    figure, (axes,) = _panels(1, 1, (7, 1.2 + 0.22 * len(rows)))
    left = np.zeros(len(rows))
    for part in rows[0].seconds:
        times = np.array([row.seconds[part] * 1e3 for row in rows])
        if times.any():
            axes.barh(range(len(rows)), times, left=left, label=part)
            left += times
    axes.set_yticks(range(len(rows)), [row.layer for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds", title=f"{measured.seconds * 1e3:.3g} ms for {measured.batch} images")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    return _saved(figure, path)


def training(
    folder: FilePath, model: Any, fitted: Any, x: Any, y: Any, class_names: Sequence[str] | None = None
) -> list[Path]:
    """Every picture of a trained classifier and its report.txt, in `folder`; x and y are what to test it on.

    A model without convolutions has no filters to show, and no feature maps.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    outputs = model.predict(x)
    history(fitted, folder / "history.png")
    learning_rate(fitted, path=folder / "learning_rate.png")
    confusion_matrix(y, outputs, class_names, folder / "confusion_matrix.png")
    if any(map(_has_filters, below(model))):
        filters(model, path=folder / "filters.png")
        feature_maps(model, x[0], path=folder / "feature_maps.png")
    predictions(outputs, x, y, class_names, path=folder / "predictions.png")
    (folder / "report.txt").write_text(classification_report(y, outputs, class_names, digits=4))
    return sorted(folder.iterdir())


def _history(value: Any) -> Mapping[str, Sequence[float]]:
    values = getattr(value, "history", value)
    if not isinstance(values, Mapping):
        raise TypeError(f"[plot] history must be what fit returned, or a dict of lists, got {type(value).__name__}")
    return values


def _has_filters(layer: Layer) -> bool:
    return layer.built and np.ndim(layer.params.get("weight")) == 4


def _layer(op: str, model: Any, layer: Any, fits: Callable[[Layer], bool]) -> Layer:
    """The layer inside a model of this name or number, or the first that fits; a layer alone is itself the one."""
    if not isinstance(model, Layer):
        raise TypeError(f"[{op}] model must be a model or a layer, got {type(model).__name__}")
    inside = list(below(model)) or [model]
    if isinstance(layer, Layer):
        chosen = [found for found in inside if found is layer]
    elif isinstance(layer, str):
        chosen = [found for found in inside if found.name == layer]
    elif layer is None:
        chosen = [found for found in inside if fits(found)]
    else:
        number = shapes.integer(op, "layer", layer)
        chosen = getattr(model, "layers", inside)[number : number + 1]
    if not chosen or not fits(chosen[0]):
        names = ", ".join(found.name for found in inside if fits(found))
        raise ValueError(f"[{op}] layer {layer!r} is none of the model's; there are {names or 'none that would do'}")
    return chosen[0]


def _output_of(model: Layer, layer: Layer, x: np.ndarray) -> np.ndarray:
    """What a layer inside the model gives for x: the model's graph is run as far as to its last operation."""
    graph = model._graph(x.shape[1:])
    own = {id(part) for part in (layer, *below(layer))}
    last = max(i for i, node in enumerate(graph.nodes) if id(node.layer) in own)
    graph.nodes = graph.nodes[: last + 1]
    graph.outputs = [graph.nodes[last].output]
    y = np.empty((len(x), *graph.outputs[0].shape), np.float32)
    Executors(graph, Dropouts()).current().predict(x, y)
    return y


def _certainty(outputs: np.ndarray) -> np.ndarray:
    """By how much the largest output of each sample exceeds the next; 0 where there are only classes."""
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return np.abs(outputs.reshape(-1) - 0.5) if outputs.dtype.kind == "f" else np.zeros(len(outputs))
    second, first = np.partition(outputs, -2, axis=1)[:, -2:].T
    return first - second


def _picture(image: np.ndarray) -> np.ndarray:
    """An image (C, H, W) as matplotlib takes it: three channels as colours, otherwise the first one."""
    return np.clip(image.transpose(1, 2, 0), 0, 1) if len(image) == 3 else image[0]


def _share(shown: int, total: int) -> str:
    return f"{total}" if shown == total else f"{shown} of {total}"


def _columns(pictures: int) -> int:
    return max(math.ceil(math.sqrt(1.6 * pictures)), 1)


def _panels(rows: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """A figure of rows x columns panels of this size in inches.

    Not by pyplot, which would keep each figure, and open windows.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib: pip install pycnn[plot]") from None
    figure = Figure((columns * size[0], rows * size[1]), dpi=DPI, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _gallery(
    pictures: Sequence[tuple[np.ndarray, str]], columns: int, title: str, size: float = 0.95, **shown: Any
) -> "Figure":
    """Small pictures with a line of text above each."""
    rows = max(math.ceil(len(pictures) / columns), 1)
    columns = max(columns, math.ceil(2.4 / size))  # so that the title has room
    figure, panels = _panels(rows, columns, (size, size + 0.2))
    for axes in panels:
        axes.set_axis_off()
    for axes, (picture, text) in zip(panels, pictures, strict=False):
        axes.imshow(picture, **shown)
        axes.set_title(text, fontsize=7, pad=2)
    figure.suptitle(title, fontsize=10)
    return figure


def _saved(figure: "Figure", path: FilePath | None) -> "Figure":
    if path is not None:
        figure.savefig(path)
    return figure
