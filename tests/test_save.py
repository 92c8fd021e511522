"""save and load, get_weights and set_weights, summary."""

import json

import numpy as np
import pytest

import pycnn as cnn
from pycnn import io


def draw(shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def layers():
    """Every kind of layer, nested, with and without names."""
    return [
        cnn.Conv2D(4, (3, 2), padding="same", name="stem"),
        cnn.BatchNorm(momentum=0.8, eps=1e-3),
        cnn.LeakyReLU(0.2),
        cnn.Residual(
            [cnn.Conv2D(6, 3, padding=((1, 1), (0, 2)), bias=False), cnn.BatchNorm(), cnn.Residual(cnn.SiLU())],
            [cnn.Conv2D(6, 1, name="projection")],
            name="block",
        ),
        cnn.MaxPool2D(2, ceil_mode=True),
        cnn.DepthwiseConv2D(2, activation="gelu"),
        cnn.Residual(cnn.Residual([cnn.Activation("elu")])),
        cnn.Sequential([cnn.AvgPool2D(2, 1), cnn.Flatten()], name="pooling"),
        cnn.Dropout(0.2),
        cnn.Dense(5, activation="tanh", name="hidden"),
        cnn.Dense(3),
        cnn.Softmax(),
    ]


X, Y = draw((8, 2, 6, 5)), np.arange(8) % 3


def trained_model():
    model = cnn.Sequential(layers(), seed=3)
    overrides = {"hidden": cnn.SGD(0.1, momentum=0.5, nesterov=True, clip_value=1.0)}
    model.compile(cnn.Adam(0.01, betas=(0.8, 0.9), clip_norm=2.0), "cross_entropy", ["accuracy"], overrides)
    model.fit(X, Y, epochs=2, batch_size=4, seed=0, verbose=0)
    return model


@pytest.fixture
def saved(tmp_path):
    model = trained_model()
    path = tmp_path / "model.safetensors"
    model.save(path)
    return model, path


def names(layer):
    return [layer.name] + [name for child in layer.children for name in names(child)]


# ------------------------------------------------------------------------------- save and load


def test_a_loaded_model_gives_the_same_bits(saved):
    model, path = saved
    loaded = cnn.load(path)
    assert isinstance(loaded, cnn.Sequential)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert loaded.evaluate(X, Y) == model.evaluate(X, Y)
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert names(loaded)[1:] == names(model)[1:]
    assert [type(layer) for layer in loaded.leaves()] == [type(layer) for layer in model.leaves()]
    assert [layer.get_config().keys() for layer in loaded.leaves()] == [
        layer.get_config().keys() for layer in model.leaves()
    ]


def test_path_is_taken_verbatim_and_may_be_text(saved, tmp_path):
    model, _ = saved
    model.save(str(tmp_path / "no suffix"))
    assert (tmp_path / "no suffix").exists()
    np.testing.assert_array_equal(cnn.load(str(tmp_path / "no suffix")).predict(X), model.predict(X))


def test_saving_twice_gives_the_same_file(saved, tmp_path):
    model, path = saved
    cnn.load(path).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_training_goes_on_after_load(saved):
    """Options of compile come back; the optimizers' slots are not saved, so both start with empty ones."""
    model, path = saved
    loaded = cnn.load(path)
    overrides = {"hidden": cnn.SGD(0.1, momentum=0.5, nesterov=True, clip_value=1.0)}
    model.compile(cnn.Adam(0.01, betas=(0.8, 0.9), clip_norm=2.0), "cross_entropy", ["accuracy"], overrides)
    options = {"epochs": 2, "batch_size": 3, "seed": 5, "verbose": 0}
    histories = [m.fit(X, Y, **options).history for m in (model, loaded)]
    for name in ("loss", "accuracy", "lr"):
        assert histories[0][name] == histories[1][name]
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "loss",
    [
        cnn.CrossEntropy(label_smoothing=0.2),
        cnn.BinaryCrossEntropy(),
        cnn.MeanSquaredError(),
        cnn.MeanAbsoluteError(),
        cnn.Huber(delta=0.25),
    ],
    ids=lambda loss: loss.name,
)
def test_every_loss_comes_back(loss, tmp_path):
    model = cnn.Sequential([cnn.Dense(3)])
    model.build((2,), seed=0)
    model.compile("sgd", loss)
    model.save(tmp_path / "a")
    x, y = draw((4, 2)), np.eye(3)[[0, 1, 2, 0]]
    assert cnn.load(tmp_path / "a").evaluate(x, y) == model.evaluate(x, y)


