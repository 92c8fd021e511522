"""Pictures: what is on them."""

import sys

import numpy as np
import pytest

import pycnn as cnn
from pycnn import plot

pytest.importorskip("matplotlib")
RNG = np.random.default_rng(0)
HISTORY = {"loss": [2.0, 1.0, 0.5], "accuracy": [0.3, 0.6, 0.7], "val_loss": [1.9, 1.2, 1.1], "lr": [0.1, 0.05, 0.01]}
HISTORY |= {"seconds": [1, 1, 1]}


@pytest.fixture(scope="module")
def model():
    model = cnn.Sequential(
        [
            cnn.Conv2D(5, 3, activation="relu"),
            cnn.Residual([cnn.Conv2D(5, 3, padding=1, name="inner"), cnn.BatchNorm()]),
            cnn.Flatten(),
            cnn.Dense(10),
        ]
    )
    model.build((3, 8, 6), seed=0)
    return model


IMAGES = RNG.random((4, 3, 8, 6), dtype=np.float32)


def pictures(figure):
    """(title, array) of each small picture."""
    return [(axes.get_title(), np.asarray(axes.images[0].get_array())) for axes in figure.axes if axes.images]


def test_history():
    for value in (HISTORY, type("History", (), {"history": HISTORY})()):
        figure = plot.history(value)
        assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
        lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
        assert lines == {"training": HISTORY["loss"], "validation": HISTORY["val_loss"]}
        assert len(figure.axes[1].lines) == 1
    assert list(figure.axes[1].lines[0].get_xdata()) == [1, 2, 3]


def test_history_of_fit():
    (x, y), _ = cnn.datasets.digits(per_class=3)
    model = cnn.Sequential([cnn.Flatten(), cnn.Dense(10)])
    model.compile("sgd", "cross_entropy", ["accuracy"])
    fitted = model.fit(x, y, 2, verbose=0)
    assert list(plot.history(fitted).axes[1].lines[0].get_ydata()) == fitted.history["accuracy"]
    assert list(plot.learning_rate(fitted).axes[0].lines[0].get_ydata()) == [0.01, 0.01]


def test_learning_rate():
    x, y = plot.learning_rate(lambda epoch: 1 / (1 + epoch), 4).axes[0].lines[0].get_data()
    np.testing.assert_allclose(y, 1 / (1 + x))
    assert x[0] == 0 and 3.9 < x[-1] < 4
    assert set(plot.learning_rate(0.1, 2).axes[0].lines[0].get_ydata()) == {0.1}


