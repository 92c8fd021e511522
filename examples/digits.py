"""The first program of the README: trains on the digits in the wheel, saves, loads, and predicts the same bits."""

import tempfile
from pathlib import Path

import numpy as np

import pycnn as cnn


def network() -> cnn.Sequential:
    return cnn.Sequential(
        [
            cnn.Conv2D(16, 3, padding="same", activation="relu"),
            cnn.MaxPool2D(2),
            cnn.Flatten(),
            cnn.Dense(10),
        ]
    )


def main() -> None:
    (x, y), (x_test, y_test) = cnn.datasets.digits()
    model = network()
    model.compile(optimizer=cnn.SGD(0.1, momentum=0.9), loss="cross_entropy", metrics=["accuracy"])
    model.fit(x, y, epochs=10, batch_size=64, validation_data=(x_test, y_test), seed=0, verbose=2)
    print(model.evaluate(x_test, y_test))
    model.summary()
    path = Path(tempfile.gettempdir(), "digits.safetensors")
    model.save(path)
    same = np.array_equal(cnn.load(path).predict(x_test), model.predict(x_test))
    print(f"the loaded model predicts {'the same bits' if same else 'something else'}")


if __name__ == "__main__":
    main()
