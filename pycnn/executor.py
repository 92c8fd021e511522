"""Runs graphs: by plans on the C kernels, or node by node on the reference.

Both executors have the same methods, so that a model does not know which one runs it. `backend` chooses.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np

from pycnn import lowering, native, reference, shapes
from pycnn.graph import Graph, Parameter, Value
from pycnn.losses import Loss
from pycnn.operators import Run
from pycnn.optimizers import Updates
from pycnn.plan import Arena, Binding, Plan, PlanBuilder
from pycnn.reference import lists

BACKENDS = ("c", "reference")
CACHED_PLANS = 16
_backend: ContextVar[str] = ContextVar("pycnn backend", default="c")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """`with cnn.backend("reference"):` runs models and layers on the pure-Python reference; "c" on the kernels."""
    if name not in BACKENDS:
        raise ValueError(f"[backend] name must be one of {', '.join(BACKENDS)}, got {name!r}")
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


class Dropouts:
    """The seed and step that dropout draws its words from."""

    def __init__(self, seed: int | None = None):
        self.state = np.zeros(2, np.int64)
        self.reseed(seed)

    def reseed(self, seed: int | None) -> None:
        self.state[:] = np.random.SeedSequence(seed).generate_state(1, np.uint64).astype(np.int64)[0], 0

    def advance(self) -> None:
        self.state.data[1] = (self.state.data[1] + 1) % 2**32


class NonFinite(Exception):
    """A loss was NaN or infinite; `layer` is where the first such value came up."""

    def __init__(self, layer: str, loss: float):
        super().__init__(layer, loss)
        self.layer, self.loss = layer, loss


class Executor:
    """Runs one graph: forward, scored, or as a training step. Arrays are (N, ...), labels as a loss made them."""

    def __init__(self, graph: Graph, dropouts: Dropouts):
        self.graph = graph
        self.dropouts = dropouts

    def predict(self, x: np.ndarray, y: np.ndarray) -> None:
        """Writes the output for x to y, a C-contiguous array."""
        raise NotImplementedError

    def evaluate(
        self, x: np.ndarray, labels: np.ndarray, loss: Loss, kind: str, weights: np.ndarray | None = None
    ) -> tuple[float, np.ndarray]:
        """(mean loss, output), without learning; `weights`, one a sample, multiply the samples' losses."""
        raise NotImplementedError

    def train(
        self,
        x: np.ndarray,
        labels: np.ndarray,
        loss: Loss,
        kind: str,
        updates: Updates,
        epoch: float,
        weights: np.ndarray | None = None,
    ) -> tuple[float, np.ndarray]:
        """One step: (mean loss, output) before the update; NonFinite before anything has changed.

        The output is the executor's own and good until the next step.
        """
        raise NotImplementedError

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        """The output for x, keeping what `backward` needs."""
        raise NotImplementedError

    def backward(self, dy: np.ndarray) -> np.ndarray:
        """dx for the last `forward`; the parameters' gradients are set."""
        raise NotImplementedError

    def _gradients(self) -> list[np.ndarray]:
        """Those of all trained parameters."""
        trained = lowering.trained_parameters(self.graph)
        return [self.graph.nodes[index].parameters[role].gradient for index, role in trained]

    def _output(self, n: int) -> np.ndarray:
        return shapes.empty("forward", (n, *self.graph.outputs[0].shape))