def test_confusion_matrix_has_counts_and_rates():
    figure = plot.confusion_matrix([0, 0, 0, 1], [0, 0, 1, 1], ["cat", "dog"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["2\n66.7%", "1\n33.3%", "0", "1\n100.0%"]
    np.testing.assert_allclose(pictures(figure)[0][1], [[2 / 3, 1 / 3], [0, 1]])
    assert figure.axes[0].get_title() == "accuracy 75.00% of 4"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["cat", "dog"]
    outputs = np.eye(3)[[0, 0, 1, 1]]
    assert len(plot.confusion_matrix(np.eye(3)[[0, 0, 0, 1]], outputs).axes[0].texts) == 4


def test_many_classes_have_no_numbers():
    assert not plot.confusion_matrix(np.arange(25), np.arange(25)).axes[0].texts


def test_filters_in_colour(model):
    weight = model.layers[0].params["weight"]
    shown = pictures(plot.filters(model))
    assert [title for title, _ in shown] == ["0", "1", "2", "3", "4"]
    bound = np.abs(weight).max()
    np.testing.assert_allclose(shown[2][1], weight[2].transpose(1, 2, 0) / bound / 2 + 0.5, rtol=1e-5)


def test_filters_of_other_channels(model):
    for layer in ("inner", model.layers[1].children[0]):
        shown = pictures(plot.filters(model, layer, most=12))
        assert [title for title, _ in shown][4:7] == ["0, 4", "1, 0", "1, 1"] and len(shown) == 12
        np.testing.assert_array_equal(shown[6][1], layer_weight(model)[1, 1])
    alone = cnn.Conv2D(2, 3, input_shape=(1, 4, 4))
    alone.build((1, 4, 4))
    np.testing.assert_array_equal(pictures(plot.filters(alone))[1][1], alone.params["weight"][1, 0])


def layer_weight(model):
    return model.layers[1].children[0].params["weight"]


@pytest.mark.parametrize("layer", [None, 0, "conv2d"])
@pytest.mark.parametrize("x", [IMAGES[0], IMAGES])
def test_feature_maps(model, layer, x):
    (title, image), *maps = pictures(plot.feature_maps(model, x, layer))
    assert title == "image"
    np.testing.assert_array_equal(image, IMAGES[0].transpose(1, 2, 0))
    expected = model.layers[0].forward(IMAGES[:1])[0]
    assert len(maps) == 5
    for i, (_, channel) in enumerate(maps):
        np.testing.assert_allclose(channel, expected[i], atol=1e-6)


def test_feature_maps_of_deeper_layers(model):
    first = model.layers[0].forward(IMAGES[:1])
    for layer, expected in (
        (1, model.layers[1].forward(first)),
        ("inner", model.layers[1].children[0].forward(first)),
    ):
        shown = pictures(plot.feature_maps(model, IMAGES, layer))[1:]
        np.testing.assert_allclose([array for _, array in shown], expected[0], atol=1e-5)
    assert len(pictures(plot.feature_maps(model, IMAGES, "inner", most=2))) == 3
    before = model.predict(IMAGES)
    with cnn.backend("reference"):
        on_reference = pictures(plot.feature_maps(model, IMAGES, 1))[1:]
    np.testing.assert_allclose([a for _, a in on_reference], model.layers[1].forward(first)[0], atol=1e-5)
    np.testing.assert_array_equal(model.predict(IMAGES), before)


def test_predictions_show_the_surest_mistakes_first():
    outputs = [[0.1, 0.9], [0.4, 0.6], [0.8, 0.2], [1.0, 0.0]]
    shown = pictures(plot.predictions(outputs, IMAGES, [0, 0, 0, 1], ["cat", "dog"]))
    assert [title for title, _ in shown] == ["cat, not dog", "dog, not cat", "dog, not cat"]
    for (_, picture), i in zip(shown, (3, 0, 1), strict=True):
        np.testing.assert_array_equal(picture, IMAGES[i].transpose(1, 2, 0))
    assert len(pictures(plot.predictions(outputs, IMAGES, [0, 0, 0, 1], most=2))) == 2
    shown = pictures(plot.predictions(outputs, IMAGES, [0, 0, 0, 1], wrong=False))
    assert [title for title, _ in shown] == ["1, not 0", "1, not 0", "0", "0, not 1"]


def test_predictions_of_a_model(model):
    classes = model.predict(IMAGES).argmax(axis=1)
    figure = plot.predictions(model, IMAGES, classes)
    assert not pictures(figure) and figure.get_suptitle() == "0 mistakes in 4 images"
    assert len(pictures(plot.predictions(model, IMAGES, (classes + 1) % 10))) == 4
    probabilities = np.float32([[0.9], [0.6], [0.2], [0.1]])
    assert len(pictures(plot.predictions(probabilities, IMAGES[:, :1], [0, 0, 0, 1]))) == 3


def test_training_of_a_model_without_convolutions(tmp_path):
    (x, y), (x_test, y_test) = cnn.datasets.digits(per_class=3)
    model = cnn.Sequential([cnn.Flatten(), cnn.Dense(10)])
    model.compile("sgd", "cross_entropy", ["accuracy"])
    files = plot.training(tmp_path / "a", model, model.fit(x, y, 1, verbose=0), x_test, y_test)
    names = ["confusion_matrix.png", "history.png", "learning_rate.png", "predictions.png", "report.txt"]
    assert [path.name for path in files] == names
    assert (tmp_path / "a" / "report.txt").read_text().split()[-1] in ("30", "30.0")


def test_each_is_saved_to_a_path(model, tmp_path):
    for name, draw in {
        "history": lambda path: plot.history(HISTORY, path),
        "lr": lambda path: plot.learning_rate(HISTORY, path=path),
        "confusion": lambda path: plot.confusion_matrix([0, 1], [0, 1], path=path),
        "filters": lambda path: plot.filters(model, path=path),
        "maps": lambda path: plot.feature_maps(model, IMAGES, path=str(path)),
        "predictions": lambda path: plot.predictions(model, IMAGES, [0, 1, 2, 3], path=path),
    }.items():
        draw(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("draw", "error", "match"),
    [
        (lambda model: plot.history({"lr": [1]}), ValueError, "nothing to draw, only lr"),
        (lambda model: plot.history(3), TypeError, "must be what fit returned"),
        (lambda model: plot.learning_rate(0.1), ValueError, "epochs must say"),
        (lambda model: plot.confusion_matrix([0, 1], [0]), ValueError, "y_pred has 1"),
        (lambda model: plot.filters(model, "absent"), ValueError, "'absent' is none of the model's; .*conv2d, inner"),
        (lambda model: plot.filters(model, 3), ValueError, "layer 3 is none"),
        (lambda model: plot.filters(model, 99), ValueError, "layer 99 is none"),
        (lambda model: plot.filters(IMAGES), TypeError, "must be a model or a layer"),
        (lambda model: plot.feature_maps(model, IMAGES[0, 0]), ValueError, "x must be an image"),
        (lambda model: plot.feature_maps(model, IMAGES, "dense"), ValueError, "dense gives .*, expected maps"),
        (lambda model: plot.predictions(model, IMAGES, [0]), ValueError, "4 images, y 1 labels"),
        (lambda model: plot.predictions([0, 1, 2, 0], IMAGES, [0] * 4, ["a"]), ValueError, "1 names for 3 classes"),
    ],
)
def test_wrong_arguments_are_refused(model, draw, error, match):
    with pytest.raises(error, match=match):
        draw(model)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pycnn\[plot\]"):
        plot.history(HISTORY)
