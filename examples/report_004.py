"""Report 004's network on MNIST, with the backward pass that it lacked: two 10x10 convolutions of one channel.

The report: 28x28 -> 19x19 -> 10x10, pooled to 5x5, then the classes, weights from a linear congruential generator; it
stopped before backpropagation, so it has no result. Its update rule, w (1 - lr delta), would have scaled the weights by
the gradient; here it is w - lr delta. Needs MNIST under PYCNN_DATA.

    python examples/report_004.py [--epochs 5] [--per-class K]
"""

import argparse
import math
import time

import numpy as np

import pycnn as cnn
from pycnn.initializers import Initializer, fans


def congruential(seed: int) -> Initializer:
    """Weights from the reports' generator, with the variance of He et al. 2015, which keeps signals of one size."""
    lcg = cnn.reference.LCG(seed)

    def draw(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
        fan_in, _ = fans(shape)
        bound = math.sqrt(6 / fan_in)
        return np.array([lcg.uniform(-bound, bound) for _ in range(math.prod(shape))]).reshape(shape)

    return draw


def network(seed: int) -> cnn.Sequential:
    init = congruential(seed)
    return cnn.Sequential(
        [
            cnn.Conv2D(1, 10, activation="relu", init=init),
            cnn.Conv2D(1, 10, activation="relu", init=init),
            cnn.MaxPool2D(2),
            cnn.Flatten(),
            cnn.Dense(10, activation="softmax", init=init),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--per-class", type=int, help="use only the first of each class (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the shuffling (default 0)")
    args = parser.parse_args()
    (x, y), (x_test, y_test) = cnn.datasets.mnist(per_class=args.per_class)

    model = network(args.seed)
    model.compile(cnn.SGD(0.01, momentum=0.9), "cross_entropy", ["accuracy"])
    began = time.perf_counter()
    model.fit(x, y, args.epochs, 64, validation_data=(x_test, y_test), seed=args.seed, verbose=2)
    seconds = time.perf_counter() - began
    accuracy = model.evaluate(x_test, y_test)["accuracy"]
    print(f"two 10x10 convolutions: {accuracy:.2%} of {len(y_test)} test images in {seconds:.1f} s", end="")
    print(" (the report: no result, its backward pass was not finished)")


if __name__ == "__main__":
    main()