@pytest.mark.parametrize(
    "optimizer",
    [
        cnn.AdamW(0.02, (0.8, 0.9), 1e-3, 0.2, clip_value=0.5),
        cnn.RMSprop(0.02, 0.9, 1e-3, 0.1, 0.5, centered=True),
        cnn.Adagrad(0.02, 0.5, 0.1, 0.1, clip_norm=1.0),
        cnn.AdagradMomentum(0.02, 0.5, weight_decay=0.1),
    ],
    ids=lambda optimizer: optimizer.name,
)
def test_every_optimizer_comes_back(optimizer, tmp_path):
    model = cnn.Sequential([cnn.Dense(3)])
    model.build((2,), seed=0)
    model.compile(optimizer, "mse")
    model.save(tmp_path / "a")
    loaded = cnn.load(tmp_path / "a")
    assert loaded._optimizer == optimizer
    for m in (model, loaded):
        m.fit(draw((4, 2)), draw((4, 3)), epochs=3, seed=0, verbose=0)
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model_that_is_not_compiled(tmp_path):
    model = cnn.Sequential([cnn.Dense(3, input_shape=(2,))])
    model.save(tmp_path / "a")  # built by the input shape
    loaded = cnn.load(tmp_path / "a")
    np.testing.assert_array_equal(loaded.predict(draw((2, 2))), model.predict(draw((2, 2))))
    with pytest.raises(RuntimeError, match="compile"):
        loaded.fit(draw((2, 2)), [0, 1])


def flags(layer):
    return [layer.trainable] + [flag for child in layer.children for flag in flags(child)]


def test_trainable_flags_come_back(tmp_path):
    model = cnn.Sequential(layers())
    model.build((2, 6, 5))
    model.layers[0].trainable = False
    model.layers[3].trainable = False
    model.save(tmp_path / "a")
    assert flags(cnn.load(tmp_path / "a")) == flags(model)


def test_a_thawed_head_of_a_frozen_model_comes_back(tmp_path):
    """Fine-tuning: everything frozen, then the last layer and one inside a block set free."""
    model = cnn.Sequential(layers())
    model.build((2, 6, 5))
    model.trainable = False
    model.layers[10].trainable = True
    model.layers[3].body[0].trainable = True
    model.save(tmp_path / "a")
    loaded = cnn.load(tmp_path / "a")
    assert loaded.layers[10].trainable
    assert flags(loaded) == flags(model)


def test_numpy_numbers_in_options_can_be_saved(tmp_path):
    """cnn.Dense(y.max() + 1) is a common line."""
    model = cnn.Sequential(
        [cnn.Conv2D(np.int64(2), np.int32(2)), cnn.Flatten(), cnn.Dropout(np.float32(0.5)), cnn.Dense(Y.max() + 1)]
    )
    model.build((2, 6, 5), seed=0)
    model.compile(cnn.SGD(np.float32(0.25), momentum=np.float64(0.5)), "mse")
    model.save(tmp_path / "a")
    np.testing.assert_array_equal(cnn.load(tmp_path / "a").predict(X), model.predict(X))


