"""What fit takes besides arrays: batches, weights, augmentation, accumulation, and loops of one's own."""

import threading
import time

import numpy as np
import pytest
from test_training import compiled, dense_net, draw, small_net, vectors, weights_equal

import pycnn as cnn

BACKENDS = pytest.mark.parametrize("backend", ["c", "reference"])


def batches_of(x, y, size):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def assert_close_weights(a, b, tolerance=1e-5):
    for v, w in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(v, w, rtol=tolerance, atol=tolerance)


def jitter(x, y, generator):
    return x + generator.standard_normal(x.shape, np.float32), y


def mixup(x, y, generator):
    share, other = np.float32(generator.random()), generator.permutation(len(x))
    rows = np.eye(3, dtype=np.float32)[y]
    return share * x + (1 - share) * x[other], share * rows + (1 - share) * rows[other]


# -------------------------------------------------------------------------------- weights of samples


@BACKENDS
@pytest.mark.parametrize(
    "loss", ["cross_entropy", cnn.CrossEntropy(0.1), "binary_cross_entropy", "mse", "mae", "huber"]
)
def test_sample_weights(loss, backend):
    """A weight of 2 is the sample twice, 0 is none of it; the sum is divided by the number of samples, as in Keras."""
    x, y = vectors(4)
    y = np.eye(3)[y]
    with cnn.backend(backend):
        weighted, repeated = (compiled(dense_net(), (4,), cnn.SGD(lr), loss) for lr in (0.5, 0.5 * 5 / 4))
        losses = [
            weighted.fit(x, y, shuffle=False, sample_weight=[2, 0, 1, 2], verbose=0).history["loss"][0],
            repeated.fit(x[[0, 0, 2, 3, 3]], y[[0, 0, 2, 3, 3]], shuffle=False, verbose=0).history["loss"][0],
        ]
    assert losses[0] == pytest.approx(losses[1] * 5 / 4, rel=1e-5)
    assert_close_weights(weighted, repeated)


@pytest.mark.parametrize("labels", [lambda y: y, lambda y: np.eye(3)[y]])
def test_class_weights(labels):
    x, y = vectors(12)
    by_class = {0: 0.5, 1: 2, 2: 0}
    a, b, c = (compiled(dense_net(), (4,), cnn.SGD(0.5)) for _ in range(3))
    a.fit(x, labels(y), batch_size=5, seed=0, class_weight=by_class, verbose=0)
    b.fit(x, labels(y), batch_size=5, seed=0, sample_weight=[by_class[k] for k in y], verbose=0)
    c.fit(
        x, labels(y), batch_size=5, seed=0, class_weight={0: 1.0, 1: 4.0, 2: 0.0}, sample_weight=[0.5] * 12, verbose=0
    )
    assert weights_equal(a, b) and weights_equal(a, c)
    assert not weights_equal(a, compiled(dense_net(), (4,)))


def test_class_weights_of_one_output():
    x, y = vectors(6, classes=2)
    a, b = (compiled([cnn.Dense(1)], (4,), cnn.SGD(0.5), "binary_cross_entropy") for _ in range(2))
    a.fit(x, y, class_weight={0: 1, 1: 3}, seed=0, verbose=0)
    b.fit(x, y, sample_weight=np.where(y, 3, 1), seed=0, verbose=0)
    assert weights_equal(a, b)


def test_weights_of_one_change_nothing_but_rounding():
    x, y = vectors(12)
    a, b = (compiled(dense_net(), (4,), cnn.SGD(0.5)) for _ in range(2))
    a.fit(x, y, epochs=2, batch_size=5, seed=0, verbose=0)
    b.fit(x, y, epochs=2, batch_size=5, seed=0, class_weight=dict.fromkeys(range(3), 1.0), verbose=0)
    assert_close_weights(a, b, 1e-6)


