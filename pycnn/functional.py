"""Models that are graphs: layers called on symbols, from inputs to outputs."""

from typing import Any

import numpy as np

from pycnn import packing, shapes
from pycnn.executor import Executor
from pycnn.graph import Graph, Shape, Value
from pycnn.layers.base import Layer, Shapes, name_layers
from pycnn.layers.symbol import Call, Symbol, as_symbols
from pycnn.losses import Loss, OutputLosses
from pycnn.model import BaseModel


def Input(shape: Any) -> Symbol:  # noqa: N802
    """An input of a model to be; `shape` is without the batch axis, such as (3, 32, 32)."""
    return Symbol(shapes.sizes("Input", "shape", shape))


def _calls_between(inputs: list[Symbol], outputs: list[Symbol]) -> list[Call]:
    """The calls that make outputs of inputs, each after those that it needs; without recursion, for deep models."""
    found: dict[Call, None] = {}
    waiting = list(reversed(outputs))
    while waiting:
        symbol = waiting[-1]
        if symbol in inputs or symbol.call in found:
            waiting.pop()
            continue
        if symbol.call is None:
            raise ValueError("[Model] outputs depend on an Input that is not among inputs")
        missing = [s for s in symbol.call.inputs if s not in inputs and s.call not in found]
        waiting += reversed(missing)
        if not missing:
            found[symbol.call] = None
    return list(found)


