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
from pycnn.augment import Crop, Cutout, Flip

BATCH = 128
MEAN = np.float32([0.491, 0.482, 0.447]).reshape(3, 1, 1)
DEVIATION = np.float32([0.247, 0.243, 0.262]).reshape(3, 1, 1)


def block(filters: int, pool: bool = False) -> list[cnn.Layer]:
    """Convolution, batch norm, ReLU; the pooling comes first, since what it leaves away need not be normalised."""
    convolution = cnn.Conv2D(filters, 3, padding="same", bias=False)
    return [convolution, *([cnn.MaxPool2D(2)] if pool else []), cnn.BatchNorm(), cnn.ReLU()]


def network() -> cnn.Sequential:
    """Page's ResNet-9 (How to Train Your ResNet, 2018) with half as many filters: 1.6 million parameters."""
    return cnn.Sequential(
        [
            *block(32),
            *block(64, pool=True),
            cnn.Residual([*block(64), *block(64)]),
            *block(128, pool=True),
            *block(256, pool=True),
            cnn.Residual([*block(256), *block(256)]),
            cnn.GlobalAvgPool2D(),
            cnn.Dropout(0.2),
            cnn.Dense(10),
        ],
        seed=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--path", help="folder of the files (default: cifar-10-batches-bin under PYCNN_DATA)")
    parser.add_argument("--per-class", type=int, help="use only the first of each class (default: all)")
    args = parser.parse_args()
    parts = cnn.datasets.cifar10(args.path, per_class=args.per_class)
    (x, y), (x_test, y_test) = (((x - MEAN) / DEVIATION, y) for x, y in parts)

    model, began = network(), time.perf_counter()
    optimizer = cnn.SGD(cnn.OneCycle(0.2), momentum=0.9, nesterov=True, weight_decay=5e-4)
    model.compile(optimizer, cnn.CrossEntropy(label_smoothing=0.1), ["accuracy"])
    augment = [Flip(), Crop(padding=4), Cutout(8)]
    model.fit(x, y, args.epochs, BATCH, seed=0, augment=augment, verbose=2)
    seconds, accuracy = time.perf_counter() - began, model.evaluate(x_test, y_test)["accuracy"]
    print(f"{accuracy:.2%} of {len(y_test)} test images after {args.epochs} epochs in {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