@pytest.mark.parametrize(
    "make",
    [
        lambda: cnn.Sequential([cnn.Dense(2, init=lambda shape, generator: np.zeros(shape), input_shape=(3,))]),
        lambda: compiled(cnn.SGD(lambda epoch: 0.1)),
    ],
    ids=["callable init", "schedule"],
)
def test_what_cannot_be_saved_is_refused_and_harms_no_file(make, tmp_path):
    (tmp_path / "a").write_text("earlier")
    with pytest.raises(ValueError, match="saved"):
        make().save(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def compiled(optimizer):
    model = cnn.Sequential([cnn.Dense(2, input_shape=(3,))])
    model.compile(optimizer, "mse")
    return model


def test_save_errors(tmp_path):
    with pytest.raises(RuntimeError, match="built"):
        cnn.Sequential([cnn.Dense(2)]).save(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="absent"):
        compiled("sgd").save(tmp_path / "absent" / "a")


# ------------------------------------------------------------------------- files that do not fit


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cnn.load(tmp_path / "nowhere")


def test_a_changed_byte_anywhere_in_the_data_is_seen(saved):
    _, path = saved
    sound = path.read_bytes()
    start = 8 + int.from_bytes(sound[:8], "little")
    for position in (start, (start + len(sound)) // 2, len(sound) - 1):
        damaged = bytearray(sound)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="model.safetensors.*SHA-256"):
            cnn.load(path)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_a_file_cut_short(saved, keep):
    _, path = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors"):
        cnn.load(path)


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04" * 9])
def test_foreign_files(tmp_path, content):
    path = tmp_path / "foreign.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="foreign.bin"):
        cnn.load(path)


def test_safetensors_of_others(tmp_path):
    path = tmp_path / "other.safetensors"
    for metadata in ({}, {"format": "pt"}, {"format": "pycnn"}):
        io.save(path, {"weight": np.zeros(3, np.float32)}, metadata)
        with pytest.raises(ValueError, match="other.safetensors"):
            cnn.load(path)


ARCHITECTURE = {
    "class": "Sequential",
    "config": {
        "seed": None,
        "layers": [{"class": "Dense", "config": {"units": 2, "name": "dense"}, "trainable": True}],
    },
    "trainable": True,
    "input_shape": [3],
}
TENSORS = {"dense.weight": np.zeros((3, 2), np.float32), "dense.bias": np.zeros(2, np.float32)}
COMPILE = {
    "optimizer": {"name": "sgd", "config": {"lr": 0.1}},
    "optimizers": {},
    "loss": {"name": "mse", "config": {}},
    "metrics": [],
}


def write(path, architecture=ARCHITECTURE, tensors=TENSORS, options=COMPILE, version="1"):
    parts = {"architecture": architecture, "compile": options}
    texts = {
        name: part if isinstance(part, str) else json.dumps(part) for name, part in parts.items() if part is not None
    }
    metadata = {"format": "pycnn", "format_version": version} | texts
    io.save(path, tensors, metadata)


def test_the_file_written_by_hand_is_sound(tmp_path):
    """So that the ones below are refused for their fault alone."""
    write(tmp_path / "b", options=None)
    assert cnn.load(tmp_path / "b").predict(np.ones((1, 3))).tolist() == [[0, 0]]
    write(tmp_path / "a")
    model = cnn.load(tmp_path / "a")
    assert model.train_on_batch(np.ones((1, 3)), np.ones((1, 2))) == 1


def dense(**config):
    return {"class": "Dense", "config": {"units": 2, "name": "dense"} | config, "trainable": True}


def architecture(*layers):
    return ARCHITECTURE | {"config": {"layers": list(layers)}}


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "99"},
        {"version": ""},
        {"architecture": "{"},
        {"architecture": "[" * 100_000},
        {"architecture": []},
        {"architecture": "null"},
        {"architecture": {"class": "Sequential"}},
        {"architecture": ARCHITECTURE | {"class": "Nonsense"}},
        {"architecture": ARCHITECTURE | {"class": "BaseModel"}},
        {"architecture": ARCHITECTURE | {"class": ["Sequential"]}},
        {"architecture": ARCHITECTURE | {"config": []}},
        {"architecture": ARCHITECTURE | {"input_shape": None}},
        {"architecture": ARCHITECTURE | {"input_shape": [4]}},
        {"architecture": ARCHITECTURE | {"input_shape": []}},
        {"architecture": ARCHITECTURE | {"input_shape": ["3"]}},
        {"architecture": ARCHITECTURE | {"input_shape": [2**40]}},
        {"architecture": dense() | {"input_shape": [3]}, "options": None},
        {"architecture": architecture()},
        {"architecture": architecture(dense(units=3))},
        {"architecture": architecture(dense(units="2"))},
        {"architecture": architecture(dense(unknown=1))},
        {"architecture": architecture(dense(name="other"))},
        {"architecture": architecture(dense(), dense(name="dense_2"))},
        {"architecture": architecture(dense() | {"trainable": "no"})},
        {"architecture": architecture("Dense")},
        {"architecture": architecture({"class": "Dense"})},
        {"tensors": {}},
        {"tensors": {"dense.weight": TENSORS["dense.weight"]}},
        {"tensors": TENSORS | {"extra": np.zeros(1, np.float32)}},
        {"tensors": TENSORS | {"dense.weight": np.zeros((2, 3), np.float32)}},
        {"tensors": TENSORS | {"dense.bias": np.zeros((), np.float32)}},
        {"options": "{"},
        {"options": []},
        {"options": {}},
        {"options": COMPILE | {"optimizer": {"name": "nope", "config": {}}}},
        {"options": COMPILE | {"optimizer": {"name": "sgd", "config": {"lr": -1}}}},
        {"options": COMPILE | {"optimizer": {"name": "sgd", "config": {"rl": 1}}}},
        {"options": COMPILE | {"optimizers": {"absent": {"name": "sgd", "config": {}}}}},
        {"options": COMPILE | {"optimizers": []}},
        {"options": COMPILE | {"loss": "mse"}},
        {"options": COMPILE | {"metrics": ["nope"]}},
        {"options": COMPILE | {"metrics": 3}},
    ],
    ids=lambda changes: str(changes)[:90],
)
def test_files_whose_metadata_does_not_fit(tmp_path, changes):
    path = tmp_path / "odd.safetensors"
    write(path, **changes)
    with pytest.raises(ValueError, match="odd.safetensors"):
        cnn.load(path)


