"""Callbacks: when they are called, what they are given, and what those of the package do."""

import csv
import math

import numpy as np
import pytest
from test_training import compiled, dense_net, vectors, weights_equal

import pycnn as cnn

X, Y = vectors(8)


def model_with(optimizer=None, metrics=()):
    return compiled(dense_net(), (4,), optimizer or cnn.SGD(0.1), metrics=metrics)


class Script(cnn.Callback):
    """Puts values into the logs, as if the training had given them; listed before the callback under test."""

    def __init__(self, values, name="val_loss"):
        self.values, self.name = values, name

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]


class Recorder(cnn.Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append(("train begins", self.model is not None))

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("epoch begins", epoch))

    def on_batch_end(self, batch, logs=None):
        self.calls.append(("batch", batch, sorted(logs)))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("epoch ends", epoch, sorted(logs)))

    def on_train_end(self, logs=None):
        self.calls.append("train ends")


def test_the_order_of_calls():
    recorder = Recorder()
    model = model_with(metrics=["accuracy"])
    model.fit(X, Y, epochs=2, batch_size=4, validation_data=(X, Y), callbacks=[recorder], verbose=0)
    names = sorted(["loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds"])
    epochs = [
        [("epoch begins", e), *(("batch", b, ["accuracy", "loss"]) for b in (0, 1)), ("epoch ends", e, names)]
        for e in (0, 1)
    ]
    assert recorder.calls == [("train begins", True), *epochs[0], *epochs[1], "train ends"]


def test_logs_of_batches_are_means_over_the_epoch_so_far():
    seen, losses = [], []
    model, other = model_with(), model_with()
    log = cnn.LambdaCallback(on_batch_end=lambda batch, logs: seen.append(logs["loss"]))
    history = model.fit(X, Y, batch_size=3, shuffle=False, callbacks=[log], verbose=0).history
    for i in (0, 3, 6):
        losses.append(other.train_on_batch(X[i : i + 3], Y[i : i + 3]))
    means = [losses[0], (losses[0] + losses[1]) / 2, (3 * losses[0] + 3 * losses[1] + 2 * losses[2]) / 8]
    assert seen == pytest.approx(means) and seen[-1] == history["loss"][0]


def test_lambda_callback_has_all_five():
    calls = []
    names = ["on_train_begin", "on_epoch_begin", "on_batch_end", "on_epoch_end", "on_train_end"]
    functions = {name: lambda *args, name=name: calls.append(name) for name in names}
    model_with().fit(X, Y, callbacks=[cnn.LambdaCallback(**functions)], verbose=0)
    assert calls == names
    with pytest.raises(TypeError, match="on_epoch_end"):
        cnn.LambdaCallback(on_epoch_end=1)


def test_callbacks_change_nothing_by_being_there():
    a, b = model_with(), model_with()
    a.fit(X, Y, epochs=3, batch_size=3, seed=0, callbacks=[Recorder(), cnn.Callback()], verbose=0)
    b.fit(X, Y, epochs=3, batch_size=3, seed=0, verbose=0)
    assert weights_equal(a, b)


@pytest.mark.parametrize("where", ["batch", "epoch"])
def test_stop_training(where):
    def stop(number, logs):
        model.stop_training = number == 1

    callback = cnn.LambdaCallback(**{f"on_{where}_end": stop})
    model, recorder = model_with(), Recorder()
    history = model.fit(X, Y, epochs=5, batch_size=2, callbacks=[callback, recorder], verbose=0).history
    batches = [call for call in recorder.calls if call[0] == "batch"]
    assert (len(history["loss"]), len(batches)) == ((2, 8) if where == "epoch" else (1, 2))
    assert recorder.calls[-1] == "train ends"
    assert len(model.fit(X, Y, epochs=2, verbose=0).history["loss"]) == 2  # a new fit begins anew


# ------------------------------------------------------------------------------------ early stopping


@pytest.mark.parametrize(
    ("values", "options", "epochs"),
    [
        ([5, 4, 3, 3, 3, 3, 3], {"patience": 2}, 5),
        ([5, 4, 3, 4, 2, 3, 3, 3], {"patience": 3}, 8),
        ([1, 1, 1], {"patience": 1}, 2),
        ([3, 2.9, 2.8, 2.7], {"patience": 2, "min_delta": 0.5}, 3),
        ([3, math.nan, math.nan, 1], {"patience": 2}, 3),
        ([1, 2, 3, 3, 3, 9], {"patience": 2, "mode": "max"}, 5),
    ],
)
def test_early_stopping(values, options, epochs):
    stop = cnn.EarlyStopping(**options)
    history = model_with().fit(X, Y, epochs=len(values), callbacks=[Script(values), stop], verbose=0).history
    assert len(history["loss"]) == epochs


def test_early_stopping_by_accuracy_looks_for_more():
    values = [0.1, 0.2, 0.3, 0.3, 0.9]
    stop = cnn.EarlyStopping("val_accuracy", patience=1)
    model = model_with()
    history = model.fit(X, Y, epochs=5, callbacks=[Script(values, "val_accuracy"), stop], verbose=0).history
    assert len(history["loss"]) == 4


