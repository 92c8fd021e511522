"""Training: C against the reference and PyTorch, seeds, fit and what it gives back, losses, metrics, errors."""

import sys
import threading

import numpy as np
import pytest

import pycnn as cnn
from pycnn import executor, plan, progress


@pytest.fixture
def three_threads(monkeypatch):
    """Threads also for shapes so small that they would run on one; the number is put back afterwards."""
    monkeypatch.setattr(plan, "WORK_FOR_THREADS", 0)
    before = cnn.get_num_threads()
    yield cnn.set_num_threads
    cnn.set_num_threads(before)


def draw(shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def images(n=6, seed=0):
    """Tiny images of three classes that can be told apart."""
    y = np.arange(n) % 3
    return 0.5 * draw((n, 2, 6, 5), seed) + y[:, None, None, None].astype(np.float32), y


def vectors(n=12, features=4, classes=3, seed=0):
    y = np.arange(n) % classes
    return draw((n, features), seed) + 2 * np.eye(classes, features, dtype=np.float32)[y], y


def small_net(dropout=0.3):
    return [
        # A bias before batch norm would have a gradient of rounding errors, whose sign Adam follows.
        cnn.Conv2D(4, 3, padding="same", bias=False, name="conv"),
        cnn.BatchNorm(name="norm"),
        cnn.ReLU(),
        cnn.MaxPool2D(),
        cnn.Residual([cnn.DepthwiseConv2D(3, padding="same", name="depthwise"), cnn.GELU()]),
        cnn.AvgPool2D(2, 1),
        cnn.Flatten(),
        cnn.Dropout(dropout),
        cnn.Dense(3, name="head"),
    ]


def dense_net(last=3):
    return [cnn.Dense(5, activation="tanh", name="body"), cnn.Dense(last, name="head")]


def compiled(layers, shape, optimizer="sgd", loss="cross_entropy", metrics=(), seed=0, **options):
    model = cnn.Sequential(layers)
    model.build(shape, seed=seed)
    model.compile(optimizer, loss, metrics, **options)
    return model


def weights_equal(a, b):
    return all(np.array_equal(v, w) for v, w in zip(a.get_weights(), b.get_weights(), strict=True))


def assert_weights_close(a, b, tolerance=1e-4):
    for v, w in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(v, w, rtol=tolerance, atol=tolerance)


# ----------------------------------------------------------------------- against the reference

OPTIMIZERS = {
    "sgd": lambda: cnn.SGD(0.1),
    "weight decay": lambda: cnn.SGD(0.1, weight_decay=0.1),
    "momentum": lambda: cnn.SGD(0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda: cnn.SGD(0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
    "clip_norm": lambda: cnn.SGD(0.1, momentum=0.9, clip_norm=0.5),
    "clip_value": lambda: cnn.SGD(0.1, clip_value=0.05),
    "both clips": lambda: cnn.SGD(0.1, clip_value=0.05, clip_norm=0.5),
    "adam": lambda: cnn.Adam(0.01),
    "adam options": lambda: cnn.Adam(0.02, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1),
    "adam clips": lambda: cnn.Adam(0.01, eps=1e-4, clip_norm=0.5, clip_value=0.2),
    "adamw": lambda: cnn.AdamW(0.01, eps=1e-3, weight_decay=0.3),
    "rmsprop": lambda: cnn.RMSprop(0.01, eps=1e-2, momentum=0.5, centered=True, clip_norm=0.5),
    "adagrad": lambda: cnn.Adagrad(0.05, lr_decay=0.3, initial_accumulator_value=0.1, clip_value=0.2),
    "adagrad momentum": lambda: cnn.AdagradMomentum(0.02, eps=1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_those_of_the_reference(name):
    """Losses and weights of several steps, dropout and running statistics included."""
    x, y = images()
    losses, models = {}, {}
    for backend in ("c", "reference"):
        with cnn.backend(backend):
            model = models[backend] = compiled(small_net(), x.shape[1:], OPTIMIZERS[name]())
            history = model.fit(x, y, epochs=2, batch_size=4, seed=1, verbose=0).history
            losses[backend] = history["loss"] + [model.train_on_batch(x, y) for _ in range(2)]
    np.testing.assert_allclose(losses["c"], losses["reference"], rtol=1e-4, atol=1e-4)
    assert_weights_close(models["c"], models["reference"])
    assert len(set(losses["c"])) == 4


@pytest.mark.parametrize(
    "loss, last, y",
    [
        ("cross_entropy", [], np.array([0, 2, 1, 2])),
        ("cross_entropy", [cnn.Softmax], np.eye(3)[[0, 2, 1, 2]]),
        ("binary_cross_entropy", [], np.array([[0, 1, 0.5]] * 4)),
        ("binary_cross_entropy", [cnn.Sigmoid], np.array([[0, 1, 1]] * 4)),
        ("mse", [], draw((4, 3), 9)),
        ("mse", [cnn.Softmax], draw((4, 3), 9)),
        ("mae", [], draw((4, 3), 9)),
        ("huber", [], draw((4, 3), 9)),
        (cnn.Huber(0.3), [], draw((4, 3), 9)),
        (cnn.CrossEntropy(0.2), [cnn.Softmax], np.array([0, 2, 1, 2])),
        (cnn.CrossEntropy(label_smoothing=0.1), [], np.eye(3)[[0, 2, 1, 2]]),
    ],
    ids=lambda v: str(v)[:40],
)
def test_losses_equal_those_of_the_reference(loss, last, y):
    x, scores = draw((4, 4)), []
    for backend in ("c", "reference"):
        with cnn.backend(backend):
            model = compiled([*dense_net(), *(layer() for layer in last)], (4,), cnn.SGD(0.5), loss, ["accuracy"])
            scores.append([model.train_on_batch(x, y), model.train_on_batch(x, y), *model.evaluate(x, y).values()])
            scores[-1] += [float(np.abs(g).sum()) for g in model.grads.values()]
    np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-5)


def test_mse_of_images():
    """Labels of an image-shaped output are in the public order, whatever the order in memory."""
    x, y = draw((2, 2, 4, 3)), draw((2, 5, 4, 3), 1)
    model = compiled([cnn.Conv2D(5, 3, padding="same")], (2, 4, 3), cnn.SGD(0.1), "mse")
    output = model.predict(x)
    assert model.evaluate(x, y)["loss"] == pytest.approx(float(((output - y) ** 2).mean()), rel=1e-5)
    model.train_on_batch(x, y)
    grads = model.grads["conv2d.weight"].copy()
    other = cnn.Conv2D(5, 3, padding="same")
    other.build((2, 4, 3), seed=0)
    other.forward(x)
    other.backward(2 * (output - y) / y.size)
    np.testing.assert_allclose(grads, other.grads["weight"], rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------- against PyTorch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def torch_net(torch, model):
    """small_net without dropout, with this model's weights."""
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3, padding="same", bias=False)
            self.norm = nn.BatchNorm2d(4, momentum=0.1)
            self.depthwise = nn.Conv2d(4, 4, 3, padding="same", groups=4)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            x = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
            x = nn.functional.gelu(self.depthwise(x)) + x
            x = nn.functional.avg_pool2d(x, 2, 1)
            return self.head(x.flatten(1))

    net = Net()
    state = {}
    names = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
    for leaf in model.leaves():
        for name, array in leaf.params.items():
            transposed = array.T if leaf.name == "head" else array
            state[f"{leaf.name}.{names[name]}"] = torch.tensor(transposed.copy())
    net.load_state_dict(state, strict=False)
    return net


PEERS = {
    "sgd": (lambda: cnn.SGD(0.1), lambda t, p: t.optim.SGD(p, 0.1)),
    "momentum": (
        lambda: cnn.SGD(0.1, momentum=0.9, weight_decay=0.05),
        lambda t, p: t.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.05),
    ),
    "nesterov": (
        lambda: cnn.SGD(0.05, momentum=0.8, nesterov=True, weight_decay=0.05),
        lambda t, p: t.optim.SGD(p, 0.05, momentum=0.8, nesterov=True, weight_decay=0.05),
    ),
    "adam": (lambda: cnn.Adam(), lambda t, p: t.optim.Adam(p)),
    "adam options": (
        lambda: cnn.Adam(0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.05),
        lambda t, p: t.optim.Adam(p, 0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.05),
    ),
    "adamw": (lambda: cnn.AdamW(eps=1e-3), lambda t, p: t.optim.AdamW(p, eps=1e-3)),
    "adamw options": (
        lambda: cnn.AdamW(0.01, (0.8, 0.95), 1e-3, 0.2),
        lambda t, p: t.optim.AdamW(p, 0.01, (0.8, 0.95), 1e-3, 0.2),
    ),
    "rmsprop": (lambda: cnn.RMSprop(eps=1e-3), lambda t, p: t.optim.RMSprop(p, eps=1e-3)),
    "rmsprop options": (
        lambda: cnn.RMSprop(0.001, 0.8, 1e-2, 0.05, 0.9, True),
        lambda t, p: t.optim.RMSprop(p, 0.001, 0.8, 1e-2, 0.05, 0.9, True),
    ),
    "adagrad": (
        lambda: cnn.Adagrad(initial_accumulator_value=0.1),
        lambda t, p: t.optim.Adagrad(p, initial_accumulator_value=0.1),
    ),
    "adagrad options": (
        lambda: cnn.Adagrad(0.05, 0.5, 0.05, 0.1, 1e-3),
        lambda t, p: t.optim.Adagrad(p, 0.05, 0.5, 0.05, 0.1, 1e-3),
    ),
    "clip_norm": (
        lambda: cnn.SGD(0.1, momentum=0.9, weight_decay=0.05, clip_norm=0.3),
        lambda t, p: t.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.05),
    ),
    "clip_value": (
        lambda: cnn.Adam(0.01, eps=1e-3, weight_decay=0.05, clip_value=0.02),
        lambda t, p: t.optim.Adam(p, 0.01, eps=1e-3, weight_decay=0.05),
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_five_steps_equal_those_of_pytorch(name, torch):
    x, y = images()
    ours, theirs = PEERS[name]
    model = compiled(small_net(dropout=0.0), x.shape[1:], ours())
    net = torch_net(torch, model)
    optimizer = theirs(torch, net.parameters())
    clipped = False
    for _ in range(5):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(y))
        loss.backward()
        if name == "clip_norm":
            clipped |= float(torch.nn.utils.clip_grad_norm_(net.parameters(), 0.3)) > 0.3
        if name == "clip_value":
            clipped |= any(float(p.grad.abs().max()) > 0.02 for p in net.parameters())
            torch.nn.utils.clip_grad_value_(net.parameters(), 0.02)
        optimizer.step()
        assert model.train_on_batch(x, y) == pytest.approx(loss.item(), rel=1e-4)
    assert clipped == name.startswith("clip")
    state = {k: v.detach().numpy() for k, v in net.state_dict().items()}
    np.testing.assert_allclose(model.params["conv.weight"], state["conv.weight"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.params["norm.gamma"], state["norm.weight"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.params["head.weight"], state["head.weight"].T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.state["norm.running_mean"], state["norm.running_mean"], rtol=1e-3, atol=1e-4)


def test_small_gradients_are_not_clipped():
    x, y = vectors()
    for options in ({"clip_norm": 1e3}, {"clip_value": 1e3}, {"clip_norm": 1e3, "clip_value": 1e3}):
        for backend in ("c", "reference"):
            with cnn.backend(backend):
                models = [compiled(dense_net(), (4,), cnn.SGD(0.1, **o)) for o in ({}, options)]
                for model in models:
                    model.train_on_batch(x, y)
            assert weights_equal(*models)


# -------------------------------------------------------------------------------------- fit


def test_fit_learns_and_gives_its_history():
    x, y = vectors(30)
    model = cnn.Sequential(dense_net())
    model.compile(cnn.SGD(0.1, momentum=0.9), "cross_entropy", ["accuracy"])
    fitted = model.fit(x, y, epochs=12, batch_size=8, validation_data=(x, y), seed=0, verbose=0)
    assert isinstance(fitted, cnn.History)
    history = fitted.history
    assert history.keys() == {"loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds"}
    assert all(isinstance(v, float) for values in history.values() for v in values)
    assert {len(values) for values in history.values()} == {12}
    assert history["loss"][-1] < history["loss"][0] / 2
    assert history["accuracy"][-1] > 0.9
    assert history["lr"] == [0.1] * 12
    assert min(history["seconds"]) > 0
    scores = model.evaluate(x, y)
    assert scores == {"loss": history["val_loss"][-1], "accuracy": history["val_accuracy"][-1]}


def test_history_without_metrics_and_validation():
    x, y = vectors()
    model = compiled(dense_net(), (4,))
    assert model.fit(x, y, epochs=3, verbose=0).history.keys() == {"loss", "lr", "seconds"}
    assert model.fit(x, y, epochs=0, verbose=0).history == {}


def test_history_holds_means_over_samples():
    """The last, smaller batch counts by its size."""
    x, y = vectors(10)
    model = compiled(dense_net(), (4,), cnn.SGD(0.0), metrics=["accuracy"])
    history = model.fit(x, y, batch_size=4, verbose=0).history
    scores = model.evaluate(x, y)
    assert history["loss"][0] == pytest.approx(scores["loss"], rel=1e-5)
    assert history["accuracy"][0] == pytest.approx(scores["accuracy"])


def test_metrics_of_training_are_those_before_each_update():
    x, y = vectors(4)
    model = compiled(dense_net(), (4,), cnn.SGD(0.5), metrics=["accuracy"])
    before = model.evaluate(x, y)
    history = model.fit(x, y, batch_size=4, verbose=0).history
    assert [history["loss"][0], history["accuracy"][0]] == pytest.approx(list(before.values()), rel=1e-5)


def test_schedules_are_called_with_the_epoch_as_a_float():
    x, y = vectors(8)
    seen = []

    def schedule(epoch):
        seen.append(epoch)
        return 0.1 / (1 + epoch)

    model = compiled(dense_net(), (4,), cnn.SGD(schedule))
    history = model.fit(x, y, epochs=3, batch_size=2, verbose=0).history
    assert sorted(set(seen)) == pytest.approx([e + s / 4 for e in range(3) for s in range(4)])
    assert history["lr"] == pytest.approx([0.1 / (1 + e + 0.75) for e in range(3)])


@pytest.mark.parametrize("make", [lambda lr: cnn.SGD(lr, momentum=0.9), lambda lr: cnn.Adam(lr)])
def test_a_schedule_gives_each_step_its_rate(make):
    x, y = vectors(8)
    scheduled = compiled(dense_net(), (4,), make(lambda epoch: 0.1 if epoch < 0.5 else 0.0))
    constant = compiled(dense_net(), (4,), make(0.1))
    scheduled.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    constant.train_on_batch(x[:4], y[:4])
    assert weights_equal(scheduled, constant)


def test_without_shuffle_the_order_is_kept():
    x, y = vectors(12)
    models = [compiled(dense_net(), (4,), cnn.SGD(0.5)) for _ in range(4)]
    models[0].fit(x, y, batch_size=4, shuffle=False, verbose=0)
    for i in (0, 4, 8):
        models[1].train_on_batch(x[i : i + 4], y[i : i + 4])
    models[2].fit(x, y, batch_size=4, shuffle=True, seed=1, verbose=0)
    assert weights_equal(models[0], models[1])
    assert not weights_equal(models[0], models[2])


def test_shuffling_takes_each_sample_once_an_epoch():
    """With a rate of 0 the epoch's loss is that of all samples; the order differs between epochs."""
    x, y = vectors(9)
    model = compiled(dense_net(), (4,), cnn.SGD(0.0))
    seen = []
    train = model._ready(x).train
    model._ready(x).train = lambda batch, *rest: seen.append(batch.copy()) or train(batch, *rest)
    losses = model.fit(x, y, epochs=2, batch_size=2, seed=0, verbose=0).history["loss"]
    assert losses == pytest.approx([model.evaluate(x, y)["loss"]] * 2, rel=1e-5)
    first, second = np.concatenate(seen[:5]), np.concatenate(seen[5:])
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch, axis=0), np.sort(x, axis=0))
    assert not np.array_equal(first, second)


def test_validation_split_takes_the_last_part():
    x, y = vectors(10)
    models = [compiled(dense_net(), (4,), cnn.SGD(0.5), metrics=["accuracy"]) for _ in range(2)]
    options = {"epochs": 2, "batch_size": 3, "seed": 4, "verbose": 0}
    split = models[0].fit(x, y, validation_split=0.3, **options).history
    given = models[1].fit(x[:7], y[:7], validation_data=(x[7:], y[7:]), **options).history
    assert weights_equal(*models)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert split[name] == given[name]


def test_validation_split_of_nothing_and_of_lists():
    x, y = vectors(10)
    model = compiled(dense_net(), (4,))
    assert "val_loss" not in model.fit(x, y, validation_split=0.0, verbose=0).history
    assert "val_loss" in model.fit(x.tolist(), y.tolist(), validation_split=0.5, verbose=0).history


def test_validation_leaves_weights_and_state_alone():
    x, y = images()
    models = [compiled(small_net(), x.shape[1:], cnn.SGD(0.1)) for _ in range(2)]
    models[0].fit(x, y, epochs=2, batch_size=4, seed=0, verbose=0, validation_data=(x + 5, y))
    models[1].fit(x, y, epochs=2, batch_size=4, seed=0, verbose=0)
    assert weights_equal(*models)


@pytest.mark.parametrize("verbose, lines", [(0, 0), (2, 3)])
def test_what_fit_prints(verbose, lines, capsys):
    x, y = vectors()
    model = compiled(dense_net(), (4,), metrics=["accuracy"])
    model.fit(x, y, epochs=3, verbose=verbose, validation_data=(x, y))
    out, err = capsys.readouterr()
    assert err == ""
    printed = out.splitlines()
    assert len(printed) == lines
    for epoch, line in enumerate(printed):
        assert line.startswith(f"epoch {epoch + 1}/3")
        assert all(name in line for name in ("loss", "accuracy", "val_loss", "val_accuracy"))


def test_a_line_an_epoch_without_tqdm(capsys, monkeypatch):
    monkeypatch.setattr(progress, "tqdm", None)
    x, y = vectors()
    compiled(dense_net(), (4,)).fit(x, y, epochs=2)
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert err == ""


def test_a_bar_an_epoch_with_tqdm(capsys):
    pytest.importorskip("tqdm")
    x, y = vectors()
    compiled(dense_net(), (4,)).fit(x, y, epochs=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 1/2" in err and "epoch 2/2" in err and "12/12" in err and "loss" in err


# ------------------------------------------------------------------------------------- seeds


def trained(seed, build_seed=None, epochs=2):
    x, y = images(9)
    model = cnn.Sequential(small_net(), seed=build_seed)
    model.compile(cnn.Adam(0.01, clip_norm=1.0), "cross_entropy")
    history = model.fit(x, y, epochs=epochs, batch_size=4, seed=seed, verbose=0).history
    return model, history["loss"]


def test_a_seed_gives_the_same_bits_at_every_thread_count(three_threads):
    expected, losses = trained(3)
    for threads in (1, 2, 3, 1):
        three_threads(threads)
        model, again = trained(3)
        assert again == losses
        assert weights_equal(model, expected)


def test_larger_layers_have_the_same_bits_at_every_thread_count(three_threads):
    """Shapes that are cut into several blocks, also with more threads than blocks."""
    x, y = draw((9, 8, 13, 11)), np.arange(9) % 3
    layers = lambda: [  # noqa: E731
        cnn.Conv2D(40, 3, padding="same", activation="relu"),
        cnn.Conv2D(24, 3, stride=2, groups=2),
        cnn.BatchNorm(),
        cnn.DepthwiseConv2D(3, padding="same"),
        cnn.MaxPool2D(2),
        cnn.Flatten(),
        cnn.Dropout(0.5),
        cnn.Dense(70, activation="gelu"),
        cnn.Dense(3),
    ]
    results = []
    for threads in (1, 2, 3):
        three_threads(threads)
        model = cnn.Sequential(layers())
        model.compile(cnn.SGD(0.05, momentum=0.9, clip_norm=1.0), "cross_entropy")
        losses = model.fit(x, y, epochs=2, batch_size=5, seed=0, verbose=0).history["loss"]
        results.append((losses, model))
    for losses, model in results[1:]:
        assert losses == results[0][0]
        assert weights_equal(model, results[0][1])


def test_another_seed_gives_another_run():
    assert not weights_equal(trained(3)[0], trained(4)[0])
    assert not weights_equal(trained(None)[0], trained(None)[0])


def test_the_seed_of_fit_also_seeds_shuffling_and_dropout():
    """Two fits from the same initial weights, which the model's own seed gives."""
    assert weights_equal(trained(3, build_seed=1)[0], trained(3, build_seed=1)[0])
    assert not weights_equal(trained(3, build_seed=1)[0], trained(4, build_seed=1)[0])
    for layers in (dense_net, lambda: [cnn.Dropout(0.5), *dense_net()]):  # shuffling alone, then dropout alone
        x, y = vectors()
        models = [compiled(layers(), (4,), cnn.SGD(0.5)) for _ in range(3)]
        for model, seed in zip(models, (1, 1, 2), strict=True):
            model.fit(x, y, batch_size=4, shuffle=layers is dense_net, seed=seed, verbose=0)
        assert weights_equal(models[0], models[1])
        assert not weights_equal(models[0], models[2])


def test_the_seed_of_the_model_seeds_its_weights_alone():
    a, b, c = (cnn.Sequential(dense_net(), seed=s) for s in (1, 1, 2))
    for model in (a, b, c):
        model.build((4,))
    assert weights_equal(a, b)
    assert not weights_equal(a, c)
    d = cnn.Sequential(dense_net())
    d.build((4,), seed=1)
    assert weights_equal(a, d)
    e = cnn.Sequential(dense_net(), seed=1)
    e.compile(cnn.SGD(0.0), "cross_entropy")
    e.fit(*vectors(), seed=7, verbose=0)
    assert weights_equal(a, e)


# ------------------------------------------------------------------------ evaluate and predict


def test_evaluate_is_the_mean_for_any_batch_size():
    x, y = images(7)
    model = compiled(small_net(), x.shape[1:], metrics=["accuracy"])
    model.fit(x, y, epochs=2, batch_size=4, seed=0, verbose=0)
    expected = model.evaluate(x, y)
    logits = model.predict(x).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert expected["loss"] == pytest.approx(-log_p[np.arange(7), y].mean(), rel=1e-5)
    assert expected["accuracy"] == pytest.approx((logits.argmax(axis=1) == y).mean())
    for batch_size in (1, 2, 3, 7, 100):
        assert model.evaluate(x, y, batch_size=batch_size) == pytest.approx(expected, rel=1e-5)
    with cnn.backend("reference"):
        assert model.evaluate(x, y, batch_size=3) == pytest.approx(expected, rel=1e-5)


def test_predict_does_not_depend_on_batch_size_or_memory_order():
    x, y = images(7)
    model = compiled(small_net(), x.shape[1:])
    model.fit(x, y, epochs=2, batch_size=4, seed=0, verbose=0)
    expected = model.predict(x)
    assert expected.shape == (7, 3) and expected.dtype == np.float32
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for batch_size in (1, 2, 3, 7, 100):
        for given in (x, channels_last, x[::-1][::-1], x.astype(np.float64)):
            np.testing.assert_allclose(model.predict(given, batch_size=batch_size), expected, rtol=1e-6, atol=1e-6)
    with cnn.backend("reference"):
        np.testing.assert_allclose(model.predict(x, batch_size=3), expected, rtol=1e-5, atol=1e-5)
    assert model.predict(x[:0]).shape == (0, 3)


def test_training_on_channels_last_images():
    x, y = images(8)
    models = [compiled(small_net(), x.shape[1:], cnn.SGD(0.1)) for _ in range(2)]
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for model, given in zip(models, (x, channels_last), strict=True):
        model.fit(given, y, epochs=2, batch_size=4, seed=0, verbose=0)
    assert_weights_close(*models, tolerance=1e-6)


def test_what_predict_returns_and_takes_is_the_callers_own():
    x, _ = images(3)
    kept = x.copy()
    x.flags.writeable = False
    model = compiled(small_net(), x.shape[1:])
    first = model.predict(x)
    expected = first.copy()
    first[...] = np.nan
    second = model.predict(x)
    np.testing.assert_array_equal(second, expected)
    np.testing.assert_array_equal(x, kept)
    assert second.base is None or second.base.base is None


@pytest.mark.parametrize("case", ["cold", "warm", "few plans kept"])
def test_predict_from_several_threads_gives_the_same_bits(case, monkeypatch):
    """Also while plans are being made and dropped; Python switches threads as often as it can."""
    x = draw((8, 2, 6, 5))
    inputs = [x[: 3 + i] + i for i in range(6)]
    single = compiled(small_net(), x.shape[1:])
    expected = [single.predict(i, batch_size=3) for i in inputs]
    model = compiled(small_net(), x.shape[1:])
    if case == "warm":
        model.predict(x, batch_size=3)
    if case == "few plans kept":
        monkeypatch.setattr(executor, "CACHED_PLANS", 1)
    failures = []
    barrier = threading.Barrier(len(inputs))

    def work(number):
        try:
            barrier.wait()
            for _ in range(60):
                y = model.predict(inputs[number], batch_size=3)
                if not np.array_equal(y, expected[number]):
                    failures.append(f"thread {number}: other values")
        except Exception as error:
            failures.append(repr(error))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    assert failures == []


# ---------------------------------------------------------------------------- losses and labels


def same_weights(a, b):
    b.set_weights(a.get_weights())
    return a, b


def losses_and_grads(model, x, y):
    loss = model.train_on_batch(x, y)
    return loss, [g.copy() for g in model.grads.values()]


@pytest.mark.parametrize("scale", [1.0, 1e5])
@pytest.mark.parametrize("backend", ["c", "reference"])
@pytest.mark.parametrize(
    "loss, y, endings",
    [
        ("cross_entropy", [0, 2, 1], [[cnn.Dense(3), cnn.Softmax()], [cnn.Dense(3, activation="softmax")]]),
        ("cross_entropy", [0, 2, 1], [[cnn.Dense(3), cnn.Activation("softmax")]]),
        (
            "binary_cross_entropy",
            np.array([[0, 1, 1], [1, 1, 0], [0, 0, 0]]),
            [[cnn.Dense(3), cnn.Sigmoid()], [cnn.Dense(3, activation="sigmoid")]],
        ),
    ],
)
def test_probabilities_are_scored_by_their_logits(loss, y, endings, backend, scale):
    """Also where the probabilities are exactly 0 and 1: the loss stays finite and so do the gradients."""
    x = scale * draw((3, 4))
    with cnn.backend(backend):
        for ending in endings:
            logits = compiled([cnn.Dense(3)], (4,), cnn.SGD(0.0), loss)
            logits.params["dense.bias"][...] = draw((3,), 1)
            # The layers of `ending` are made anew, as each belongs to one model.
            fresh = [cnn.layers.base.from_config(cnn.layers.base.to_config(layer)) for layer in ending]
            ended = compiled(fresh, (4,), cnn.SGD(0.0), loss)
            ended.set_weights(logits.get_weights())
            assert ended.evaluate(x, y) == logits.evaluate(x, y)
            (loss_a, grads_a), (loss_b, grads_b) = (losses_and_grads(m, x, y) for m in (logits, ended))
            assert loss_a == loss_b
            assert np.isfinite(loss_a) and (scale == 1 or loss_a > 1e3)
            for a, b in zip(grads_a, grads_b, strict=True):
                assert np.isfinite(a).all() and np.abs(a).max() > 0
                np.testing.assert_array_equal(a, b)
            p = ended.predict(x)
            assert p.min() >= 0 and p.max() <= 1, "predict still gives probabilities"


def test_values_of_the_losses():
    """By hand, from logits that a layer of zeros with biases gives."""

    def loss_of(name, bias, y):
        model = compiled([cnn.Dense(len(bias))], (2,), loss=name)
        model.set_weights([np.zeros((2, len(bias))), bias])
        return model.evaluate(np.ones((len(y), 2)), y)["loss"]

    assert loss_of("cross_entropy", [0.0, 0.0, 0.0, 0.0], [1, 2]) == pytest.approx(np.log(4))
    assert loss_of("cross_entropy", [np.log(3), 0.0], [0]) == pytest.approx(-np.log(0.75))
    assert loss_of("cross_entropy", [1000.0, 0.0], [1, 0]) == pytest.approx(500)
    assert loss_of("binary_cross_entropy", [0.0, 0.0], [[0, 1]]) == pytest.approx(np.log(2))
    assert loss_of("binary_cross_entropy", [1000.0, -1000.0], [[0, 0]]) == pytest.approx(500)
    assert loss_of("mse", [1.0, 3.0], [[0, 0], [1, 1]]) == pytest.approx((1 + 9 + 0 + 4) / 4)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.float32, list])
def test_one_hot_labels_equal_integer_labels(dtype):
    x, y = vectors()
    integer = y.tolist() if dtype is list else y.astype(dtype)
    one_hot = np.eye(3)[y].tolist() if dtype is list else np.eye(3, dtype=dtype)[y]
    models = [compiled(dense_net(), (4,), cnn.SGD(0.1), metrics=["accuracy"]) for _ in range(3)]
    histories = [
        model.fit(x, labels, epochs=2, batch_size=4, seed=0, verbose=0).history
        for model, labels in zip(models, (y, integer, one_hot), strict=True)
    ]
    assert weights_equal(models[0], models[1])
    assert_weights_close(models[0], models[2], 1e-6)
    assert histories[2]["loss"] == pytest.approx(histories[0]["loss"], rel=1e-6)
    assert histories[2]["accuracy"] == histories[0]["accuracy"]


def test_loss_and_optimizer_objects_equal_their_names():
    x, y = vectors()
    pairs = [(name, optimizer()) for name, optimizer in cnn.optimizers.OPTIMIZERS.items()]
    assert len(pairs) == 6
    for name, optimizer in pairs:
        models = [
            compiled(dense_net(), (4,), o, loss)
            for o, loss in ((name, "cross_entropy"), (optimizer, cnn.CrossEntropy()))
        ]
        for model in models:
            model.train_on_batch(x, y)
        assert weights_equal(*models)
    target = np.eye(3)[y]
    objects = {
        "mse": cnn.MeanSquaredError(),
        "mae": cnn.MeanAbsoluteError(),
        "huber": cnn.Huber(delta=1.0),
        "binary_cross_entropy": cnn.BinaryCrossEntropy(),
    }
    for name, loss in objects.items():
        a, b = (compiled(dense_net(), (4,), loss=value).evaluate(x, target) for value in (name, loss))
        assert a == b
    assert cnn.SGD().lr == 0.01 and cnn.Adam().lr == 1e-3


# ----------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize(
    "loss, last, outputs",
    [
        ("binary_cross_entropy", [], [-2.0, -0.1, 0.1, 0.4, 3.0]),  # logits: from 0 on
        ("binary_cross_entropy", [cnn.Sigmoid], [-2.0, -0.1, 0.1, 0.4, 3.0]),  # probabilities: from 0.5 on
        ("mse", [], [-2.0, 0.1, 0.6, 0.7, 3.0]),  # values: from 0.5 on
    ],
)
@pytest.mark.parametrize("column", [False, True])
def test_accuracy_of_one_output(loss, last, outputs, column):
    model = compiled([cnn.Dense(1), *(layer() for layer in last)], (1,), loss=loss, metrics=["accuracy"])
    model.set_weights([np.ones((1, 1)), np.zeros(1)])
    x = np.array(outputs)[:, None]
    for right in range(6):
        labels = np.array([0, 0, 1, 1, 1])
        labels[right:] = 1 - labels[right:]
        assert model.evaluate(x, labels[:, None] if column else labels)["accuracy"] == pytest.approx(right / 5)


def test_accuracy_of_classes():
    model = compiled([cnn.Flatten()], (3,), metrics=["accuracy"])
    x = np.array([[1, 2, 3], [3, 2, 1], [0, 1, 0], [5, 6, 4]], np.float32)
    assert model.evaluate(x, [2, 0, 1, 1])["accuracy"] == 1
    assert model.evaluate(x, [2, 0, 0, 0])["accuracy"] == 0.5
    assert model.evaluate(x, np.eye(3)[[2, 0, 0, 0]])["accuracy"] == 0.5


# ---------------------------------------------------------------------------- non-finite losses


def net_with_state():
    return [
        cnn.Dense(6, name="first"),
        cnn.BatchNorm(name="norm"),
        cnn.Dropout(0.3),
        cnn.Residual([cnn.Dense(6, name="inner"), cnn.ReLU(name="rectifier")], name="block"),
        cnn.Dense(3, name="head"),
    ]


@pytest.mark.parametrize("backend", ["c", "reference"])
@pytest.mark.parametrize("optimizer", [lambda: cnn.SGD(0.1, momentum=0.9), lambda: cnn.Adam(0.01, clip_norm=1.0)])
def test_a_non_finite_loss_leaves_everything_as_before_the_step(backend, optimizer):
    """Weights and running statistics; slots, step count and dropout show in what training does afterwards."""
    x, y = vectors(12)
    broken = x.copy()
    # The reference computes in double precision, where large numbers do not overflow so soon.
    broken[8:, 0] = 3e38 if backend == "c" else np.inf
    with cnn.backend(backend):
        models = [compiled(net_with_state(), (4,), optimizer()) for _ in range(2)]
        models[0].params["first.weight"][0] = models[1].params["first.weight"][0] = 4
        with pytest.raises(cnn.NonFiniteLossError) as caught:
            models[0].fit(broken, y, batch_size=4, shuffle=False, seed=1, verbose=0)
        message = str(caught.value)
        assert "epoch 1, step 3" in message
        assert ("'first'" if backend == "c" else "input x") in message
        models[1].fit(x[:8], y[:8], batch_size=4, shuffle=False, seed=1, verbose=0)
        assert weights_equal(*models)
        for _ in range(2):
            assert models[0].train_on_batch(x, y) == models[1].train_on_batch(x, y)
        assert weights_equal(*models)


@pytest.mark.parametrize("backend", ["c", "reference"])
@pytest.mark.parametrize(
    "parameter, layer",
    [("first.weight", "first"), ("norm.beta", "norm"), ("inner.bias", "inner"), ("head.weight", "head")],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_bad_layer_is_named(parameter, layer, value, backend):
    x, y = vectors(4)
    with cnn.backend(backend):
        model = compiled(net_with_state(), (4,))
        model.params[parameter][..., 0] = value
        before = model.get_weights()
        # A seed under which dropout leaves some of the bad column, so that it reaches the loss.
        with pytest.raises(cnn.NonFiniteLossError, match=f"epoch 1, step 1;.*layer '{layer}'"):
            model.fit(x, y, seed=0, verbose=0)
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("backend", ["c", "reference"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_input_is_named(value, backend):
    x, y = vectors(4)
    x[2, 1] = value
    with cnn.backend(backend), pytest.raises(cnn.NonFiniteLossError, match="step 1;.* x"):
        compiled(net_with_state(), (4,)).train_on_batch(x, y)


def test_the_epoch_of_a_non_finite_loss_is_named():
    x, y = vectors(8)
    model = compiled(dense_net(), (4,), cnn.SGD(lambda epoch: 0.1 if epoch < 1 else 1e38), "mse")
    with pytest.raises(cnn.NonFiniteLossError, match=r"epoch 2, step 2;.*'head'|epoch 2, step 2;.*loss itself"):
        model.fit(x, np.eye(3)[y], epochs=4, batch_size=4, seed=0, verbose=0)
    assert issubclass(cnn.NonFiniteLossError, ArithmeticError)


# ------------------------------------------------------------------------- optimizers by layer


@pytest.mark.parametrize("backend", ["c", "reference"])
def test_optimizers_by_layer(backend):
    """The head's first Adam step is of size lr, the body's an SGD step; clipping counts its own layers alone."""
    x, y = vectors()
    with cnn.backend(backend):
        plain = compiled(dense_net(), (4,), cnn.SGD(0.5))
        mixed = compiled(dense_net(), (4,), cnn.SGD(0.5), optimizers={"head": cnn.Adam(0.01)})
        before = {name: array.copy() for name, array in mixed.params.items()}
        plain.train_on_batch(x, y)
        mixed.train_on_batch(x, y)
    for name in ("body.weight", "body.bias"):
        np.testing.assert_array_equal(plain.params[name], mixed.params[name])
    step = np.abs(mixed.params["head.weight"] - before["head.weight"])
    np.testing.assert_allclose(step, 0.01, rtol=1e-3)


def test_optimizers_by_layer_over_several_steps():
    x, y = vectors()
    models = []
    for backend in ("c", "reference"):
        with cnn.backend(backend):
            overrides = {"body": "adam", "head": cnn.SGD(0.1, momentum=0.9, clip_norm=0.1)}
            models.append(compiled(dense_net(), (4,), cnn.SGD(5.0), optimizers=overrides))
            for _ in range(3):
                models[-1].train_on_batch(x, y)
    assert_weights_close(*models, tolerance=1e-5)


def test_an_optimizer_for_a_block_is_that_of_its_layers():
    x, y = vectors(features=3)
    block = cnn.Residual([cnn.Dense(3, name="inner")], name="block")
    model = compiled([block, cnn.Dense(3, name="head")], (3,), cnn.SGD(0.5), optimizers={"block": cnn.SGD(0.0)})
    before = model.get_weights()
    model.train_on_batch(x, y)
    equal = [np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert equal == [True, True, False, False]


def test_an_optimizer_of_a_layer_stays_when_the_layer_is_renamed(tmp_path):
    x, y = vectors()
    model = compiled(dense_net(), (4,), cnn.SGD(0.5), optimizers={"head": cnn.SGD(0.0)})
    model.layers[-1].name = "other"
    before = model.params["other.weight"].copy()
    model.train_on_batch(x, y)
    np.testing.assert_array_equal(model.params["other.weight"], before)
    model.save(tmp_path / "a")
    loaded = cnn.load(tmp_path / "a")
    loaded.train_on_batch(x, y)
    np.testing.assert_array_equal(loaded.params["other.weight"], before)


# ----------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", ["fit", "evaluate", "train_on_batch"])
def test_not_compiled(name):
    x, y = vectors()
    model = cnn.Sequential(dense_net())
    with pytest.raises(RuntimeError, match="compile"):
        getattr(model, name)(x, y)


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"optimizer": "sdg"}, "optimizer.*sgd, adam.*'sdg'"),
        ({"optimizer": None}, "optimizer"),
        ({"optimizer": cnn.SGD}, "optimizer"),
        ({"loss": "crossentropy"}, "loss.*cross_entropy.*'crossentropy'"),
        ({"loss": None}, "loss"),
        ({"metrics": ["acc"]}, "metrics.*accuracy.*'acc'"),
        ({"metrics": "acc"}, "metrics"),
        ({"optimizers": {"haed": "sgd"}}, "haed.*body, head"),
        ({"optimizers": {"head": "nope"}}, "nope"),
    ],
)
def test_bad_compile(arguments, word):
    model = cnn.Sequential(dense_net())
    with pytest.raises((ValueError, TypeError), match=word):
        model.compile(**{"optimizer": "sgd", "loss": "mse"} | arguments)


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: cnn.SGD(-0.1), "lr"),
        (lambda: cnn.SGD(float("nan")), "lr"),
        (lambda: cnn.SGD("0.1"), "lr"),
        (lambda: cnn.SGD(momentum=1.5), "momentum"),
        (lambda: cnn.SGD(nesterov=True), "nesterov"),
        (lambda: cnn.SGD(momentum=0.9, nesterov=1), "nesterov"),
        (lambda: cnn.SGD(weight_decay=-1), "weight_decay"),
        (lambda: cnn.SGD(clip_norm=-1), "clip_norm"),
        (lambda: cnn.SGD(clip_value="1"), "clip_value"),
        (lambda: cnn.Adam(betas=0.9), "betas"),
        (lambda: cnn.Adam(betas=(0.9, 1.0)), "betas"),
        (lambda: cnn.Adam(betas=(0.9, 0.99, 0.999)), "betas"),
        (lambda: cnn.Adam(eps=-1e-8), "eps"),
        (lambda: cnn.AdamW(weight_decay=-1), "adamw.*weight_decay"),
        (lambda: cnn.AdamW(betas=(0.9, 1.0)), "adamw.*betas"),
        (lambda: cnn.RMSprop(alpha=1.0), "alpha"),
        (lambda: cnn.RMSprop(momentum=2), "momentum"),
        (lambda: cnn.RMSprop(centered=1), "centered"),
        (lambda: cnn.RMSprop(eps=-1), "eps"),
        (lambda: cnn.Adagrad(lr_decay=-1), "lr_decay"),
        (lambda: cnn.Adagrad(initial_accumulator_value=-1), "initial_accumulator_value"),
        (lambda: cnn.AdagradMomentum(0.1, momentum=1.5), "momentum"),
        (lambda: cnn.AdagradMomentum(0.1, eps="x"), "eps"),
        (lambda: cnn.CrossEntropy(1.5), "label_smoothing"),
        (lambda: cnn.CrossEntropy("a"), "label_smoothing"),
        (lambda: cnn.Huber(0), "delta"),
        (lambda: cnn.Huber(float("inf")), "delta"),
    ],
)
def test_bad_optimizers(make, word):
    with pytest.raises((ValueError, TypeError), match=word):
        make()