# ---------------------------------------------------------------------------- the file for others


def test_the_safetensors_library_reads_the_file(saved):
    peer = pytest.importorskip("safetensors")
    numpy_peer = pytest.importorskip("safetensors.numpy")
    model, path = saved
    tensors = numpy_peer.load_file(path)
    expected = {}
    for leaf in model.leaves():
        expected |= {f"{leaf.name}.{name}": array for name, array in (leaf.params | leaf.state).items()}
    assert tensors.keys() == expected.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, expected[name])
    with peer.safe_open(path, "np") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pycnn"
    assert metadata["format_version"] == "1"
    assert json.loads(metadata["architecture"])["class"] == "Sequential"
    assert len(metadata["sha256"]) == 64


# -------------------------------------------------------------------- get_weights, set_weights


def test_order_of_weights():
    """Layer by layer; a residual's body, then its shortcut; batch norm's running statistics last."""
    model = cnn.Sequential(layers())
    model.build((2, 6, 5), seed=0)
    expected = [
        *[(4, 2, 3, 2), (4,)],  # stem
        *[(4,)] * 4,
        *[(6, 4, 3, 3), *[(6,)] * 4, (6, 4, 1, 1), (6,)],  # body, then shortcut
        *[(6, 1, 2, 2), (6,)],
        *[(6, 5), (5,)],
        *[(5, 3), (3,)],
    ]
    weights = model.get_weights()
    assert [w.shape for w in weights] == expected
    norm = model.layers[1]
    norm.params["gamma"], norm.params["beta"] = np.full(4, 1), np.full(4, 2)
    norm.state["running_mean"], norm.state["running_var"] = np.full(4, 3), np.full(4, 4)
    assert [w[0] for w in model.get_weights()[2:6]] == [1, 2, 3, 4]
    projection = model.layers[3].shortcut[0]
    np.testing.assert_array_equal(weights[11], projection.params["weight"])
    np.testing.assert_array_equal(weights[12], projection.params["bias"])


