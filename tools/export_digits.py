"""Write pycnn/data/digits.npz, the small data set in the wheel, from scikit-learn's copy.

    python tools/export_digits.py

"Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning Repository,
CC BY 4.0, https://doi.org/10.24432/C50P49. scikit-learn's `load_digits` holds the rows of `optdigits.tes`, in
that order. Only the form is changed: pixels and classes become uint8 arrays.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).resolve().parents[1] / "pycnn" / "data" / "digits.npz"


def main() -> None:
    digits = load_digits()
    x = digits.images.astype(np.uint8)
    y = digits.target.astype(np.uint8)
    assert np.array_equal(x, digits.images) and x.shape == (1797, 8, 8) and x.max() == 16
    np.savez_compressed(TARGET, x=x, y=y)
    print(f"{TARGET}: {len(y)} images, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
