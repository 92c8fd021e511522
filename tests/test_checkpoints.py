"""Checkpoints: the same bits after an interruption of any kind, the checkpoint before, files that do not fit."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from test_training import compiled, dense_net, images, small_net, vectors, weights_equal

import pycnn as cnn
from pycnn import io


def jitter(x, y, generator):
    return x + np.float32(0.1) * generator.standard_normal(x.shape, np.float32), y


def fit(path=None, epochs=4, resume=None, callbacks=(), seed=3, optimizer=None, **options):
    """A training with a bit of everything that a checkpoint has to keep: (model, history)."""
    x, y = images(9)
    model = cnn.Sequential(small_net())
    optimizer = optimizer or cnn.Adam(cnn.CosineDecay(0.02, epochs=4, warmup=1), clip_norm=1.0)
    model.compile(optimizer, "cross_entropy", ["accuracy"], {"head": cnn.RMSprop(0.005, momentum=0.5)})
    callbacks = [*callbacks] if path is None else [cnn.ModelCheckpoint(path), *callbacks]
    options = {"batch_size": 4, "seed": seed, "augment": jitter, "validation_split": 0.25, "verbose": 0} | options
    history = model.fit(x, y, epochs, callbacks=callbacks, resume=resume, **options).history
    history.pop("seconds", None)
    return model, history


def assert_same(one, other):
    assert weights_equal(one[0], other[0])
    assert one[1] == other[1]


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("seed", [3, None])
def test_a_resumed_fit_has_the_same_bits(tmp_path, first, seed):
    """Weights, running statistics, history; then also in what training does afterwards: slots, dropout, step."""
    path = tmp_path / "check"
    if seed is None:  # what no seed gives must be kept as well, so the whole run is the first one, copied midway
        copy = cnn.LambdaCallback(on_epoch_begin=lambda epoch, logs: epoch == first and path.rename(tmp_path / "mid"))
        whole = fit(path, seed=None, callbacks=[copy])
        resumed = fit(resume=tmp_path / "mid", seed=None)
    else:
        whole = fit()
        fit(path, epochs=first)
        resumed = fit(path, resume=path)
    assert_same(whole, resumed)
    x, y = images(9)
    assert [whole[0].train_on_batch(x, y) for _ in range(3)] == [resumed[0].train_on_batch(x, y) for _ in range(3)]


def test_an_absent_file_starts_afresh_and_epochs_is_the_total(tmp_path):
    path = tmp_path / "check"
    model, history = fit(path, epochs=3, resume=path)
    assert len(history["loss"]) == 3
    again = fit(path, epochs=3, resume=path)
    assert_same((model, history), again)  # nothing left to do
    assert len(fit(path, epochs=2, resume=path)[1]["loss"]) == 3


def test_a_checkpoint_is_a_model(tmp_path):
    path = tmp_path / "check"
    model, _ = fit(path, epochs=2)
    loaded = cnn.load(path)
    x, _ = images(5)
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    assert loaded._optimizer == model._optimizer


def test_the_one_before_stays(tmp_path):
    path = tmp_path / "check"
    fit(path, epochs=1)
    first = path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["check"]
    fit(path, epochs=2, resume=path)
    assert (tmp_path / "check.prev").read_bytes() == first != path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["check", "check.prev"]


def test_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(io.os, "link", refuse)
    whole = fit(tmp_path / "check", epochs=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["check", "check.prev"]
    with pytest.warns(UserWarning, match="check.prev"):
        (tmp_path / "check").write_bytes(b"")
        assert_same(whole, fit(epochs=3, resume=tmp_path / "check"))


# ------------------------------------------------------------------------------- damage and full disks


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1, None])
def test_a_damaged_file(tmp_path, keep):
    """Cut short, or (None) with one bit flipped: the one before is taken, and said; it is not lost by that."""
    path, previous = tmp_path / "check", tmp_path / "check.prev"
    whole = fit()
    fit(path, epochs=3)
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[-10] ^= 1
    path.write_bytes(damaged if keep is None else sound[: int(keep * len(sound)) if type(keep) is float else keep])
    kept = previous.read_bytes()
    with pytest.warns(UserWarning, match="resume.*check.*going on from the checkpoint before, .*check.prev"):
        resumed = fit(path, epochs=3, resume=path)
    assert previous.read_bytes() == kept, "a damaged file does not take the place of a sound one"
    assert_same(fit(path, resume=path), whole)
    assert len(resumed[1]["loss"]) == 3


def test_two_damaged_files(tmp_path):
    path = tmp_path / "check"
    fit(path, epochs=2)
    for name in ("check", "check.prev"):
        (tmp_path / name).write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match="resume.*check is not a sound.*check.prev is not a sound"):
        fit(resume=path)
    path.write_bytes(b"")
    (tmp_path / "check.prev").unlink()
    with pytest.raises(ValueError, match="no file.*check.prev"):
        fit(resume=path)


@pytest.mark.parametrize("room", [0, 8, 1000])
def test_a_full_disk(tmp_path, monkeypatch, room):
    """Writing fails after some bytes; the file before stays, nothing else is left, and training goes on from it."""
    path = tmp_path / "check"
    whole = fit()
    fit(path, epochs=2)
    before, opened = path.read_bytes(), open

    class Full:
        def __init__(self, file):
            self.file, self.written = file, 0

        def write(self, data):
            self.written += memoryview(data).nbytes
            if self.written > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    with monkeypatch.context() as patch:
        patch.setattr(
            io,
            "open",
            lambda name, mode: (Full if "b" in mode and mode != "rb" else lambda f: f)(opened(name, mode)),
            raising=False,
        )
        with pytest.raises(OSError, match="No space left") as caught:
            fit(path, resume=path)
    assert "check could not be written" in caught.value.__notes__[0]
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["check", "check.prev"]
    assert_same(fit(path, resume=path), whole)


SCRIPT = """
import resource, sys
import numpy as np
sys.path.insert(0, {tests!r})
from test_checkpoints import fit
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
print("begins", flush=True)
model, history = fit(sys.argv[1], epochs=60, resume=sys.argv[1])
np.savez(sys.argv[1] + ".npz", *model.get_weights(), loss=history["loss"])
"""


def start(path, *arguments):
    code = SCRIPT.format(tests=os.path.dirname(os.path.abspath(__file__)))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def assert_finished(process, path, whole):
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    model, history = whole
    with np.load(f"{path}.npz") as found:
        assert found["loss"].tolist() == history["loss"]
        for i, array in enumerate(model.get_weights()):
            np.testing.assert_array_equal(found[f"arr_{i}"], array)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_kill_9_at_any_moment(tmp_path):
    path, generator, kills = tmp_path / "check", random.Random(), 0
    for _ in range(8):
        process = start(path)
        process.stdout.readline()
        time.sleep(generator.uniform(0.0, 0.12))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        for name in ("check", "check.prev"):
            if (tmp_path / name).exists():
                io.load(tmp_path / name)  # raises if it is not sound
    assert kills >= 4, "the training was over before it could be killed"
    assert_finished(start(path), path, fit(epochs=60))


def test_a_file_size_limit(tmp_path):
    pytest.importorskip("resource")
    path = tmp_path / "check"
    process = start(path, "2000")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "File too large" in errors
    assert list(tmp_path.iterdir()) == []
    assert_finished(start(path), path, fit(epochs=60))


# -------------------------------------------------------------------------------- callbacks and rest


def test_callbacks_go_on_where_they_were(tmp_path):
    """Early stopping (its best weights too), the reduced rate and the log, whatever the order of the list."""
    path = tmp_path / "check"

    def callbacks(name):
        stop = cnn.EarlyStopping("val_accuracy", patience=4)
        return [stop, cnn.ReduceLROnPlateau("loss", 0.5, patience=0), cnn.CSVLogger(tmp_path / name)]

    class Interruption(Exception):
        pass

    def interrupted_before(last):
        def begin(epoch, logs):
            if epoch == last:
                raise Interruption

        return cnn.LambdaCallback(on_epoch_begin=begin)

    whole = fit(epochs=30, callbacks=callbacks("whole.csv"))
    assert 4 < len(whole[1]["loss"]) < 30 and whole[0]._updates.scale < 1
    for last in range(1, len(whole[1]["loss"])):
        with pytest.raises(Interruption):
            fit(path, 30, path, [*callbacks("resumed.csv"), interrupted_before(last)])
    resumed = fit(path, 30, path, callbacks("resumed.csv"))
    assert_same(resumed, whole)
    logs = [(tmp_path / f"{name}.csv").read_text().splitlines() for name in ("whole", "resumed")]
    assert [line.split(",")[:3] for line in logs[0]] == [line.split(",")[:3] for line in logs[1]]


def test_a_training_that_was_stopped_stays_so_for_its_number_of_epochs(tmp_path):
    path = tmp_path / "check"
    stop = lambda: cnn.EarlyStopping("loss", patience=1, mode="max")  # noqa: E731
    first = fit(path, 30, path, [stop()])
    assert len(first[1]["loss"]) < 30
    assert_same(fit(path, 30, path, [stop()]), first)
    assert len(fit(path, 32, path)[1]["loss"]) == 32


def test_best_only(tmp_path):
    path = tmp_path / "best"
    x, y = vectors(8)
    losses, sizes, kept = [5.0, 3.0, 4.0, 2.0, 6.0], [], []

    def script(epoch, logs):
        logs["val_loss"] = losses[epoch]
        kept.append(model.get_weights())

    model = compiled(dense_net(), (4,))
    best = cnn.ModelCheckpoint(path, best_only=True)
    after = cnn.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: sizes.append(path.exists() and path.stat().st_mtime_ns)
    )
    model.fit(x, y, 5, callbacks=[cnn.LambdaCallback(on_epoch_end=script), best, after], verbose=0)
    for a, b in zip(cnn.load(path).get_weights(), kept[3], strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(set(sizes)) == 4 and sizes[2] == sizes[3]
    again = cnn.ModelCheckpoint(path, best_only=True)
    before = path.read_bytes()
    model.fit(x, y, 5, callbacks=[cnn.LambdaCallback(on_epoch_end=script), again], resume=path, verbose=0)
    assert path.read_bytes() == before, "the best value is known from the file"


def test_iterables_resume_as_well(tmp_path):
    """The number of steps, learnt in the first epoch, is what the schedule of the later ones needs."""
    x, y = vectors(10)

    class Again:
        def __iter__(self):
            return iter([(x[:4], y[:4]), (x[4:], y[4:])])

    def run(epochs, resume=None, callbacks=()):
        model = compiled(dense_net(), (4,), cnn.SGD(cnn.CosineDecay(0.5, 4), momentum=0.9))
        return model, model.fit(Again(), epochs=epochs, callbacks=callbacks, resume=resume, verbose=0).history["lr"]

    run(2, callbacks=[cnn.ModelCheckpoint(tmp_path / "a")])
    assert_same(run(4), run(4, tmp_path / "a"))


def test_a_schedule_of_ones_own_can_be_resumed_but_not_loaded(tmp_path):
    path = tmp_path / "check"
    optimizer = lambda: cnn.SGD(lambda epoch: 0.1 / (1 + epoch), momentum=0.9)  # noqa: E731
    whole = fit(optimizer=optimizer())
    with pytest.warns(UserWarning, match="resume.*cannot be saved"):
        fit(path, 2, optimizer=optimizer())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(fit(path, resume=path, optimizer=optimizer()), whole)
    with pytest.raises(ValueError, match="no pycnn model"):
        cnn.load(path)


def test_files_that_do_not_fit(tmp_path):
    path, x, y = tmp_path / "check", *vectors(8)
    model = compiled(dense_net(), (4,), cnn.Adam())
    model.fit(x, y, callbacks=[cnn.ModelCheckpoint(path)], verbose=0)
    for other, word in (
        (compiled(dense_net(), (4,), cnn.SGD(0.1)), "2 arrays of an optimizer, expected 0"),
        (compiled([cnn.Dense(3)], (4,), cnn.Adam()), "arrays are not those"),
        (compiled([cnn.Dense(6, name="body"), cnn.Dense(3, name="head")], (4,), cnn.Adam()), "shape"),
    ):
        before = other.get_weights()
        with pytest.raises(ValueError, match=f"resume.*{word}"):
            other.fit(x, y, resume=path, verbose=0)
        for a, b in zip(before, other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="no checkpoint"):
        model.fit(x, y, resume=tmp_path / "model", verbose=0)
