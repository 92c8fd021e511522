"""Each layer alone: the C kernels against the reference, gradients, shapes, parameters, options and errors.

Cotangents are random: one of all ones would hide errors that cancel in a sum.
"""

import copy
import inspect
import json
import math
import pickle

import numpy as np
import pytest

import pycnn as cnn
from pycnn.layers.base import LAYERS, from_config, to_config

ACTIVATIONS = ["relu", "leaky_relu", "sigmoid", "tanh", "elu", "gelu", "silu", "hard_swish"]


def draw(shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def assert_close(actual, expected, tolerance=2e-5):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def twin(layer):
    """Another layer with the same options, parameters and state."""
    other = from_config(to_config(layer))
    other.build(layer._built_for)
    for name in layer.params:
        other.params[name] = layer.params[name]
    for name in layer.state:
        other.state[name] = layer.state[name]
    return other


def randomize(layer, seed=5):
    """Random parameters and state, so that no bias, gamma or running mean is 0 or 1."""
    for arrays in (layer.params, layer.state):
        for name, array in arrays.items():
            noise = draw(array.shape, seed)
            arrays[name] = 1 + np.abs(noise) if name.endswith("running_var") else noise


# How to make the layer, the input's shape. Channel counts lie around vector widths.
CASES = [
    (lambda: cnn.Conv2D(1, 1), (1, 1, 1, 1)),
    (lambda: cnn.Conv2D(3, 3), (2, 2, 5, 4)),
    (lambda: cnn.Conv2D(4, (2, 3), stride=(2, 1), padding="same"), (2, 3, 5, 7)),
    (lambda: cnn.Conv2D(6, 4, stride=3, padding="same", groups=2), (1, 4, 7, 5)),
    (lambda: cnn.Conv2D(5, 3, dilation=2, padding=2, bias=False), (2, 3, 5, 5)),
    (lambda: cnn.Conv2D(17, 3, padding=((0, 2), (1, 0)), activation="relu"), (1, 5, 4, 3)),
    (lambda: cnn.Conv2D(3, 2, padding=(1, 0), dilation=(1, 2), activation="gelu"), (2, 1, 3, 4)),
    (lambda: cnn.Conv2D(9, 1, activation="leaky_relu"), (2, 33, 2, 3)),
    (lambda: cnn.DepthwiseConv2D(3, padding="same"), (2, 5, 5, 4)),
    (lambda: cnn.DepthwiseConv2D((2, 3), 2, "same", multiplier=2, activation="tanh"), (1, 3, 5, 6)),
    (lambda: cnn.DepthwiseConv2D(2, dilation=2, bias=False), (2, 17, 4, 3)),
    (lambda: cnn.DepthwiseConv2D(3, padding=((1, 0), (0, 2))), (2, 1, 3, 4)),
    (lambda: cnn.ConvTranspose2D(3, 3), (2, 2, 3, 4)),
    (lambda: cnn.ConvTranspose2D(17, 2, 2, ((1, 0), (0, 1)), 1, activation="relu"), (1, 3, 4, 3)),
    (lambda: cnn.ConvTranspose2D(4, (3, 2), (2, 1), 1, dilation=2, groups=2, bias=False), (2, 6, 3, 3)),
    (lambda: cnn.ConvTranspose2D(1, 1), (1, 1, 1, 1)),
    (lambda: cnn.MaxPool2D(), (2, 3, 5, 4)),
    (lambda: cnn.MaxPool2D(3, stride=2, padding=1, ceil_mode=True), (1, 2, 6, 5)),
    (lambda: cnn.MaxPool2D((2, 1), stride=1, dilation=(2, 1)), (2, 17, 5, 3)),
    (lambda: cnn.AvgPool2D(), (2, 3, 5, 4)),
    (lambda: cnn.AvgPool2D(3, 2, 1, True, False), (1, 2, 6, 5)),
    (lambda: cnn.AvgPool2D((3, 2), stride=(2, 1), padding=(1, 0), ceil_mode=True), (2, 5, 4, 3)),
    (lambda: cnn.GlobalAvgPool2D(), (2, 3, 5, 4)),
    (lambda: cnn.GlobalAvgPool2D(), (1, 17, 1, 1)),
    (lambda: cnn.GlobalMaxPool2D(), (2, 3, 5, 4)),
    (lambda: cnn.GlobalMaxPool2D(), (1, 17, 1, 1)),
    (lambda: cnn.AdaptiveAvgPool2D(2), (2, 3, 4, 6)),
    (lambda: cnn.AdaptiveAvgPool2D((3, None)), (2, 17, 5, 4)),
    (lambda: cnn.AdaptiveAvgPool2D((4, 3)), (1, 1, 3, 7)),
    (lambda: cnn.Reshape((4, 5, 3)), (2, 3, 4, 5)),
    (lambda: cnn.Reshape((5, -1)), (2, 3, 4, 5)),
    (lambda: cnn.Reshape([3, 2, 2]), (2, 12)),
    (lambda: cnn.ZeroPad2D(1), (2, 3, 2, 3)),
    (lambda: cnn.ZeroPad2D(((0, 2), (1, 0))), (1, 17, 3, 2)),
    (lambda: cnn.UpSample2D(), (2, 3, 2, 3)),
    (lambda: cnn.UpSample2D((1, 3), "bilinear"), (1, 17, 3, 2)),
    (lambda: cnn.UpSample2D(2, "bilinear"), (2, 3, 4, 3)),
    (lambda: cnn.SqueezeExcite(), (2, 3, 3, 4)),
    (lambda: cnn.SqueezeExcite(2), (2, 17, 3, 2)),
    (lambda: cnn.Dense(1, bias=False), (1, 1)),
    (lambda: cnn.Dense(33, activation="tanh"), (3, 17)),
    (lambda: cnn.Dense(5, activation="softmax"), (2, 7)),
    (lambda: cnn.Flatten(), (2, 3, 4, 5)),
    (lambda: cnn.Flatten(), (2, 3, 1, 1)),
    (lambda: cnn.Flatten(), (3, 4)),
    (lambda: cnn.Dropout(0.4), (2, 3, 3, 5)),
    (lambda: cnn.Dropout(0.4), (3, 7)),
    (lambda: cnn.Dropout(0.4, spatial=True), (2, 17, 3, 5)),
    (lambda: cnn.Dropout(0.4, spatial=True), (3, 7)),
    (lambda: cnn.Dropout(0.0), (2, 3)),
    (lambda: cnn.BatchNorm(), (5, 3)),
    (lambda: cnn.BatchNorm(momentum=0.7, eps=1e-2), (3, 17, 2, 3)),
    (lambda: cnn.Softmax(), (3, 5)),
    (lambda: cnn.Activation("softmax"), (1, 1)),
    *((lambda name=name: cnn.Activation(name), (2, 3, 1, 3)) for name in ACTIVATIONS),
    (lambda: cnn.ReLU(), (2, 19)),
    (lambda: cnn.LeakyReLU(), (2, 19)),
    (lambda: cnn.LeakyReLU(alpha=0.3), (2, 19)),
    (lambda: cnn.Sigmoid(), (2, 19)),
    (lambda: cnn.Tanh(), (2, 19)),
    (lambda: cnn.ELU(), (2, 19)),
    (lambda: cnn.ELU(alpha=0.5), (2, 19)),
    (lambda: cnn.GELU(), (2, 19)),
    (lambda: cnn.SiLU(), (2, 19)),
    (lambda: cnn.HardSwish(), (2, 19)),
    (lambda: cnn.Residual(cnn.Dense(4)), (3, 4)),
    (
        lambda: cnn.Residual(
            [cnn.Conv2D(4, 3, stride=2, padding="same", name="a"), cnn.BatchNorm(), cnn.ReLU()],
            cnn.Conv2D(4, 1, stride=2, name="b"),
        ),
        (2, 3, 5, 4),
    ),
    (
        lambda: cnn.Sequential([cnn.Conv2D(3, 3, activation="silu"), cnn.MaxPool2D(), cnn.Flatten(), cnn.Dense(2)]),
        (2, 1, 6, 5),
    ),
]
case = pytest.mark.parametrize("make, shape", CASES, ids=[f"{make()!r:.70}-{shape}" for make, shape in CASES])


def passes(layer, x, dy, training):
    """(y, dx, gradients of the parameters, state after it) of one forward and backward."""
    layer._dropouts.reseed(3)  # a dropout draws the same mask from both executors
    y = layer.forward(x, training=training)
    dx = layer.backward(dy)
    return y, dx, {k: v.copy() for k, v in layer.grads.items()}, {k: v.copy() for k, v in layer.state.items()}


@case
@pytest.mark.parametrize("training", [False, True])
def test_kernels_agree_with_the_reference(make, shape, training):
    layer = make()
    layer.build(shape[1:], seed=1)
    randomize(layer)
    other = twin(layer)
    x, dy = draw(shape, 1), draw((shape[0], *layer.output_shape(shape[1:])), 2)
    y, dx, grads, state = passes(layer, x, dy, training)
    with cnn.backend("reference"):
        expected_y, expected_dx, expected_grads, expected_state = passes(other, x, dy, training)
    assert_close(y, expected_y)
    assert_close(dx, expected_dx)
    assert grads.keys() == expected_grads.keys()
    for name, gradient in grads.items():
        assert_close(gradient, expected_grads[name])
    for name, array in state.items():
        assert_close(array, expected_state[name])


@case
def test_shapes_types_and_ownership(make, shape):
    """output_shape agrees with forward before and after building, and no returned array is used again."""
    layer = make()
    promised = layer.output_shape(shape[1:])
    assert isinstance(promised, tuple)
    assert not layer.built
    x, x_again = draw(shape, 1), draw(shape, 1)
    y = layer.forward(x)
    assert y.shape == (shape[0], *promised) == (shape[0], *layer.output_shape(shape[1:]))
    dy = draw(y.shape, 2)
    dx = layer.backward(dy)
    assert dx.shape == shape
    assert y.dtype == dx.dtype == np.float32
    kept_y, kept_dx = y.copy(), dx.copy()
    y[...], dx[...] = np.nan, np.nan
    np.testing.assert_array_equal(x, x_again)
    second = layer.forward(x)
    np.testing.assert_array_equal(second, kept_y)
    x[...] = np.nan  # a change of the caller's x after forward is not seen by backward
    np.testing.assert_array_equal(layer.backward(dy), kept_dx)
    np.testing.assert_array_equal(second, kept_y)


@case
def test_backward_may_be_repeated(make, shape):
    """Every backward is of the last forward, however many there are."""
    layer = make()
    x = draw(shape, 1)
    y = layer.forward(x, training=True)
    dx = layer.backward(draw(y.shape, 2))
    grads = {k: v.copy() for k, v in layer.grads.items()}
    layer.backward(draw(y.shape, 3))
    np.testing.assert_array_equal(layer.backward(draw(y.shape, 2)), dx)
    for name, gradient in layer.grads.items():
        np.testing.assert_array_equal(gradient, grads[name])


@case
def test_empty_batch(make, shape):
    layer = make()
    layer.build(shape[1:], seed=0)
    y = layer.forward(draw(shape), training=True)
    layer.backward(draw(y.shape))
    state = {k: v.copy() for k, v in layer.state.items()}
    y = layer.forward(np.zeros((0, *shape[1:])), training=True)
    assert y.shape == (0, *layer.output_shape(shape[1:]))
    assert layer.backward(y).shape == (0, *shape[1:])
    for gradient in layer.grads.values():
        np.testing.assert_array_equal(gradient, 0)
    for name, array in layer.state.items():
        np.testing.assert_array_equal(array, state[name])


@case
def test_memory_order_and_dtype_of_x_do_not_matter(make, shape):
    layer = make()
    x = np.round(4 * draw(shape))
    y, dy = layer.forward(x), draw((shape[0], *layer.output_shape(shape[1:])), 2)
    dx = layer.backward(dy)
    strided = np.repeat(x, 2, axis=-1)[..., ::2]
    variants = [x.astype(np.float64), x.astype(np.float16), x.astype(np.int64), x.tolist(), strided, x.astype(">f4")]
    if len(shape) == 4:
        variants.append(np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
    for variant in variants:
        np.testing.assert_array_equal(layer.forward(variant), y)
        np.testing.assert_array_equal(layer.backward(dy.tolist()), dx)


# -------------------------------------------------------------------------------------- gradients

SMOOTH = [
    (lambda: cnn.Conv2D(2, (2, 3), stride=2, padding="same", activation="tanh"), (2, 2, 3, 3)),
    (lambda: cnn.Conv2D(4, 2, dilation=2, padding=((1, 0), (0, 1)), groups=2), (1, 2, 3, 3)),
    (lambda: cnn.DepthwiseConv2D(2, multiplier=2), (1, 2, 3, 3)),
    (lambda: cnn.ConvTranspose2D(4, (2, 3), 2, (1, 0), 1, groups=2, activation="tanh"), (1, 2, 2, 3)),
    (lambda: cnn.AvgPool2D(2, 1, 1, count_include_pad=False), (1, 1, 3, 3)),
    (lambda: cnn.AdaptiveAvgPool2D((2, 4)), (1, 2, 3, 3)),
    (lambda: cnn.UpSample2D((2, 3)), (1, 2, 2, 2)),
    (lambda: cnn.UpSample2D((3, 2), "bilinear"), (1, 2, 2, 2)),
    (lambda: cnn.ZeroPad2D(((1, 0), (0, 2))), (1, 2, 2, 2)),
    (lambda: cnn.Reshape((2, 1, 6)), (1, 3, 2, 2)),
    (lambda: cnn.SqueezeExcite(2), (2, 4, 2, 1)),
    (lambda: cnn.Dense(3, activation="softmax"), (2, 4)),
    (lambda: cnn.BatchNorm(), (4, 2)),
    (lambda: cnn.BatchNorm(eps=0.1), (2, 2, 2, 2)),
    (lambda: cnn.GELU(), (2, 4)),
    (lambda: cnn.Residual([cnn.Dense(3, name="a"), cnn.Tanh()], cnn.Dense(3, name="b")), (2, 2)),
]


@pytest.mark.parametrize("make, shape", SMOOTH, ids=[f"{make()!r:.70}" for make, _ in SMOOTH])
def test_gradients_by_finite_differences(make, shape):
    """backward against central differences of sum(y * dy), in training, on the reference."""
    layer = make()
    layer.build(shape[1:], seed=1)
    randomize(layer)
    x, dy = draw(shape, 1), draw((shape[0], *layer.output_shape(shape[1:])), 2)
    step = 2.0**-6  # large, since outputs are rounded to float32; its own error is of the order of step squared

    def scalar():
        return float((layer.forward(x, training=True).astype(np.float64) * dy).sum())

    def numeric(array):
        result = np.zeros(array.shape)
        for i in np.ndindex(array.shape):
            middle = array[i]
            array[i] = middle + step
            up = scalar()
            array[i] = middle - step
            result[i] = (up - scalar()) / (2 * step)
            array[i] = middle
        return result

    with cnn.backend("reference"):
        scalar()
        dx = layer.backward(dy)
        grads = {name: gradient.copy() for name, gradient in layer.grads.items()}
        np.testing.assert_allclose(dx, numeric(x), atol=3e-3, rtol=3e-3)
        for name, array in layer.params.items():
            np.testing.assert_allclose(grads[name], numeric(array), atol=3e-3, rtol=3e-3)


# ------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    "make, shape, names",
    [
        (lambda: cnn.Conv2D(6, (2, 3), groups=2), (2, 4, 5, 5), {"weight": (6, 2, 2, 3), "bias": (6,)}),
        (lambda: cnn.Conv2D(6, 1, bias=False), (2, 4, 5, 5), {"weight": (6, 4, 1, 1)}),
        (lambda: cnn.DepthwiseConv2D(3, multiplier=2), (2, 4, 5, 5), {"weight": (8, 1, 3, 3), "bias": (8,)}),
        (lambda: cnn.ConvTranspose2D(6, (2, 3), groups=2), (2, 4, 5, 5), {"weight": (4, 3, 2, 3), "bias": (6,)}),
        (lambda: cnn.Dense(5), (2, 3), {"weight": (3, 5), "bias": (5,)}),
        (lambda: cnn.Dense(5, bias=False), (2, 3), {"weight": (3, 5)}),
        (lambda: cnn.BatchNorm(), (2, 3), {"gamma": (3,), "beta": (3,)}),
        (
            lambda: cnn.SqueezeExcite(4),
            (2, 9, 4, 4),
            {"reduce_weight": (9, 2), "reduce_bias": (2,), "expand_weight": (2, 9), "expand_bias": (9,)},
        ),
        (lambda: cnn.MaxPool2D(), (2, 3, 4, 4), {}),
    ],
)
def test_params_and_grads_have_public_names_and_shapes(make, shape, names):
    layer = make()
    y = layer.forward(draw(shape), training=True)
    layer.backward(draw(y.shape, 2))
    for arrays in (layer.params, layer.grads):
        assert isinstance(arrays, dict)
        assert {name: array.shape for name, array in arrays.items()} == names
        assert list(arrays) == list(names)
        assert all(array.dtype == np.float32 and array.flags.writeable for array in arrays.values())
    if isinstance(layer, cnn.BatchNorm):
        assert {name: array.shape for name, array in layer.state.items()} == {
            "running_mean": (3,),
            "running_var": (3,),
        }
    else:
        assert layer.state == {}


@pytest.mark.parametrize("backend", ["c", "reference"])
@pytest.mark.parametrize("make, shape", [(lambda: cnn.Conv2D(3, 2), (2, 2, 3, 3)), (lambda: cnn.Dense(3), (2, 4))])
def test_changed_params_change_the_next_forward(make, shape, backend):
    with cnn.backend(backend):
        layer, x = make(), draw(shape)
        first = layer.forward(x)
        held = layer.params["weight"]
        held *= 2  # in place, through an array that was handed out before
        assert_close(layer.forward(x), 2 * first)
        weight = draw(held.shape, 3)
        layer.params["weight"] = weight.tolist()
        assert layer.params["weight"] is not weight
        np.testing.assert_array_equal(held, weight)
        layer.params["bias"] += 1
        expected = twin(layer).forward(x)
        np.testing.assert_array_equal(layer.forward(x), expected)
        assert not np.allclose(expected, 2 * first)


def test_dict_methods_of_params_write_into_the_layer():
    """What looks like a dict must not drop what is put into it."""
    layer = cnn.Dense(2, input_shape=(3,))
    layer.params.update(weight=np.full((3, 2), 2.0))
    np.testing.assert_array_equal(layer.params["weight"], 2)


@pytest.mark.parametrize("value", [np.zeros((2, 3)), np.zeros(3), 1.0, np.zeros((1, 3, 2))])
def test_assigning_a_wrong_shape_raises(value):
    layer = cnn.Dense(2, input_shape=(3,))
    before = layer.params["weight"].copy()
    with pytest.raises(ValueError, match=r"weight has shape .*expected \(3, 2\)"):
        layer.params["weight"] = value
    np.testing.assert_array_equal(layer.params["weight"], before)


def test_assigning_an_unknown_parameter_raises():
    layer = cnn.Dense(2, input_shape=(3,))
    with pytest.raises(KeyError, match="kernel.*weight, bias"):
        layer.params["kernel"] = np.zeros((3, 2))


def test_input_shape_builds_before_the_first_forward():
    assert cnn.Conv2D(4, 3, input_shape=(2, 8, 8)).params["weight"].shape == (4, 2, 3, 3)
    assert cnn.Conv2D(4, 3).params == {}


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("used", [False, True])
def test_a_copy_of_a_layer_is_a_layer_of_its_own(clone, used):
    """Its params are the arrays that it computes with, and not those of the first."""
    layer, x = cnn.Conv2D(2, 2, input_shape=(3, 4, 4)), draw((2, 3, 4, 4))
    layer.build((3, 4, 4), seed=0)
    if used:
        layer.backward(layer.forward(x))
    other = clone(layer)
    before = layer.forward(x)
    np.testing.assert_array_equal(other.forward(x), before)
    other.params["weight"] = 2 * layer.params["weight"]
    assert_close(other.forward(x), 2 * before)
    np.testing.assert_array_equal(layer.forward(x), before)
    y = layer.forward(x)
    layer.backward(y)
    other.backward(y)
    assert_close(layer.grads["weight"], other.grads["weight"])


def test_residual_alone_has_all_parameters_of_its_layers():
    """Also where the layers inside have no names of their own."""
    layer = cnn.Residual([cnn.Dense(3), cnn.Tanh(), cnn.Dense(2)], cnn.Dense(2))
    layer.build((2,), seed=0)
    shapes = sorted(array.shape for array in layer.params.values())
    assert shapes == [(2,), (2,), (2, 2), (2, 3), (3,), (3, 2)]
    for array in layer.params.values():
        array[...] = 0
    np.testing.assert_array_equal(layer.forward(draw((2, 2))), 0)


# -------------------------------------------------------------------------------- initial weights

# Of weights (64, 8, 3, 3) in two groups, and of dense ones (40, 100).
CONV_FANS, DENSE_FANS = (72, 576), (40, 100)
INITS = {
    "he_normal": ("normal", lambda i, o: math.sqrt(2 / i)),
    "he_uniform": ("uniform", lambda i, o: math.sqrt(6 / i)),
    "glorot_normal": ("normal", lambda i, o: math.sqrt(2 / (i + o))),
    "glorot_uniform": ("uniform", lambda i, o: math.sqrt(6 / (i + o))),
    "lecun_normal": ("normal", lambda i, o: math.sqrt(1 / i)),
    "normal": ("normal", lambda i, o: 1.0),
    "uniform": ("uniform", lambda i, o: 0.5),
}


@pytest.mark.parametrize("name", INITS)
@pytest.mark.parametrize("dense", [False, True])
def test_statistics_of_initial_weights(name, dense):
    layer = cnn.Dense(100, init=name) if dense else cnn.Conv2D(64, 3, groups=2, init=name)
    layer.build((40,) if dense else (16, 5, 5), seed=4)
    weight = layer.params["weight"].astype(np.float64)
    kind, scale = INITS[name]
    scale = scale(*(DENSE_FANS if dense else CONV_FANS))  # the standard deviation, or the bound
    std = scale if kind == "normal" else scale / math.sqrt(3)
    # Four standard errors of mean and deviation of this many draws.
    assert abs(weight.mean()) < 4 * std / math.sqrt(weight.size)
    assert abs(weight.std() / std - 1) < 4 / math.sqrt(2 * weight.size)
    if kind == "uniform":
        assert 0.99 * scale < np.abs(weight).max() <= scale * (1 + 1e-6)
    else:
        assert np.abs(weight).max() > 2.5 * scale
    np.testing.assert_array_equal(layer.params["bias"], 0)


def test_he_normal_is_the_default_and_batch_norm_starts_as_identity():
    for make in (cnn.Conv2D, cnn.Dense):
        layers = [
            make(8, *args, **init)
            for args in [(3,) if make is cnn.Conv2D else ()]
            for init in ({}, {"init": "he_normal"})
        ]
        for layer in layers:
            layer.build((4, 5, 5) if make is cnn.Conv2D else (4,), seed=1)
        np.testing.assert_array_equal(layers[0].params["weight"], layers[1].params["weight"])
    norm = cnn.BatchNorm(input_shape=(3,))
    assert {k: v.tolist() for k, v in (norm.params | norm.state).items()} == {
        "gamma": [1, 1, 1],
        "beta": [0, 0, 0],
        "running_mean": [0, 0, 0],
        "running_var": [1, 1, 1],
    }


def test_build_seeds_the_draw():
    def weight(seed):
        layer = cnn.Conv2D(3, 3)
        layer.build((2, 5, 5), seed=seed)
        return layer.params["weight"]

    np.testing.assert_array_equal(weight(1), weight(1))
    assert not np.array_equal(weight(1), weight(2))
    assert not np.array_equal(weight(None), weight(None))


@pytest.mark.parametrize(
    "make, shape, weight",
    [
        (lambda init: cnn.Conv2D(4, (2, 1), groups=2, init=init), (6, 5, 5), (4, 3, 2, 1)),
        (lambda init: cnn.DepthwiseConv2D(3, multiplier=2, init=init), (3, 5, 5), (6, 1, 3, 3)),
        (lambda init: cnn.ConvTranspose2D(4, (2, 1), groups=2, init=init), (6, 5, 5), (6, 2, 2, 1)),
        (lambda init: cnn.Dense(4, init=init), (3,), (3, 4)),
    ],
)
def test_callable_init(make, shape, weight):
    seen = []

    def init(shape, generator):
        seen.append(shape)
        return generator.integers(0, 100, shape)

    layer = make(init)
    layer.build(shape, seed=3)
    assert seen == [weight]
    expected = np.random.default_rng(3).integers(0, 100, weight)
    np.testing.assert_array_equal(layer.params["weight"], expected)
    with pytest.raises(ValueError, match="init.*shape"):
        make(lambda shape, generator: np.zeros(shape[::-1])).build(shape)
    with pytest.raises(TypeError, match="init"):
        make(lambda shape, generator: None).build(shape)


# ------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding(kernel, stride):
    """Output ceil(in / stride), the odd row and column of zeros at the bottom and right."""
    for size in (1, 2, 5, 6):
        for dilation in (1, 2):
            options = {"stride": stride, "dilation": dilation}
            layer = cnn.Conv2D(2, kernel, padding="same", **options)
            out = -(-size // stride)
            assert layer.output_shape((1, size, size)) == (2, out, out)
            total = max((out - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
            before, after = total // 2, total - total // 2
            x = draw((1, 1, size, size))
            y = layer.forward(x)
            plain = cnn.Conv2D(2, kernel, **options)
            padded = np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)))
            plain.build(padded.shape[1:])
            plain.params["weight"] = layer.params["weight"]
            assert_close(y, plain.forward(padded))


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (cnn.Conv2D(4, 3), (3, 8, 9), (4, 6, 7)),
        (cnn.Conv2D(4, 3, padding="valid", stride=2), (3, 8, 9), (4, 3, 4)),
        (cnn.Conv2D(4, 3, padding=1), (3, 8, 9), (4, 8, 9)),
        (cnn.Conv2D(4, 3, padding=(2, 0)), (3, 8, 9), (4, 10, 7)),
        (cnn.Conv2D(4, 3, padding=((1, 0), (3, 1)), dilation=(1, 2)), (3, 8, 9), (4, 7, 9)),
        (cnn.DepthwiseConv2D(3, multiplier=4), (3, 8, 9), (12, 6, 7)),
        (cnn.ConvTranspose2D(4, 3), (3, 8, 9), (4, 10, 11)),
        (cnn.ConvTranspose2D(4, (3, 4), 2, 1, (1, 0)), (3, 8, 9), (4, 16, 18)),
        (cnn.MaxPool2D(3, stride=2), (3, 8, 9), (3, 3, 4)),
        (cnn.MaxPool2D(3, stride=2, ceil_mode=True), (3, 8, 9), (3, 4, 4)),
        (cnn.MaxPool2D(2, padding=1, ceil_mode=True), (3, 8, 9), (3, 5, 5)),
        (cnn.AvgPool2D((2, 3), padding=(1, 0)), (3, 8, 9), (3, 5, 3)),
        (cnn.GlobalAvgPool2D(), (3, 8, 9), (3,)),
        (cnn.GlobalMaxPool2D(), (3, 8, 9), (3,)),
        (cnn.AdaptiveAvgPool2D(4), (3, 8, 9), (3, 4, 4)),
        (cnn.AdaptiveAvgPool2D((None, 2)), (3, 8, 9), (3, 8, 2)),
        (cnn.Reshape((9, -1)), (3, 8, 9), (9, 24)),
        (cnn.ZeroPad2D((1, 2)), (3, 8, 9), (3, 10, 13)),
        (cnn.UpSample2D((2, 3)), (3, 8, 9), (3, 16, 27)),
        (cnn.SqueezeExcite(), (3, 8, 9), (3, 8, 9)),
        (cnn.Flatten(), (3, 8, 9), (216,)),
        (cnn.Dense(7), (5,), (7,)),
    ],
    ids=repr,
)
def test_output_shape(layer, shape, expected):
    assert layer.output_shape(shape) == expected
    assert layer.output_shape(list(shape)) == expected