def test_the_split_takes_weights_along_and_metrics_have_none():
    x, y = vectors(12)
    model = compiled(dense_net(), (4,), cnn.SGD(0.0), metrics=["accuracy"])
    weights = np.linspace(0.1, 2, 12)
    history = model.fit(x, y, sample_weight=weights, validation_split=0.25, verbose=0).history
    logits = model.predict(x).astype(np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(12), y]
    assert history["loss"][0] == pytest.approx((weights * losses)[:9].mean(), rel=1e-5)
    assert history["val_loss"][0] == pytest.approx((weights * losses)[9:].mean(), rel=1e-5)
    assert history["accuracy"][0] == pytest.approx((logits.argmax(1) == y)[:9].mean())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"sample_weight": [1.0] * 5}, r"sample_weight has shape \(5,\), expected \(12,\)"),
        ({"sample_weight": [-1.0] * 12}, "sample_weight"),
        ({"sample_weight": [np.nan] * 12}, "sample_weight"),
        ({"sample_weight": "x"}, "sample_weight"),
        ({"class_weight": [1, 1, 1]}, "class_weight must be a dict"),
        ({"class_weight": {0: 1.0, 1: 1.0}}, "class_weight has no class 2, only 0, 1"),
        ({"class_weight": {0: 1.0, 1: 1.0, 2: -1}}, "class_weight"),
        ({"callbacks": [1]}, "callbacks"),
        ({"callbacks": cnn.EarlyStopping()}, "callbacks must be a list"),
        ({"augment": 3}, "augment"),
        ({"augment": [jitter, 3]}, "augment"),
        ({"accumulate": 0}, "accumulate"),
        ({"shuffle": 1}, "shuffle"),
        ({"augment": lambda x, y, generator: x}, "augment must return a pair"),
        ({"augment": lambda x, y, generator: (x[:2], y[:2])}, "augment must keep the number of samples, 12, got 2"),
        ({"augment": lambda x, y, generator: (x, y + 5)}, "labels"),
        ({"augment": lambda x, y, generator: ("x", y)}, "augment"),
    ],
)
def test_bad_arguments(arguments, word):
    x, y = vectors()
    model = compiled(dense_net(), (4,))
    before = model.get_weights()
    with pytest.raises((ValueError, TypeError), match=word):
        model.fit(x, y, verbose=0, **arguments)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------ iterables of batches


