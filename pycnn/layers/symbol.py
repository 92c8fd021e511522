"""What a layer gives when it is called on the description of an input: models of any shape are made of these."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pycnn.graph import Shape

if TYPE_CHECKING:
    from pycnn.layers.base import Layer


@dataclass(eq=False)
class Call:
    """A layer called on symbols; one layer may be called several times, with the same weights."""

    layer: "Layer"
    inputs: list["Symbol"]


class Symbol:
    """An input of a model to be, or an output of a call: `output` is its number among the call's."""

    def __init__(self, shape: Shape | None = None, call: Call | None = None, output: int = 0):
        self._given = shape
        self.call = call
        self.output = output

    @cached_property
    def shape(self) -> Shape:
        """Without the batch axis."""
        if self.call is None:
            return self._given
        given = [symbol.shape for symbol in self.call.inputs]
        layer = self.call.layer
        shape = layer.output_shape(given if layer.arity != 1 else given[0])
        return shape[self.output] if isinstance(shape, list) else shape

    def __repr__(self) -> str:
        return f"Symbol({'an input' if self.call is None else f'of layer {self.call.layer.name!r}'})"


def as_symbols(op: str, name: str, value: Any) -> list[Symbol]:
    """A list of symbols from one or a list of them."""
    symbols = list(value) if isinstance(value, (list, tuple)) else [value]
    for symbol in symbols:
        if not isinstance(symbol, Symbol):
            raise TypeError(f"[{op}] {name} must be what Input or a called layer gave, got {type(symbol).__name__}")
    return symbols


def call(layer: "Layer", x: Any) -> Symbol | list[Symbol]:
    """The output of a layer called on one symbol or on a list of them; a list where it has several outputs."""
    inputs = as_symbols(layer.name, "x, when a layer is called,", x)
    layer.check_arity(len(inputs))
    made = Call(layer, inputs)
    outputs = [Symbol(call=made, output=i) for i in range(layer.output_count)]
    return outputs if layer.output_count > 1 else outputs[0]