def test_flatten_is_in_channel_row_column_order():
    x = draw((2, 3, 4, 5))
    np.testing.assert_array_equal(cnn.Flatten().forward(x), x.reshape(2, -1))


def test_reshape_is_in_channel_row_column_order():
    x = draw((2, 3, 4, 5))
    np.testing.assert_array_equal(cnn.Reshape((5, 2, 6)).forward(x), x.reshape(2, 5, 2, 6))
    np.testing.assert_array_equal(cnn.Reshape((-1, 4)).forward(x), x.reshape(2, -1, 4))


def test_global_max_pooling_takes_the_first_of_equals():
    layer, x = cnn.GlobalMaxPool2D(), np.zeros((1, 2, 2, 2), np.float32)
    x[0, 1, 1] = 3
    np.testing.assert_array_equal(layer.forward(x), [[0, 3]])
    np.testing.assert_array_equal(layer.backward([[1, 2]]), [[[[1, 0], [0, 0]], [[0, 0], [2, 0]]]])


def test_layers_take_other_image_sizes_than_they_were_built_for():
    layer = cnn.Conv2D(2, 3, padding="same")
    first = layer.forward(draw((1, 2, 5, 5)))
    assert layer.forward(draw((3, 2, 4, 7))).shape == (3, 2, 4, 7)
    np.testing.assert_array_equal(layer.forward(draw((1, 2, 5, 5))), first)