@pytest.mark.parametrize("restore", [True, False])
@pytest.mark.parametrize("values", [[5, 3, 4, 4, 4], [5, 3, 4]])
def test_the_best_weights_come_back(restore, values):
    """Whether it was stopped or came to its end."""
    model, kept = model_with(), []
    keep = cnn.LambdaCallback(on_epoch_end=lambda epoch, logs: kept.append(model.get_weights()))
    stop = cnn.EarlyStopping(patience=2, restore_best=restore)
    model.fit(X, Y, epochs=len(values), seed=0, callbacks=[Script(values), stop, keep], verbose=0)
    for a, b in zip(model.get_weights(), kept[1 if restore else -1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_same_early_stopping_serves_two_fits():
    stop, model = cnn.EarlyStopping(patience=1), model_with()
    for values in ([1, 2, 0], [5, 6, 0]):
        history = model.fit(X, Y, epochs=3, callbacks=[Script(values), stop], verbose=0).history
        assert len(history["loss"]) == 2


@pytest.mark.parametrize("kind", [cnn.EarlyStopping, cnn.ReduceLROnPlateau])
def test_a_monitor_that_is_not_there(kind):
    with pytest.raises(ValueError, match="monitor must be among loss, lr, seconds, got 'val_loss'"):
        model_with().fit(X, Y, callbacks=[kind()], verbose=0)


# ------------------------------------------------------------------------------------ learning rates


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 1},
        {"patience": 0, "factor": 0.5},
        {"patience": 1, "cooldown": 2},
        {"patience": 0, "min_lr": 0.03},
        {"patience": 0, "factor": 0.5, "threshold": 0.5},
        {"patience": 1, "mode": "max"},
    ],
    ids=str,
)
@pytest.mark.parametrize("values", [[5, 4, 4, 4, 4, 3.9999, 3, 3, 3, 3, 3, 3], [1, 2, 2, 1, 3, 3, 3, 3, 3, 3, 3, 3.1]])
def test_reduce_lr_on_plateau_is_pytorchs(options, values):
    torch = pytest.importorskip("torch")
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **{"mode": "min"} | options)
    rates = []
    for value in values:
        rates.append(theirs.param_groups[0]["lr"])
        scheduler.step(value)
    callbacks = [Script(values), cnn.ReduceLROnPlateau(**options)]
    history = model_with().fit(X, Y, epochs=len(values), callbacks=callbacks, verbose=0).history
    assert history["lr"] == pytest.approx(rates)


@pytest.mark.parametrize("backend", ["c", "reference"])
def test_a_reduced_rate_is_that_of_the_steps(backend):
    with cnn.backend(backend):
        a, b = model_with(cnn.SGD(lambda epoch: 0.2 / (1 + epoch))), model_with(cnn.SGD(0.2))
        reduce = cnn.ReduceLROnPlateau(patience=0, factor=0.5)
        history = a.fit(X, Y, 2, 8, shuffle=False, callbacks=[Script([1, 2, 3]), reduce], verbose=0).history
        assert history["lr"] == pytest.approx([0.2, 0.1])
        c = model_with(cnn.SGD(0.2))
        reduce = cnn.ReduceLROnPlateau(patience=0, factor=0.5)
        c.fit(X, Y, 3, 8, shuffle=False, callbacks=[Script([1, 2, 3]), reduce], verbose=0)
        b.fit(X, Y, 2, 8, shuffle=False, verbose=0)
        b._updates.scale = 0.5
        b.fit(X, Y, 1, 8, shuffle=False, verbose=0)
    assert weights_equal(b, c)


# ------------------------------------------------------------------------------------------ CSV


def test_csv_logger(tmp_path):
    path, lines = tmp_path / "log.txt", []
    count = cnn.LambdaCallback(on_epoch_end=lambda epoch, logs: lines.append(len(path.read_text().splitlines())))
    model = model_with(metrics=["accuracy"])
    callbacks = [cnn.CSVLogger(path), count]
    history = model.fit(X, Y, 3, validation_split=0.25, callbacks=callbacks, verbose=0).history
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert lines == [2, 3, 4]  # complete after each epoch
    assert list(rows[0]) == ["epoch", *history]
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    for name, values in history.items():
        assert [float(row[name]) for row in rows] == values


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: cnn.EarlyStopping(patience=-1), "patience"),
        (lambda: cnn.EarlyStopping(restore_best=1), "restore_best"),
        (lambda: cnn.EarlyStopping(monitor=3), "monitor"),
        (lambda: cnn.EarlyStopping(mode="more"), "mode"),
        (lambda: cnn.EarlyStopping(min_delta=-1), "min_delta"),
        (lambda: cnn.ReduceLROnPlateau(factor=2), "factor"),
        (lambda: cnn.ReduceLROnPlateau(cooldown=0.5), "cooldown"),
        (lambda: cnn.ModelCheckpoint("a", best_only="yes"), "best_only"),
        (lambda: cnn.ModelCheckpoint(3), r"\[ModelCheckpoint\] path must be the name of a file, got 3"),
        (lambda: cnn.CSVLogger(3), r"\[CSVLogger\] path must be the name of a file, got 3"),
        (lambda: model_with().fit(X, Y, callbacks=[cnn.ModelCheckpoint("/nowhere/a")], verbose=0), "does not exist"),
        (lambda: model_with().fit(X, Y, callbacks=[cnn.CSVLogger("/nowhere/a")], verbose=0), "nowhere"),
    ],
)
def test_bad_callbacks(make, word):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=word):
        make()
