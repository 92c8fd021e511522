"""Report 001's network on the full optdigits data, the mean test accuracy of ten seeds.

The report: one convolution of four filters, 96.0 % after 30 epochs of gradient descent. Needs the UCI files
`optdigits.tra` and `optdigits.tes` in the folder `optdigits` under PYCNN_DATA.

    python examples/report_001.py [--seeds 10] [--epochs 30]
"""

import argparse
import time

import numpy as np

import pycnn as cnn

REFERENCE_STEPS = 3
BATCH = 64


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


def compiled(init: str) -> cnn.Sequential:
    model = network(init)
    model.compile(cnn.SGD(0.2), "cross_entropy", ["accuracy"])
    return model


def compare_with_reference(x: np.ndarray, y: np.ndarray, init: str) -> float:
    """The largest difference between the losses of the first steps on the kernels and in pure Python."""
    losses = {}
    for backend in ("c", "reference"):
        model = compiled(init)
        model.build(x.shape[1:], seed=0)
        with cnn.backend(backend):
            losses[backend] = [
                model.train_on_batch(x[i * BATCH : (i + 1) * BATCH], y[i * BATCH : (i + 1) * BATCH])
                for i in range(REFERENCE_STEPS)
            ]
    return max(abs(a - b) for a, b in zip(losses["c"], losses["reference"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--init", default="uniform", help="initial weights (default: uniform, the report's)")
    args = parser.parse_args()
    (x, y), (x_test, y_test) = cnn.datasets.optdigits()

    difference = compare_with_reference(x, y, args.init)
    print(f"first {REFERENCE_STEPS} losses, kernels against pure Python: they differ by at most {difference:.1e}")

    began, accuracies = time.perf_counter(), []
    for seed in range(args.seeds):
        model = compiled(args.init)
        model.fit(x, y, args.epochs, BATCH, seed=seed, verbose=0)
        accuracies.append(model.evaluate(x_test, y_test)["accuracy"])
        print(f"seed {seed}: {accuracies[-1]:.2%}")
    print(
        f"mean {np.mean(accuracies):.2%}, {min(accuracies):.2%} to {max(accuracies):.2%}, "
        f"in {time.perf_counter() - began:.1f} s (the report: 96.0 %, one run)"
    )


if __name__ == "__main__":
    main()
