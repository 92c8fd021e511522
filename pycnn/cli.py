"""The command line: pycnn train | evaluate | predict | bench | profile | info."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

import pycnn as cnn
from pycnn import configuration

# epochs, learning rate
DEFAULTS = {
    "digits": (20, 0.1),
    "optdigits": (15, 0.1),
    "mnist": (3, 0.05),
    "fashion_mnist": (5, 0.05),
    "cifar10": (10, 0.02),
}
DATASETS = {name: getattr(cnn.datasets, name) for name in DEFAULTS}


def small_network(side: int) -> cnn.Sequential:
    """Two or three convolutions and a dense layer for images (C, side, side) of ten classes."""
    layers = [
        cnn.Conv2D(16, 3, padding="same", activation="relu"),
        cnn.Conv2D(32, 3, padding="same", activation="relu"),
        cnn.MaxPool2D(2),
    ]
    if side > 16:
        layers += [cnn.Conv2D(32, 3, padding="same", activation="relu"), cnn.MaxPool2D(2)]
    return cnn.Sequential([*layers, cnn.Flatten(), cnn.Dropout(0.25), cnn.Dense(10)])


def train(args: argparse.Namespace) -> None:
    if args.dataset not in DATASETS:
        train_as_described(args)
        return
    (x, y), (x_test, y_test) = DATASETS[args.dataset]()
    epochs, lr = DEFAULTS[args.dataset]
    epochs = epochs if args.epochs is None else args.epochs
    rate = lr if args.lr is None else args.lr
    model = small_network(x.shape[-1])
    model.compile(cnn.SGD(rate, momentum=0.9), "cross_entropy", ["accuracy"])
    batch_size, seed = args.batch_size or 64, args.seed or 0
    history = model.fit(x, y, epochs, batch_size, seed=seed, verbose=0 if args.quiet else 1)
    scores = model.evaluate(x_test, y_test)
    print(f"test accuracy {scores['accuracy']:.2%}, loss {scores['loss']:.4f} on {len(x_test)} images")
    output = args.output or f"{args.dataset}.safetensors"
    model.save(output)
    print(f"saved to {output}")
    if args.plot:
        draw(args.plot, model, history, x_test, y_test)


def draw(folder: str, *trained: Any) -> None:
    cnn.plot.training(folder, *trained)
    print(f"pictures and a report in {folder}")


def train_as_described(args: argparse.Namespace) -> None:
    """Training as a TOML file has it; options of the command line go before what it says."""
    described = configuration.read(args.dataset)
    if args.lr is not None:
        raise ValueError("[train] --lr is for data sets; in a TOML file, the optimizer has lr")
    given = {"epochs": args.epochs, "batch_size": args.batch_size, "seed": args.seed}
    options = described.fit | {name: value for name, value in given.items() if value is not None}
    if args.quiet:
        options["verbose"] = 0
    model = described.model
    history = model.fit(*described.training, **options)
    if described.test is not None:
        scores = model.evaluate(*described.test)
        print("test", "  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    elif history.history:
        print("  ".join(f"{name} {values[-1]:.4g}" for name, values in history.history.items()))
    output = args.output or described.output
    if output:
        model.save(output)
        print(f"saved to {output}")
    if args.plot:
        draw(args.plot, model, history, *(described.test or described.training), described.class_names)


def evaluate(args: argparse.Namespace) -> None:
    _, (x_test, y_test) = DATASETS[args.dataset]()
    scores = cnn.load(args.model).evaluate(x_test, y_test)
    print("  ".join(f"{name} {value:.4f}" for name, value in scores.items()))


def predict(args: argparse.Namespace) -> None:
    model = cnn.load(args.model)
    x = DATASETS[args.input]()[1][0] if args.input in DATASETS else np.load(args.input, allow_pickle=False)
    outputs = model.predict(x)
    if args.output:
        with open(args.output, "wb") as file:  # np.save adds a suffix to a name
            np.save(file, outputs, allow_pickle=False)
        print(f"{len(outputs)} outputs of shape {outputs.shape[1:]} saved to {args.output}")
    elif outputs.ndim == 2 and outputs.shape[1] > 1:
        for row in outputs.argmax(axis=1):
            print(row)
    else:
        for row in outputs.reshape(len(outputs), -1):
            print(*(f"{value:.6g}" for value in row))


def bench(args: argparse.Namespace) -> None:
    from pycnn import bench as benchmark

    results = benchmark.run(lambda line: print(line, file=sys.stderr))
    print(benchmark.table(results))
    if args.json:
        benchmark.write_json(results, args.json)
    if args.plot:
        benchmark.plot(results, args.plot)


def profile(args: argparse.Namespace) -> None:
    model = cnn.load(args.model)
    generator = np.random.default_rng(0)
    if model.arity > 1:
        raise ValueError("a model of several inputs is profiled by model.profile(x, y)")
    x = generator.standard_normal((args.batch_size, *model._built_for), np.float32)
    y = None
    if not args.predict:
        model._compiled("profile")
        outputs = model.predict(x)
        classes = outputs.shape[-1]
        is_class = isinstance(model._loss, cnn.CrossEntropy)
        y = generator.integers(0, classes, args.batch_size) if is_class else generator.random(outputs.shape, np.float32)
    measured = model.profile(x, y, args.sort)
    print(measured)
    if args.json:
        measured.to_json(args.json)
    if args.plot:
        measured.plot(args.plot)


def info(args: argparse.Namespace) -> None:
    for name, value in cnn.info().items():
        print(f"{name:<12} {', '.join(value) if isinstance(value, list) else value}")


def _dataset(name: str) -> str:
    """A data set's name, or that of a TOML file."""
    if name not in DATASETS and not name.endswith(".toml"):
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(DATASETS)} or a .toml file, got {name!r}")
    return name


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="pycnn", description="Convolutional neural networks on the CPU.")
    top.add_argument("--version", action="version", version=f"pycnn {cnn.__version__}")
    commands = top.add_subparsers(dest="command", required=True)

    p = commands.add_parser("train", help="train a small CNN on a dataset, or what a TOML file describes, and save it")
    p.add_argument("dataset", type=_dataset, help=f"{', '.join(DATASETS)}, or a file like examples/digits.toml")
    p.add_argument("--epochs", type=int, help="how often to go through the training images")
    p.add_argument("--batch-size", "--batch", type=int, help="images a step (default 64)")
    p.add_argument("--lr", type=float, help="learning rate of SGD with momentum 0.9")
    p.add_argument("--seed", type=int, help="seed of weights, shuffling and dropout (default 0)")
    p.add_argument("-o", "--output", help="file to save to (default DATASET.safetensors, or as described)")
    p.add_argument("--plot", metavar="FOLDER", help="write pictures and a report there (needs pycnn[plot])")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    p.set_defaults(run=train)

    p = commands.add_parser("evaluate", help="loss and metrics of a saved model on a dataset's test part")
    p.add_argument("model")
    p.add_argument("dataset", choices=DATASETS)
    p.set_defaults(run=evaluate)

    p = commands.add_parser("predict", help="classes that a saved model gives for images")
    p.add_argument("model")
    p.add_argument("input", help=f"a .npy file (N, C, H, W), or {', '.join(DATASETS)} for the test images")
    p.add_argument("-o", "--output", help="save the model's outputs to this .npy file instead of printing classes")
    p.set_defaults(run=predict)

    p = commands.add_parser("bench", help="compare pure Python, NumPy, these kernels and, if installed, PyTorch")
    p.add_argument("--json", metavar="FILE", help="write the results as JSON")
    p.add_argument("--plot", metavar="FILE", help="draw them (needs pycnn[plot])")
    p.set_defaults(run=bench)

    p = commands.add_parser("profile", help="the time of each layer of a saved model, on random images")
    p.add_argument("model")
    p.add_argument("--batch-size", "--batch", type=int, default=64, help="images (default 64)")
    p.add_argument("--predict", action="store_true", help="a prediction instead of a training step")
    p.add_argument("--sort", action="store_true", help="the longest first, instead of in order")
    p.add_argument("--json", metavar="FILE", help="write the rows as JSON")
    p.add_argument("--plot", metavar="FILE", help="draw a bar a layer (needs pycnn[plot])")
    p.set_defaults(run=profile)

    p = commands.add_parser("info", help="version, compiler, instruction set in use, threads")
    p.set_defaults(run=info)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; an error of the user's is one line and exit code 1."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        print(f"pycnn {args.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
