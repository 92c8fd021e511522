"""Report 002's five experiments, with its networks, data and settings.

Binary and three-class toys; MNIST with 30 images a class, where its simple network took 5 h 09 and reached 82 %, and
its deep one crashed; cats and dogs at 50x50 with 70 photos a class, 8 h 21 and 50 %. Then a better network on all cats
and dogs. The report tested on 60 digits and 28 photos, too few to tell 82 % from 90 %, or 50 % from 60 %; here all test
images are used. Needs MNIST and the photos in `cats_dogs/train/CLASS/` and `cats_dogs/test/CLASS/` under PYCNN_DATA.

    python examples/report_002.py [--only xor bits mnist deep photos better] [--quick]
"""

import argparse
import itertools
import os
import time
from pathlib import Path

import numpy as np

import pycnn as cnn
from pycnn.augment import Crop, Flip

PHOTOS = Path(os.environ.get("PYCNN_DATA", "."), "cats_dogs")


def fitted(model: cnn.Sequential, x: np.ndarray, y: np.ndarray, epochs: int, batch_size: int = 1) -> float:
    """Trains a model, one sample a step as in the report unless `batch_size` says otherwise; the seconds it took."""
    began = time.perf_counter()
    model.fit(x, y, epochs, batch_size, seed=0, verbose=0)
    return time.perf_counter() - began


def xor(quick: bool) -> None:
    """XOR of three bits, 15 random samples, 3-4-3-1, 4,000 epochs at 0.01."""
    x = np.random.default_rng(0).integers(0, 2, (15, 3)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True) % 2
    # The report names no activations; with ReLU, units of so small layers die.
    model = cnn.Sequential(
        [cnn.Dense(4, activation="tanh"), cnn.Dense(3, activation="tanh"), cnn.Dense(1, activation="sigmoid")]
    )
    model.compile(cnn.SGD(0.01), "binary_cross_entropy", ["accuracy"])
    seconds = fitted(model, x, y, 40 if quick else 4000)
    scores = model.evaluate(x, y)
    print(f"XOR of 3 bits: loss {scores['loss']:.4f}, accuracy {scores['accuracy']:.0%} in {seconds:.1f} s", end="")
    print(" (the report: 0.0022, 100 %)")


def bits(quick: bool) -> None:
    """Four bits in three classes, 25 random samples, 4-4-3-3, 8,000 epochs at 0.2."""
    x = np.random.default_rng(0).integers(0, 2, (25, 4)).astype(np.float32)
    # The report does not say by which rule; its three examples fit this one: fewer than two ones, two, or more.
    y = np.array([2, 2, 0, 1, 1])[x.sum(axis=1).astype(int)]
    model = cnn.Sequential(
        [cnn.Dense(4, activation="relu"), cnn.Dense(3, activation="relu"), cnn.Dense(3, activation="softmax")]
    )
    model.compile(cnn.SGD(0.2), "cross_entropy", ["accuracy"])
    seconds = fitted(model, x, y, 80 if quick else 8000, batch_size=len(x))
    scores = model.evaluate(x, y)
    print(f"4 bits, 3 classes: loss {scores['loss']:.4f}, accuracy {scores['accuracy']:.0%} in {seconds:.1f} s", end="")
    print(" (the report: learned)")


def mnist(quick: bool) -> None:
    """MNIST with 30 images a class, 100 epochs at 0.0003."""
    model = cnn.Sequential(
        [
            cnn.Conv2D(16, 6, activation="relu"),
            cnn.MaxPool2D(2),
            cnn.Flatten(),
            cnn.Dense(160, activation="relu"),
            cnn.Dense(10, activation="softmax"),
        ]
    )
    few_digits("MNIST, 30 a class", model, 5 if quick else 100, "82 % of 60 in 5 h 09")