# ------------------------------------------------------------------------- training and inference


@pytest.mark.parametrize("backend", ["c", "reference"])
@pytest.mark.parametrize("shape", [(40, 30), (4, 3, 10, 10)])
def test_dropout(shape, backend):
    with cnn.backend(backend):
        layer, x, dy = cnn.Dropout(0.25), 1 + np.abs(draw(shape)), 1 + np.abs(draw(shape, 2))
        np.testing.assert_array_equal(layer.forward(x), x)
        np.testing.assert_array_equal(layer.backward(dy), dy)
        masks = []
        layer._dropouts.reseed(0)  # or the shares below would be far off now and then
        for _ in range(2):
            y = layer.forward(x, training=True)
            kept = y != 0
            assert_close(y[kept], x[kept] / 0.75, 1e-6)
            # A share of 1/4 in 1200 draws, within four standard deviations.
            assert abs((~kept).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / x.size)
            np.testing.assert_array_equal(layer.backward(dy) != 0, kept)
            masks.append(kept)
        assert not np.array_equal(*masks), "each forward draws its own mask"


@pytest.mark.parametrize("backend", ["c", "reference"])
def test_spatial_dropout_drops_whole_channels(backend):
    with cnn.backend(backend):
        layer, x = cnn.Dropout(0.25, spatial=True), 1 + np.abs(draw((30, 20, 2, 3)))
        np.testing.assert_array_equal(layer.forward(x), x)
        layer._dropouts.reseed(0)
        y = layer.forward(x, training=True)
        kept = (y != 0).any((2, 3))
        assert_close(y, np.where(kept[..., None, None], x / 0.75, 0), 1e-6)
        # A share of 1/4 in 600 draws, within four standard deviations.
        assert abs((~kept).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / kept.size)
        np.testing.assert_array_equal((layer.backward(x) != 0).all((2, 3)), kept)


