"""`pycnn bench`: the same operations in pure Python, NumPy, these kernels, and PyTorch where it is installed.

Every contestant computes the same cases from the same inputs; each result is compared with the reference before
it is timed. Ours and PyTorch run in turn in one process and the best of many runs counts, of PyTorch that of its
better memory format. NumPy is measured in a
process of its own, for its BLAS keeps a thread pool that disturbs, and is disturbed by, OpenMP's.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pycnn import native, shapes
from pycnn.bench import cases, kernel_peer, python_peer

TOLERANCE = 1e-3
SECONDS_A_CASE = 0.3


def best_time(functions: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """The shortest time of each function in seconds, all run in turn until `seconds` each are used up."""
    best = dict.fromkeys(functions, float("inf"))
    used = dict.fromkeys(functions, 0.0)
    while any(u < seconds for u in used.values()):
        for name, function in functions.items():
            if used[name] < seconds:
                began = time.perf_counter()
                function()
                taken = time.perf_counter() - began
                best[name] = min(best[name], taken)
                used[name] += taken
    return best


def geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def aligned(array: np.ndarray) -> np.ndarray:
    """A contiguous copy that begins at a cache line, as the arrays of a network and PyTorch's tensors do."""
    copy = shapes.empty("bench", array.shape, array.dtype)
    copy[...] = array
    return copy


def _verify(contestant: str, case: str, result: Any, expected: np.ndarray) -> None:
    error = np.abs(np.asarray(result, np.float64) - expected).max() / max(np.abs(expected).max(), 1e-30)
    if not error < TOLERANCE:
        raise RuntimeError(f"{contestant} computes another {case}: its result differs by {error:.1e} of the largest")


def _numpy_times(seconds: float) -> dict[str, float]:
    """Verified times of the NumPy versions, from a process of its own."""
    # This very package, not another of its name in the current folder.
    package = Path(__file__).resolve().parent.parent.parent
    command = [sys.executable, "-P", "-m", "pycnn.bench.numpy_peer", str(seconds)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(package)})
    if run.returncode:
        raise RuntimeError(f"the NumPy benchmark failed: {run.stderr.strip()}")
    return json.loads(run.stdout)


def _torch_functions() -> dict[str, dict[str, Callable[[], Any]]]:
    """PyTorch's functions a memory format; none where it is not installed."""
    try:
        from pycnn.bench import torch_peer
    except ImportError:
        return {}
    return {name: torch_peer.functions(cases.inputs(), name) for name in torch_peer.MEMORY_FORMATS}


def _on_threads(threads: int, function: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        native.set_num_threads(threads)
        return function()

    return run


def compare(report: Callable[[str], None], seconds: float) -> list[dict[str, Any]]:
    """A row a case: its name and the seconds of each contestant."""
    threads = native.get_num_threads()
    inputs = cases.inputs()
    python = python_peer.functions(inputs)
    torch = _torch_functions()
    report("measuring NumPy ...")
    numpy_times = _numpy_times(seconds)
    rows = []
    try:
        for case in cases.NAMES:
            report(f"measuring {case} ...")
            began = time.perf_counter()
            expected = np.asarray(python[case](), np.float64)
            python_time = time.perf_counter() - began
            # A step changes its model, so each contestant's is made anew and run once for the comparison.
            _verify("C", case, kernel_peer.functions(inputs)[case](), expected)
            ours = kernel_peer.functions(inputs)[case]
            contestants = {"c_1_thread": _on_threads(1, ours)}
            if threads > 1:
                contestants["c_all_threads"] = _on_threads(threads, ours)
            for memory_format, functions in _torch_functions().items():
                _verify(f"PyTorch ({memory_format})", case, functions[case](), expected)
                contestants[memory_format] = torch[memory_format][case]
            times = best_time(contestants, seconds)
            if torch:
                times["torch"] = min(times.pop(memory_format) for memory_format in torch)
            rows.append({"case": case, "python": python_time, "numpy": numpy_times[case], **times})
    finally:
        native.set_num_threads(threads)
    return rows


def shares_of_peak(seconds: float) -> dict[str, Any]:
    """GFLOP/s of a 3x3 convolution and a matrix product, and their shares of the machine's measured peak."""
    threads = native.get_num_threads()
    peak, rows = native.peak_gflops(threads), []
    for name, (function, flops) in kernel_peer.large_functions().items():
        # The clock changes with the load, so peak and kernel are measured in turn.
        best = best_time({"kernel": function}, 8 * seconds)["kernel"]
        peak = max(peak, native.peak_gflops(threads))
        rows.append({"case": name, "gflops": flops / best * 1e-9})
    return {"peak_gflops": peak, "rows": [row | {"share": row["gflops"] / peak} for row in rows]}


def run(report: Callable[[str], None] = lambda line: None, seconds: float = SECONDS_A_CASE) -> dict[str, Any]:
    """Everything: machine, comparison, shares of peak. `seconds` is spent on each contestant of each case."""
    rows = compare(report, seconds)
    report("measuring the share of peak ...")
    return {"info": native.info(), "comparison": rows, "peak": shares_of_peak(seconds)}


COLUMNS = {
    "python": "pure Python",
    "numpy": "NumPy",
    "c_1_thread": "C, 1 thread",
    "c_all_threads": "C, {threads} threads",
    "torch": "PyTorch",
}


def _duration(seconds: float) -> str:
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    rows, threads = results["comparison"], results["info"]["threads"]
    used = [column for column in COLUMNS if column in rows[0]]
    ours = "c_all_threads" if "c_all_threads" in used else "c_1_thread"
    cells = [["", *(COLUMNS[c].format(threads=threads) for c in used), "Python / C"]]
    for row in rows:
        cells.append([row["case"], *(_duration(row[c]) for c in used), f"{row['python'] / row[ours]:,.0f} x"])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join([f"{line[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True))])
             for line in cells]  # fmt: skip
    peak = results["peak"]
    lines += ["", f"peak of the multiply-add units, measured: {peak['peak_gflops']:.0f} GFLOP/s on {threads} thread(s)"]
    lines += [f"{row['case']}: {row['gflops']:.0f} GFLOP/s, {row['share']:.0%} of peak" for row in peak["rows"]]
    return "\n".join(lines)


def write_json(results: dict[str, Any], path: str | Path) -> None:
    Path(path).write_text(json.dumps(results, indent=2) + "\n")


def plot(results: dict[str, Any], path: str | Path) -> None:
    """A bar chart of the comparison, on a logarithmic scale."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError("plots need matplotlib: pip install pycnn[plot]") from None
    rows = results["comparison"]
    used = [column for column in COLUMNS if column in rows[0]]
    figure, axes = pyplot.subplots(figsize=(10, 5), layout="constrained")
    width = 0.8 / len(used)
    for i, column in enumerate(used):
        places = [row + (i - (len(used) - 1) / 2) * width for row in range(len(rows))]
        label = COLUMNS[column].format(threads=results["info"]["threads"])
        axes.bar(places, [row[column] * 1e3 for row in rows], width, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds, less is better")
    axes.set_xticks(range(len(rows)), [row["case"] for row in rows], rotation=15, ha="right")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
