"""The command line and the benchmark behind it."""

import json
import subprocess
import sys

import numpy as np
import pytest

import pycnn as cnn
from pycnn import bench, cli
from pycnn.bench import cases, kernel_peer, python_peer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "digits.model"
    assert cli.main(["train", "digits", "--epochs", "2", "--quiet", "--output", str(path)]) == 0
    return path


def test_train_says_the_accuracy_and_where_it_saved(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    arguments = ["train", "digits", "--epochs", "1", "--batch", "128", "--lr", "0.05", "--seed", "3", "--quiet"]
    assert cli.main([*arguments, "-o", str(path)]) == 0
    out = capsys.readouterr().out
    accuracy = cnn.load(path).evaluate(*cnn.datasets.digits()[1])["accuracy"]
    assert f"test accuracy {accuracy:.2%}" in out
    assert f"saved to {path}" in out


def test_train_plots(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--epochs", "1", "--quiet", "-o", str(tmp_path / "a"), "--plot", str(tmp_path / "deep" / "plots")]
    assert cli.main(["train", "digits", *arguments]) == 0
    assert "plots" in capsys.readouterr().out
    names = [path.name for path in (tmp_path / "deep" / "plots").iterdir()]
    assert {"history.png", "learning_rate.png", "confusion_matrix.png", "report.txt"} < set(names)


def test_the_seed_decides(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path, seed in zip(paths, "112", strict=True):
        cli.main(["train", "digits", "--epochs", "1", "--quiet", "--seed", seed, "-o", str(path)])
    weights = [cnn.load(path).get_weights()[0] for path in paths]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_evaluate(trained, capsys):
    assert cli.main(["evaluate", str(trained), "digits"]) == 0
    scores = cnn.load(trained).evaluate(*cnn.datasets.digits()[1])
    assert capsys.readouterr().out == f"loss {scores['loss']:.4f}  accuracy {scores['accuracy']:.4f}\n"


def test_predict_prints_classes_or_saves_outputs(trained, tmp_path, capsys):
    x = cnn.datasets.digits()[1][0]
    expected = cnn.load(trained).predict(x)
    assert cli.main(["predict", str(trained), "digits"]) == 0
    assert [int(line) for line in capsys.readouterr().out.split()] == expected.argmax(axis=1).tolist()

    np.save(tmp_path / "x.npy", x[:5])
    assert cli.main(["predict", str(trained), str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected[:5], rtol=1e-5, atol=1e-5)


def test_info(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for name, value in cnn.info().items():
        assert name in out
        assert str(value) in out or isinstance(value, list)
    assert ", ".join(cnn.info()["usable_isas"]) in out


def test_users_errors_are_one_line(tmp_path, capsys):
    assert cli.main(["evaluate", str(tmp_path / "absent"), "digits"]) == 1
    assert cli.main(["train", "digits", "--epochs", "-1", "--quiet"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "absent" in lines[0]
    assert "epochs" in lines[1]
    with pytest.raises(SystemExit):
        cli.main(["train", "nothing"])


def test_as_a_module():
    run = subprocess.run([sys.executable, "-m", "pycnn", "--version"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, f"pycnn {cnn.__version__}\n")


@pytest.fixture(scope="module")
def results():
    return bench.run(seconds=0.002)


def test_bench_has_a_row_a_case_and_shares_of_peak(results, tmp_path):
    assert [row["case"] for row in results["comparison"]] == list(cases.NAMES)
    for row in results["comparison"]:
        times = {name: value for name, value in row.items() if name != "case"}
        assert {"python", "numpy", "c_1_thread"} <= times.keys() <= bench.COLUMNS.keys()
        assert all(0 < value < 60 for value in times.values())
        assert row["python"] > row["c_1_thread"], "pure Python was faster than C"
    assert len(results["peak"]["rows"]) == 2
    for row in results["peak"]["rows"]:
        assert row["share"] == row["gflops"] / results["peak"]["peak_gflops"]
    text = bench.table(results)
    assert all(case in text for case in cases.NAMES)
    bench.write_json(results, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == results


def test_bench_refuses_a_contestant_that_computes_something_else(monkeypatch):
    wrong = kernel_peer.functions(cases.inputs()) | {"gemm": lambda: np.zeros((96, 96))}
    monkeypatch.setattr(kernel_peer, "functions", lambda inputs: wrong)
    monkeypatch.setattr(bench, "_numpy_times", lambda seconds: dict.fromkeys(cases.NAMES, 1.0))
    python = {case: wrong[case] for case in cases.NAMES} | {"gemm": lambda: np.ones((96, 96))}
    monkeypatch.setattr(python_peer, "functions", lambda inputs: python)
    with pytest.raises(RuntimeError, match="gemm"):
        bench.compare(lambda line: None, 0.001)


def test_bench_plot(results, tmp_path):
    pytest.importorskip("matplotlib").use("agg")
    bench.plot(results, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_bench_plot_without_matplotlib(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pycnn\[plot\]"):
        bench.plot(results, tmp_path / "a.png")