def test_dropout_of_rate_0_changes_nothing():
    x = draw((3, 5))
    np.testing.assert_array_equal(cnn.Dropout(0.0).forward(x, training=True), x)


@pytest.mark.parametrize("backend", ["c", "reference"])
@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 4, 5)])
def test_batch_norm_in_training_and_inference(shape, backend):
    axes = (0,) if len(shape) == 2 else (0, 2, 3)
    column = (1, 3) if len(shape) == 2 else (1, 3, 1, 1)
    with cnn.backend(backend):
        layer = cnn.BatchNorm(momentum=0.8, eps=1e-3)
        layer.build(shape[1:])
        randomize(layer)
        gamma, beta = (layer.params[name].reshape(column).copy() for name in ("gamma", "beta"))
        mean, var = (layer.state[name].copy() for name in ("running_mean", "running_var"))
        for seed in (1, 2):
            x = 3 + 2 * draw(shape, seed)
            batch_mean, batch_var = x.mean(axes, dtype=np.float64), x.var(axes, dtype=np.float64)
            x_hat = (x - batch_mean.reshape(column)) / np.sqrt(batch_var.reshape(column) + 1e-3)
            assert_close(layer.forward(x, training=True), gamma * x_hat + beta)
            mean, var = 0.8 * mean + 0.2 * batch_mean, 0.8 * var + 0.2 * batch_var
            assert_close(layer.state["running_mean"], mean)
            assert_close(layer.state["running_var"], var)
            layer.backward(draw(shape, 3))
        expected = gamma * (x - mean.reshape(column)) / np.sqrt(var.reshape(column) + 1e-3) + beta
        assert_close(layer.forward(x), expected)
        assert_close(layer.state["running_mean"], mean)
        # With running statistics each element goes through the same line.
        dy = draw(shape, 3)
        assert_close(layer.backward(dy), dy * gamma / np.sqrt(var.reshape(column) + 1e-3))