X, Y = vectors(6)


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"y": Y[:5]}, "6 samples, y has 5"),
        ({"y": None}, "y "),
        ({"y": 3}, "y"),
        ({"x": X[:0], "y": Y[:0]}, "empty"),
        ({"x": None}, "x "),
        ({"x": X[0], "y": Y[:4]}, "batch axis"),
        ({"x": X[:, :3]}, "3"),
        ({"y": Y + 1}, r"labels.*0\.\.2"),
        ({"y": Y - 1}, r"labels.*0\.\.2"),
        ({"y": Y + 0.5}, "whole"),
        ({"y": np.where(Y == 0, np.nan, Y)}, "NaN"),
        ({"y": Y.astype(str)}, "numbers"),
        ({"y": np.eye(4)[Y]}, r"\(6, 4\)"),
        ({"y": 2 * np.eye(3)[Y]}, "0..1"),
        ({"y": np.zeros((6, 3))}, "sum"),
        ({"epochs": -1}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": None}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"verbose": 3}, "verbose"),
        ({"validation_split": 1.0}, "validation_split"),
        ({"validation_split": -0.1}, "validation_split"),
        ({"validation_split": "a"}, "validation_split"),
        ({"validation_data": X}, "validation_data"),
        ({"validation_data": (X,)}, "validation_data"),
        ({"validation_data": (X, Y, Y)}, "validation_data"),
    ],
)
def test_bad_fit(arguments, word):
    model = compiled(dense_net(), (4,))
    before = model.get_weights()
    with pytest.raises((ValueError, TypeError), match=word):
        model.fit(**{"x": X, "y": Y, "verbose": 0} | arguments)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("data", [(X, Y[:5]), (X[:, :3], Y), (X, Y + 1), (X, None)])
