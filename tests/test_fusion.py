"""Fusion: which nodes become one, and that nothing else changes; the values themselves are compared in test_layers."""

import copy

import numpy as np
import pytest
from helpers import assert_close

import pycnn as cnn
from pycnn import lowering
from pycnn.fusion import fuse


def built(*layers, shape=(3, 8, 8)):
    model = cnn.Sequential(list(layers))
    model.build(shape, seed=0)
    rng = np.random.default_rng(1)
    for leaf in model.leaves():
        for array in (*leaf.params.values(), *leaf.state.values()):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
    return model


def kernels(model, training, shape=(3, 8, 8)):
    """The kernels of the model's forward pass, without those that move arrays."""
    graph = model._graph(shape)
    options = lowering.Options(2, training=training, kept=not training)
    if training:
        plan = lowering.layer_plan(graph, options)
        names = [name for name, _ in plan.kernels[: plan.marks["backward"]]]
    else:
        plan = lowering.inference_plan(graph, options)
        names = [name for name, _ in plan.kernels[plan.marks["prepared"] :]]
    return [name for name in names if name not in ("transpose", "copy", "running_statistics")]


def conv(**options):
    return cnn.Conv2D(4, 3, padding=1, **options)


@pytest.mark.parametrize(
    ("layers", "in_training", "in_prediction"),
    [
        ([conv(activation="relu")], ["conv2d"], ["conv2d"]),
        ([conv(), cnn.LeakyReLU(0.1)], ["conv2d"], ["conv2d"]),
        ([conv(activation="tanh")], ["conv2d", "activation"], ["conv2d", "activation"]),
        ([conv(), cnn.LeakyReLU(-0.1)], ["conv2d", "activation"], ["conv2d", "activation"]),
        (
            [conv(activation="relu"), cnn.MaxPool2D(2), cnn.Flatten(), cnn.Dense(5)],
            ["conv2d", "max_pool2d", "gemm"],
            None,
        ),
        ([conv(), cnn.BatchNorm(), cnn.ReLU()], ["conv2d", "batch_norm"], ["conv2d"]),
        ([conv(), cnn.BatchNorm(), cnn.ReLU(), cnn.MaxPool2D(2)], ["conv2d", "batch_norm", "max_pool2d"], ["conv2d"]),
        ([conv(), cnn.Residual([conv(), cnn.BatchNorm()]), cnn.ReLU()], ["conv2d", "conv2d", "batch_norm"], None),
        ([conv(), cnn.Residual([conv(), cnn.BatchNorm()])], ["conv2d", "conv2d", "batch_norm"], None),
        ([cnn.Flatten(), cnn.Dense(5, activation="relu")], ["gemm"], ["gemm"]),
        # Values that somebody else reads stay.
        ([conv(), cnn.Residual([cnn.ReLU()])], ["conv2d", "activation", "add"], None),
        ([conv(), cnn.BatchNorm(), cnn.Residual([cnn.ReLU()])], ["conv2d", "batch_norm", "activation", "add"], None),
    ],
)
def test_which_kernels_are_left(layers, in_training, in_prediction):
    model = built(*copy.deepcopy(layers))
    with_winograd = cnn.config()["winograd"]
    cnn.config(winograd=False)
    try:
        found = kernels(model, True)
        assert found[: len(in_training)] == in_training
        if in_prediction is not None:
            assert kernels(model, False)[: len(in_prediction)] == in_prediction
    finally:
        cnn.config(winograd=with_winograd)


def test_a_value_to_be_kept_is_not_fused_away():
    graph = built(conv(activation="relu"))._graph((3, 8, 8))
    assert len(fuse(graph, (), False).nodes) == 1
    assert len(fuse(graph, (graph.nodes[0].output,), False).nodes) == 2


@pytest.mark.parametrize("training", [True, False])
def test_a_convolution_measures_for_the_batch_norm_behind_it(training):
    """Not one that no batch norm reads, nor one whose kernel cannot, nor where running statistics are taken."""
    model = built(conv(), cnn.BatchNorm(), cnn.ReLU(), conv(), cnn.ReLU(), conv(groups=2), cnn.BatchNorm())
    plan = lowering.layer_plan(model._graph((3, 8, 8)), lowering.Options(2, training=training))
    forward = plan.kernels[: plan.marks["backward"]]
    assert [desc.measures for name, desc in forward if "conv2d" in name] == [training, 0, 0]
    assert [desc.measured for name, desc in forward if name == "batch_norm"] == [training, 0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_folded_batch_norm_predicts_what_the_layers_do(bias, groups):
    model = built(cnn.Conv2D(6, 3, padding=1, bias=bias, groups=groups), cnn.BatchNorm(), cnn.ReLU())
    x = np.random.default_rng(2).standard_normal((2, 3, 8, 8), np.float32)
    expected = x
    for layer in model.layers:
        expected = layer.forward(expected)
    assert_close(model.predict(x), expected, 1e-5)


def test_predictions_follow_the_weights():
    """What is kept of the weights is made anew after each way of changing them."""
    x = np.random.default_rng(2).standard_normal((8, 3, 8, 8), np.float32)
    labels = np.arange(8) % 4

    def model():
        made = cnn.Sequential([conv(), cnn.BatchNorm(), cnn.ReLU(), cnn.GlobalAvgPool2D()], seed=0)
        made.compile(cnn.SGD(0.5), "cross_entropy")
        made.build((3, 8, 8))
        return made

    changed, fresh = model(), model()
    before = changed.predict(x)
    np.testing.assert_array_equal(changed.predict(x), before)

    def train(m):
        m.train_on_batch(x, labels)

    def set_weights(m):
        m.set_weights([np.full_like(w, 0.5) for w in m.get_weights()])

    def assign(m):
        m.layers[0].params["weight"] = np.ones((4, 3, 3, 3))

    def forward(m):
        m.forward(x, training=True)

    for change in (train, set_weights, forward, assign):
        change(changed)
        change(fresh)
        after = changed.predict(x)
        assert not np.array_equal(after, before)
        other = model()
        other.set_weights(fresh.get_weights())
        np.testing.assert_array_equal(after, other.predict(x))
        before = after
    held = changed.layers[0].params["weight"]
    changed.predict(x)
    held *= 2
    assert not np.array_equal(changed.predict(x), before)


def test_a_step_without_a_finite_loss_leaves_everything():
    x = np.random.default_rng(2).standard_normal((8, 3, 8, 8), np.float32)
    model = cnn.Sequential([conv(), cnn.BatchNorm(), cnn.ReLU(), cnn.GlobalAvgPool2D()], seed=0)
    model.compile(cnn.Adam(0.5, clip_norm=1.0), "cross_entropy")
    model.train_on_batch(x, np.arange(8) % 4)
    before = model.get_weights()
    x[0, 0, 0, 0] = np.inf
    with pytest.raises(cnn.NonFiniteLossError, match="the input x"):
        model.train_on_batch(x, np.arange(8) % 4)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
