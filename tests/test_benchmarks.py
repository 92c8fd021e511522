"""The benchmarks verify and time a case each; without PyTorch they say what is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CASES = {
    "conv.py": ["--filter", "digits"],
    "gemm.py": ["--filter", "64x64x10"],
    "elementwise.py": ["--filter", "64x16x8x8", "--only", "networks"],  # pooling, batch norm, relu, both ways
}


def run(script, *arguments, env=None):
    command = [sys.executable, BENCHMARKS / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.parametrize("script", CASES)
def test_a_case_of_each(script, tmp_path):
    pytest.importorskip("torch")
    file = tmp_path / "results.json"
    done = run(script, *CASES[script], "--seconds", 0.01, "--json", file)
    assert done.returncode == 0, done.stderr
    assert "ratio" in done.stdout
    assert json.loads(file.read_text())


@pytest.mark.parametrize("script", CASES)
def test_without_pytorch_one_sentence_says_so(script, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError")
    done = run(script, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "pip install torch" in done.stderr
