"""Models that are graphs: layers with several inputs, shared weights, several outputs, nested models."""

import copy
import json
import pickle

import numpy as np
import pytest

import pycnn as cnn
from pycnn.layers.base import from_config, to_config


def draw(shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def assert_close(actual, expected, tolerance=2e-5):
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def twin(layer):
    """A layer of its own with the same configuration and weights."""
    other = from_config(json.loads(json.dumps(to_config(layer))))
    other.build(layer._built_for)
    for name, array in layer.params.items():
        other.params[name] = array
    return other


# ------------------------------------------------------------------------- layers of several inputs

# how to make the layer, the shapes of its inputs
MERGING = [
    (lambda: cnn.Add(), [(2, 3, 2, 4), (2, 3, 2, 4)]),
    (lambda: cnn.Add(), [(3, 17), (3, 17), (3, 17)]),
    (lambda: cnn.Add(), [(1, 1, 1, 1)] * 4),
    (lambda: cnn.Concatenate(), [(2, 3, 2, 4), (2, 1, 2, 4), (2, 17, 2, 4)]),
    (lambda: cnn.Concatenate(), [(3, 5), (3, 17)]),
    (lambda: cnn.Concatenate(), [(2, 3, 5), (2, 2, 5)]),
]
merging = pytest.mark.parametrize(("make", "input_shapes"), MERGING, ids=lambda v: str(v) if v is list else None)


@merging
def test_merging_layers_agree_with_numpy_and_the_reference(make, input_shapes):
    layer, xs = make(), [draw(shape, i) for i, shape in enumerate(input_shapes)]
    y = layer.forward(xs)
    expected = sum(xs) if isinstance(layer, cnn.Add) else np.concatenate(xs, axis=1)
    assert_close(y, expected, 1e-6)
    assert layer.output_shape([shape[1:] for shape in input_shapes]) == y.shape[1:]
    dy = draw(y.shape, 9)
    dxs = layer.backward(dy)
    ends = np.cumsum([shape[1] for shape in input_shapes])[:-1]
    parts = [dy] * len(xs) if isinstance(layer, cnn.Add) else np.split(dy, ends, axis=1)
    for dx, part in zip(dxs, parts, strict=True):
        np.testing.assert_array_equal(dx, part)
    with cnn.backend("reference"):
        assert_close(make().forward(xs), y, 1e-6)
        other = make()
        other.forward(xs)
        for dx, part in zip(other.backward(dy), parts, strict=True):
            assert_close(dx, part, 1e-6)


@merging
def test_merging_layers_of_an_empty_batch(make, input_shapes):
    layer = make()
    y = layer.forward([np.zeros((0, *shape[1:])) for shape in input_shapes])
    assert y.shape == (0, *layer.output_shape([shape[1:] for shape in input_shapes]))
    assert [dx.shape for dx in layer.backward(y)] == [(0, *shape[1:]) for shape in input_shapes]


@merging
def test_configuration_of_merging_layers(make, input_shapes):
    shapes = [shape[1:] for shape in input_shapes]
    for layer in (make(), type(make())(name="a", input_shape=shapes)):
        config = json.loads(json.dumps(to_config(layer)))
        other = from_config(config)
        assert type(other) is type(layer) and other.name == layer.name
        assert json.loads(json.dumps(to_config(other))) == config
        assert other.output_shape(shapes) == layer.output_shape(shapes)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: cnn.Add().forward(draw((2, 3))), "list of arrays"),
        (lambda: cnn.Add().forward([draw((2, 3))]), "two or more.*got 1"),
        (lambda: cnn.Add().forward([draw((2, 3)), draw((2, 4))]), "differ"),
        (lambda: cnn.Add().forward([draw((2, 3)), draw((3, 3))]), "2 and 3 samples"),
        (lambda: cnn.Add().forward([draw((2, 3)), "x"]), r"x\[1\]"),
        (lambda: cnn.Add().build((3, 4)), "list of shapes"),
        (lambda: cnn.Add().output_shape([(3,)]), "two or more"),
        (lambda: cnn.Concatenate().forward([draw((2, 3, 4, 4)), draw((2, 3, 4, 5))]), "channels"),
        (lambda: cnn.Concatenate().forward([draw((2, 3, 4, 4)), draw((2, 3))]), "channels"),
        (lambda: cnn.Dense(2)([cnn.Input((3,)), cnn.Input((3,))]), r"1 input\(s\), got 2"),
        (lambda: cnn.Add()(cnn.Input((3,))), "two or more.*got 1"),
        (lambda: cnn.Dense(2)(draw((2, 3))), "x.*Input.*ndarray"),
        (lambda: cnn.Input(3), "shape"),
        (lambda: cnn.Input((3, -1)), "shape"),
        (lambda: cnn.Sequential([cnn.Add()]).forward(draw((2, 3))), "list of shapes"),
    ],
)
def test_wrong_inputs(call, word):
    with pytest.raises((ValueError, TypeError), match=word):
        call()


