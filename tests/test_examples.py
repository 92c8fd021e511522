"""The examples run, on small data or few steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name, *arguments):
    done = subprocess.run([sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_digits():
    out = run("digits.py")
    assert "the loaded model predicts the same bits" in out
    assert float(out.split("'accuracy': ")[1].split("}")[0]) >= 0.97


def test_show_plan_is_what_the_documentation_shows():
    out = run("show_plan.py")
    assert [line for line in out.splitlines() if line.endswith(":")] == ["backward:", "gradients:"]
    text = (EXAMPLES.parent / "docs" / "architecture.md").read_text()
    kernels = [line.split()[1] for line in out.splitlines() if line[:4].strip().isdigit()]
    shown = [line.split()[1] for line in text.splitlines() if line[:8].strip().isdigit()]
    assert kernels == shown


def needs(*names):
    """Skips an example whose data is not there."""
    data = os.environ.get("PYCNN_DATA")
    found = bool(data) and all(Path(data, name).is_dir() for name in names)
    return pytest.mark.skipif(not found, reason=f"PYCNN_DATA names no folder with {', '.join(names)}")


def percentages(out):
    return [float(number) for number in re.findall(r"([0-9.]+)%", out)]


@needs("animals9")
def test_report_000():
    out = run("report_000.py", "--epochs", "2", "--size", "40")
    assert "9 photos of cat, dog, horse; loss finite after 18 steps" in out


@needs("optdigits")
def test_report_001():
    out = run("report_001.py", "--seeds", "1", "--epochs", "5", "--better-epochs", "3")
    assert float(out.split("at most ")[1].split()[0]) < 1e-4
    assert float(out.split("mean ")[1].split("%")[0]) > 88
    assert float(out.split("a better network: ")[1].split("%")[0]) > 60


@needs("mnist", "cats_dogs")
def test_report_002():
    lines = run("report_002.py", "--quick").splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "XOR of 3 bits",
        "4 bits, 3 classes",
        "MNIST, 30 a class",
        "the deep network",
        "cats and dogs, 70 a class",
        "a better network, all 40",
    ]
    assert percentages(lines[2])[0] > 30


@needs("mnist")
# Report 004's network needs more than a thousand images to get away from chance.
@pytest.mark.parametrize(("example", "least"), [("report_003.py", 30), ("report_004.py", 5), ("mnist_99.py", 60)])
def test_examples_on_mnist(example, least):
    out = run(example, "--per-class", "100", "--epochs", "2")
    assert "of 1000 test images" in out
    assert percentages(out.splitlines()[-1])[0] > least


@needs("cifar-10-batches-bin")
def test_cifar10():
    out = run("cifar10.py", "--per-class", "20", "--epochs", "2")
    assert "of 200 test images after 2 epochs" in out and percentages(out)[0] >= 10
