"""The notebook's cells run one after another, and come to what its text says."""

import contextlib
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest

import pycnn as cnn

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "convolution_to_cnn.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
PLOTS = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture(scope="module")
def run():
    """(the names that the cells have defined, what they have printed)."""
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in CELLS:
            if PLOTS or "plot" not in cell["metadata"].get("tags", []):
                exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    return names, printed.getvalue()


def test_convolution_by_hand_is_the_reports_equation_12(run):
    equation_12 = [[5, 5.78, 7, 6.44], [6.33, 6.67, 6.89, 5.11], [5.44, 5.78, 5.78, 4], [4.44, 4.78, 5.56, 4]]
    np.testing.assert_allclose(run[0]["by_hand"], equation_12, atol=0.005)


def test_every_comparison_holds(run):
    assert run[1].count("True") == 10 and "False" not in run[1]


def test_gradients_are_those_of_finite_differences(run):
    names, _ = run
    for name in ("dw", "dx"):
        np.testing.assert_allclose(names[name], names[f"{name}_tried"], atol=1e-4)


def test_both_networks_learn(run):
    names, printed = run
    assert names["own_accuracy"] > 0.9 and names["result"]["accuracy"] > 0.96
    assert float(printed.splitlines()[-1]) == pytest.approx(names["result"]["accuracy"], abs=1e-4)
    assert isinstance(names["history"], cnn.History)


def test_it_is_kept_without_outputs():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)