# -------------------------------------------------------------------------------------------- models


def chain():
    h = cnn.Input((2, 6, 6))
    y = cnn.Conv2D(3, 3, activation="relu")(h)
    y = cnn.Flatten()(cnn.MaxPool2D()(y))
    return cnn.Model(h, cnn.Dense(4)(y))


def branches():
    """A convolution used twice, a sum, a concatenation, batch norm, dropout."""
    h = cnn.Input((2, 6, 5))
    shared = cnn.Conv2D(4, 3, padding="same", activation="tanh")
    first = cnn.BatchNorm()(cnn.Conv2D(4, 3, padding="same")(h))
    second = shared(shared(first))
    both = cnn.Concatenate()([cnn.Add()([first, second]), cnn.MaxPool2D(3, 1, 1)(first), first])
    return cnn.Model(h, cnn.Dense(3)(cnn.Dropout(0.2)(cnn.GlobalAvgPool2D()(both))))


def several():
    """Two inputs, three outputs, of which one is an input of another."""
    image, row = cnn.Input((2, 4, 4)), cnn.Input((3,))
    features = cnn.Flatten()(cnn.Conv2D(3, 2, activation="silu")(image))
    hidden = cnn.Dense(5, activation="tanh")(cnn.Concatenate()([features, row]))
    classes = cnn.Dense(4, activation="softmax", name="classes")(hidden)
    number = cnn.Dense(1, name="number")(cnn.Concatenate()([classes, row]))
    return cnn.Model([image, row], [classes, number, cnn.ConvTranspose2D(2, 2, name="image")(cnn.SiLU()(image))])


def nested():
    """A model of two outputs and a Sequential inside another, which calls one of them twice."""
    h = cnn.Input((3, 4, 4))
    inner = cnn.Model(h, [cnn.Conv2D(3, 1)(h), cnn.Conv2D(3, 3, padding="same")(h)])
    body = cnn.Sequential([cnn.Conv2D(3, 3, padding="same"), cnn.Tanh()])
    x = cnn.Input((3, 4, 4))
    a, b = inner(x)
    c, _ = inner(cnn.Add()([body(a), b]))
    return cnn.Model(x, cnn.Dense(2)(cnn.Flatten()(body(c))))


def residual():
    """Convolution, batch norm, addition and activation, which plans may fuse, twice with the same layers."""
    h = cnn.Input((4, 5, 4))
    convolution, norm = cnn.Conv2D(4, 3, padding="same", bias=False), cnn.BatchNorm()
    y = h
    for _ in range(2):
        y = cnn.Activation("leaky_relu")(cnn.Add()([norm(convolution(y)), y]))
    y = cnn.Concatenate()([cnn.GlobalMaxPool2D()(y), cnn.GlobalAvgPool2D()(h)])
    return cnn.Model(h, cnn.Dense(3)(y), seed=0)


INPUTS = {chain: [(3, 2, 6, 6)], branches: [(3, 2, 6, 5)], several: [(3, 2, 4, 4), (3, 3)], nested: [(3, 3, 4, 4)]}
INPUTS |= {residual: [(3, 4, 5, 4)]}
every_model = pytest.mark.parametrize("make", INPUTS)


def inputs_of(make, seed=1):
    xs = [draw(shape, seed) for shape in INPUTS[make]]
    return xs if len(xs) > 1 else xs[0]


def lists(value):
    return value if isinstance(value, list) else [value]


