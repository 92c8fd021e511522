"""A network and its training in a TOML file."""

from pathlib import Path

import numpy as np
import pytest
from test_training import vectors, weights_equal

import pycnn as cnn
from pycnn import cli, configuration
from pycnn.augment import Crop, Flip, Shift

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "digits.toml"

SMALL = """
[data]
file = "a.npz"
[[layers]]
type = "Dense"
units = 5
activation = "tanh"
name = "body"
[[layers]]
type = "Residual"
body = [{ type = "Dense", units = 5 }, { type = "ReLU" }]
[[layers]]
type = "Dense"
units = 3
[compile]
loss = { type = "CrossEntropy", label_smoothing = 0.1 }
metrics = ["accuracy"]
optimizer = { type = "AdamW", lr = { type = "PiecewiseConstant", rates = [[0, 0.1], [2, 0.01]] } }
optimizers = { body = "sgd" }
[fit]
epochs = 3
batch_size = 4
class_weight = { 0 = 1.0, 1 = 2.0, 2 = 0.5 }
seed = 4
verbose = 0
resume = "check"
callbacks = [{ type = "ModelCheckpoint", path = "check" }, { type = "CSVLogger", path = "log.csv" }]
[output]
model = "trained"
"""


@pytest.fixture
def folder(tmp_path):
    x, y = vectors(12)
    np.savez(tmp_path / "a.npz", x=x, y=y, x_test=x[:5], y_test=y[:5])
    (tmp_path / "a.toml").write_text(SMALL)
    return tmp_path


def test_a_file_is_the_program_that_it_describes(folder, capsys, monkeypatch):
    """Files are next to the TOML file, wherever the command runs."""
    x, y = vectors(12)
    layers = [
        cnn.Dense(5, activation="tanh", name="body"),
        cnn.Residual([cnn.Dense(5), cnn.ReLU()]),
        cnn.Dense(3),
    ]
    model = cnn.Sequential(layers)
    rates = cnn.PiecewiseConstant({0: 0.1, 2: 0.01})
    model.compile(cnn.AdamW(rates), cnn.CrossEntropy(0.1), ["accuracy"], {"body": "sgd"})
    model.fit(x, y, 3, 4, seed=4, class_weight={0: 1, 1: 2, 2: 0.5}, verbose=0)
    scores = model.evaluate(x[:5], y[:5])

    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert cli.main(["train", str(folder / "a.toml")]) == 0
    trained = cnn.load(folder / "trained")
    assert weights_equal(model, trained) and trained._optimizer == model._optimizer
    out = capsys.readouterr().out
    assert f"test loss {scores['loss']:.4f}  accuracy {scores['accuracy']:.4f}" in out
    assert len((folder / "log.csv").read_text().splitlines()) == 4

    model.fit(x, y, 5, resume=folder / "check", verbose=0)
    assert cli.main(["train", "../a.toml", "--epochs", "5", "-o", "again"]) == 0
    assert len((folder / "log.csv").read_text().splitlines()) == 6
    assert cnn.load("again").evaluate(x, y)["loss"] < trained.evaluate(x, y)["loss"]