class PlanExecutor(Executor):
    """Plans on the C kernels, one for each batch size and purpose, the latest kept."""

    def __init__(self, graph: Graph, dropouts: Dropouts):
        super().__init__(graph, dropouts)
        self._plans: OrderedDict[tuple, Plan] = OrderedDict()
        self._free: dict[tuple, list[Binding]] = {}
        self._lock = threading.Lock()
        self._last: tuple[Binding, np.ndarray] | None = None
        self._layers = list(dict.fromkeys(node.layer for node in graph.nodes if node.parameters))
        self._parameters = [p for node in graph.nodes for p in node.parameters.values()]

    def _plan(self, key: tuple, make: Callable[[], Plan]) -> Plan:
        with self._lock:
            plan = self._plans.get(key) or make()
            self._plans[key] = plan
            self._plans.move_to_end(key)
            while len(self._plans) > CACHED_PLANS:
                self._free.pop(self._plans.popitem(last=False)[0], None)
        return plan

    def _take(
        self, key: tuple, make: Callable[[], Plan], extra: Callable[[], dict[str, np.ndarray]] = dict
    ) -> tuple[Binding, list[Binding]]:
        """A binding of the plan that nobody else is using, and the list to put it back to."""
        key = (*key, *native.plan_settings())
        try:
            self._plans.move_to_end(key)
            free = self._free[key]
            return free.pop(), free  # the usual case by the shortest way
        except (KeyError, IndexError):
            plan = self._plan(key, make)
            return self._bind(plan, extra()), self._free.setdefault(key, [])

    def last_binding(self) -> Binding:
        """The plan that ran last, with its arrays."""
        return self._free[next(reversed(self._plans))][-1]

    def _bind(self, plan: Plan, arrays: dict[str, np.ndarray], **more: np.ndarray) -> Binding:
        arrays = {name: p.memory for name, p in self.graph.parameters().items()} | arrays | more
        return plan.bind(arrays | {"dropout_state": self.dropouts.state}, Arena(plan.arena_bytes))

    def _run_kept(self, binding: Binding) -> None:
        """Runs a plan that keeps what it has made of the parameters, until they may have changed."""
        changes = Parameter.changes
        fresh = binding.prepared_at == changes and not any([p.shared for p in self._parameters])
        binding.run(binding.plan.marks["prepared"] if fresh else 0)
        binding.prepared_at = changes

    def predict(self, x: np.ndarray, y: np.ndarray) -> None:
        x, last = shapes.layout(x)
        n = len(x)
        make = lambda: lowering.inference_plan(self.graph, lowering.Options(n, last, kept=True))  # noqa: E731
        binding, free = self._take(("predict", n, last), make)
        binding.set("x", x)
        binding.set("y", y)
        self._run_kept(binding)
        free.append(binding)

    def evaluate(
        self, x: np.ndarray, labels: np.ndarray, loss: Loss, kind: str, weights: np.ndarray | None = None
    ) -> tuple[float, np.ndarray]:
        x, last = shapes.layout(x)
        n, weighted = len(x), weights is not None
        options = lowering.Options(n, last, kept=True, weighted=weighted)
        make = lambda: lowering.loss_plan(self.graph, options, loss, kind)  # noqa: E731
        key = ("evaluate", n, last, weighted, loss.key(), kind)
        binding, free = self._take(key, make, partial(self._results, n))
        binding.set("x", x)
        binding.set("labels", labels)
        if weighted:
            binding.set("weights", weights)
        self._run_kept(binding)
        result = float(binding.arrays["loss"][0]), binding.arrays["y"].copy()
        free.append(binding)
        return result

    def _results(self, n: int) -> dict[str, np.ndarray]:
        """The arrays that a binding keeps for its output and its loss, so that a step allocates nothing."""
        return {"y": self._output(n), "loss": np.zeros(1, np.float32)}

    def _lower_update(self, updates: Updates, norms: set[int], b: PlanBuilder, index: int, role: str) -> None:
        node = self.graph.nodes[index]
        parameter, which = node.parameters[role], updates.of(node.layer)
        name = lowering.bound_name(index, role)
        slots = [b.external(f"{name}.slot{i}") for i in range(len(updates.slots(node.layer, parameter)))]
        gradient = b.external(lowering.gradient_name(index, role))
        optimizer = updates.optimizers[which]
        optimizer.lower(b, parameter.memory.size, b.external(name), slots, gradient, b.external(f"state{which}"))

    def _lower_norm(self, updates: Updates, seen: set[int], b: PlanBuilder, index: int, role: str) -> None:
        node = self.graph.nodes[index]
        which = updates.of(node.layer)
        if updates.optimizers[which].clip_norm is None:
            return
        gradient = b.external(lowering.gradient_name(index, role))
        size = node.parameters[role].memory.size
        b.call("gradient_norm", [b.external(f"norm{which}"), gradient], size, size=size, kind=int(which in seen))
        seen.add(which)

    def _lower_clipping(self, updates: Updates, seen: set[int], b: PlanBuilder, index: int, role: str) -> None:
        which = updates.of(self.graph.nodes[index].layer)
        limit = updates.optimizers[which].clip_norm
        if limit is not None and which not in seen:
            b.call("clip_factor", [b.external(f"state{which}"), b.external(f"norm{which}")], alpha=limit)
            seen.add(which)

    def _training_arrays(self, updates: Updates) -> dict[str, np.ndarray]:
        arrays = {f"state{i}": state for i, state in enumerate(updates.states)}
        arrays |= {f"norm{i}": norm for i, norm in enumerate(updates.norms)}
        for index, role in lowering.trained_parameters(self.graph):
            node = self.graph.nodes[index]
            parameter = node.parameters[role]
            arrays[lowering.gradient_name(index, role)] = parameter.gradient
            for i, slot in enumerate(updates.slots(node.layer, parameter)):
                arrays[f"{lowering.bound_name(index, role)}.slot{i}"] = slot
        return arrays

    def memory(self, n: int, loss: Loss, kind: str, updates: Updates) -> tuple[int, int, int]:
        """Bytes of a training step on n samples: parameters with gradients and slots, activations, workspace."""
        plan = self._training_plan(lowering.Options(n, training=True), loss, kind, updates)
        arrays = [*self._training_arrays(updates).values(), *(p.memory for p in set(self._parameters))]
        workspace = plan.workspace_bytes()
        return sum(a.nbytes for a in arrays), plan.arena_bytes - workspace, workspace

    def train(
        self,
        x: np.ndarray,
        labels: np.ndarray,
        loss: Loss,
        kind: str,
        updates: Updates,
        epoch: float,
        weights: np.ndarray | None = None,
    ) -> tuple[float, np.ndarray]:
        x, last = shapes.layout(x)
        n, weighted = len(x), weights is not None
        key = ("train", n, last, weighted, loss.key(), kind, updates, self._trainable())
        options = lambda: lowering.Options(n, last, training=True, weighted=weighted)  # noqa: E731
        make = lambda: self._training_plan(options(), loss, kind, updates)  # noqa: E731
        arrays = lambda: self._results(n) | self._training_arrays(updates)  # noqa: E731
        binding, free = self._take(key, make, arrays)
        binding.set("x", x)
        binding.set("labels", labels)
        if weighted:
            binding.set("weights", weights)
        y = binding.arrays["y"]
        updates.begin(epoch)
        complete = binding.run() if updates.batches == 1 else self._gather(binding, updates, n)
        value = float(binding.arrays["loss"][0])
        free.append(binding)
        if not complete:
            updates.cancel()
            raise NonFinite(self._first_non_finite(x, last), value)
        Parameter.changed()
        self.dropouts.advance()
        return value, y

    def _gather(self, binding: Binding, updates: Updates, n: int) -> bool:
        """A step of several batches: the update comes with the last of them. Whether the loss is finite."""
        gradients = binding.plan.marks["gradients"]
        if not binding.run(0, gradients):
            return False
        if updates.gather(self._gradients(), n):
            binding.run(gradients)
        else:
            updates.cancel()
        return True

    def _training_plan(self, options: lowering.Options, loss: Loss, kind: str, updates: Updates) -> Plan:
        passes = (self._lower_norm, self._lower_clipping, self._lower_update)
        return lowering.loss_plan(self.graph, options, loss, kind, passes, updates)

    def _trainable(self) -> tuple[bool, ...]:
        return tuple([layer.trainable for layer in self._layers])

    def _first_non_finite(self, x: np.ndarray, last: bool) -> str:
        """The layer whose output first holds a NaN or infinity, with the same dropout as the step."""
        if not np.isfinite(x).all():
            return "the input x"
        plan = lowering.inference_plan(self.graph, lowering.Options(len(x), last, training=True), all_outputs=True)
        outputs = [np.empty((len(x), *node.output.shape), np.float32) for node in self.graph.nodes]
        arrays = {lowering.output_name(i): output for i, output in enumerate(outputs)}
        self._bind(plan, arrays, x=x, y=self._output(len(x))).run()
        for node, output in zip(self.graph.nodes, outputs, strict=True):
            if not np.isfinite(output).all():
                return f"layer {node.layer.name!r}"
        return "the loss itself"

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        x = np.array(x, order="K")  # kept for backward
        memory, last = shapes.layout(x)
        options = lowering.Options(len(x), last, training)
        key = ("layer", options, self._trainable(), *native.plan_settings())
        plan = self._plan(key, lambda: lowering.layer_plan(self.graph, options))
        gradients = {
            lowering.gradient_name(i, role): self.graph.nodes[i].parameters[role].gradient
            for i, role in lowering.trained_parameters(self.graph)
        }
        # The arena is this forward's own until the next one, so a backward finds its activations.
        y = self._output(len(x))
        if training:
            self.dropouts.advance()
        binding = self._bind(plan, gradients, x=memory, y=y)
        binding.run(0, plan.marks["backward"])
        if training:
            Parameter.changed()
        self._last = binding, x
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        binding, x = self._last
        dx = np.empty(x.shape, np.float32)
        binding.set("dy", np.ascontiguousarray(dy))
        binding.set("dx", dx)
        binding.run(binding.plan.marks["backward"])
        return dx