def test_batch_norm_keeps_its_digits_far_from_zero():
    """The variance of values around 1000 with a deviation of 1."""
    x = 1000 + draw((64, 3))
    y = cnn.BatchNorm().forward(x, training=True)
    # The mean itself is rounded to a multiple of 6e-5; E[x^2] - E[x]^2 would be wrong in its first digits.
    np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-3)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-3)


@pytest.mark.parametrize(
    "layer, shape", [(cnn.Conv2D(3, 2, activation="relu"), (2, 2, 4, 4)), (cnn.Dense(4), (2, 3))], ids=repr
)
def test_training_makes_no_difference_elsewhere(layer, shape):
    x = draw(shape)
    np.testing.assert_array_equal(layer.forward(x, training=True), layer.forward(x))


# ---------------------------------------------------------------------------------- configuration

CONFIGURED = [
    cnn.Conv2D(4, (3, 2), 2, "same", 1, 2, False, "elu", "lecun_normal", (2, 5, 5), name="c"),
    cnn.Conv2D(4, [3, 3], padding=((0, 1), (2, 0)), dilation=(2, 1)),
    cnn.DepthwiseConv2D(3, (1, 2), 1, 1, 2, False, "silu", "uniform", (2, 5, 5), name="d"),
    cnn.ConvTranspose2D(4, (3, 2), 2, ((1, 0), (0, 1)), 1, 1, 2, False, "elu", "uniform", (2, 5, 5), name="t"),
    cnn.MaxPool2D(3, 2, 1, 1, True, name="m", input_shape=(2, 5, 5)),
    cnn.AvgPool2D((3, 2), (1, 2), (1, 1), True, False),
    cnn.GlobalAvgPool2D(name="g"),
    cnn.Dense(3, "gelu", False, "glorot_uniform", input_shape=(4,), name="h"),
    cnn.GlobalMaxPool2D(name="g"),
    cnn.AdaptiveAvgPool2D((3, None), name="a", input_shape=(2, 5, 5)),
    cnn.Flatten(),
    cnn.Reshape((5, -1), name="r"),
    cnn.ZeroPad2D(((1, 0), (2, 3))),
    cnn.UpSample2D((3, 1), "bilinear"),
    cnn.SqueezeExcite(2),
    cnn.Dropout(0.3, True),
    cnn.BatchNorm(0.5, 1e-3),
    cnn.Activation("hard_swish"),
    cnn.ReLU(),
    cnn.LeakyReLU(0.2),
    cnn.Sigmoid(),
    cnn.Tanh(),
    cnn.Softmax(),
    cnn.ELU(0.7),
    cnn.GELU(),
    cnn.SiLU(),
    cnn.HardSwish(name="s"),
    cnn.Residual([cnn.Conv2D(2, 3, padding="same"), cnn.Residual(cnn.ReLU())], [cnn.BatchNorm()], name="r"),
    cnn.Sequential([cnn.Conv2D(2, 2), cnn.Sequential([cnn.Flatten(), cnn.Dense(2)])], seed=4, name="q"),
]


