"""A user's first minute with an installed wheel: run as `python smoke.py DIST` away from the sources."""

import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np

import pycnn as cnn

WHEEL_BYTES = 1_500_000


def main(dist: Path) -> None:
    source = Path(__file__).resolve().parent.parent / "pycnn"
    assert Path(cnn.__file__).resolve().parent != source, "the sources were imported, not the wheel"
    (wheel,) = dist.glob("*.whl")
    assert wheel.stat().st_size < WHEEL_BYTES, f"{wheel.name} has {wheel.stat().st_size} bytes"

    (x, y), (x_test, y_test) = cnn.datasets.digits()
    model = runpy.run_path(str(source.parent / "examples" / "digits.py"))["network"]()
    model.compile(optimizer=cnn.SGD(0.1, momentum=0.9), loss="cross_entropy", metrics=["accuracy"])
    model.fit(x, y, epochs=5, batch_size=64, seed=0, verbose=2)
    assert model.evaluate(x_test, y_test)["accuracy"] > 0.93
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "digits.safetensors")
        model.save(path)
        np.testing.assert_array_equal(cnn.load(path).predict(x_test), model.predict(x_test))
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, {cnn.info()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