def test_without_test_data_and_output(folder, capsys):
    x, y = vectors(12)
    np.savez(folder / "a.npz", x=x, y=y)
    (folder / "a.toml").write_text(SMALL.partition("[output]")[0])
    assert cli.main(["train", str(folder / "a.toml"), "--epochs", "1", "--seed", "1", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("loss ")
    assert not (folder / "trained").exists()


def test_augmentation(folder):
    """A list of tables, or one table alone."""
    described = 'seed = 4\naugment = [{ type = "Flip", vertical = 0.5 }, { type = "Crop", padding = [2, 1] }]'
    (folder / "a.toml").write_text(SMALL.replace("seed = 4", described))
    assert configuration.read(folder / "a.toml").fit["augment"] == [Flip(vertical=0.5), Crop(padding=[2, 1])]
    (folder / "a.toml").write_text(SMALL + '[fit.augment]\ntype = "Shift"\npixels = 1')
    assert configuration.read(folder / "a.toml").fit["augment"] == [Shift(1)]


def test_plots(tmp_path, capsys):
    """Of an image folder, which has no test part, and whose classes have names."""
    image = pytest.importorskip("PIL.Image")
    for name in ("matplotlib", "sklearn"):
        pytest.importorskip(name)
    for i, name in enumerate(("bird", "cat")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for j in range(4):
            image.new("L", (6, 6), 60 * i + j).save(tmp_path / "images" / name / f"{j}.png")
    (tmp_path / "a.toml").write_text("""
        data = { dataset = "image_folder", path = "images", size = 6 }
        layers = [{ type = "Conv2D", filters = 2, kernel_size = 3 },
                  { type = "Flatten" }, { type = "Dense", units = 2 }]
        compile = { optimizer = "sgd", loss = "cross_entropy" }
        fit = { epochs = 2, verbose = 0, augment = { type = "Shift", pixels = 1 } }
    """)
    assert cli.main(["train", str(tmp_path / "a.toml"), "--plot", str(tmp_path / "plots")]) == 0
    assert "pictures" in capsys.readouterr().out
    report = (tmp_path / "plots" / "report.txt").read_text()
    assert "bird" in report and "cat" in report
    assert (tmp_path / "plots" / "confusion_matrix.png").stat().st_size > 1000


def test_the_example(tmp_path, capsys):
    text = EXAMPLE.read_text().replace("# { type", "{ type")  # also what it shows in comments
    (tmp_path / "digits.toml").write_text(text)
    assert cli.main(["train", str(tmp_path / "digits.toml"), "--epochs", "3", "--quiet"]) == 0
    assert float(capsys.readouterr().out.split("accuracy ")[1].split()[0]) > 0.9
    names = {"digits.toml", "digits.safetensors", "digits.checkpoint", "digits.checkpoint.prev", "digits.csv"}
    assert {p.name for p in tmp_path.iterdir()} == names


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("[data]", "[dat]", "part 'dat', known are data, layers"),
        ("[data]", "[data", "not TOML"),
        ("[[layers]]", "[[lay]]", "part 'lay'"),
        ('type = "Dense"\nunits = 3', 'type = "Dens"\nunits = 3', "layers: type must be one of .*Dense.*'Dens'"),
        ("units = 3", "unit = 3", "layers: Dense has no argument 'unit', only units"),
        ("units = 3", "", "layers: Dense: .*units"),
        ("units = 3", "units = 0", "units"),
        ('{ type = "ReLU" }', '{ type = "ReLUx" }', "layers, Residual: type must be one of .*'ReLUx'"),
        ('"AdamW"', '"AdamX"', "compile, optimizer: type must be one of SGD, Adam"),
        ('"sgd"', '{ type = "SGDX" }', "compile, optimizers, body: type"),
        ('"PiecewiseConstant"', '"Piece"', "type must be one of .*PiecewiseConstant"),
        ("label_smoothing", "smoothing", "no argument 'smoothing', only label_smoothing"),
        ("metrics", "metric", "compile has no argument 'metric'"),
        ("epochs = 3", "epoch = 3", "fit has no argument 'epoch'"),
        ("epochs = 3", "x = 3", "fit has no argument 'x'"),
        ('"CSVLogger"', '"Logger"', "fit, callbacks: type must be one of"),
        ("seed = 4", 'augment = "Flip"', "fit, augment: type must be one of .*Flip.*'Flip'"),
        ("seed = 4", 'augment = { type = "Flip", left = 1 }', "fit, augment: Flip has no argument 'left'"),
        ('file = "a.npz"', 'file = "b.npz"', "b.npz"),
        ('file = "a.npz"', 'file = "a.npz"\nsize = 3', "file stands alone, got size"),
        ('file = "a.npz"', 'dataset = "cats"', "dataset must be one of .*digits.*'cats'"),
        ('file = "a.npz"', 'dataset = "digits"\nsize = 3', "digits has no argument 'size'"),
        ('model = "trained"', 'file = "trained"', "output .* model alone, got file"),
    ],
)
def test_mistakes_are_named(folder, old, new, word):
    assert old in SMALL
    (folder / "a.toml").write_text(SMALL.replace(old, new))
    with pytest.raises((ValueError, FileNotFoundError), match=word):
        configuration.read(folder / "a.toml")


def test_mistakes_of_the_command(folder, capsys):
    assert cli.main(["train", str(folder / "absent.toml")]) == 1
    assert cli.main(["train", str(folder / "a.toml"), "--lr", "0.1"]) == 1
    np.savez(folder / "a.npz", x=np.zeros(3))
    assert cli.main(["train", str(folder / "a.toml")]) == 1
    (folder / "a.toml").write_text("")
    assert cli.main(["train", str(folder / "a.toml")]) == 1
    lines = capsys.readouterr().err.splitlines()
    for line, word in zip(lines, ["absent.toml", "--lr", "no array y", "has no data"], strict=True):
        assert word in line