def test_validation_data_is_checked_before_training(data):
    """Hours of training must not end in an error that could have come at once."""
    model = compiled(dense_net(), (4,))
    before = model.get_weights()
    with pytest.raises((ValueError, TypeError)):
        model.fit(X, Y, validation_data=data, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["evaluate", "train_on_batch"])
@pytest.mark.parametrize(
    "x, y, word", [(X, Y[:5], "y has 5"), (X[:0], Y[:0], "empty"), (X, Y + 9, "labels"), (X, None, "y ")]
)
def test_bad_batches(name, x, y, word):
    with pytest.raises((ValueError, TypeError), match=word):
        getattr(compiled(dense_net(), (4,)), name)(x, y)


@pytest.mark.parametrize(
    "loss, y, word",
    [
        ("mse", np.zeros((6, 2)), r"\(6, 2\), expected \(6, 3\)"),
        ("mse", np.full((6, 3), np.nan), "finite"),
        ("mae", np.full((6, 3), np.inf), "mae.*finite"),
        ("huber", np.zeros((6, 2)), r"huber.*\(6, 2\)"),
        ("binary_cross_entropy", np.full((6, 3), 1.5), "0..1"),
        ("binary_cross_entropy", np.full((6, 3), np.nan), "NaN"),
        ("binary_cross_entropy", Y, r"\(6,\)"),
    ],
)
def test_bad_targets(loss, y, word):
    with pytest.raises(ValueError, match=word):
        compiled(dense_net(), (4,), loss=loss).train_on_batch(X, y)


