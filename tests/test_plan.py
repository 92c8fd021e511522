"""Plans: memory, steady state, what they keep; whole models by plan against layer by layer and the reference."""

import gc
import random
import tracemalloc

import numpy as np
import pytest

import pycnn as cnn
from pycnn import executor, lowering, plan
from pycnn.plan import LINE, Arena, Buffer, place


def draw(shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


# ----------------------------------------------------------------------------------------- memory


def buffer(nbytes, first, last):
    result = Buffer(nbytes)
    result.first, result.last = first, last
    return result


def assert_placed(buffers, total):
    """Inside the arena, aligned, and apart from every buffer that is in use at the same time."""
    for b in buffers:
        assert b.offset % LINE == 0
        assert b.offset >= 0 and b.offset + b.nbytes <= total
    for i, a in enumerate(buffers):
        for b in buffers[:i]:
            if a.first <= b.last and b.first <= a.last and a.nbytes and b.nbytes:
                assert a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
    assert total <= sum(-(-b.nbytes // LINE) * LINE for b in buffers)


@pytest.mark.parametrize("seed", range(60))
def test_buffers_alive_together_do_not_overlap(seed):
    rng = random.Random(seed)
    calls = rng.choice([1, 3, 20, 100])
    buffers = []
    for _ in range(rng.choice([1, 2, 10, 60])):
        first = rng.randrange(calls)
        size = rng.choice([0, 1, 63, 64, 65, rng.randrange(10_000)])
        buffers.append(buffer(size, first, min(calls - 1, first + rng.randrange(1 + rng.choice([0, 2, calls])))))
    assert_placed(buffers, place(buffers))


def test_a_place_is_used_again_once_it_is_free():
    chain = [buffer(1000, i, i + 1) for i in range(10)]
    assert place(chain) == 2 * 1024
    assert place([buffer(64, 0, 0), buffer(64, 1, 1)]) == 64
    assert place([buffer(64, 0, 1), buffer(64, 1, 1)]) == 128, "the last use of one is the first of the other"
    assert place([]) == 0


def every_kind_of_layer():
    return [
        cnn.Conv2D(4, 3, padding="same", name="conv"),
        cnn.BatchNorm(),
        cnn.ReLU(),
        cnn.Residual([cnn.DepthwiseConv2D(3, padding="same"), cnn.SiLU()]),
        cnn.MaxPool2D(),
        cnn.Residual([cnn.Conv2D(6, 3, padding="same", activation="tanh")], [cnn.Conv2D(6, 1), cnn.BatchNorm()]),
        cnn.AvgPool2D(2, 1),
        cnn.Flatten(),
        cnn.Dense(7, activation="gelu"),
        cnn.Dropout(0.0),
        cnn.Dense(3),
    ]


@pytest.mark.parametrize("n", [1, 3])
def test_plans_of_a_whole_model_are_placed(n, monkeypatch):
    """What lowering asks for, training and inference, passes the same checks."""
    seen = []

    def checked(buffers):
        total = place(buffers)
        assert_placed(buffers, total)
        seen.append(len(buffers))
        return total

    monkeypatch.setattr(plan, "place", checked)
    model = cnn.Sequential(every_kind_of_layer())
    model.compile("adam", "cross_entropy")
    x = draw((n, 2, 6, 6))
    model.train_on_batch(x, np.arange(n))
    model.predict(x)
    model.backward(model.forward(x, training=True))
    assert len(seen) == 3 and min(seen) > 10


def test_no_kernel_writes_outside_its_buffers(monkeypatch):
    """Every buffer gets a place of its own between stretches of a pattern, which must be there afterwards."""
    gap, pattern = 4096, 0xAB
    gaps, arenas = [], []

    def apart(buffers):
        offset = gap
        stretches = [(0, gap)]
        for b in buffers:
            b.offset = offset
            end = offset + -(-b.nbytes // LINE) * LINE
            offset = end + gap
            stretches.append((end, offset))
        gaps.append(stretches)
        return offset

    def filled(nbytes):
        arena = Arena(nbytes)
        arena._memory[...] = pattern
        arenas.append(arena)
        return arena

    monkeypatch.setattr(plan, "place", apart)
    monkeypatch.setattr(executor, "Arena", filled)
    model = compiled(optimizer=cnn.Adam(clip_norm=1.0))
    x, y = draw((3, 2, 6, 6)), np.arange(3)
    model.train_on_batch(x, y)
    model.predict(x)
    model.evaluate(x, y)
    model.backward(model.forward(x, training=True))
    assert len(arenas) == len(gaps) == 4
    for arena, stretches in zip(arenas, gaps, strict=True):
        start = -arena._memory.ctypes.data % LINE
        for first, last in stretches:
            assert (arena._memory[start + first : start + last] == pattern).all()


def test_inference_needs_less_memory_than_training():
    model = cnn.Sequential(every_kind_of_layer())
    x, y = draw((20, 2, 6, 6)), np.arange(20) % 3
    model.compile("sgd", "cross_entropy")
    model.train_on_batch(x, y)
    model.evaluate(x, y)
    model.predict(x)
    size = {key[0]: kept.arena_bytes for key, kept in plans_of(model).items()}
    assert size["predict"] < size["train"] / 2
    assert size["evaluate"] < size["train"] / 2


def executor_of(model):
    (executors,) = model._executors.values()
    return executors.current()


def plans_of(model):
    return executor_of(model)._plans


def test_deep_models_need_no_more_memory_for_inference():
    """Two buffers that take turns, however many layers there are."""

    def arena(depth):
        model = cnn.Sequential([cnn.Conv2D(4, 3, padding="same", activation="relu") for _ in range(depth)])
        model.build((4, 8, 8))
        return lowering.inference_plan(model._graph((4, 8, 8)), lowering.Options(2)).arena_bytes

    assert arena(12) == arena(3)


# ------------------------------------------------------------------------------------ steady state


def compiled(layers=None, optimizer=None, shape=(2, 6, 6), seed=0):
    model = cnn.Sequential(layers or every_kind_of_layer())
    model.build(shape, seed=seed)
    model.compile(optimizer or cnn.SGD(0.05, momentum=0.9), "cross_entropy")
    return model


def test_a_training_step_allocates_nothing_that_stays():
    model = compiled(optimizer=cnn.Adam(clip_norm=1.0))
    x, y = draw((4, 2, 6, 6)), np.arange(4) % 3

    def steps(count):
        for _ in range(count):
            model.train_on_batch(x, y)
            model.predict(x)
            model.evaluate(x, y)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    steps(3)
    tracemalloc.start()
    try:
        steps(3)
        before = steps(1)
        after = steps(100)
    finally:
        tracemalloc.stop()
    assert after - before < 2000, "100 steps may not leave 20 bytes each"


def test_plans_and_arenas_are_made_once():
    model = compiled()
    x, y = draw((4, 2, 6, 6)), np.arange(4) % 3

    def objects():
        runner = executor_of(model)
        bindings = [binding for free in runner._free.values() for binding in free]
        return [id(p) for p in runner._plans.values()], [(id(b), id(b._arena)) for b in bindings]

    model.train_on_batch(x, y)
    model.predict(x)
    model.evaluate(x, y)
    before = objects()
    assert len(before[0]) == len(before[1]) == 3
    for _ in range(5):
        model.train_on_batch(x, y)
        model.predict(x)
        model.evaluate(x, y)
    assert objects() == before


def test_plans_do_not_pile_up():
    """A different batch size each time is served, and old plans are dropped with their arenas."""
    model = compiled()
    for n in range(1, 40):
        model.predict(draw((n, 2, 6, 6)))
    runner = executor_of(model)
    assert len(runner._plans) < 39
    assert runner._free.keys() <= runner._plans.keys()
    x = draw((1, 2, 6, 6))
    np.testing.assert_array_equal(model.predict(x), model.predict(x))


# ------------------------------------------------------------------------- plan against the layers


def copy_of(layer, other):
    """Gives a fresh layer the parameters of a built one."""
    other.build(layer._built_for)
    for mine, theirs in zip(layer.leaves(), other.leaves(), strict=True):
        for name in mine.params:
            theirs.params[name] = mine.params[name]


@pytest.mark.parametrize("training", [False, True])
def test_a_model_equals_its_layers_one_after_another(training):
    layers = every_kind_of_layer()
    model = cnn.Sequential(layers)
    x = draw((3, 2, 6, 5))
    model.build(x.shape[1:], seed=1)
    alone = every_kind_of_layer()
    for layer, other in zip(layers, alone, strict=True):
        copy_of(layer, other)
    y = model.forward(x, training=training)
    dy = draw(y.shape, 2)
    dx = model.backward(dy)

    value = x
    for layer in alone:
        value = layer.forward(value, training=training)
    np.testing.assert_allclose(y, value, rtol=1e-5, atol=1e-6)
    for layer in reversed(alone):
        dy = layer.backward(dy)
    np.testing.assert_allclose(dx, dy, rtol=1e-4, atol=1e-5)
    leaves = [[leaf for layer in each for leaf in layer.leaves()] for each in (layers, alone)]
    for layer, other in zip(*leaves, strict=True):
        for name, gradient in layer.grads.items():
            np.testing.assert_allclose(gradient, other.grads[name], rtol=1e-4, atol=1e-5)
        for name, array in layer.state.items():
            np.testing.assert_allclose(array, other.state[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.predict(x), model.forward(x), rtol=1e-6, atol=1e-6)


SHORTCUTS = {
    "twice": lambda: [cnn.Residual(cnn.Residual(cnn.Conv2D(2, 3, padding="same")))],
    "three times": lambda: [cnn.Residual([cnn.Residual([cnn.Residual([cnn.Conv2D(2, 1)]), cnn.Tanh()])])],
    "one after another": lambda: [cnn.Residual(cnn.Conv2D(2, 1)), cnn.Residual(cnn.Tanh()), cnn.Residual(cnn.ReLU())],
    "inside the shortcut": lambda: [cnn.Residual(cnn.Conv2D(2, 1), cnn.Residual(cnn.Sigmoid()))],
    "nothing but x": lambda: [cnn.Conv2D(2, 1), cnn.Residual([]), cnn.Residual(cnn.Dropout(0.0))],
    "flat": lambda: [cnn.Residual(cnn.Flatten(), cnn.Flatten()), cnn.Residual(cnn.Dense(24))],
    "at the end": lambda: [cnn.Flatten(), cnn.Dense(3), cnn.Residual(cnn.Residual(cnn.Dense(3)))],
}


@pytest.mark.parametrize("name", SHORTCUTS)
def test_gradients_of_values_with_several_readers(name):
    model = cnn.Sequential(SHORTCUTS[name]())
    x = draw((2, 2, 4, 3))
    model.build(x.shape[1:], seed=1)
    y = model.forward(x, training=True)
    dy = draw(y.shape, 2)
    dx = model.backward(dy)
    grads = {name: gradient.copy() for name, gradient in model.grads.items()}
    with cnn.backend("reference"):
        np.testing.assert_allclose(y, model.forward(x, training=True), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(dx, model.backward(dy), rtol=1e-5, atol=1e-5)
        for key, gradient in model.grads.items():
            np.testing.assert_allclose(grads[key], gradient, rtol=1e-5, atol=1e-5)
    if name == "nothing but x":
        conv = cnn.Sequential(model.layers[:1])
        np.testing.assert_allclose(y, 4 * conv.forward(x), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dx, 4 * conv.backward(dy), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("samples", [4, 6, 10, 11])
def test_a_last_smaller_batch_is_one_more_step(samples):
    """fit is the same as train_on_batch of the batches, also where the last has one or two samples."""
    x, y = draw((samples, 2, 6, 6)), np.arange(samples) % 3
    fitted, stepped = compiled(), compiled()
    fitted.fit(x, y, epochs=2, batch_size=4, shuffle=False, verbose=0)
    for _ in range(2):
        for i in range(0, samples, 4):
            stepped.train_on_batch(x[i : i + 4], y[i : i + 4])
    for a, b in zip(fitted.get_weights(), stepped.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------ frozen


def three_dense():
    return [
        cnn.Dense(4, "tanh", name="a"),
        cnn.BatchNorm(name="b"),
        cnn.Dense(5, "tanh", name="c"),
        cnn.Dense(3, name="d"),
    ]


@pytest.mark.parametrize("backend", ["c", "reference"])
@pytest.mark.parametrize("frozen", [(), ("a",), ("b",), ("c",), ("d",), ("a", "b"), ("b", "d"), ("a", "b", "c", "d")])
def test_frozen_layers_stay_and_others_learn(frozen, backend):
    model = compiled(three_dense(), cnn.SGD(0.1, momentum=0.9, weight_decay=0.1), (6,))
    for layer in model.layers:
        layer.trainable = layer.name not in frozen
    before = {layer.name: {k: v.copy() for k, v in layer.params.items()} for layer in model.layers}
    with cnn.backend(backend):
        for seed in range(2):
            model.train_on_batch(draw((5, 6), seed), np.arange(5) % 3)
    for layer in model.layers:
        for name, array in layer.params.items():
            assert np.array_equal(array, before[layer.name][name]) == (layer.name in frozen)


def test_layers_before_a_frozen_one_learn_what_they_would():
    """The gradient goes through a frozen layer unchanged: after one step the others are as without freezing."""
    free, frozen = (compiled(three_dense(), cnn.SGD(0.1), (6,)) for _ in range(2))
    frozen.layers[2].trainable = False
    for model in (free, frozen):
        model.train_on_batch(draw((5, 6)), np.arange(5) % 3)
    for a, b in zip(free.layers, frozen.layers, strict=True):
        for name, array in a.params.items():
            assert np.array_equal(array, b.params[name]) == (a.name != "c")


def test_freezing_and_thawing_between_steps():
    model = compiled(three_dense(), cnn.SGD(0.1), (6,))
    x, y = draw((5, 6)), np.arange(5) % 3
    for trainable in (True, False, True, False):
        model.layers[0].trainable = trainable
        before = model.layers[0].params["weight"].copy()
        model.train_on_batch(x, y)
        assert np.array_equal(before, model.layers[0].params["weight"]) != trainable


def test_freezing_a_residual_freezes_what_is_inside():
    model = compiled([cnn.Residual(cnn.Dense(4), cnn.Dense(4)), cnn.Dense(3)], cnn.SGD(0.1), (4,))
    model.layers[0].trainable = False
    before = model.get_weights()
    model.train_on_batch(draw((5, 4)), np.arange(5) % 3)
    equal = [np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert equal == [True] * 4 + [False] * 2


# -------------------------------------------------------------------------------------- compiling


def test_compiling_again_takes_the_new_optimizer():
    """Plans of an earlier optimizer, long gone, are not mistaken for those of one at the same address."""
    model = cnn.Sequential([cnn.Dense(1, bias=False)])
    model.build((2,))
    x, y = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
    for i in range(1, 61):
        model.compile(cnn.SGD(0.01 * i), "mse")
        model.set_weights([np.zeros((2, 1))])
        model.train_on_batch(x, y)
        assert model.get_weights()[0][0, 0] == pytest.approx(0.02 * i, rel=1e-5), "lr times a gradient of -2"


def test_compiling_again_starts_with_empty_slots():
    models = [compiled(three_dense(), cnn.Adam(0.01), (6,), seed=s) for s in (0, 1)]
    x, y = draw((5, 6)), np.arange(5) % 3
    for _ in range(3):
        models[0].train_on_batch(x, y)
    models[1].set_weights(models[0].get_weights())
    models[0].compile(cnn.Adam(0.01), "cross_entropy")
    for _ in range(2):
        assert models[0].train_on_batch(x, y) == models[1].train_on_batch(x, y)
