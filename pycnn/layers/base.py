"""What every layer shares: parameters by name, emission into a graph, and working alone."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from pycnn import initializers, packing, shapes
from pycnn.executor import Dropouts, Executor, Executors
from pycnn.graph import Graph, Parameter, Shape, Value
from pycnn.layers import symbol
from pycnn.operators import Operator

LAYERS: dict[str, type["Layer"]] = {}
# The shape of an input without the batch axis, or of several.
Shapes = Shape | tuple[Shape, ...]


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

    Where a layer takes several inputs, x, its shape and dx are lists, one an input; likewise y for several outputs.
    Called on what `Input` or another layer gave, a layer becomes part of a `Model`.
    """

    arity: int | None = 1  # how many inputs; None: two or more
    output_count = 1

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
        self.input_shape = None if input_shape is None else self._input_shape(input_shape)
        self.parameters: dict[str, Parameter] = {}
        self._built_for: Shapes | None = None
        self._executors: dict[Shapes, Executors] = {}
        self._dropouts = Dropouts()
        self._last: Executor | None = None

    def _remember(self, **options: Any) -> None:
        """Keeps the constructor's arguments for get_config."""
        self._options = options

    # ------------------------------------------------------------------ what a subclass defines

    def create(self, input_shape: Shape, generator: np.random.Generator) -> None:
        """Creates the parameters for inputs of this shape (without the batch axis)."""

    def emit(self, graph: Graph, x: Value) -> Value:
        """Adds the layer's operations to a graph; returns the output. Several inputs or outputs are lists."""
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
        shape = self._input_shape(input_shape)
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

    def check_arity(self, count: int) -> None:
        """Refuses a number of inputs that the layer does not take."""
        if (count != self.arity) if self.arity else (count < 2):
            raise ValueError(f"[{self.name}] takes {self.arity or 'two or more'} input(s), got {count}")

    def _input_shape(self, value: Any) -> Shapes:
        """The shape of the input, or those of the inputs, checked."""
        if self.arity == 1:
            return shapes.sizes(self.name, "input_shape", value)
        if not isinstance(value, (list, tuple)) or not all(isinstance(shape, (list, tuple)) for shape in value):
            raise TypeError(f"[{self.name}] input_shape must be a list of shapes, one an input, got {value!r}")
        self.check_arity(len(value))
        return tuple(shapes.sizes(self.name, f"input_shape[{i}]", shape) for i, shape in enumerate(value))

    def _each(self, shape: Shapes) -> tuple[Shape, ...]:
        """The shapes of all inputs."""
        return (shape,) if self.arity == 1 else shape

    def _check_input(self, shape: Shapes) -> None:
        """A layer with parameters takes other image sizes than it was built for, but not other channels."""
        if not any(leaf.parameters for leaf in self.leaves()):
            return
        for given, built in zip(self._each(shape), self._each(self._built_for), strict=True):
            if (len(given), given[:1]) != (len(built), built[:1]):
                raise ValueError(f"[{self.name}] was built for inputs of shape {('N', *built)}, got {('N', *given)}")

    def _parameter(self, name: str, value: np.ndarray, axes: Any = None, learned: bool = True) -> None:
        self.parameters[name] = Parameter(name, np.asarray(value, np.float32), axes, learned)

    def _weight(self, shape: Shape, init: Any, generator: np.random.Generator, axes: Any = None) -> None:
        self._parameter("weight", initializers.draw(self.name, init, shape, generator), axes)

    def _add(self, graph: Graph, operator: Operator, *inputs: Value) -> Value:
        """Adds an operation of this layer, with its parameters."""
        return graph.add(operator, inputs, self, self.parameters)

    def _graph(self, input_shape: Shapes) -> Graph:
        """Several inputs, or outputs, are one in the graph; see packing.py."""
        graph = Graph()
        if self.arity == 1:
            y = self.emit(graph, graph.input(input_shape))
        else:
            y = self.emit(graph, packing.add_inputs(graph, self, input_shape))
        if isinstance(y, list):
            packing.add_outputs(graph, self, y)
        else:
            graph.outputs = [y]
        graph.prune()
        return graph

    def __call__(self, x: Any) -> Any:
        """A place for this layer in a `Model`: its output for what `Input` or other called layers gave."""
        return symbol.call(self, x)

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

    def output_shape(self, input_shape: Any) -> Any:
        """The output's shape for an input of this shape, both without the batch axis."""
        shape = self._input_shape(input_shape)
        layer = self
        if not self.built:
            layer = from_config(to_config(self))
            layer.build(shape, 0)
        graph = layer._graph(shape)
        return [value.shape for value in graph.packed] or graph.outputs[0].shape

    def _arrays_of(self, x: Any) -> list[np.ndarray]:
        """The input, or all inputs, as arrays with a batch axis."""
        if self.arity != 1 and not isinstance(x, (list, tuple)):
            raise TypeError(f"[{self.name}] x must be a list of arrays, one an input, got {type(x).__name__}")
        given = [x] if self.arity == 1 else x
        self.check_arity(len(given))
        arrays = [shapes.array(self.name, "x" if self.arity == 1 else f"x[{i}]", v) for i, v in enumerate(given)]
        for array in arrays:
            if array.ndim < 2:
                raise ValueError(f"[{self.name}] x must have a batch axis and more, got shape {array.shape}")
            if len(array) != len(arrays[0]):
                raise ValueError(f"[{self.name}] x holds batches of {len(arrays[0])} and {len(array)} samples")
        return arrays

    def forward(self, x: Any, training: bool = False) -> Any:
        """The output for x (N, ...); the layer is built on its first input."""
        arrays = self._arrays_of(x)
        training = shapes.boolean(self.name, "training", training)
        each = tuple(array.shape[1:] for array in arrays)
        shape = each[0] if self.arity == 1 else each
        self.build(shape)
        if shape not in self._executors:
            self._executors[shape] = Executors(self._graph(shape), self._dropouts)
        executors, n = self._executors[shape], len(arrays[0])
        self._last = executors.current()
        outputs = [value.shape for value in executors.graph.packed or executors.graph.outputs]
        self._forward_shapes = n, each, outputs
        if not arrays[0].size:
            ys = [np.empty((n, *shape), np.float32) for shape in outputs]
            return ys if executors.graph.packed else ys[0]
        y = self._last.forward(arrays[0] if self.arity == 1 else packing.join(arrays), training)
        return packing.split(y, outputs) if executors.graph.packed else y

    def backward(self, dy: Any) -> Any:
        """dx for the last `forward`; `grads` then holds the gradients of the parameters."""
        if self._last is None:
            raise RuntimeError(f"[{self.name}] backward needs a forward before it")
        n, inputs, outputs = self._forward_shapes
        several = bool(self._last.graph.packed)
        if several and not (isinstance(dy, (list, tuple)) and len(dy) == len(outputs)):
            raise ValueError(f"[{self.name}] dy must be a list of {len(outputs)} arrays, one an output")
        gradients = [shapes.array(self.name, "dy", gradient) for gradient in (dy if several else [dy])]
        for gradient, shape in zip(gradients, outputs, strict=True):
            shapes.expect_shape(self.name, "dy", gradient.shape, (n, *shape))
        if not gradients[0].size:
            for gradient in self.grads.values():
                gradient[...] = 0
            dxs = [np.zeros((n, *shape), np.float32) for shape in inputs]
            return dxs[0] if self.arity == 1 else dxs
        dx = self._last.backward(packing.join(gradients) if several else gradients[0])
        return dx if self.arity == 1 else packing.split(dx, inputs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments that make the same layer again."""
        config = {"name": self.name} if self._named else {}
        if self.input_shape is not None:
            config["input_shape"] = self.input_shape
        return config | self._options

    @classmethod
    def made_of(cls, config: dict[str, Any]) -> "Layer":
        """The layer that `get_config` described."""
        return cls(**config)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_config().items())})"


def below(layer: Layer) -> Iterator[Layer]:
    """All layers inside a layer, at any depth, each before those inside it."""
    for child in layer.children:
        yield child
        yield from below(child)


def name_layers(layer: Layer) -> None:
    """Gives the layers inside that have no name one of their own: conv2d, conv2d_1, ...

    A name that a layer got in another model stays, where it is free: models may share layers.

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
            while part._name in taken:
                part._name = base if number == 0 else f"{base}_{number}"
                number += 1
            taken[part._name] += 1


def to_config(layer: Layer) -> dict[str, Any]:
    """A layer as plain data: its class and its options, layers among them likewise."""
    config = {k: _plain(v) for k, v in layer.get_config().items()}
    return {"class": type(layer).__name__, "name": layer.name, "config": config, "trainable": layer.trainable}


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
    layer = LAYERS[config["class"]].made_of(options)
    if not layer._named and isinstance(config.get("name"), str):
        layer._name = config["name"]  # as a model gave it
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