@every_model
@pytest.mark.parametrize("training", [False, True])
def test_models_alone_agree_with_the_reference(make, training):
    model, x = make(), inputs_of(make)
    model.build(model.input_shape, seed=1)
    other, results = twin(model), []
    for each, backend in ((model, "c"), (other, "reference")):
        with cnn.backend(backend):
            each._dropouts.reseed(3)
            ys = lists(each.forward(x, training=training))
            dys = [draw(y.shape, 2) for y in ys]
            dxs = lists(each.backward(dys if len(dys) > 1 else dys[0]))
            results.append([*ys, *dxs, *(a.copy() for a in [*each.grads.values(), *each.state.values()])])
    assert len(results[0]) == len(results[1]) > 3
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, 5e-5)


@every_model
def test_gradients_by_finite_differences(make):
    model, x = make(), inputs_of(make)
    model.build(model.input_shape, seed=1)
    xs = lists(x)
    dys = [draw(y.shape, 2) for y in lists(model.forward(x))]
    step = 2.0**-10  # short enough to meet no other maximum, long enough for single precision

    def scalar():
        ys = lists(model.forward(x))
        return sum(float((y.astype(np.float64) * dy).sum()) for y, dy in zip(ys, dys, strict=True))

    dxs = lists(model.backward(dys if len(dys) > 1 else dys[0]))
    grads = [gradient.copy() for gradient in model.grads.values()]
    rng = np.random.default_rng(0)
    for array, gradient in zip([*xs, *model.params.values()], [*dxs, *grads], strict=True):
        # Along a random direction: the slope there is its product with the gradient.
        direction = rng.standard_normal(array.shape).astype(np.float32) / np.sqrt(array.size)
        before = array.copy()
        values = []
        for sign in (1, -1):
            array[...] = before + sign * step * direction
            values.append(scalar())
        array[...] = before
        slope = (values[0] - values[1]) / (2 * step)
        assert abs(slope - float((gradient * direction).sum())) < 2e-2 * max(1, abs(slope)), array.shape


