"""What every layer shares: parameters by name, emission into a graph, and working alone."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from pycnn import initializers, shapes
from pycnn.executor import Dropouts, Executor, Executors
from pycnn.graph import Graph, Parameter, Shape, Value
from pycnn.operators import Operator

LAYERS: dict[str, type["Layer"]] = {}


class ParameterArrays(dict):
    """Arrays by name; assigning to a name writes into the array that the layer uses."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self:
            raise KeyError(f"there is no {name!r} here, only {', '.join(self) or 'nothing'}")
        array = shapes.array("params", name, value)
        shapes.expect_shape("params", name, array.shape, self[name].shape)
        self[name][...] = array

    def update(self, *others: Any, **named: Any) -> None:
        for name, value in dict(*others, **named).items():
            self[name] = value

    def __ior__(self, other: Any) -> "ParameterArrays":
        self.update(other)
        return self

    def setdefault(self, name: str, default: Any = None) -> Any:
        return self[name]

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name!r} belongs to the layer and cannot be removed")

    def clear(self) -> None:
        raise TypeError("the arrays belong to the layer and cannot be removed")

    def pop(self, name: str, *default: Any) -> Any:
        del self[name]

    def popitem(self) -> Any:
        self.clear()


class Layer:
    """A step of a model. It also works alone: `forward`, then `backward`.

    A subclass remembers its options in __init__ (`_remember`), creates its parameters in `create` and adds its
    operations to a graph in `emit`. Subclasses are known by name to `load`.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        LAYERS[cls.__name__] = cls

    def __init__(self, *, name: str | None = None, input_shape: Any = None):
        if name is not None and not (isinstance(name, str) and name):
            raise ValueError(f"[{type(self).__name__}] name must be a string that is not empty, got {name!r}")
        self._options: dict[str, Any] = {}
        self._named = name is not None
        self._name = name or type(self).__name__.lower()
        self._trainable = True
        self.input_shape = None if input_shape is None else shapes.sizes(self.name, "input_shape", input_shape)
        self.parameters: dict[str, Parameter] = {}
        self._built_for: Shape | None = None
        self._executors: dict[Shape, Executors] = {}
        self._dropouts = Dropouts()
        self._last: Executor | None = None

    def _remember(self, **options: Any) -> None:
        """Keeps the constructor's arguments for get_config."""
        self._options = options

    # ------------------------------------------------------------------ what a subclass defines

    def create(self, input_shape: Shape, generator: np.random.Generator) -> None:
        """Creates the parameters for inputs of this shape (without the batch axis)."""

    def emit(self, graph: Graph, x: Value) -> Value:
        """Adds the layer's operations to a graph; returns the output."""
        raise NotImplementedError

    # --------------------------------------------------------------------------------- building

    @property
    def children(self) -> list["Layer"]:
        """Layers inside this one."""
        return []

    def leaves(self) -> Iterator["Layer"]:
        """The layers that hold parameters themselves, in order."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()

    @property
    def name(self) -> str:
        """The layer's name, unique in its model; a model names the layers that were given none."""
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name, self._named = value, True

    @property
    def trainable(self) -> bool:
        """Whether training changes the parameters; setting it sets the layers inside as well."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = shapes.boolean(self.name, "trainable", value)
        for child in self.children:
            child.trainable = value

    @property
    def built(self) -> bool:
        return self._built_for is not None

    def build(self, input_shape: Any, seed: int | np.random.Generator | None = None) -> None:
        """Creates the parameters for `input_shape`, without the batch axis; a second call must agree with it."""
        shape = shapes.sizes(self.name, "input_shape", input_shape)
        if self._built_for is None:
            unbuilt = [layer for layer in (self, *below(self)) if not layer.built]
            try:
                self.create(shape, np.random.default_rng(seed))
                self._graph(shape)
            except Exception:
                for layer in unbuilt:  # so that a refused shape leaves nothing behind
                    layer.parameters, layer._built_for = {}, None
                raise
            self._built_for = shape
        self._check_input(shape)

    def _check_input(self, shape: Shape) -> None:
        """A layer with parameters takes other image sizes than it was built for, but not other channels."""
        holds_parameters = any(leaf.parameters for leaf in self.leaves())
        if holds_parameters and (len(shape), shape[0]) != (len(self._built_for), self._built_for[0]):
            raise ValueError(
                f"[{self.name}] was built for inputs of shape {('N', *self._built_for)}, got {('N', *shape)}"
            )

    def _parameter(self, name: str, value: np.ndarray, axes: Any = None, learned: bool = True) -> None:
        self.parameters[name] = Parameter(name, np.asarray(value, np.float32), axes, learned)

    def _weight(self, shape: Shape, init: Any, generator: np.random.Generator, axes: Any = None) -> None:
        self._parameter("weight", initializers.draw(self.name, init, shape, generator), axes)

    def _add(self, graph: Graph, operator: Operator, *inputs: Value) -> Value:
        """Adds an operation of this layer, with its parameters."""
        return graph.add(operator, inputs, self, self.parameters)

    def _graph(self, input_shape: Shape) -> Graph:
        graph = Graph()
        graph.outputs = [self.emit(graph, graph.input(input_shape))]
        return graph

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: all but plans, which are made anew when it runs."""
        return self.__dict__ | {"_executors": {}, "_last": None}

    # --------------------------------------------------------------------------- public surface

    @property
    def params(self) -> dict[str, np.ndarray]:
        """The learned arrays by name, in public shapes; writable, the layer's own."""
        return self._arrays(lambda p: p.share(), learned=True)

    @property
    def grads(self) -> dict[str, np.ndarray]:
        """The gradients of the last backward by name."""
        return self._arrays(lambda p: p.gradient_view, learned=True)

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Arrays that are not learned but kept, such as running_mean."""
        return self._arrays(lambda p: p.share(), learned=False)

    def _arrays(self, view: Any, learned: bool) -> dict[str, np.ndarray]:
        if not self.built and self.input_shape is not None:
            self.build(self.input_shape)
        arrays = ParameterArrays()
        for leaf in self.leaves():
            prefix = "" if leaf is self else f"{leaf.name}."
            for name, p in leaf.parameters.items():
                if p.learned == learned:
                    dict.__setitem__(arrays, prefix + name, view(p))
        return arrays

    def output_shape(self, input_shape: Any) -> Shape:
        """The output's shape for an input of this shape, both without the batch axis."""
        shape = shapes.sizes(self.name, "input_shape", input_shape)
        layer = self
        if not self.built:
            layer = from_config(to_config(self))
            layer.build(shape, 0)
        return layer._graph(shape).outputs[0].shape

    def forward(self, x: Any, training: bool = False) -> np.ndarray:
        """The output for x (N, ...); the layer is built on its first input."""
        x = shapes.array(self.name, "x", x)
        if x.ndim < 2:
            raise ValueError(f"[{self.name}] x must have a batch axis and more, got shape {x.shape}")
        training = shapes.boolean(self.name, "training", training)
        shape = x.shape[1:]
        self.build(shape)
        if shape not in self._executors:
            self._executors[shape] = Executors(self._graph(shape), self._dropouts)
        executors = self._executors[shape]
        self._last = executors.current()
        self._forward_shapes = x.shape, (len(x), *executors.graph.outputs[0].shape)
        if not x.size:
            return np.empty(self._forward_shapes[1], np.float32)
        return self._last.forward(x, training)

    def backward(self, dy: Any) -> np.ndarray:
        """dx for the last `forward`; `grads` then holds the gradients of the parameters."""
        if self._last is None:
            raise RuntimeError(f"[{self.name}] backward needs a forward before it")
        dy = shapes.array(self.name, "dy", dy)
        x_shape, y_shape = self._forward_shapes
        shapes.expect_shape(self.name, "dy", dy.shape, y_shape)
        if not dy.size:
            for gradient in self.grads.values():
                gradient[...] = 0
            return np.zeros(x_shape, np.float32)
        return self._last.backward(dy)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments that make the same layer again."""
        config = {"name": self.name} if self._named else {}
        if self.input_shape is not None:
            config["input_shape"] = self.input_shape
        return config | self._options

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_config().items())})"


def below(layer: Layer) -> Iterator[Layer]:
    """All layers inside a layer, at any depth, each before those inside it."""
    for child in layer.children:
        yield child
        yield from below(child)


def name_layers(layer: Layer) -> None:
    """Gives the layers inside that have no name one of their own: conv2d, conv2d_1, ...

    Equal given names are refused, and so is a layer that stands in two places.
    """
    inside = list(below(layer))
    if len({id(part) for part in inside}) < len(inside):
        raise ValueError(f"[{layer.name}] a layer stands in two places of the model; each must be a layer of its own")
    taken = Counter(part.name for part in inside if part._named)
    for name, count in taken.items():
        if count > 1:
            raise ValueError(f"[{layer.name}] {count} layers have the name {name!r}; names must differ")
    for part in inside:
        if not part._named:
            base, number = type(part).__name__.lower(), 0
            part._name = base
            while part._name in taken:
                number += 1
                part._name = f"{base}_{number}"
            taken[part._name] += 1


def to_config(layer: Layer) -> dict[str, Any]:
    """A layer as plain data: its class and its options, layers among them likewise."""
    config = {k: _plain(v) for k, v in layer.get_config().items()}
    return {"class": type(layer).__name__, "config": config, "trainable": layer.trainable}


def _plain(value: Any) -> Any:
    """Layers and numbers of NumPy as what JSON knows."""
    if isinstance(value, Layer):
        return to_config(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def from_config(config: Any) -> Layer:
    """The layer that `to_config` described."""
    if not isinstance(config, dict) or not isinstance(config.get("class"), str) or config["class"] not in LAYERS:
        raise ValueError(f"[load] unknown layer {str(config)[:100]!r}")
    options = {k: _from_plain(v) for k, v in config["config"].items()}
    layer = LAYERS[config["class"]](**options)
    # Not through the property, which would set the layers inside, each of which has its own flag.
    layer._trainable = shapes.boolean("load", "trainable", config.get("trainable", True))
    return layer


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict) and "class" in value:
        return from_config(value)
    if isinstance(value, list):
        return [_from_plain(v) for v in value]
    return value


def as_list(op: str, name: str, value: Any) -> list[Layer]:
    """A list of layers from one layer or a list of them."""
    layers = list(value) if isinstance(value, (list, tuple)) else [value]
    for layer in layers:
        if not isinstance(layer, Layer):
            raise TypeError(f"[{op}] {name} must be a layer or a list of layers, got {layer!r}")
    return layers