def test_cross_entropy_wants_classes():
    model = compiled([cnn.Conv2D(3, 1)], (2, 4, 4))
    with pytest.raises(ValueError, match=r"\(N, classes\)"):
        model.train_on_batch(draw((2, 2, 4, 4)), [0, 1])


@pytest.mark.parametrize(
    "lr", [lambda epoch: -1.0, lambda epoch: float("nan"), lambda epoch: "0.1", lambda epoch: None]
)
def test_a_bad_schedule_changes_nothing(lr):
    model = compiled(dense_net(), (4,), cnn.SGD(lr))
    before = model.get_weights()
    with pytest.raises((ValueError, TypeError), match="lr"):
        model.fit(X, Y, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_predict():
    model = compiled(dense_net(), (4,))
    with pytest.raises(ValueError, match="batch_size"):
        model.predict(X, batch_size=0)
    with pytest.raises(ValueError, match="batch axis"):
        model.predict(X[0])
    with pytest.raises(TypeError, match="x"):
        model.predict("x")
    model, image = cnn.Sequential([cnn.UpSample2D(2**21)]), np.zeros((256, 1, 1, 1))  # more bytes than addresses
    for call in (model.predict, model.forward):
        with pytest.raises(ValueError, match="does not fit into memory"):
            call(image)


@pytest.mark.parametrize("beta2", [0.9, 0.9999, 0.99999])
def test_adam_keeps_the_digits_of_one_minus_beta(beta2):
    """1 - 0.99999 in single precision would err by 7e-4; the first step is lr times the gradient's sign."""
    model = cnn.Sequential([cnn.Dense(1, bias=False)])
    model.build((1,), seed=0)
    model.set_weights([[[0.5]]])
    model.compile(cnn.Adam(0.125, betas=(0.9, beta2), eps=0.0), "mse")
    model.train_on_batch([[1.0]], [[2.0]])
    assert model.get_weights()[0][0, 0] == pytest.approx(0.625, rel=1e-6)


def test_a_refused_add_leaves_the_model_as_it_was():
    layer = cnn.ReLU()
    model = cnn.Sequential([cnn.Dense(2), layer])
    with pytest.raises(ValueError):
        model.add(layer)
    assert len(model.layers) == 2
    assert model.predict([[1.0, 2.0]]).shape == (1, 2)
