"""A network and its training as a TOML file, for `pycnn train CONFIG.toml`; examples/digits.toml shows all of it.

    [data]        `dataset`, a function of pycnn.datasets, with its arguments, or `file`, a .npz file with the arrays
                  x and y and perhaps x_test and y_test
    [[layers]]    a table a layer
    [compile]     the arguments of compile
    [fit]         the arguments of fit
    [output]      `model`: the file to save to

A table with the key `type` stands for an object: type = "Conv2D" with the layer's arguments, an optimizer, a loss, a
schedule (as `lr`), a callback, an augmentation. Files are looked for next to the TOML file.
"""

import inspect
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pycnn import augment, callbacks, datasets, losses, optimizers, schedules
from pycnn.layers.base import LAYERS, Layer
from pycnn.model import BaseModel, Sequential

SECTIONS = {"data": dict, "layers": list, "compile": dict, "fit": dict, "output": dict}
# Arguments that name a file.
FILES = {"file", "path", "resume", "model"}


@dataclass
class Configuration:
    """What a file describes, all of it checked but the shapes, which the first batch shows."""

    model: Sequential
    training: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray] | None
    class_names: list[str] | None
    fit: dict[str, Any]
    output: str | None


def read(path: str | os.PathLike[str]) -> Configuration:
    """The compiled model, the data and fit's arguments; a ValueError names the place in the file that is wrong."""
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"[train] {path} is not TOML: {error}") from None
    for name, value in content.items():
        if name not in SECTIONS:
            raise ValueError(f"[train] {path} has the part {name!r}, known are {', '.join(SECTIONS)}")
        if not isinstance(value, SECTIONS[name]):
            raise ValueError(f"[train] {name} in {path} must be a {'list of tables' if name == 'layers' else 'table'}")
    for name in ("data", "layers", "compile"):
        if not content.get(name):
            raise ValueError(f"[train] {path} has no {name}")
    content = _next_to(Path(path).parent, content)
    output = content.get("output", {})
    if output.keys() - {"model"}:
        raise ValueError(f"[train] output in {path} knows model alone, got {', '.join(output)}")
    model = Sequential([_object("layers", layer, _layers()) for layer in content["layers"]])
    _call("compile", model.compile, _compile_arguments(content["compile"]))
    training, test, class_names = _data(content["data"])
    fit = _fit_arguments(content.get("fit", {}))
    return Configuration(model, training, test, class_names, fit, output.get("model"))


def _next_to(folder: Path, value: Any) -> Any:
    """The content with the names of files as seen from `folder`."""
    if isinstance(value, list):
        return [_next_to(folder, v) for v in value]
    if not isinstance(value, dict):
        return value
    return {
        k: os.path.join(folder, v) if k in FILES and isinstance(v, str) else _next_to(folder, v)
        for k, v in value.items()
    }


def _call(where: str, function: Callable, arguments: dict[str, Any]) -> Any:
    """function(**arguments), for arguments that it has."""
    parameters = inspect.signature(function).parameters
    for name in arguments:
        if name not in parameters:
            known = ", ".join(p for p in parameters if p != "self")
            raise ValueError(f"[train] {where} has no argument {name!r}, only {known}")
    return function(**arguments)


def _object(where: str, table: Any, known: dict[str, Callable]) -> Any:
    """What a table with a type stands for; its own tables with a type likewise."""
    if not isinstance(table, dict) or table.get("type") not in known:
        got = table.get("type") if isinstance(table, dict) else table
        raise ValueError(f"[train] {where}: type must be one of {', '.join(known)}, got {got!r}")
    options = {k: _inner(f"{where}, {table['type']}", v) for k, v in table.items() if k != "type"}
    try:
        return _call(f"{where}: {table['type']}", known[table["type"]], options)
    except TypeError as error:  # an argument that is missing
        raise ValueError(f"[train] {where}: {table['type']}: {error}") from None


def _inner(where: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_inner(where, v) for v in value]
    if isinstance(value, dict) and "type" in value:
        return _object(where, value, _layers() | schedules.SCHEDULES)
    return value


def _layers() -> dict[str, type[Layer]]:
    return {name: layer for name, layer in LAYERS.items() if layer is not Layer and not issubclass(layer, BaseModel)}


def _by_class(classes: Any) -> dict[str, type]:
    return {c.__name__: c for c in classes}


def _subclasses(module: Any, base: type) -> dict[str, type]:
    """A module's public classes that are made from `base`."""
    classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, base) and c is not base]
    return _by_class(c for c in classes if not c.__name__.startswith("_"))


def _compile_arguments(table: dict[str, Any]) -> dict[str, Any]:
    known = {
        "optimizer": _by_class(optimizers.OPTIMIZERS.values()),
        "loss": _by_class(losses.LOSSES.values()),
    }
    arguments = dict(table)
    for name, classes in known.items():
        if isinstance(table.get(name), dict):
            arguments[name] = _object(f"compile, {name}", table[name], classes)
    arguments["optimizers"] = {
        layer: _object(f"compile, optimizers, {layer}", o, known["optimizer"]) if isinstance(o, dict) else o
        for layer, o in table.get("optimizers", {}).items()
    }
    return arguments


def _fit_arguments(table: dict[str, Any]) -> dict[str, Any]:
    arguments = dict(table)
    for name, module, base in (
        ("callbacks", callbacks, callbacks.Callback),
        ("augment", augment, augment.Augmentation),
    ):
        given, known = table.get(name, []), _subclasses(module, base)
        tables = given if isinstance(given, list) else [given]
        arguments[name] = [_object(f"fit, {name}", described, known) for described in tables]
    if "class_weight" in table:  # TOML's keys are text
        arguments["class_weight"] = {int(label): weight for label, weight in table["class_weight"].items()}
    parameters = inspect.signature(BaseModel.fit).parameters
    for name in arguments:
        if name not in parameters or name in ("self", "x", "y"):
            raise ValueError(f"[train] fit has no argument {name!r}")
    return arguments


def _data(table: dict[str, Any]) -> tuple[tuple, tuple | None, list[str] | None]:
    """((x, y), (x_test, y_test) or None, class names if known)."""
    options = dict(table)
    if "file" in options:
        return *_arrays(**options), None
    name = options.pop("dataset", None)
    known = {n: f for n, f in vars(datasets).items() if _is_dataset(n, f)}
    if name not in known:
        raise ValueError(f"[train] data: dataset must be one of {', '.join(known)}, or give file; got {name!r}")
    result = _call(f"data: {name}", known[name], options)
    return (*result, None) if isinstance(result[0], tuple) else (result[:2], None, result[2])


def _is_dataset(name: str, value: Any) -> bool:
    own = inspect.isfunction(value) and value.__module__.startswith(datasets.__name__)
    return own and name != "split" and not name.startswith("_")


def _arrays(file: str, **others: Any) -> tuple[tuple, tuple | None]:
    if others:
        raise ValueError(f"[train] data: file stands alone, got {', '.join(others)} as well")
    with np.load(file, allow_pickle=False) as arrays:
        missing = {"x", "y"} - set(arrays)
        if missing:
            raise ValueError(f"[train] data: {file} has no array {', '.join(sorted(missing))}")
        test = (arrays["x_test"], arrays["y_test"]) if {"x_test", "y_test"} <= set(arrays) else None
        return (arrays["x"], arrays["y"]), test
