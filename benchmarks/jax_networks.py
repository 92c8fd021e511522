"""The networks of networks.py in JAX: the same layers and weights, as functions that it compiles."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pycnn as cnn

Tree = Any  # weights or running statistics: dicts and lists of arrays
# (weights, statistics, x NHWC, training) -> (y, statistics)
Apply = Callable[[Tree, Tree, jax.Array, bool], tuple[jax.Array, Tree]]
Part = tuple[Tree, Tree, Apply]


def activated(layer: cnn.layers.Layer, y: jax.Array) -> jax.Array:
    return y if layer.activation is None else jax.nn.relu(y)


def conv(layer: cnn.Conv2D) -> Part:
    weights = {"weight": layer.params["weight"].transpose(2, 3, 1, 0)}
    if layer.bias:
        weights["bias"] = layer.params["bias"]
    padding = "VALID" if layer.padding == "valid" else [layer.padding[:2], layer.padding[2:]]

    def apply(w: Tree, state: Tree, x: jax.Array, training: bool) -> tuple[jax.Array, Tree]:
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, w["weight"], layer.stride, padding, dimension_numbers=numbers)
        return activated(layer, y + w["bias"] if layer.bias else y), state

    return weights, {}, apply


def dense(layer: cnn.Dense) -> Part:
    def apply(w: Tree, state: Tree, x: jax.Array, training: bool) -> tuple[jax.Array, Tree]:
        return activated(layer, x @ w["weight"] + w["bias"]), state

    return dict(layer.params), {}, apply


def norm(layer: cnn.BatchNorm) -> Part:
    def apply(w: Tree, state: Tree, x: jax.Array, training: bool) -> tuple[jax.Array, Tree]:
        mean, var = state["running_mean"], state["running_var"]
        if training:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            m = layer.momentum
            pairs = zip(state.items(), (mean, var), strict=True)
            state = {name: m * running + (1 - m) * batch for (name, running), batch in pairs}
        return (x - mean) * (w["gamma"] * jax.lax.rsqrt(var + layer.eps)) + w["beta"], state

    return dict(layer.params), dict(layer.state), apply


def pool(layer: cnn.MaxPool2D) -> Part:
    options = layer.get_config()
    stride = options["stride"] or options["pool_size"]
    size, stride, padding = (np.broadcast_to(o, 2) for o in (options["pool_size"], stride, options["padding"]))
    window, steps = (1, *size, 1), (1, *stride, 1)
    pads = [(0, 0), *((p, p) for p in padding), (0, 0)]
    return function(lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, steps, pads))


def function(f: Callable[[jax.Array], jax.Array]) -> Part:
    """A layer without weights."""
    return {}, {}, lambda w, state, x, training: (f(x), state)


def residual(layer: cnn.Residual) -> Part:
    body, shortcut = chain(layer.body), chain(layer.shortcut)

    def apply(w: Tree, state: Tree, x: jax.Array, training: bool) -> tuple[jax.Array, Tree]:
        y, body_state = body[2](w[0], state[0], x, training)
        z, shortcut_state = shortcut[2](w[1], state[1], x, training)
        return y + z, [body_state, shortcut_state]

    return [body[0], shortcut[0]], [body[1], shortcut[1]], apply


PARTS: dict[type, Callable[[Any], Part]] = {
    cnn.Conv2D: conv,
    cnn.Dense: dense,
    cnn.BatchNorm: norm,
    cnn.ReLU: lambda layer: function(jax.nn.relu),
    cnn.MaxPool2D: pool,
    cnn.GlobalAvgPool2D: lambda layer: function(lambda x: x.mean((1, 2))),
    # The weights after it count features in the order C, H, W.
    cnn.Flatten: lambda layer: function(lambda x: x.transpose(0, 3, 1, 2).reshape(len(x), -1)),
    cnn.Residual: residual,
}


def chain(layers: list[cnn.layers.Layer]) -> Part:
    parts = [PARTS[type(layer)](layer) for layer in layers]

    def apply(w: Tree, state: Tree, x: jax.Array, training: bool) -> tuple[jax.Array, Tree]:
        states = []
        for (_, _, part), weights, before in zip(parts, w, state, strict=True):
            x, after = part(weights, before, x, training)
            states.append(after)
        return x, states

    return [part[0] for part in parts], [part[1] for part in parts], apply


def network(model: cnn.Sequential) -> Part:
    weights, state, apply = chain(model.layers)
    return *jax.tree.map(jnp.array, (weights, state)), apply


def training_step(
    model: cnn.Sequential, x: np.ndarray, labels: np.ndarray, rate: float, momentum: float
) -> Callable[[], jax.Array]:
    """A function that trains a copy of the model for one step of SGD with momentum and returns the loss."""
    weights, state, apply = network(model)
    images, targets = jnp.array(x.transpose(0, 2, 3, 1)), jnp.array(labels)

    def loss(w: Tree, s: Tree) -> tuple[jax.Array, Tree]:
        logits, after = apply(w, s, images, True)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1).mean(), after

    def step(w: Tree, velocity: Tree, s: Tree) -> tuple[Tree, Tree, Tree, jax.Array]:
        (value, s), gradients = jax.value_and_grad(loss, has_aux=True)(w, s)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradients)
        return jax.tree.map(lambda p, v: p - rate * v, w, velocity), velocity, s, value

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    training = [weights, jax.tree.map(jnp.zeros_like, weights), state]

    def run() -> jax.Array:
        *training[:], value = compiled(*training)
        return value.block_until_ready()

    return run


def prediction(model: cnn.Sequential, x: np.ndarray) -> Callable[[], jax.Array]:
    weights, state, apply = network(model)
    images = jnp.array(x.transpose(0, 2, 3, 1))
    compiled = jax.jit(lambda w, s, x: apply(w, s, x, False)[0])
    return lambda: compiled(weights, state, images).block_until_ready()
