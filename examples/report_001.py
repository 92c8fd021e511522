"""Report 001's network on the full optdigits data, the mean test accuracy of twenty seeds; then a better network.

The report: one convolution of four filters, 96.0 % after 30 epochs of gradient descent, a single run. Needs the UCI
files `optdigits.tra` and `optdigits.tes` in the folder `optdigits` under PYCNN_DATA.

    python examples/report_001.py [--seeds 20] [--epochs 30] [--better-epochs 30]
"""

import argparse
import time

import numpy as np

import pycnn as cnn
from pycnn.augment import Rotation, Shift

REFERENCE_STEPS = 3
BATCH = 64
# The report's table, on the same test images.
REPORT = {
    "logistic regression": 94.8,
    "the report's CNN, one run": 96.0,
    "XGBoost": 96.1,
    "neural network": 96.3,
    "random forest": 96.8,
    "support vectors": 97.5,
}


def network(init: str) -> cnn.Sequential:
    return cnn.Sequential(
        [
            cnn.Conv2D(4, 3, padding=1, activation="relu", init=init),
            cnn.MaxPool2D(2),
            cnn.Flatten(),
            cnn.Dense(32, activation="relu", init=init),
            cnn.Dense(10, init=init),
        ]
    )


def compiled(init: str, seed: int) -> cnn.Sequential:
    """The network, built; with the report's uniform weights the dense layers' biases are drawn, too (equation 9)."""
    model = network(init)
    model.compile(cnn.SGD(0.2), "cross_entropy", ["accuracy"])
    model.build((1, 8, 8), seed=seed)
    if init == "uniform":
        generator = np.random.default_rng([seed, 1])
        for layer in model.layers:
            if isinstance(layer, cnn.Dense):
                bias = layer.params["bias"]
                bias[:] = generator.uniform(-0.5, 0.5, bias.shape)
    return model


def compare_with_reference(x: np.ndarray, y: np.ndarray, init: str) -> float:
    """The largest difference between the losses of the first steps on the kernels and in pure Python."""
    losses = {}
    for backend in ("c", "reference"):
        model = compiled(init, seed=0)
        with cnn.backend(backend):
            losses[backend] = [
                model.train_on_batch(x[i * BATCH : (i + 1) * BATCH], y[i * BATCH : (i + 1) * BATCH])
                for i in range(REFERENCE_STEPS)
            ]
    return max(abs(a - b) for a, b in zip(losses["c"], losses["reference"], strict=True))


def mean_of_seeds(training: tuple, test: tuple, seeds: int, epochs: int, init: str) -> None:
    began, accuracies = time.perf_counter(), []
    for seed in range(seeds):
        model = compiled(init, seed)
        model.fit(*training, epochs, BATCH, seed=seed, verbose=0)
        accuracies.append(model.evaluate(*test)["accuracy"])
        print(f"seed {seed}: {accuracies[-1]:.2%}")
    print(
        f"mean {np.mean(accuracies):.2%}, {min(accuracies):.2%} to {max(accuracies):.2%}, "
        f"in {time.perf_counter() - began:.1f} s (the report: 96.0 %, one run)"
    )


def block(filters: int) -> list[cnn.Layer]:
    return [cnn.Conv2D(filters, 3, padding="same", bias=False), cnn.BatchNorm(), cnn.ReLU()]


def better_network() -> cnn.Sequential:
    return cnn.Sequential(
        [
            *block(64),
            *block(64),
            cnn.MaxPool2D(2),
            cnn.Dropout(0.25),
            *block(128),
            cnn.Flatten(),
            cnn.Dropout(0.5),
            cnn.Dense(10),
        ],
        seed=0,
    )


def over_shifts(model: cnn.Sequential, x: np.ndarray) -> np.ndarray:
    """The mean of the classes' probabilities over shifts by a pixel either way, those without counting twice."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = x.shape[2:]
    total = np.zeros(1, np.float32)
    for i, row_weight in enumerate((1, 2, 1)):
        for j, column_weight in enumerate((1, 2, 1)):
            logits = model.predict(padded[:, :, i : i + height, j : j + width])
            total = total + row_weight * column_weight / 16 * cnn.ops.softmax(logits)
    return total


def better(training: tuple, test: tuple, epochs: int) -> None:
    model = better_network()
    optimizer = cnn.SGD(cnn.OneCycle(0.1), momentum=0.9, nesterov=True, weight_decay=5e-4)
    model.compile(optimizer, "cross_entropy", ["accuracy"])
    began, (x_test, y_test) = time.perf_counter(), test
    model.fit(*training, epochs, BATCH, seed=0, augment=[Shift(1), Rotation(10)], verbose=0)
    accuracy = np.mean(over_shifts(model, x_test).argmax(axis=1) == y_test)
    seconds, plain = time.perf_counter() - began, model.evaluate(*test)["accuracy"]
    print(f"a better network: {accuracy:.2%} in {seconds:.1f} s ({plain:.2%} without the mean over shifts)")
    print("the report's table: " + ", ".join(f"{name} {percent} %" for name, percent in REPORT.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--better-epochs", type=int, default=30, help="of the better network")
    parser.add_argument("--init", default="uniform", help="initial weights (default: uniform, the report's)")
    args = parser.parse_args()
    training, test = cnn.datasets.optdigits()

    difference = compare_with_reference(*training, args.init)
    print(f"first {REFERENCE_STEPS} losses, kernels against pure Python: they differ by at most {difference:.1e}")
    mean_of_seeds(training, test, args.seeds, args.epochs, args.init)
    better(training, test, args.better_epochs)


if __name__ == "__main__":
    main()