def deep(quick: bool) -> None:
    """The deep network, 20 epochs at 0.0003; it crashed after four epochs, with 35.5 % on the images in training."""
    model = cnn.Sequential(
        [
            cnn.Conv2D(16, 4, activation="relu"),
            cnn.Conv2D(32, 6, activation="relu"),
            cnn.MaxPool2D(2),
            cnn.Conv2D(64, 8, activation="relu"),
            cnn.Flatten(),
            cnn.Dense(320, activation="relu"),
            cnn.Dense(128, activation="relu"),
            cnn.Dense(10, activation="softmax"),
        ]
    )
    few_digits("the deep network", model, 1 if quick else 20, "a crash after four epochs of 7 minutes")


def few_digits(name: str, model: cnn.Sequential, epochs: int, report: str) -> None:
    training, _ = cnn.datasets.mnist(per_class=30)
    _, test = cnn.datasets.mnist()
    model.compile(cnn.SGD(0.0003), "cross_entropy", ["accuracy"])
    seconds = fitted(model, *training, epochs)
    accuracy = model.evaluate(*test)["accuracy"]
    print(f"{name}: {accuracy:.1%} of {len(test[1])} test images, {epochs} epochs in {seconds:.1f} s", end="")
    print(f" (the report: {report})")


def photos(quick: bool) -> None:
    """Cats and dogs at 50x50, 70 photos a class, 50 epochs at 0.0003."""
    training, test = cats_and_dogs(70, 50 if quick else None)
    model = cnn.Sequential(
        [
            cnn.Conv2D(16, 10, stride=2, activation="relu"),
            cnn.MaxPool2D(2),
            cnn.Flatten(),
            cnn.Dense(160, activation="relu"),
            cnn.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(cnn.SGD(0.0003), "binary_cross_entropy", ["accuracy"])
    seconds = fitted(model, *training, 2 if quick else 50)
    accuracy = model.evaluate(*test)["accuracy"]
    print(f"cats and dogs, 70 a class: {accuracy:.1%} of {len(test[1])} test photos in {seconds:.1f} s", end="")
    print(" (the report: 50 % of 28 in 8 h 21)")


def cats_and_dogs(per_class: int | None, test_per_class: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(x, y) to train on and to test, 50x50."""
    counts = {"train": per_class, "test": test_per_class}
    return [cnn.datasets.image_folder(PHOTOS / part, 50, per_class=k)[:2] for part, k in counts.items()]


def better(quick: bool) -> None:
    """A better network for cats and dogs, on all training photos, with batch norm and augmentation."""
    training, test = cats_and_dogs(20 if quick else None, 20 if quick else None)
    epochs = 1 if quick else 40
    blocks = [
        [cnn.Conv2D(f, 3, padding="same", bias=False), cnn.MaxPool2D(2), cnn.BatchNorm(), cnn.ReLU()]
        for f in (32, 64, 128, 128)
    ]
    model = cnn.Sequential([*itertools.chain(*blocks), cnn.Flatten(), cnn.Dropout(0.5), cnn.Dense(2)], seed=0)
    model.compile(cnn.SGD(cnn.OneCycle(0.05), momentum=0.9, weight_decay=5e-4), "cross_entropy", ["accuracy"])
    began = time.perf_counter()
    model.fit(*training, epochs, 32, seed=0, augment=[Flip(), Crop(padding=4)], verbose=0)
    x_test, y_test = test
    outputs = model.predict(x_test) + model.predict(x_test[..., ::-1])  # of the mirror images as well
    accuracy, seconds = np.mean(outputs.argmax(axis=1) == y_test), time.perf_counter() - began
    print(f"a better network, all {len(training[1])}: {accuracy:.1%} of {len(x_test)} test photos in {seconds:.1f} s")


EXPERIMENTS = (xor, bits, mnist, deep, photos, better)


def main() -> None:
    names = [experiment.__name__ for experiment in EXPERIMENTS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these experiments (default: all)")
    parser.add_argument("--quick", action="store_true", help="a few epochs on little data, to see that it runs")
    args = parser.parse_args()
    for experiment in EXPERIMENTS:
        if experiment.__name__ in args.only:
            experiment(args.quick)


if __name__ == "__main__":
    main()