class Model(BaseModel):
    """A graph of layers from `inputs` to `outputs`, each what `Input` or a called layer gave, or a list of them:

        h = cnn.Input((3, 32, 32))
        y = cnn.Dense(10)(cnn.Flatten()(h))
        model = cnn.Model(h, y)

    Layers that are called several times, or stand in several models, share their weights. With several inputs, x is a
    list of arrays; with several outputs predict returns a list, y is a list, and the loss is one for all outputs or a
    list, whose sum is minimised. `seed` seeds the initial weights.
    """

    def __init__(self, inputs: Any, outputs: Any, seed: int | None = None, *, name: str | None = None):
        self.inputs = as_symbols("Model", "inputs", inputs)
        self.outputs = as_symbols("Model", "outputs", outputs)
        if not self.inputs or not self.outputs:
            raise ValueError("[Model] inputs and outputs must not be empty")
        if len(set(self.inputs)) < len(self.inputs):
            raise ValueError("[Model] inputs holds an Input twice")
        calls = _calls_between(self.inputs, self.outputs)
        read = {symbol for call in calls for symbol in call.inputs} | set(self.outputs)
        for i, symbol in enumerate(self.inputs):
            if symbol not in read:
                raise ValueError(f"[Model] no output depends on inputs[{i}]")
        self.layers = list(dict.fromkeys(call.layer for call in calls))
        # Values count from the inputs on, then in the order of the calls, each with all of its outputs.
        numbers = {symbol: i for i, symbol in enumerate(self.inputs)}
        first = len(numbers)
        firsts = {}
        for call in calls:
            firsts[call] = first
            first += call.layer.output_count
        number = lambda s: numbers[s] if s in numbers else firsts[s.call] + s.output  # noqa: E731
        self._steps = [(self.layers.index(call.layer), [number(s) for s in call.inputs]) for call in calls]
        self._results = [number(symbol) for symbol in self.outputs]
        given = [symbol.shape for symbol in self.inputs]
        self.arity = len(self.inputs)
        self.output_count = len(self.outputs)
        super().__init__(name=name, input_shape=given if self.arity > 1 else given[0], seed=seed)
        name_layers(self)

    # --------------------------------------------------------------------------- as plain data

    def get_config(self) -> dict[str, Any]:
        """The layers, and how they are called: (number of the layer, numbers of the values that it reads)."""
        config = {"name": self.name} if self._named else {}
        config |= {} if self._seed is None else {"seed": self._seed}
        return config | {
            "layers": self.layers,
            "input_shapes": list(self._each(self.input_shape)),
            "steps": [list(step) for step in self._steps],
            "outputs": self._results,
        }

    @classmethod
    def made_of(cls, config: dict[str, Any]) -> "Model":
        symbols = _symbols(config["layers"], config["input_shapes"], config["steps"])
        inputs = symbols[: len(config["input_shapes"])]
        options = {name: config[name] for name in ("seed", "name") if name in config}
        return cls(inputs, [symbols[i] for i in config["outputs"]], **options)

    def __getstate__(self) -> dict[str, Any]:
        """Without the symbols: they refer to one another, as deep as the model is."""
        return {k: v for k, v in super().__getstate__().items() if k not in ("inputs", "outputs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        symbols = _symbols(self.layers, self._each(self.input_shape), self._steps)
        self.inputs, self.outputs = symbols[: self.arity], [symbols[i] for i in self._results]

    # ------------------------------------------------------------------------------- building

    def _build_from_input_shape(self, op: str) -> None:
        if not self.built:
            self.build(self.input_shape)

    def _walk(self, inputs: list[Any], apply: Any) -> list[Any]:
        """Goes through the calls: `apply(layer, what it reads)` gives what it makes; all that was made."""
        made = list(inputs)
        for layer, reads in self._steps:
            given = [made[i] for i in reads]
            y = apply(self.layers[layer], given if self.layers[layer].arity != 1 else given[0])
            made += y if isinstance(y, list) else [y]
        return made

    def create(self, input_shape: Shapes, generator: np.random.Generator) -> None:
        def build(layer: Layer, shape: Any) -> Any:
            layer.build(shape, generator)
            return layer.output_shape(shape)

        self._walk(list(self._each(input_shape)), build)

    def emit(self, graph: Graph, x: Value | list[Value]) -> Value | list[Value]:
        made = self._walk(x if self.arity > 1 else [x], lambda layer, given: layer.emit(graph, given))
        outputs = [made[i] for i in self._results]
        return outputs if self.output_count > 1 else outputs[0]

    def _rows(self) -> list[tuple[Layer, Shape | list[Shape]]]:
        """(layer, the shape of its output) in the order of the calls."""
        rows = []

        def note(layer: Layer, shape: Any) -> Any:
            rows.append((layer, layer.output_shape(shape)))
            return rows[-1][1]

        self._walk(list(self._each(self._built_for)), note)
        return rows

    # ------------------------------------------------------------------ several inputs and outputs

    def _input_array(self, op: str, x: Any) -> np.ndarray:
        if self.arity == 1:
            return super()._input_array(op, x)
        arrays = self._arrays_of(x)
        for i, (array, shape) in enumerate(zip(arrays, self.input_shape, strict=True)):
            shapes.expect_shape(op, f"x[{i}]", array.shape, (len(array), *shape))
        return packing.join(arrays)

    def _shape_of(self, x: np.ndarray) -> Shapes:
        return super()._shape_of(x) if self.arity == 1 else self.input_shape

    def _loss_of(self, loss: Any) -> Loss:
        if self.output_count == 1:
            return super()._loss_of(loss)
        given = list(loss) if isinstance(loss, (list, tuple)) else [loss] * self.output_count
        if len(given) != self.output_count:
            raise ValueError(f"[compile] loss must be one or {self.output_count}, one an output, got {len(given)}")
        return OutputLosses([super(Model, self)._loss_of(each) for each in given])

    def _check_samples(self, op: str, y: Any, n: int) -> None:
        if self.output_count == 1:
            super()._check_samples(op, y, n)
            return
        if not isinstance(y, (list, tuple)) or len(y) != self.output_count:
            raise ValueError(f"[{op}] y must be a list of {self.output_count} arrays, one an output")
        for part in y:
            super()._check_samples(op, part, n)

    def _score(
        self, executor: Executor, value: float, y: np.ndarray, labels: np.ndarray, kind: Any
    ) -> dict[str, float]:
        """The metrics of several outputs go by the names of the layers that give them: classes_accuracy."""
        graph = executor.graph
        if not graph.packed:
            return super()._score(executor, value, y, labels, kind)
        shapes = [output.shape for output in graph.packed]
        parts = zip(packing.split(y, shapes), self._loss.split(labels, kind, shapes), kind, strict=True)
        scores = {"loss": value}
        for name, output, loss, part in zip(self._output_names(), graph.packed, self._loss.losses, parts, strict=True):
            found = self._metrics_of(graph, output, loss, *part)
            scores |= {f"{name}_{metric}": score for metric, score in found.items()}
        return scores

    def _output_names(self) -> list[str]:
        """The name of the layer that gives each output; numbered where one layer gives several."""
        givers = ["input"] * self.arity
        for layer, _ in self._steps:
            givers += [self.layers[layer].name] * self.layers[layer].output_count
        names = [givers[i] for i in self._results]
        return [name if names.count(name) == 1 else f"{name}_{names[:i].count(name)}" for i, name in enumerate(names)]

    def _result(self, executor: Executor, y: np.ndarray) -> Any:
        packed = executor.graph.packed
        return packing.split(y, [value.shape for value in packed]) if packed else y


def _symbols(layers: list[Layer], input_shapes: Any, steps: Any) -> list[Symbol]:
    """The symbols of a model that is described by numbers, as `get_config` does."""
    made: list[Symbol] = [Input(shape) for shape in input_shapes]
    for layer, reads in steps:
        y = layers[layer]([made[i] for i in reads])
        made += y if isinstance(y, list) else [y]
    return made