class Again:
    """An iterable without a length that begins anew each time."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("kind", [list, tuple, Again])
def test_an_iterable_of_batches(kind):
    x, y = vectors(10)
    a, b = (cnn.Sequential(dense_net()) for _ in range(2))
    for model in (a, b):
        model.compile(cnn.SGD(0.5, momentum=0.9), "cross_entropy", ["accuracy"])
    options = {"epochs": 3, "seed": 0, "validation_data": (x, y), "class_weight": {0: 1, 1: 2, 2: 3}, "verbose": 0}
    first = a.fit(x, y, batch_size=4, shuffle=False, **options).history
    second = b.fit(kind(batches_of(x, y, 4)), **options).history
    assert weights_equal(a, b)
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"augment": lambda x, y, generator: (x, y)}], ids=str)
def test_an_iterable_may_use_the_same_arrays_again(options):
    x, y = vectors(12)

    class InPlace:
        def __iter__(self):
            place = np.empty((4, 4), np.float32), np.empty(4, np.int32)
            for a, b in batches_of(x, y, 4):
                place[0][...], place[1][...] = a, b
                yield place

    a, b = (compiled(dense_net(), (4,), cnn.SGD(0.5)) for _ in range(2))
    a.fit(InPlace(), epochs=2, verbose=0, **options)
    b.fit(x, y, 2, 4, shuffle=False, verbose=0, **options)
    assert weights_equal(a, b)


def test_a_generator_serves_one_epoch():
    x, y = vectors(10)
    a, b = (compiled(dense_net(), (4,), cnn.SGD(0.5)) for _ in range(2))
    a.fit((pair for pair in batches_of(x, y, 4)), verbose=0)
    b.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    assert weights_equal(a, b)
    with pytest.raises(ValueError, match="no batches in a later epoch.*generator"):
        a.fit((pair for pair in batches_of(x, y, 4)), epochs=2, verbose=0)


def test_batches_of_different_sizes_with_schedule():
    """Without a length, the first epoch has one rate; from then on the steps are known."""
    x, y = vectors(10)
    seen = []
    model = compiled(dense_net(), (4,), cnn.SGD(lambda epoch: seen.append(epoch) or 0.1))
    model.fit(Again([(x[:1], y[:1]), (x[1:7], y[1:7]), (x[7:], y[7:])]), epochs=2, verbose=0)
    assert sorted(set(seen)) == pytest.approx([0, 1, 4 / 3, 5 / 3])


@pytest.mark.parametrize(
    ("x", "options", "word"),
    [
        ([], {}, "x is empty"),
        ([1, 2], {}, "pairs"),
        ([vectors(3)[0]], {}, "pairs"),
        ([vectors(4), (*vectors(4), 1)], {}, "pairs"),
        ([(vectors(4)[0], [0, 1, 2])], {}, "y has 3"),
        ([(vectors(4)[0], [0, 1, 2, 3])], {}, r"0\.\.2"),
        ([vectors(4)], {"validation_split": 0.5}, "validation_split needs arrays"),
        ([vectors(4)], {"sample_weight": [1.0] * 4}, "sample_weight needs arrays"),
        (7, {}, "y must be"),
    ],
)
def test_bad_iterables(x, options, word):
    with pytest.raises((ValueError, TypeError), match=word):
        compiled(dense_net(), (4,)).fit(x, verbose=0, **options)


# -------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("augment", [jitter, mixup, [jitter, mixup]])
def test_augmentation_depends_on_the_seed_alone(augment):
    x, y = vectors(40)

    def trained(seed, delay):
        def slowly(*batch):
            time.sleep(delay)
            return batch[:2]

        functions = [slowly, *augment] if isinstance(augment, list) else [slowly, augment]
        model = compiled(dense_net(), (4,), cnn.SGD(0.2), metrics=["accuracy"])
        history = model.fit(x, y, epochs=3, batch_size=8, seed=seed, augment=functions, verbose=0).history
        return model, history["loss"], history["accuracy"]

    model, *scores = trained(1, 0)
    again, *same = trained(1, 0.002)
    assert weights_equal(model, again) and scores == same
    assert not weights_equal(model, trained(2, 0)[0])


def test_augmentation_equals_training_on_its_results():
    """Prepared ahead, in order, each batch in memory of its own; also where augment works in place."""
    x, y = vectors(23)
    kept, generator, model = x.copy(), np.random.default_rng([5, 2]), compiled(dense_net(), (4,), cnn.SGD(0.5))

    def in_place(x, y, generator):
        x *= generator.random((len(x), 1), np.float32)
        return x, y

    augmented = compiled(dense_net(), (4,), cnn.SGD(0.5))
    augmented.fit(x, y, batch_size=4, shuffle=False, seed=5, augment=in_place, verbose=0)
    np.testing.assert_array_equal(x, kept)
    for a, b in batches_of(x.copy(), y, 4):
        model.train_on_batch(*in_place(a, b, generator))
    assert weights_equal(model, augmented)


def test_a_list_of_augmentations_is_taken_in_turn():
    x, y = vectors(12)
    models = []
    for augment in ([jitter, mixup], lambda x, y, g: mixup(*jitter(x, y, g), g), []):
        models.append(compiled(dense_net(), (4,), cnn.SGD(0.5)))
        models[-1].fit(x, y, batch_size=4, seed=5, augment=augment, verbose=0)
    assert weights_equal(*models[:2]) and not weights_equal(*models[1:])


def test_augmentation_runs_in_a_thread_that_ends_with_fit():
    x, y = vectors(16)
    threads, before = set(), threading.active_count()

    def where(x, y, generator):
        threads.add(threading.current_thread())
        if len(threads) > 1 or generator.random() < 0.01:
            raise RuntimeError("enough")
        return x, y

    model = compiled(dense_net(), (4,))
    model.fit(x, y, batch_size=2, seed=0, augment=where, verbose=0)
    assert threading.main_thread() not in threads
    with pytest.raises(RuntimeError, match="enough"):
        model.fit(x, y, epochs=2, batch_size=2, seed=0, augment=where, verbose=0)
    assert threading.active_count() == before


def test_augmentation_may_change_the_size_of_images():
    """On the backend that was chosen, of which the thread must know."""
    x, y, models = draw((6, 2, 8, 8)), np.arange(6) % 3, []
    crop = lambda x, y, generator: (x[:, :, 1:7, 2:8], y)  # noqa: E731
    for backend in ("c", "reference"):
        with cnn.backend(backend):
            models.append(compiled([cnn.Conv2D(4, 3), cnn.GlobalAvgPool2D(), cnn.Dense(3)], (2, 8, 8), cnn.SGD(0.5)))
            models[-1].fit(x, y, batch_size=4, seed=0, augment=crop, verbose=0)
            assert set(models[-1]._executors[2, 6, 6]._made) == {backend}
    assert_close_weights(*models)


# -------------------------------------------------------------------------------------- accumulation


@BACKENDS
def test_accumulated_batches_are_one_large_batch(backend):
    """10 samples in batches of 2, three at a time: steps on 6 and on the 4 that are left."""
    x, y = vectors(10)
    optimizer = lambda: cnn.Adam(0.05, eps=1e-3, clip_norm=0.5)  # noqa: E731
    with cnn.backend(backend):
        a, b = (compiled(dense_net(), (4,), optimizer()) for _ in range(2))
        a.fit(x, y, epochs=2, batch_size=2, shuffle=False, accumulate=3, verbose=0)
        b.fit([(x[:6], y[:6]), (x[6:], y[6:])], epochs=2, verbose=0)
        assert a._updates.step == b._updates.step == 4
        assert_close_weights(a, b)
        assert a.train_on_batch(x, y) == pytest.approx(b.train_on_batch(x, y), rel=1e-4)  # one batch, one step again
    assert a._updates.step == 5


def test_accumulation_counts_samples_of_uneven_batches():
    x, y = vectors(10)
    a, b = (compiled(dense_net(), (4,), cnn.SGD(0.5)) for _ in range(2))
    a.fit([(x[:1], y[:1]), (x[1:4], y[1:4]), (x[4:], y[4:])], accumulate=5, verbose=0)
    b.fit([(x, y)], verbose=0)
    assert_close_weights(a, b)


# --------------------------------------------------------------------------------- loops of one's own


class TwoSteps(cnn.Sequential):
    """Each batch twice."""

    def train_step(self, batch):
        super().train_step(batch)
        return super().train_step(batch)


class HalfAnEpoch(cnn.Sequential):
    def fit_loop(self, run):
        for _ in run.epochs():
            for batch in run.batches():
                if run.step % 2 == 0:
                    run.add(batch, *self.train_step(batch))
            run.end_epoch()


@pytest.mark.parametrize(("kind", "order"), [(TwoSteps, [0, 0, 1, 1, 2, 2, 3, 3]), (HalfAnEpoch, [0, 2])])
def test_overridden_methods(kind, order):
    x, y = vectors(8)
    pairs = batches_of(x, y, 2)
    models = [kind(dense_net()), cnn.Sequential(dense_net())]
    for model in models:
        model.build((4,), seed=0)
        model.compile(cnn.SGD(0.1, momentum=0.9), "cross_entropy")
    history = models[0].fit(x, y, batch_size=2, shuffle=False, verbose=0).history
    losses = [models[1].train_on_batch(*pairs[i]) for i in order]
    assert weights_equal(*models)
    assert history["loss"][0] == pytest.approx(np.mean(losses[1::2] if kind is TwoSteps else losses))


def test_fit_goes_on_from_where_it_was():
    """Weights and slots; a second fit counts its epochs anew."""
    x, y = vectors(8)
    a, b = (compiled(dense_net(), (4,), cnn.Adam(0.01)) for _ in range(2))
    for _ in range(2):
        a.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    b.fit(x, y, epochs=2, batch_size=4, shuffle=False, verbose=0)
    assert weights_equal(a, b)


def test_metrics():
    """top_5 counts ranks, mae takes class numbers as one-hot rows."""
    model = compiled([cnn.Flatten()], (7,), metrics=["accuracy", "top_5", "mae"])
    x = np.array([[1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1], [0, 9, 0, 0, 0, 0, 0]], np.float32)
    y = np.array([6, 5, 1])
    for labels in (y, np.eye(7)[y]):
        scores = model.evaluate(x, labels)
        assert (scores["accuracy"], scores["top_5"]) == pytest.approx((2 / 3, 2 / 3))
        assert scores["mae"] == pytest.approx(np.abs(x - np.eye(7)[y]).mean())


def test_small_net_with_everything_has_the_same_bits_twice():
    x, y = 0.5 * draw((9, 2, 6, 5)), np.arange(9) % 3

    def once():
        model = cnn.Sequential(small_net())
        model.compile(cnn.RMSprop(cnn.OneCycle(0.01), clip_norm=1.0), cnn.CrossEntropy(0.1), ["accuracy"])
        history = model.fit(
            x, y, 3, 2, seed=3, augment=jitter, class_weight={0: 1, 1: 2, 2: 0.5}, accumulate=2, verbose=0
        ).history
        return model, history["loss"]

    (a, losses), (b, again) = once(), once()
    assert weights_equal(a, b) and losses == again