def input_shape_of(layer):
    return (4,) if isinstance(layer, (cnn.Dense, cnn.Softmax)) else (2, 5, 5)


CONVOLUTION = {"stride": 1, "padding": "valid", "dilation": 1}
COMMON = {"bias": True, "activation": None, "init": "he_normal"}


@pytest.mark.parametrize(
    "make, names, defaults",
    [
        (cnn.Conv2D, ["filters", "kernel_size"], CONVOLUTION | {"groups": 1} | COMMON | {"input_shape": None}),
        (cnn.DepthwiseConv2D, ["kernel_size"], CONVOLUTION | {"multiplier": 1} | COMMON),
        (
            cnn.ConvTranspose2D,
            ["filters", "kernel_size"],
            {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1} | COMMON,
        ),
        (cnn.MaxPool2D, [], {"pool_size": 2, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}),
        (
            cnn.AvgPool2D,
            [],
            {"pool_size": 2, "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True},
        ),
        (cnn.Dense, ["units"], {"activation": None, "bias": True, "init": "he_normal"}),
        (cnn.AdaptiveAvgPool2D, ["output_size"], {}),
        (cnn.Reshape, ["shape"], {}),
        (cnn.ZeroPad2D, ["padding"], {}),
        (cnn.UpSample2D, [], {"scale": 2, "mode": "nearest"}),
        (cnn.SqueezeExcite, [], {"ratio": 16}),
        (cnn.Dropout, ["rate"], {"spatial": False}),
        (cnn.BatchNorm, [], {"momentum": 0.9, "eps": 1e-5}),
        (cnn.LeakyReLU, [], {"alpha": 0.01}),
        (cnn.ELU, [], {"alpha": 1.0}),
        (cnn.Residual, ["body"], {"shortcut": None}),
        (cnn.Sequential, [], {"layers": None, "seed": None}),
        (cnn.SGD, [], {"lr": 0.01, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}),
        (cnn.Adam, [], {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}),
    ],
)
def test_positional_arguments_and_defaults(make, names, defaults):
    """Their order and values are part of the contract."""
    parameters = inspect.signature(make).parameters
    assert list(parameters)[: len(names) + len(defaults)] == [*names, *defaults]
    assert {name: parameters[name].default for name in defaults} == defaults


@pytest.mark.parametrize("layer", CONFIGURED, ids=lambda layer: type(layer).__name__)
def test_config_round_trip(layer):
    """What to_config gives survives JSON and makes an equal layer."""
    config = json.loads(json.dumps(to_config(layer)))
    other = from_config(config)
    assert type(other) is type(layer)
    assert json.loads(json.dumps(to_config(other))) == config
    assert other.name == layer.name
    shape = input_shape_of(layer)
    assert other.output_shape(shape) == layer.output_shape(shape)
    again = from_config(config)
    for each in (other, again):
        each.build(shape, seed=2)
    x = draw((3, *shape))
    np.testing.assert_array_equal(again.forward(x), other.forward(x))


def test_every_public_layer_has_a_configuration_tested():
    public = {name for name in LAYERS if hasattr(cnn, name)} - {"Layer"}
    tested = {type(layer).__name__ for layer in CONFIGURED}
    assert public - {"Add", "Concatenate", "Model"} == tested, "those are in test_functional.py"


def test_get_config_makes_the_same_layer():
    layer = cnn.Conv2D(4, 3, padding="same", name="c")
    config = layer.get_config()
    assert config["filters"] == 4 and config["padding"] == "same" and config["name"] == "c"
    assert cnn.Conv2D(**config).get_config() == config


def test_trainable_is_a_boolean_and_reaches_the_layers_inside():
    inner = cnn.Dense(2)
    layer = cnn.Residual(inner)
    assert layer.trainable and inner.trainable
    layer.trainable = False
    assert not inner.trainable
    with pytest.raises(TypeError, match="trainable"):
        layer.trainable = 1


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: cnn.Conv2D(0, 3), "filters"),
        (lambda: cnn.Conv2D(2.5, 3), "filters"),
        (lambda: cnn.Conv2D(True, 3), "filters"),
        (lambda: cnn.Conv2D(2, 0), "kernel_size"),
        (lambda: cnn.Conv2D(2, (3, 3, 3)), "kernel_size"),
        (lambda: cnn.Conv2D(2, "3"), "kernel_size"),
        (lambda: cnn.Conv2D(2, 3, stride=0), "stride"),
        (lambda: cnn.Conv2D(2, 3, stride=1.0), "stride"),
        (lambda: cnn.Conv2D(2, 3, stride=2**31), "stride"),
        (lambda: cnn.Conv2D(2, 3, padding="full"), "padding"),
        (lambda: cnn.Conv2D(2, 3, padding=-1), "padding"),
        (lambda: cnn.Conv2D(2, 3, padding=((0, 1), (0, -1))), "padding"),
        (lambda: cnn.Conv2D(2, 3, padding=None), "padding"),
        (lambda: cnn.Conv2D(2, 3, dilation=0), "dilation"),
        (lambda: cnn.Conv2D(2, 3, groups=0), "groups"),
        (lambda: cnn.Conv2D(3, 3, groups=2), "groups"),
        (lambda: cnn.Conv2D(2, 3, bias=1), "bias"),
        (lambda: cnn.Conv2D(2, 3, activation="swish"), "activation.*relu"),
        (lambda: cnn.Conv2D(2, 3, init="zeros"), "init.*he_normal"),
        (lambda: cnn.Conv2D(2, 3, init=None), "init"),
        (lambda: cnn.Conv2D(2, 3, input_shape=5), "input_shape"),
        (lambda: cnn.Conv2D(2, 3, input_shape=(3, -1, 5)), "input_shape"),
        (lambda: cnn.Conv2D(2, 3, name=""), "name"),
        (lambda: cnn.Conv2D(2, 3, name=3), "name"),
        (lambda: cnn.DepthwiseConv2D(3, multiplier=0), "multiplier"),
        (lambda: cnn.DepthwiseConv2D(3, padding="full"), "padding"),
        (lambda: cnn.ConvTranspose2D(2, 3, padding="same"), "padding"),
        (lambda: cnn.ConvTranspose2D(2, 3, output_padding=-1), "output_padding"),
        (lambda: cnn.ConvTranspose2D(3, 3, groups=2), "groups=2"),
        (lambda: cnn.ConvTranspose2D(3, 3, activation="nope"), "activation"),
        (lambda: cnn.MaxPool2D(0), "pool_size"),
        (lambda: cnn.MaxPool2D(2, stride=0), "stride"),
        (lambda: cnn.MaxPool2D(2, padding=2), "padding"),
        (lambda: cnn.MaxPool2D(2, padding="same"), "padding"),
        (lambda: cnn.MaxPool2D(2, dilation=0), "dilation"),
        (lambda: cnn.MaxPool2D(2, ceil_mode=1), "ceil_mode"),
        (lambda: cnn.AvgPool2D(3, padding=2), "padding"),
        (lambda: cnn.AvgPool2D(3, count_include_pad=None), "count_include_pad"),
        (lambda: cnn.AdaptiveAvgPool2D(0), "output_size"),
        (lambda: cnn.AdaptiveAvgPool2D((1, 2, 3)), "output_size"),
        (lambda: cnn.AdaptiveAvgPool2D("7"), "output_size"),
        (lambda: cnn.Reshape(4), "shape"),
        (lambda: cnn.Reshape((-1, 2, -1)), "shape.*-1"),
        (lambda: cnn.Reshape((2, -3)), "shape"),
        (lambda: cnn.Reshape((2, 1.5)), "shape"),
        (lambda: cnn.ZeroPad2D(-1), "padding"),
        (lambda: cnn.ZeroPad2D("same"), "padding"),
        (lambda: cnn.UpSample2D(0), "scale"),
        (lambda: cnn.UpSample2D(1.5), "scale"),
        (lambda: cnn.UpSample2D(mode="bicubic"), "mode.*nearest"),
        (lambda: cnn.SqueezeExcite(0), "ratio"),
        (lambda: cnn.Dropout(0.5, spatial=1), "spatial"),
        (lambda: cnn.Dense(0), "units"),
        (lambda: cnn.Dense("10"), "units"),
        (lambda: cnn.Dense(3, activation="nope"), "activation"),
        (lambda: cnn.Dense(3, bias="yes"), "bias"),
        (lambda: cnn.Dense(3, init="nope"), "init"),
        (lambda: cnn.Dropout(1.0), "rate"),
        (lambda: cnn.Dropout(-0.1), "rate"),
        (lambda: cnn.Dropout(math.nan), "rate"),
        (lambda: cnn.Dropout("half"), "rate"),
        (lambda: cnn.BatchNorm(momentum=1.5), "momentum"),
        (lambda: cnn.BatchNorm(eps=-1e-5), "eps"),
        (lambda: cnn.Activation("nope"), "activation"),
        (lambda: cnn.Activation(None), "activation"),
        (lambda: cnn.LeakyReLU(math.inf), "alpha"),
        (lambda: cnn.ELU("1"), "alpha"),
        (lambda: cnn.Residual("body"), "body"),
        (lambda: cnn.Residual([cnn.ReLU()], shortcut=[3]), "shortcut"),
        (lambda: cnn.Sequential([cnn.ReLU(), None]), "layers"),
        (lambda: cnn.Sequential(seed=-1), "seed"),
        (lambda: cnn.Sequential([cnn.ReLU(name="a"), cnn.Tanh(name="a")]), "'a'"),
        (lambda: cnn.backend("gpu").__enter__(), "reference"),
    ],
)
def test_bad_options(make, word):
    with pytest.raises((ValueError, TypeError), match=word):
        make()


