"""Report 000's network on nine photos, three each of three animals, which it fits without a NaN.

The report: one convolution of four 3x3 filters on 120x120 photos; in the first epoch its loss became NaN, and then the
accuracy fell from 55.6 % to 33.3 %, one class for all. A softmax that underflows to 0 and its logarithm give that; here
the loss is computed from what goes into the softmax, and stays finite. Needs the photos in `animals9/CLASS/` under
PYCNN_DATA.

    python examples/report_000.py [--epochs 30] [--lr 0.01] [--size 120]
"""

import argparse
import math
import os
import time
from pathlib import Path

import pycnn as cnn


def network() -> cnn.Sequential:
    """120x120x3, four 3x3 filters, 2x2 pooling, 14400 -> 12 -> 3."""
    return cnn.Sequential(
        [
            cnn.Conv2D(4, 3, padding="same", activation="relu"),
            cnn.MaxPool2D(2),
            cnn.Flatten(),
            cnn.Dense(12, activation="relu"),
            cnn.Dense(3, activation="softmax"),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--size", type=int, default=120, help="the photos' sides in pixels (default 120)")
    args = parser.parse_args()
    folder = Path(os.environ.get("PYCNN_DATA", "."), "animals9")
    x, y, names = cnn.datasets.image_folder(folder, args.size)

    model = network()
    model.compile(cnn.SGD(args.lr), "cross_entropy", ["accuracy"])
    began = time.perf_counter()
    # One photo a step, as in the report.
    history = model.fit(x, y, args.epochs, batch_size=1, seed=0, verbose=2).history
    seconds = time.perf_counter() - began

    steps = args.epochs * len(x)
    finite = all(math.isfinite(loss) for loss in history["loss"])
    accuracy = model.evaluate(x, y)["accuracy"]
    print(f"{len(x)} photos of {', '.join(names)}; loss {'finite' if finite else 'NaN'} after {steps} steps")
    print(f"accuracy {accuracy:.1%} in {seconds:.2f} s (the report: loss NaN in the first epoch, accuracy 33.3 %)")


if __name__ == "__main__":
    main()
