"""Schedules: their values by hand and against PyTorch's, the whole fit as their length, saving, errors."""

import math

import numpy as np
import pytest

import pycnn as cnn
from pycnn import schedules


def small_model(lr, optimizers=None):
    model = cnn.Sequential([cnn.Dense(2, name="head")])
    model.build((3,), seed=0)
    model.compile(cnn.SGD(lr), "mse", optimizers=optimizers)
    return model


X, Y = np.ones((8, 3), np.float32), np.zeros((8, 2), np.float32)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (cnn.StepDecay(0.8, 10, 0.5), {0: 0.8, 9.99: 0.8, 10: 0.4, 19.5: 0.4, 20: 0.2, 35: 0.1}),
        (cnn.StepDecay(0.8, every=0.5, factor=0.5), {0.25: 0.8, 0.5: 0.4, 1: 0.2}),
        (cnn.ExponentialDecay(0.5, 0.81), {0: 0.5, 0.5: 0.45, 1: 0.405, 2: 0.32805}),
        (cnn.PiecewiseConstant({10: 0.01, 0: 0.1, 20: 0.001}), {0: 0.1, 9.9: 0.1, 10: 0.01, 19: 0.01, 25: 0.001}),
        (cnn.CosineDecay(0.2, 10), {0: 0.2, 2.5: 0.1 * (1 + math.sqrt(0.5)), 5: 0.1, 10: 0, 12: 0}),
        (cnn.CosineDecay(0.2, epochs=12, warmup=2, floor=0.02), {0: 0, 1: 0.1, 2: 0.2, 7: 0.11, 12: 0.02, 20: 0.02}),
        (cnn.CosineDecay(0.2, 3, warmup=3), {1.5: 0.1, 3: 0.0}),
        (cnn.OneCycle(1.0, 10), {0: 0.04, 1.5: 0.52, 3: 1.0, 6.5: 0.500002, 10: 4e-6, 11: 4e-6}),
    ],
    ids=str,
)
def test_values(schedule, values):
    assert {epoch: schedule(epoch) for epoch in values} == pytest.approx(values, rel=1e-12, abs=1e-15)
    assert all(isinstance(schedule(epoch), float) for epoch in values)


@pytest.mark.parametrize(
    ("schedule", "peer", "offset"),
    [
        (cnn.StepDecay(0.1, 3, 0.5), lambda s, o: s.StepLR(o, 3, 0.5), 0),
        (cnn.ExponentialDecay(0.1, 0.9), lambda s, o: s.ExponentialLR(o, 0.9), 0),
        (cnn.CosineDecay(0.1, 10, floor=0.01), lambda s, o: s.CosineAnnealingLR(o, 10, 0.01), 0),
        # PyTorch's phases end at 0.3 * 11 - 1 and 11 - 1; its values at the ends are the same.
        (cnn.OneCycle(0.1, 10), lambda s, o: s.OneCycleLR(o, 0.1, 11), None),
    ],
    ids=["step", "exponential", "cosine", "one cycle"],
)
def test_against_pytorch(schedule, peer, offset):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    theirs = peer(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step() if len(rates) < 11 else None
    ours = [schedule(epoch) for epoch in range(11)]
    if offset is None:
        assert [ours[0], ours[-1], max(schedule(e / 10) for e in range(100))] == pytest.approx([*rates[::10], 0.1])
    else:
        assert ours == pytest.approx(rates)


@pytest.mark.parametrize("schedule", [cnn.CosineDecay(0.1), cnn.OneCycle(0.1)], ids=str)
def test_no_epochs_is_the_whole_fit(schedule):
    with pytest.raises(ValueError, match="epochs is None.*whole fit"):
        schedule(5.0)
    history = small_model(schedule).fit(X, Y, epochs=4, batch_size=2, verbose=0).history
    fixed = type(schedule)(0.1, epochs=4)
    assert history["lr"] == pytest.approx([fixed(e + 0.75) for e in range(4)])
    assert schedule.epochs is None
    history = small_model(schedule).fit(X, Y, epochs=2, batch_size=2, verbose=0).history
    assert history["lr"] == pytest.approx([type(schedule)(0.1, epochs=2)(e + 0.75) for e in range(2)])


@pytest.mark.parametrize(
    "schedule",
    [
        cnn.StepDecay(0.1, 3, 0.5),
        cnn.ExponentialDecay(0.1, 0.9),
        cnn.CosineDecay(0.1, warmup=1, floor=0.01),
        cnn.CosineDecay(np.float32(0.1), 7),
        cnn.OneCycle(0.1),
        cnn.PiecewiseConstant({0: 0.1, 10: 0.01}),
    ],
    ids=str,
)
def test_schedules_are_saved_with_the_model(schedule, tmp_path):
    model = small_model(schedule, {"head": cnn.Adam(schedule)})
    model.save(tmp_path / "a")
    loaded = cnn.load(tmp_path / "a")
    assert loaded._optimizer.lr == schedule and loaded._by_layer[loaded.layers[-1]].lr == schedule
    rates = [m.fit(X, Y, epochs=3, verbose=0).history["lr"] for m in (model, loaded)]
    assert rates[0] == rates[1]


def test_every_schedule_is_known_to_load():
    public = {name for name in cnn.__all__ if isinstance(getattr(cnn, name), type)}
    made = {name for name in public if issubclass(getattr(cnn, name), schedules.Schedule)}
    assert made == set(schedules.SCHEDULES)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: cnn.StepDecay(0.1, 0, 0.5), "every"),
        (lambda: cnn.StepDecay(-0.1, 1, 0.5), "lr"),
        (lambda: cnn.StepDecay(0.1, 1, "x"), "factor"),
        (lambda: cnn.ExponentialDecay(0.1, -1), "factor"),
        (lambda: cnn.CosineDecay(0.1, epochs=-1), "epochs"),
        (lambda: cnn.CosineDecay(0.1, warmup=-1), "warmup"),
        (lambda: cnn.CosineDecay(float("nan")), "lr"),
        (lambda: cnn.OneCycle("x"), "lr"),
        (lambda: cnn.PiecewiseConstant({10: 0.1}), "begin with epoch 0"),
        (lambda: cnn.PiecewiseConstant({}), "begin with epoch 0"),
        (lambda: cnn.PiecewiseConstant({0: -1.0}), "rate"),
        (lambda: cnn.PiecewiseConstant(0.1), "dict"),
    ],
)
def test_bad_schedules(make, word):
    with pytest.raises((ValueError, TypeError), match=word):
        make()