@every_model
def test_saved_and_copied_models_are_the_same(make, tmp_path):
    model, x = make(), inputs_of(make)
    model.build(model.input_shape, seed=1)
    expected = lists(model.predict(x))
    model.save(tmp_path / "model")
    for other in (cnn.load(tmp_path / "model"), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [layer.name for layer in other.layers] == [layer.name for layer in model.layers]
        for actual, wanted in zip(lists(other.predict(x)), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)
        again = cnn.Model(other.inputs, other.outputs)  # its symbols describe it
        for actual, wanted in zip(lists(again.predict(x)), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)
    config = json.loads(json.dumps(to_config(model)))
    assert json.loads(json.dumps(to_config(from_config(config)))) == config


@every_model
def test_predict_is_forward_batch_by_batch(make):
    model, x = make(), inputs_of(make)
    expected = lists(model.forward(x))
    for actual, wanted in zip(lists(model.predict(x, batch_size=2)), expected, strict=True):
        assert_close(actual, wanted, 1e-6)
        assert actual.flags.owndata or actual.base is not None
    promised = model.output_shape(model.input_shape)
    assert (promised if isinstance(promised, list) else [promised]) == [y.shape[1:] for y in expected]
    assert [symbol.shape for symbol in model.outputs] == [y.shape[1:] for y in expected]


@every_model
def test_weights_are_listed_layer_by_layer_and_once(make):
    model = make()
    arrays = model.get_weights()
    leaves = list(model.leaves())
    assert len({id(leaf) for leaf in leaves}) == len(leaves)
    expected = [p.view for leaf in leaves for p in leaf.parameters.values()]
    assert [a.shape for a in arrays] == [e.shape for e in expected]
    model.set_weights([2 * a for a in arrays])
    for now, before in zip(model.get_weights(), arrays, strict=True):
        np.testing.assert_array_equal(now, 2 * before)


def test_a_chain_is_the_sequential_of_its_layers():
    model, x, y = chain(), draw((8, 2, 6, 6)), np.arange(8) % 4
    layers = [cnn.Conv2D(3, 3, activation="relu"), cnn.MaxPool2D(), cnn.Flatten(), cnn.Dense(4)]
    plain = cnn.Sequential(layers)
    for each in (model, plain):
        each.compile(cnn.SGD(0.1, momentum=0.9), "cross_entropy", ["accuracy"])
    histories = [each.fit(x, y, epochs=3, batch_size=3, seed=5, verbose=0).history for each in (model, plain)]
    assert histories[0]["loss"] == histories[1]["loss"] and histories[0]["accuracy"] == histories[1]["accuracy"]
    np.testing.assert_array_equal(model.predict(x), plain.predict(x))
    assert model.evaluate(x, y) == plain.evaluate(x, y)
    assert [layer.name for layer in model.layers] == [layer.name for layer in plain.layers]


def test_gradients_of_shared_weights_add_up():
    """Against two layers with the same weights, each with a gradient of its own."""
    shared, x, dy = cnn.Dense(3), draw((4, 3)), draw((4, 3), 2)
    h = cnn.Input((3,))
    model = cnn.Model(h, shared(cnn.Tanh()(shared(h))))
    model.build((3,), seed=1)
    apart = cnn.Sequential([cnn.Dense(3, name="a"), cnn.Tanh(), cnn.Dense(3, name="b")])
    apart.build((3,))
    for name in ("weight", "bias"):
        apart.params[f"a.{name}"] = apart.params[f"b.{name}"] = shared.params[name]
    assert_close(model.forward(x), apart.forward(x), 1e-6)
    assert_close(model.backward(dy), apart.backward(dy), 1e-6)
    for _ in range(2):  # not added to those of the backward before
        model.backward(dy)
        for name in ("weight", "bias"):
            assert_close(shared.grads[name], apart.grads[f"a.{name}"] + apart.grads[f"b.{name}"], 1e-5)


@pytest.mark.parametrize("optimizer", [lambda: cnn.SGD(0.1, momentum=0.9, clip_norm=0.5), lambda: cnn.Adam(0.01)])
def test_training_with_shared_weights_on_both_backends(optimizer):
    x, y, losses = draw((6, 2, 6, 5)), np.arange(6) % 3, []
    for backend in ("c", "reference"):
        with cnn.backend(backend):
            model = branches()
            model.build((2, 6, 5), seed=1)
            model._dropouts.reseed(2)
            model.compile(optimizer(), "cross_entropy")
            losses.append([model.train_on_batch(x, y) for _ in range(4)])
            losses[-1].append(float(np.abs(model.get_weights()[0]).sum()))
    assert_close(losses[0], losses[1], 1e-4)


def test_a_feature_extractor_shares_the_weights_of_its_model():
    h = cnn.Input((4,))
    hidden = cnn.Dense(3, activation="relu")(h)
    model = cnn.Model(h, cnn.Dense(2)(hidden), seed=0)
    features = cnn.Model(h, hidden)
    x, y = draw((8, 4)), np.arange(8) % 2
    model.compile(cnn.SGD(0.5), "cross_entropy")
    model.fit(x, y, epochs=2, verbose=0)
    first, last = model.layers
    expected = np.maximum(x @ first.params["weight"] + first.params["bias"], 0)
    assert_close(features.predict(x), expected)
    assert_close(model.predict(x), expected @ last.params["weight"] + last.params["bias"])
    assert features.layers == [first]


def test_frozen_layers_stay_as_they_are():
    model, x, y = branches(), draw((6, 2, 6, 5)), np.arange(6) % 3
    model.compile(cnn.SGD(0.5), "cross_entropy")
    model.train_on_batch(x, y)
    frozen = model.layers[0]
    frozen.trainable = False
    before = [{k: v.copy() for k, v in layer.params.items()} for layer in model.layers]
    model.train_on_batch(x, y)
    for layer, old in zip(model.layers, before, strict=True):
        for name, array in layer.params.items():
            assert np.array_equal(array, old[name]) == (layer is frozen), (layer.name, name)


def test_names_stay_where_models_share_layers():
    first = cnn.Sequential([cnn.Dense(2), cnn.Dense(2), cnn.Dense(2)])
    names = [layer.name for layer in first.layers]
    second = cnn.Sequential(first.layers[1:])
    assert [layer.name for layer in first.layers] == names == ["dense", "dense_1", "dense_2"]
    assert [layer.name for layer in second.layers] == names[1:]
    third = cnn.Sequential([first.layers[2], cnn.Dense(3), cnn.Dense(3)])
    assert [layer.name for layer in third.layers] == ["dense_2", "dense", "dense_1"]


def test_a_model_whose_layers_were_renamed_by_another_is_saved_whole(tmp_path):
    first = cnn.Sequential([cnn.Dense(4), cnn.Dense(4)], seed=0)
    x = draw((3, 4))
    expected = first.predict(x)
    cnn.Sequential([cnn.Dense(4, name="dense"), first.layers[0]])
    first.save(tmp_path / "model")
    np.testing.assert_array_equal(cnn.load(tmp_path / "model").predict(x), expected)

    one, other = (cnn.Dense(4, name=name) for name in ("a", "b"))
    second = cnn.Sequential([one, other], input_shape=(4,))
    other.name = "a"
    with pytest.raises(ValueError, match="2 layers have the name 'a'"):
        second.save(tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_what_no_output_needs_is_not_run_and_not_trained():
    """One output of a nested model is left out."""
    h = cnn.Input((3,))
    used, unused = cnn.Dense(2, name="used"), cnn.Dense(2, name="unused")
    inner = cnn.Model(h, [used(h), unused(h)])
    x = cnn.Input((3,))
    model = cnn.Model(x, inner(x)[0])
    model.compile(cnn.SGD(0.1, weight_decay=0.1), "mse")
    model.build((3,), seed=0)
    before = unused.params["weight"].copy(), used.params["weight"].copy()
    model.train_on_batch(draw((4, 3)), draw((4, 2)))
    np.testing.assert_array_equal(unused.params["weight"], before[0])
    assert not np.array_equal(used.params["weight"], before[1])


def test_an_input_may_be_an_output_as_well():
    image, row = cnn.Input((2, 3, 4)), cnn.Input((3,))
    model = cnn.Model([image, row], [cnn.Dense(2)(row), image])
    x = [draw((5, 2, 3, 4)), draw((5, 3))]
    np.testing.assert_array_equal(model.predict(x)[1], x[0])
    np.testing.assert_array_equal(cnn.Model(image, image).predict(x[0]), x[0])


def test_a_model_takes_other_image_sizes():
    h = cnn.Input((2, 6, 6))
    model = cnn.Model(h, cnn.Conv2D(3, 3)(h))
    assert model.predict(draw((1, 2, 6, 6))).shape == (1, 3, 4, 4)
    assert model.predict(draw((1, 2, 9, 5))).shape == (1, 3, 7, 3)


def test_deep_models_are_made_copied_and_saved():
    h = y = cnn.Input((2,))
    layer = cnn.ReLU()
    for _ in range(1500):
        y = layer(y)
    model = copy.deepcopy(cnn.Model(h, y))
    assert len(model.get_config()["steps"]) == 1500
    assert from_config(to_config(model)).layers[0].name == "relu"


def test_summary_of_a_model(capsys):
    text = several().summary()
    assert capsys.readouterr().out == text + "\n"
    assert "classes (Dense)" in text and "(N, 2, 5, 5)" in text
    inner_text = nested().summary()
    assert "(N, 3, 4, 4), (N, 3, 4, 4)" in inner_text


# ----------------------------------------------------------------------- training of several outputs

LOSSES = ["cross_entropy", "binary_cross_entropy", "mse"]


def labels_of_several(n):
    """Classes, probabilities and images."""
    number = np.random.default_rng(3).random((n, 1)).astype(np.float32)
    return [np.arange(n) % 4, number, draw((n, 2, 5, 5), 4)]


def compiled(optimizer=None, loss=LOSSES, metrics=()):
    model = several()
    model.build(model.input_shape, seed=1)
    model.compile(optimizer or cnn.SGD(0.1), loss, metrics)
    return model


def test_the_loss_is_the_sum_of_the_outputs_losses():
    """Each of them as of a model with that output alone; the softmax that ends an output is computed with its loss."""
    model, x, y = compiled(metrics=["accuracy"]), inputs_of(several), labels_of_several(3)
    total, scores = 0.0, {}
    for output, loss, target, name in zip(model.outputs, LOSSES, y, ["classes", "number", "image"], strict=True):
        used = [x[0]] if name == "image" else x
        single = cnn.Model(model.inputs[: len(used)], output)
        single.compile(cnn.SGD(0.1), loss, ["accuracy"])
        found = single.evaluate(used if len(used) > 1 else used[0], target)
        total += found["loss"]
        scores[f"{name}_accuracy"] = found["accuracy"]
    found = model.evaluate(x, y)
    assert_close(found.pop("loss"), total, 1e-5)
    assert found == scores


def test_gradients_of_several_outputs_add_up():
    """A step of SGD is the sum of the steps that each loss alone would make."""
    x, y = inputs_of(several), labels_of_several(3)
    model = compiled()
    before = model.get_weights()
    loss = model.train_on_batch(x, y)
    assert loss == pytest.approx(compiled().evaluate(x, y)["loss"], rel=1e-6)
    moved = [after - old for after, old in zip(model.get_weights(), before, strict=True)]
    expected = [np.zeros_like(old) for old in before]
    for i, loss in enumerate(LOSSES):
        whole = several()
        whole.set_weights(before)
        used = x[0] if i == 2 else x
        single = cnn.Model(whole.inputs[0] if i == 2 else whole.inputs, whole.outputs[i])
        single.compile(cnn.SGD(0.1), loss)
        single.train_on_batch(used, y[i])
        expected = [e + after - old for e, after, old in zip(expected, whole.get_weights(), before, strict=True)]
    for actual, wanted in zip(moved, expected, strict=True):
        assert_close(actual, wanted, 1e-6)


def test_several_outputs_train_alike_on_both_backends():
    x, y, losses = inputs_of(several), labels_of_several(3), []
    for backend in ("c", "reference"):
        with cnn.backend(backend):
            model = compiled(cnn.Adam(0.05), metrics=["mae"])
            losses.append([model.train_on_batch(x, y) for _ in range(4)] + list(model.evaluate(x, y).values()))
    assert_close(losses[0], losses[1], 1e-4)
    assert losses[0][3] < losses[0][0]


def test_fit_of_several_inputs_and_outputs(tmp_path):
    x = [draw((12, 2, 4, 4)), draw((12, 3))]
    model, y = compiled(cnn.SGD(0.1, momentum=0.9), metrics=["accuracy"]), labels_of_several(12)
    history = model.fit(x, y, epochs=5, batch_size=5, validation_data=(x, y), seed=0, verbose=0).history
    names = {"loss", "classes_accuracy", "number_accuracy", "image_accuracy"}
    assert names | {f"val_{name}" for name in names} <= set(history)
    assert history["loss"][-1] < history["loss"][0]
    split = model.fit(x, y, validation_split=0.25, verbose=0).history
    assert "val_classes_accuracy" in split
    model.save(tmp_path / "model")
    other = cnn.load(tmp_path / "model")
    assert other.evaluate(x, y) == model.evaluate(x, y)
    assert other.train_on_batch(x, y) == pytest.approx(model.evaluate(x, y)["loss"], rel=1e-6)


def test_a_model_of_several_inputs_keeps_its_plans():
    model = compiled()
    first = model._ready(model._input_array("predict", inputs_of(several)))
    assert model._ready(model._input_array("predict", inputs_of(several))) is first


def test_one_loss_for_all_outputs_and_one_value_as_two_outputs():
    h = cnn.Input((3,))
    y = cnn.Dense(2, name="d")(h)
    model, x, target = cnn.Model(h, [y, y], seed=1), draw((4, 3)), draw((4, 2), 2)
    model.compile(cnn.SGD(0.1), "mse", ["mae"])
    single = cnn.Model(h, y)
    single.compile(cnn.SGD(0.2), "mse", ["mae"])  # a step twice as long
    scores = model.evaluate(x, [target, target])
    assert scores == {
        "loss": 2 * single.evaluate(x, target)["loss"],
        "d_0_mae": scores["d_1_mae"],
        "d_1_mae": scores["d_1_mae"],
    }
    before = model.get_weights()
    model.train_on_batch(x, [target, target])
    moved = model.get_weights()
    model.set_weights(before)
    single.train_on_batch(x, target)
    for one, two in zip(single.get_weights(), moved, strict=True):
        assert_close(one, two, 1e-6)


def fit_several(**options):
    return compiled().fit(inputs_of(several), labels_of_several(3), verbose=0, **options)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: compiled(loss=["mse", "mse"]), "loss must be one or 3.*got 2"),
        (lambda: compiled(loss=["mse", "mse", "nope"]), "loss must be one of"),
        (lambda: compiled().train_on_batch(inputs_of(several), labels_of_several(3)[0]), "list of 3 arrays"),
        (lambda: compiled().train_on_batch(inputs_of(several), labels_of_several(3)[:2]), "list of 3 arrays"),
        (lambda: compiled().train_on_batch(inputs_of(several), labels_of_several(4)), "x has 3 samples, y has 4"),
        (lambda: compiled().evaluate(inputs_of(several)[0], labels_of_several(3)), "x must be a list"),
        (lambda: fit_several(class_weight={0: 1, 1: 1}), "class_weight needs a model of one output, this has 3"),
        (lambda: fit_several(augment=lambda x, y, _: (x, y)), "augment needs a model of one input, this has 2"),
        (lambda: compiled().evaluate(inputs_of(several), [[0, 1, 7], *labels_of_several(3)[1:]]), "labels.*7"),
    ],
)
def test_wrong_losses_and_labels(call, word):
    with pytest.raises((ValueError, TypeError), match=word):
        call()