@pytest.mark.parametrize("make", [lambda: cnn.ReLU(alpha=1), lambda: cnn.Flatten(2), lambda: cnn.Softmax(axis=1)])
def test_options_that_a_layer_does_not_have(make):
    with pytest.raises(TypeError):
        make()


@pytest.mark.parametrize("backend", ["c", "reference"])
@pytest.mark.parametrize(
    "make, shape, word",
    [
        (lambda: cnn.Conv2D(2, 3), (2, 5), "input_shape|input"),
        (lambda: cnn.Conv2D(2, 3), (2, 3, 2, 5), "no output"),
        (lambda: cnn.Conv2D(4, 1, groups=2), (2, 3, 5, 5), "groups"),
        (lambda: cnn.Conv2D(2, 3, activation="softmax"), (1, 1, 3, 3), "softmax"),
        (lambda: cnn.ConvTranspose2D(4, 1, groups=2), (2, 3, 5, 5), "groups"),
        (lambda: cnn.ConvTranspose2D(4, 1, padding=3), (2, 3, 5, 5), "no output"),
        (lambda: cnn.ConvTranspose2D(4, 2, output_padding=1), (2, 3, 5, 5), "output_padding"),
        (lambda: cnn.ConvTranspose2D(4, 2), (2, 3), r"input"),
        (lambda: cnn.MaxPool2D(3), (1, 1, 2, 5), "no output"),
        (lambda: cnn.AvgPool2D(2), (1, 4), r"\(N, C, H, W\)"),
        (lambda: cnn.GlobalAvgPool2D(), (1, 4), r"\(N, C, H, W\)"),
        (lambda: cnn.GlobalMaxPool2D(), (1, 4), r"\(N, C, H, W\)"),
        (lambda: cnn.AdaptiveAvgPool2D(2), (1, 4), r"\(N, C, H, W\)"),
        (lambda: cnn.ZeroPad2D(2), (1, 4), r"\(N, C, H, W\)"),
        (lambda: cnn.UpSample2D(2), (1, 4), r"\(N, C, H, W\)"),
        (lambda: cnn.UpSample2D(2**30), (1, 2, 4, 4), "too large"),
        (lambda: cnn.SqueezeExcite(2), (1, 4), r"\(N, C, H, W\)"),
        (lambda: cnn.Reshape((5,)), (1, 4), r"does not fit into shape \('N', 5\)"),
        (lambda: cnn.Reshape((3, -1)), (1, 4), "does not fit"),
        (lambda: cnn.Dropout(0.5, spatial=True), (1, 4, 2), "spatial"),
        (lambda: cnn.Dense(2), (1, 2, 3, 3), "flatten"),
        (lambda: cnn.BatchNorm(), (2, 3, 4), r"\(N, C\)"),
        (lambda: cnn.Softmax(), (1, 2, 3, 3), "softmax"),
        (lambda: cnn.ReLU(), (3,), "batch axis"),
        (lambda: cnn.Residual(cnn.Dense(3)), (2, 4), "shortcut"),
        (lambda: cnn.Sequential(), (2, 4), "no layers"),
    ],
)
def test_inputs_that_do_not_fit(make, shape, word, backend):
    with cnn.backend(backend), pytest.raises(ValueError, match=word):
        make().forward(draw(shape))


