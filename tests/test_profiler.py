"""model.profile and pycnn profile; the memory that summary tells."""

import json

import numpy as np
import pytest

import pycnn as cnn
from pycnn import cli


def small_model(compiled=True):
    layers = [cnn.Conv2D(8, 3, padding=1, name="first"), cnn.BatchNorm(), cnn.ReLU(), cnn.MaxPool2D(2), cnn.Flatten()]
    model = cnn.Sequential([*layers, cnn.Dense(4, name="last")], seed=0)
    model.build((3, 8, 8))
    if compiled:
        model.compile(cnn.Adam(0.1, clip_norm=1.0), "cross_entropy")
    return model


X = np.random.default_rng(0).standard_normal((5, 3, 8, 8), np.float32)
Y = np.arange(5) % 4


def test_a_training_step_has_a_row_a_layer():
    model = small_model()
    weights = model.get_weights()
    measured = model.profile(X, Y)
    rows = {row["layer"]: row for row in measured.as_dicts()}
    assert {"first", "batchnorm", "last", "loss"} <= rows.keys()
    assert list(rows) == [row.layer for row in measured.rows]
    for name in ("first", "last"):
        assert all(rows[name]["seconds"][part] > 0 for part in ("forward", "backward", "update"))
    # Forward, the gradient of the weights; and of the input, which nobody asks the first layer for.
    assert rows["first"]["operations"] == 2 * 2 * 5 * 8 * 8 * 8 * 3 * 9
    assert rows["last"]["operations"] == 3 * 2 * 5 * 128 * 4
    assert rows["first"]["unit"] == "GFLOP/s" and rows["maxpool2d"]["unit"] == "GB/s"
    assert rows["maxpool2d"]["bytes"] > 4 * 5 * 8 * 8 * 8
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_prediction_and_the_order():
    measured = small_model(compiled=False).profile(X, sort=True)
    times = [row.total for row in measured.ordered()]
    assert times == sorted(times, reverse=True)
    assert {row.layer for row in measured.rows} >= {"first", "last"}
    assert all(not row.seconds["backward"] for row in measured.rows)
    table = str(measured)
    assert "first" in table and "backward" not in table and "for 5 images" in table


def test_json_and_plot(tmp_path):
    measured = small_model().profile(X, Y)
    measured.to_json(tmp_path / "profile.json")
    found = json.loads((tmp_path / "profile.json").read_text())
    assert found["batch"] == 5 and found["peak_gflops"] > 0 and found["copy_gbs"] > 0
    assert [row["layer"] for row in found["rows"]] == [row.layer for row in measured.rows]
    pytest.importorskip("matplotlib")
    figure = measured.plot(tmp_path / "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 1000
    assert len(figure.axes[0].get_yticklabels()) == len(measured.rows)


def test_mistakes_are_named():
    with pytest.raises(RuntimeError, match=r"\[profile\] call compile"):
        small_model(compiled=False).profile(X, Y)
    with pytest.raises(ValueError, match=r"\[profile\] x has 5 samples, y has 4"):
        small_model().profile(X, Y[:4])
    with pytest.raises(ValueError, match=r"\[profile\] x is empty"):
        small_model().profile(X[:0])
    with pytest.raises(TypeError, match="sort"):
        small_model().profile(X, sort="yes")


@pytest.mark.parametrize("options", [[], ["--predict", "--sort"]])
def test_command_line(tmp_path, capsys, options):
    path = str(tmp_path / "model.safetensors")
    small_model().save(path)
    assert cli.main(["profile", path, "--batch", "6", "--json", str(tmp_path / "p.json"), *options]) == 0
    assert "for 6 images" in capsys.readouterr().out
    assert json.loads((tmp_path / "p.json").read_text())["batch"] == 6


def test_summary_tells_the_memory_of_a_training_step(capsys):
    model = small_model(compiled=False)
    assert "memory" not in model.summary()
    model.compile(cnn.Adam(), "cross_entropy")
    text = model.summary(batch_size=64)
    assert capsys.readouterr().out.endswith(text + "\n") and "memory of a training step of 64, MB" in text
    numbers = [float(part.split()[-1]) for part in text.splitlines()[-1].split(": ")[1].split(", ")[-4:]]
    assert numbers[3] == pytest.approx(sum(numbers[:3]), abs=0.2)
    model.train_on_batch(np.zeros((64, 3, 8, 8)), np.zeros(64, int))
    (executor,) = model._executors.values()
    plan = executor.current().last_binding().plan
    parameters, activations, workspace = executor.current().memory(64, model._loss, "indices", model._updates)
    assert activations + workspace == plan.arena_bytes
    learned = sum(p.size for leaf in model.leaves() for p in leaf.params.values())
    running = sum(p.size for leaf in model.leaves() for p in leaf.state.values())
    assert 0 <= parameters - 4 * (4 * learned + running) < 100