def test_augmentation_leaves_the_labels_of_several_outputs():
    h = cnn.Input((2, 4, 4))
    features = cnn.Flatten()(h)
    model = cnn.Model(h, [cnn.Dense(2)(features), cnn.Dense(1)(features)])
    model.compile("sgd", "mse")
    x, y = draw((3, 2, 4, 4)), [draw((3, 2)), draw((3, 1))]
    history = model.fit(x, y, epochs=2, augment=lambda x, y, generator: (x + 0, y), seed=0, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    with pytest.raises(ValueError, match="augment must leave the labels"):
        model.fit(x, y, augment=lambda x, y, generator: (x, y.copy()), verbose=0)


def test_a_loss_that_is_not_finite_names_the_layer():
    model, x = compiled(), inputs_of(several)
    model.layers[[layer.name for layer in model.layers].index("number")].params["bias"] = [np.nan]
    with pytest.raises(cnn.NonFiniteLossError, match="'number'"):
        model.train_on_batch(x, labels_of_several(3))


# --------------------------------------------------------------------------------------------- errors


def graph_of(inputs, outputs):
    return lambda: cnn.Model(inputs, outputs)


IN = cnn.Input((3,))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (graph_of(IN, cnn.Dense(2)(cnn.Input((3,)))), "not among inputs"),
        (graph_of([IN, cnn.Input((3,))], cnn.Dense(2)(IN)), r"inputs\[1\]"),
        (graph_of([IN, IN], cnn.Dense(2)(IN)), "twice"),
        (graph_of([], cnn.Dense(2)(IN)), "empty"),
        (graph_of(IN, []), "empty"),
        (graph_of(draw((2, 3)), cnn.Dense(2)(IN)), "inputs.*ndarray"),
        (graph_of(IN, cnn.Dense(2)), "outputs.*Dense"),
        (lambda: cnn.Model(IN, cnn.Dense(2, name="a")(cnn.Dense(2, name="a")(IN))), "'a'"),
        (lambda: cnn.Model(IN, cnn.Conv2D(2, 3)(IN)).predict(draw((2, 3))), "input"),
        (lambda: several().predict(inputs_of(several)[::-1]), r"x\[0\] has shape"),
        (lambda: several().predict(inputs_of(several)[:1]), r"2 input\(s\), got 1"),
        (lambda: several().predict(draw((2, 3))), "list of arrays"),
        (lambda: cnn.Model(IN, cnn.Dense(2)(IN), seed=-1), "seed"),
        (lambda: cnn.Dense(2)(cnn.Conv2D(2, 3)(cnn.Input((1, 2, 2)))).shape, "no output"),
    ],
)
def test_wrong_graphs(make, word):
    with pytest.raises((ValueError, TypeError), match=word):
        make()