def test_weights_are_copies_both_ways():
    model = trained_model()
    expected = model.predict(X)
    weights = model.get_weights()
    assert all(w.dtype == np.float32 and w.flags.writeable for w in weights)
    for w in weights:
        w[...] = 7
    np.testing.assert_array_equal(model.predict(X), expected)
    model.set_weights(weights)
    changed = model.predict(X)
    assert not np.array_equal(changed, expected)
    for w in weights:
        w[...] = 0
    np.testing.assert_array_equal(model.predict(X), changed)


def test_weights_carry_a_model_over():
    model = trained_model()
    other = cnn.Sequential(layers())
    other.build((2, 6, 5), seed=99)
    assert not np.array_equal(other.predict(X), model.predict(X))
    other.set_weights([w.astype(np.float64).tolist() for w in model.get_weights()])
    np.testing.assert_array_equal(other.predict(X), model.predict(X))


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda w: w[:-1], "17 arrays, got 16|has .* arrays"),
        (lambda w: [*w, np.zeros(1)], "arrays"),
        (lambda w: [], "arrays"),
        (lambda w: [*w[:-1], np.zeros(4)], r"bias.*\(4,\), expected \(3,\)"),
        (lambda w: [*w[:-2], w[-2].T, w[-1]], r"weight.*expected \(5, 3\)"),
        (lambda w: [*w[:-1], 0.0], "bias"),
        (lambda w: [*w[:-1], ["a"] * 3], "numbers|array"),
        (lambda w: [*w[:-1], None], "array"),
        (lambda w: w[::-1], "expected"),
        (lambda w: None, "arrays must be a list of arrays, got NoneType"),
    ],
)
def test_wrong_weights_change_nothing(change, word):
    model = cnn.Sequential(layers())
    model.build((2, 6, 5), seed=0)
    before = model.get_weights()
    with pytest.raises((ValueError, TypeError), match=word):
        model.set_weights(change([w + 1 for w in before]))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_of_a_model_that_is_not_built():
    with pytest.raises(RuntimeError, match="built"):
        cnn.Sequential([cnn.Dense(2)]).get_weights()
    with pytest.raises(RuntimeError, match="built"):
        cnn.Sequential([cnn.Dense(2)]).set_weights([])
    assert [w.shape for w in cnn.Sequential([cnn.Dense(2, input_shape=(3,))]).get_weights()] == [(3, 2), (2,)]


# -------------------------------------------------------------------------------------- summary


def test_summary(capsys):
    model = cnn.Sequential(layers())
    model.build((2, 6, 5), seed=0)
    text = model.summary()
    assert capsys.readouterr().out == text + "\n"
    lines = text.splitlines()
    rows = {line.split()[0]: line for line in lines}
    for layer in model.layers:
        assert type(layer).__name__ in rows[layer.name]
    assert "(N, 4, 6, 5)" in rows["stem"] and rows["stem"].split()[-1] == "52"
    assert rows["batchnorm"].split()[-1] == "16"
    assert "(N, 6, 6, 5)" in rows["block"] and rows["block"].split()[-1] == str(216 + 24 + 30)
    assert "(N, 6, 3, 3)" in rows["maxpool2d"] and rows["maxpool2d"].split()[-1] == "0"
    assert "(N, 6)" in rows["pooling"]
    assert "(N, 3)" in rows["dense"] and rows["dense"].split()[-1] == "18"
    total = sum(w.size for w in model.get_weights())
    running = 2 * 4 + 2 * 6
    assert f"{total:,} parameters" in lines[-1] and f"{total - running:,}" in lines[-1]


def test_summary_counts_what_is_trained():
    model = cnn.Sequential([cnn.Dense(1000, name="big"), cnn.Dense(2)])
    model.build((9,))
    model.layers[0].trainable = False
    text = model.summary()
    assert "10,000" in text
    assert text.splitlines()[-1].startswith("12,002 parameters, 2,002 ")


def test_summary_of_a_model_that_is_not_built():
    with pytest.raises(RuntimeError, match="built"):
        cnn.Sequential([cnn.Dense(2)]).summary()
    assert "(N, 2)" in cnn.Sequential([cnn.Dense(2, input_shape=(3,))]).summary()