@pytest.mark.parametrize("x", [None, "x", [[1, 2], [3]], np.ones((2, 3), complex), np.ones((2, 3), object), {}])
def test_inputs_that_are_no_arrays(x):
    with pytest.raises((TypeError, ValueError), match="x "):
        cnn.Dense(2).forward(x)


def test_training_must_be_a_boolean():
    with pytest.raises(TypeError, match="training"):
        cnn.Dense(2).forward(draw((1, 2)), training=1)


@pytest.mark.parametrize("make, shape", [(lambda: cnn.Conv2D(2, 1), (2, 3, 2, 2)), (cnn.ReLU, (2, 3))])
def test_backward_errors(make, shape):
    layer = make()
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(draw(shape))
    y = layer.forward(draw(shape))
    for wrong in (y[:1], y[..., :1], y[None]):
        with pytest.raises(ValueError, match=r"dy has shape .*expected"):
            layer.backward(wrong)
    assert layer.backward(y).shape == shape, "a refused dy leaves the last forward in place"


@pytest.mark.parametrize(
    "make, built, other",
    [
        (lambda: cnn.Conv2D(2, 1), (2, 3, 4, 4), (2, 5, 4, 4)),
        (lambda: cnn.DepthwiseConv2D(1), (2, 3, 4, 4), (2, 5, 4, 4)),
        (lambda: cnn.Dense(2), (2, 3), (2, 5)),
        (lambda: cnn.BatchNorm(), (2, 3, 4, 4), (2, 5, 4, 4)),
        (lambda: cnn.BatchNorm(), (2, 3, 4, 4), (2, 3)),
        (lambda: cnn.Sequential([cnn.ReLU(), cnn.Dense(2)]), (2, 3), (2, 5)),
    ],
)
def test_other_channels_than_built_for(make, built, other):
    layer = make()
    first = layer.forward(draw(built))
    with pytest.raises(ValueError, match=str(other[1])):
        layer.forward(draw(other))
    np.testing.assert_array_equal(layer.forward(draw(built)), first)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cnn.Conv2D(2, 3),
        lambda: cnn.Residual(cnn.Conv2D(1, 3, padding="same")),
        lambda: cnn.Sequential([cnn.Conv2D(2, 3), cnn.Flatten(), cnn.Dense(2)]),
        lambda: cnn.Sequential([cnn.BatchNorm(), cnn.Residual([cnn.ReLU(), cnn.Conv2D(1, 3, padding="same")])]),
    ],
)
def test_a_refused_first_input_does_not_spoil_a_layer(make):
    """Channels-last shapes are the commonest mistake; after the error the right shape must do."""
    layer = make()
    with pytest.raises(ValueError):
        layer.forward(draw((2, 8, 8, 1)))
    assert len(layer.forward(draw((2, 1, 8, 8)))) == 2


def test_one_layer_may_not_stand_twice_in_a_model():
    """Its gradient would be that of one of the places."""
    layer = cnn.Dense(3)
    with pytest.raises(ValueError):
        cnn.Sequential([layer, cnn.Tanh(), layer])


def test_add_builds_a_model_step_by_step():
    model = cnn.Sequential()
    model.add(cnn.Flatten())
    model.add(cnn.Dense(3))
    model.add(cnn.Dense(2, name="dense"))
    assert [layer.name for layer in model.layers] == ["flatten", "dense_1", "dense"]
    model.build((1, 2, 2))
    with pytest.raises(RuntimeError, match="built"):
        model.add(cnn.ReLU())
    with pytest.raises(TypeError, match="layer"):
        cnn.Sequential().add("relu")


def test_an_activation_may_be_given_as_name():
    np.testing.assert_array_equal(cnn.Activation(name="relu").forward([[-1.0, 2.0]]), [[0, 2]])
    assert cnn.Activation("tanh", name="squash").name == "squash"


def test_a_name_given_later_is_kept():
    head = cnn.Dense(3)
    head.name = "head"
    model = cnn.Sequential([cnn.Dense(2), head, cnn.Dense(2)])
    assert [layer.name for layer in model.layers] == ["dense", "head", "dense_1"]
