"""Ready models: their shapes, and their numbers of parameters against those that are known."""

import inspect

import numpy as np
import pytest

import pycnn as cnn

# name: the shape of an image, outputs, learned parameters. Of LeNet-5, ResNet-18, ResNet-50 and MobileNetV2 they are
# those of torchvision and of PyTorch's tutorials; of the reports' what their layers come to.
NETWORKS = {
    "report_000": ((3, 120, 120), 3, 3 * 4 * 9 + 4 + 14400 * 12 + 12 + 12 * 3 + 3),
    "report_001": ((1, 8, 8), 10, 4 * 9 + 4 + 64 * 32 + 32 + 32 * 10 + 10),
    "report_002": ((1, 28, 28), 10, 16 * 36 + 16 + 1936 * 160 + 160 + 160 * 10 + 10),
    "report_002_deep": (
        (1, 28, 28), 10,
        16 * 16 + 16 + 16 * 32 * 36 + 32 + 32 * 64 * 64 + 64 + 576 * 320 + 320 + 320 * 128 + 128 + 128 * 10 + 10,
    ),
    "report_002_cats_and_dogs": ((3, 50, 50), 1, 3 * 16 * 100 + 16 + 1600 * 160 + 160 + 160 + 1),
    "report_003": ((1, 28, 28), 10, 4 + 1 + 81 * 30 + 30 + 30 * 20 + 20 + 20 * 10 + 10),
    "report_004": ((1, 28, 28), 10, 100 + 1 + 100 + 1 + 25 * 10 + 10),
    "lenet5": ((1, 28, 28), 10, 61_706),
    "vgg": (
        (3, 32, 32), 10,
        9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 4 * (32 + 64 + 128)
        + 2048 * 128 + 128 + 128 * 10 + 10,
    ),
    "resnet20": ((3, 32, 32), 10, 272_474),
    "resnet18": ((3, 224, 224), 1000, 11_689_512),
    "resnet50": ((3, 224, 224), 1000, 25_557_032),
    "mobilenet_v2": ((3, 224, 224), 1000, 3_504_872),
}  # fmt: skip


def test_every_network_is_here():
    functions = {
        name
        for name, value in vars(cnn.networks).items()
        if inspect.isfunction(value) and value.__module__ == cnn.networks.__name__ and not name.startswith("_")
    }
    assert functions == set(NETWORKS)
    assert all(inspect.getdoc(getattr(cnn.networks, name)) for name in functions)


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_and_parameters(name):
    shape, outputs, parameters = NETWORKS[name]
    model = getattr(cnn.networks, name)()
    assert not model.built
    model.build(shape, seed=0)
    assert model.output_shape(shape) == (outputs,)
    assert sum(array.size for array in model.params.values()) == parameters


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name][0][1] <= 50])
def test_the_small_ones_learn(name):
    """Three steps on one batch lower the loss of that batch."""
    shape, outputs, _ = NETWORKS[name]
    model = getattr(cnn.networks, name)(seed=1)
    rng = np.random.default_rng(0)
    x, y = rng.random((8, *shape), np.float32), rng.integers(0, max(outputs, 2), 8)
    model.compile(cnn.SGD(0.01), "binary_cross_entropy" if outputs == 1 else "cross_entropy")
    losses = [model.train_on_batch(x, y) for _ in range(4)]
    assert losses[-1] < losses[0]


def test_classes_and_seed():
    model, other = cnn.networks.lenet5(7, seed=3), cnn.networks.lenet5(7, seed=3)
    x = np.ones((2, 1, 28, 28), np.float32)
    assert model.predict(x).shape == (2, 7)
    np.testing.assert_array_equal(model.predict(x), other.predict(x))