class ReferenceExecutor(Executor):
    """Node by node on the pure-Python twins, with the same parameters."""

    def __init__(self, graph: Graph, dropouts: Dropouts):
        super().__init__(graph, dropouts)
        self._last: tuple[list[Run], tuple[int, ...]] | None = None

    def _run(self, x: np.ndarray, training: bool) -> tuple[dict[Value, Any], list[Run]]:
        """Every value as nested lists, and each node's run; running statistics are left to `_keep_running`."""
        values: dict[Value, Any] = {self.graph.inputs[0]: x.tolist()}
        runs = []
        seed, step = (int(v) for v in self.dropouts.state)
        # Once each, for nodes that share them.
        as_lists = {p: p.view.tolist() for p in set(self.graph.parameters().values())}
        for index, node in enumerate(self.graph.nodes):
            weights = {role: as_lists[p] for role, p in node.parameters.items()}
            run = Run(node, index, training, [values[v] for v in node.inputs], weights, seed % 2**64, step)
            run.output = values[node.output] = node.operator.run(run)
            runs.append(run)
        return values, runs

    def _keep_running(self, runs: list[Run]) -> None:
        for run in runs:
            for role, p in run.node.parameters.items():
                if not p.learned:
                    p.view[...] = run.weights[role]

    def _back(self, runs: list[Run], start: list[tuple[Value, Any]]) -> dict[Value, Any]:
        """Runs backward from the gradients of some values, setting the parameters' gradients; what remains."""
        gradients: dict[Value, Any] = {}
        written: set[Parameter] = set()

        def give(value: Value, gradient: Any) -> None:
            gradients[value] = reference.add(gradients[value], gradient) if value in gradients else gradient

        for value, gradient in start:
            give(value, gradient)
        for run in reversed(runs):
            dy = gradients.pop(run.node.output, None)
            if dy is None:
                continue
            dxs, of_parameters = run.node.operator.run_backward(run, dy)
            for role, gradient in of_parameters.items():
                if role in run.node.trained:
                    p = run.node.parameters[role]
                    p.gradient_view[...] = p.gradient_view + gradient if p in written else gradient
                    written.add(p)
            for v, dx in zip(run.node.inputs, dxs, strict=True):
                give(v, dx)
        return gradients

    def predict(self, x: np.ndarray, y: np.ndarray) -> None:
        values, _ = self._run(x, False)
        y[...] = values[self.graph.outputs[0]]

    def evaluate(
        self, x: np.ndarray, labels: np.ndarray, loss: Loss, kind: str, weights: np.ndarray | None = None
    ) -> tuple[float, np.ndarray]:
        values, _ = self._run(x, False)
        weights = None if weights is None else weights.tolist()
        value, _ = loss.run_scored(self.graph, values, labels.tolist(), kind, weights)
        return value, np.array(values[self.graph.outputs[0]], np.float32)

    def train(
        self,
        x: np.ndarray,
        labels: np.ndarray,
        loss: Loss,
        kind: str,
        updates: Updates,
        epoch: float,
        weights: np.ndarray | None = None,
    ) -> tuple[float, np.ndarray]:
        updates.begin(epoch)
        values, runs = self._run(x, True)
        weights = None if weights is None else weights.tolist()
        value, gradients = loss.run_scored(self.graph, values, labels.tolist(), kind, weights)
        if not math.isfinite(value):
            updates.cancel()
            raise NonFinite(self._first_non_finite(x, values), value)
        self._keep_running(runs)
        self._back(runs, gradients)
        if updates.batches > 1 and not updates.gather(self._gradients(), len(x)):
            updates.cancel()
        else:
            self._update(updates, epoch)
        Parameter.changed()
        self.dropouts.advance()
        return value, np.array(values[self.graph.outputs[0]], np.float32)

    def _update(self, updates: Updates, epoch: float) -> None:
        trained = [self.graph.nodes[i] for i, _ in lowering.trained_parameters(self.graph)]
        roles = [role for _, role in lowering.trained_parameters(self.graph)]
        for norm in updates.norms:
            norm[0] = 0
        for node, role in zip(trained, roles, strict=True):
            gradient = node.parameters[role].gradient.astype(np.float64)
            updates.norms[updates.of(node.layer)][0] += float((gradient * gradient).sum())
        for node, role in zip(trained, roles, strict=True):
            which = updates.of(node.layer)
            optimizer, parameter = updates.optimizers[which], node.parameters[role]
            factor = optimizer.clip_factor(float(updates.norms[which][0]))
            limit = math.inf if optimizer.clip_value is None else optimizer.clip_value
            g = [min(max(v * factor, -limit), limit) for v in parameter.gradient.ravel().tolist()]
            w = parameter.memory.ravel().tolist()
            arrays = updates.slots(node.layer, parameter)
            slots = [slot.ravel().tolist() for slot in arrays]
            optimizer.update_list(w, g, slots, updates.lr(which, epoch), updates.step)
            for array, values in ((parameter.memory, w), *zip(arrays, slots, strict=True)):
                array[...] = np.reshape(values, array.shape)

    def _first_non_finite(self, x: np.ndarray, values: dict[Value, Any]) -> str:
        if not np.isfinite(x).all():
            return "the input x"
        for node in self.graph.nodes:
            if not all(map(math.isfinite, lists.flatten(values[node.output]))):
                return f"layer {node.layer.name!r}"
        return "the loss itself"

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        if training:
            self.dropouts.advance()
        values, runs = self._run(x, training)
        if training:
            self._keep_running(runs)
        self._last = runs, x.shape
        return np.array(values[self.graph.outputs[0]], np.float32).reshape(self._output(len(x)).shape)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        runs, shape = self._last
        gradients = self._back(runs, [(self.graph.outputs[0], dy.tolist())])
        return np.array(gradients[self.graph.inputs[0]], np.float32).reshape(shape)


class Executors:
    """Both executors of a graph; `current` is the one that `backend` chose."""

    def __init__(self, graph: Graph, dropouts: Dropouts):
        self.graph = graph
        self._made: dict[str, Executor] = {}
        self._dropouts = dropouts

    def current(self) -> Executor:
        name = _backend.get()
        if name not in self._made:
            self._made[name] = (PlanExecutor if name == "c" else ReferenceExecutor)(self.graph, self._dropouts)
        return self._made[name]
