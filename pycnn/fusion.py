"""The pass that fuses neighbours of a graph, so that one kernel does what several nodes say.

    rectifier + max pooling                pooling first: the same result of fewer elements, for a rectifier is monotone
    convolution, dense or max pooling
      + rectifier                          rectified as it is stored
    batch norm (+ addition) (+ rectifier)  one pass forward, one less backward
    convolution + batch norm               folded into the weights, where nothing but a prediction is wanted; in
                                           training, mean and variance taken while the outputs are in a cache

A rectifier is ReLU or leaky ReLU, whose derivative can be told from its output. A value that another node reads as
well, or that is to be kept, stays.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from pycnn import operators
from pycnn.graph import Graph, Node, Value


def fuse(graph: Graph, kept: Collection[Value], predicts: bool) -> Graph:
    """The same computation in fewer nodes; `predicts`: by running statistics, and no backward will follow."""
    passes = [_rectifiers_behind_pooling, _into_producers, _batch_norms]
    passes.insert(0, _folded_batch_norms if predicts else _measuring_convolutions)
    for one_pass in passes:
        graph = replace(graph, nodes=one_pass(graph, set(kept) | set(graph.outputs)))
    return graph


class _Uses:
    """Who makes a value, and whether one node alone reads it."""

    def __init__(self, graph: Graph, kept: Collection[Value]):
        self._makers = {node.output: node for node in graph.nodes}
        self._readers = Counter(v for node in graph.nodes for v in node.inputs)
        self._kept = kept

    def maker(self, value: Value, kind: type[operators.Operator]) -> Node | None:
        """The node that makes the value for its only reader, if its operator is of this kind."""
        node = self._makers.get(value)
        alone = node is not None and self._readers[value] == 1 and value not in self._kept
        return node if alone and isinstance(node.operator, kind) else None


def _is_rectifier(node: Node | None) -> bool:
    return node is not None and isinstance(node.operator, operators.Activation) and node.operator.epilogue() is not None


def _without(nodes: list[Node], gone: list[Node], changed: dict[int, Node]) -> list[Node]:
    """The nodes in order, some left out and some replaced, by their numbers."""
    numbers = {node.number for node in gone}
    return [changed.get(node.number, node) for node in nodes if node.number not in numbers]


def _rectifiers_behind_pooling(graph: Graph, kept: set[Value]) -> list[Node]:
    uses, nodes = _Uses(graph, kept), list(graph.nodes)
    for pool in graph.nodes:
        if not isinstance(pool.operator, operators.MaxPool2D):
            continue
        rectifier = uses.maker(pool.inputs[0], operators.Activation)
        if _is_rectifier(rectifier):
            pooled = Value(pool.output.shape)
            nodes.remove(rectifier)
            at = nodes.index(pool)
            nodes[at : at + 1] = [
                replace(pool, inputs=rectifier.inputs, output=pooled),
                replace(rectifier, inputs=[pooled], output=pool.output),
            ]
    return nodes


def _into_producers(graph: Graph, kept: set[Value]) -> list[Node]:
    uses, gone, changed = _Uses(graph, kept), [], {}
    for node in filter(_is_rectifier, graph.nodes):
        maker = uses.maker(node.inputs[0], operators.Conv2D | operators.Dense | operators.MaxPool2D)
        if maker is not None:
            gone.append(maker)
            changed[node.number] = replace(
                maker, operator=replace(maker.operator, rectifier=node.operator), output=node.output
            )
    return _without(graph.nodes, gone, changed)


def _batch_norms(graph: Graph, kept: set[Value]) -> list[Node]:
    uses, gone, changed = _Uses(graph, kept), [], {}
    taken: set[int] = set()
    for node in reversed(graph.nodes):  # a rectifier before the addition that it follows
        chain, value = [node], node.inputs[0]
        if _is_rectifier(node):
            add = uses.maker(value, operators.Add)
            chain += [add] if add is not None else []
        elif not isinstance(node.operator, operators.Add):
            continue
        if node.number in taken:
            continue
        candidates = chain[-1].inputs if isinstance(chain[-1].operator, operators.Add) else [value]
        norm = next(filter(None, (uses.maker(v, operators.BatchNorm) for v in candidates)), None)
        if norm is None:
            continue
        residual = [v for v in candidates if v is not norm.output]
        operator = replace(norm.operator, rectifier=node.operator if _is_rectifier(node) else None)
        changed[node.number] = replace(norm, operator=operator, inputs=norm.inputs + residual, output=node.output)
        gone += [norm, *chain[1:]]
        taken |= {n.number for n in (norm, *chain)}
    return _without(graph.nodes, gone, changed)


def _folded_batch_norms(graph: Graph, kept: set[Value]) -> list[Node]:
    uses, gone, changed = _Uses(graph, kept), [], {}
    for node in graph.nodes:
        if isinstance(node.operator, operators.BatchNorm):
            convolution = uses.maker(node.inputs[0], operators.Conv2D)
            if convolution is not None:
                gone.append(convolution)
                changed[node.number] = replace(convolution, output=node.output, norm=node)
    return _without(graph.nodes, gone, changed)


def _measuring_convolutions(graph: Graph, kept: set[Value]) -> list[Node]:
    normalised = {node.inputs[0] for node in graph.nodes if isinstance(node.operator, operators.BatchNorm)}
    return [
        replace(node, operator=replace(node.operator, measures=True))
        if isinstance(node.operator, operators.Conv2D) and node.output in normalised
        else node
        for node in graph.nodes
    ]
