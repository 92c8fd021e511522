"""The examples run, on small data or few steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name, *arguments):
    done = subprocess.run([sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_digits():
    out = run("digits.py")
    assert "the loaded model predicts the same bits" in out
    assert float(out.split("'accuracy': ")[1].split("}")[0]) >= 0.97


def test_show_plan_is_what_the_documentation_shows():
    out = run("show_plan.py")
    assert [line for line in out.splitlines() if line.endswith(":")] == ["backward:", "gradients:"]
    text = (EXAMPLES.parent / "docs" / "architecture.md").read_text()
    kernels = [line.split()[1] for line in out.splitlines() if line[:4].strip().isdigit()]
    shown = [line.split()[1] for line in text.splitlines() if line[:8].strip().isdigit()]
    assert kernels == shown


def _has_optdigits():
    folder = os.environ.get("PYCNN_DATA")
    return folder is not None and Path(folder, "optdigits", "optdigits.tra").exists()


@pytest.mark.skipif(not _has_optdigits(), reason="PYCNN_DATA names no folder with optdigits")
def test_report_001():
    out = run("report_001.py", "--seeds", "1", "--epochs", "5")
    assert float(out.split("at most ")[1].split()[0]) < 1e-4
    assert float(out.split("mean ")[1].split("%")[0]) > 88
