"""CIFAR-10 with a small residual network, made for 90 % of the test images in 40 minutes on two cores.

Measured so far: 101 s an epoch on two cores (AVX2), 69.4 % after a run of one epoch.

Needs `cifar-10-batches-bin/` under PYCNN_DATA, or its folder as --path (`cnn.datasets.cifar10(download=True)` fetches
it).

    python examples/cifar10.py [--epochs 20] [--path FOLDER] [--per-class K]
"""

import argparse
import time

import numpy as np

import pycnn as cnn
from pycnn.augment import Flip, Shift

BATCH = 256
MEAN = np.float32([0.491, 0.482, 0.447]).reshape(3, 1, 1)
DEVIATION = np.float32([0.247, 0.243, 0.262]).reshape(3, 1, 1)


def whitening(x: np.ndarray) -> np.ndarray:
    """Filters (24, 3, 2, 2) whose outputs are not correlated: the eigenvectors of 2x2 patches' covariance, and their
    negatives, which the ReLU would lose otherwise, scaled to unit variance."""
    windows = np.lib.stride_tricks.sliding_window_view(x[:5000], (2, 2), axis=(2, 3))
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / np.sqrt(values + 5e-4)).T.reshape(12, 3, 2, 2)
    return np.concatenate([filters, -filters])


def identity(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """The first filters pass a channel on, as far as there are channels; the others are drawn as he_normal."""
    weight = generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    for k in range(min(shape[:2])):
        weight[k] = 0
        weight[k, k, shape[2] // 2, shape[3] // 2] = 1
    return weight


def block(filters: int) -> list[cnn.Layer]:
    """Two convolutions; the pooling comes before the first batch norm, since what it leaves away need not be
    normalised."""
    convolutions = [cnn.Conv2D(filters, 3, padding="same", bias=False, init=identity) for _ in range(2)]
    norms = [cnn.BatchNorm(), cnn.ReLU()]
    return [convolutions[0], cnn.MaxPool2D(2), *norms, convolutions[1], cnn.BatchNorm(), cnn.ReLU()]


def network(x: np.ndarray) -> cnn.Sequential:
    """Jordan's network (94% on CIFAR-10 in 3.29 Seconds, 2024), with ReLU: 2 million parameters."""
    first = cnn.Conv2D(24, 2, bias=False, activation="relu", name="whitening")
    model = cnn.Sequential(
        [first, *block(64), *block(256), *block(256), cnn.MaxPool2D(3), cnn.Flatten(), cnn.Dense(10)]
    )
    model.build(x.shape[1:], seed=0)
    first.params["weight"] = whitening(x)
    first.trainable = False
    return model


def mirrored_too(model: cnn.Sequential, x: np.ndarray) -> np.ndarray:
    """The sum of the outputs for images and for their mirror images."""
    return model.predict(x) + model.predict(np.ascontiguousarray(x[..., ::-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--path", help="folder of the files (default: cifar-10-batches-bin under PYCNN_DATA)")
    parser.add_argument("--per-class", type=int, help="use only the first of each class (default: all)")
    args = parser.parse_args()
    parts = cnn.datasets.cifar10(args.path, per_class=args.per_class)
    (x, y), (x_test, y_test) = (((x - MEAN) / DEVIATION, y) for x, y in parts)

    began = time.perf_counter()
    model = network(x)
    optimizer = cnn.SGD(cnn.OneCycle(0.3), momentum=0.9, nesterov=True, weight_decay=5e-4)
    model.compile(optimizer, cnn.CrossEntropy(label_smoothing=0.2), ["accuracy"])
    model.fit(x, y, args.epochs, BATCH, seed=0, augment=[Flip(), Shift(2)], verbose=2)
    accuracy = np.mean(mirrored_too(model, x_test).argmax(axis=1) == y_test)
    seconds = time.perf_counter() - began
    print(f"{accuracy:.2%} of {len(y_test)} test images after {args.epochs} epochs in {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
