"""Matrix products: ours against PyTorch's (MKL) and NumPy's (OpenBLAS), in GFLOP/s and in shares of the machine's peak.

    python benchmarks/gemm.py [--filter SUBSTR] [--seconds S] [--json FILE]

A case is named M x K x N: c (M, N) = a (M, K) b (K, N); "ta" and "tb" say that a or b lies transposed in memory. Every
contestant writes to a given array, and its result is compared with a product in double precision before it is timed;
a difference ends the script with an error. All are timed inside C, without the cost of a call from Python: ours run as
a plan, as a dense layer does, and theirs, the sgemm of the libraries' own BLAS, in a loop that is compiled first (by
$CC, else cc). Ours and PyTorch's take turns in one process. NumPy's runs in a process of its own, for its BLAS keeps a
thread pool that disturbs, and is disturbed by, OpenMP's; the two processes take turns, several of them a case. Arrays
begin at a cache line for all. The best of many runs counts; a run repeats a small product up to 1000 times, so that the
threads of one side have gone to sleep for most of the other's run. The peak is a measured loop of multiply-adds
in registers, on all threads. A ratio above 1 means that ours take less time.
"""

import argparse
import ctypes
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TOLERANCE = 2e-6  # of sqrt(K) times the largest products
FLOPS_A_RUN = 2e9
TURNS = 4
SPINNING = 0.25  # seconds for which OpenBLAS's threads look for more work, which nobody else's shall bear
MOST_REPEATS = 1000
NUMPY_ONLY = "--numpy-only"

Times = dict[str, float]
Functions = dict[str, Callable[[], np.ndarray]]


@dataclass(frozen=True)
class Case:
    m: int
    k: int
    n: int
    trans_a: bool = False
    trans_b: bool = False

    @property
    def name(self) -> str:
        return f"{self.m}x{self.k}x{self.n}" + " ta" * self.trans_a + " tb" * self.trans_b

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n

    @property
    def repeats(self) -> int:
        return min(MOST_REPEATS, max(1, round(FLOPS_A_RUN / self.flops)))

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """a and b as they lie in memory."""
        from pycnn.bench import aligned

        random = np.random.default_rng([self.m, self.k, self.n])
        a = random.uniform(-1, 1, (self.k, self.m) if self.trans_a else (self.m, self.k)).astype(np.float32)
        b = random.uniform(-1, 1, (self.n, self.k) if self.trans_b else (self.k, self.n)).astype(np.float32)
        return aligned(a), aligned(b)

    def turned(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """a (M, K) and b (K, N), views of the inputs."""
        return (a.T if self.trans_a else a), (b.T if self.trans_b else b)

    def verify(self, who: str, c: np.ndarray) -> None:
        a, b = self.turned(*self.inputs())
        error = np.abs(a.astype(np.float64) @ b.astype(np.float64) - c).max() / math.sqrt(self.k)
        if not error < TOLERANCE:
            raise RuntimeError(f"{who} computes another {self.name}: it differs by {error:.1e} sqrt(K)")


CASES = [
    *(Case(n, n, n) for n in (64, 128, 256, 512, 1024, 2048)),
    # layers of networks, and LeNet's, a digit classifier's and a two-class one's dense layers
    Case(64, 1936, 160), Case(512, 84, 10), Case(2048, 64, 128), Case(64, 64, 10), Case(32, 512, 10),
    Case(64, 1000, 2048), Case(10000, 784, 128), Case(128, 9216, 4096),
    # tall, flat, thin
    Case(4096, 64, 64), Case(64, 4096, 64), Case(64, 64, 4096), Case(8, 2048, 1000), Case(1, 2048, 1000),
    Case(2000, 17, 33), Case(1021, 1019, 1013),
    # backward passes
    Case(1024, 1024, 1024, trans_a=True), Case(1024, 1024, 1024, trans_b=True), Case(64, 160, 1936, trans_b=True),
    Case(512, 10, 84, trans_b=True), Case(784, 1000, 128, trans_a=True),
]  # fmt: skip


REPEAT = """
typedef void any(const char *, const char *, const void *, const void *, const void *, const float *, const float *,
                 const void *, const float *, const void *, const float *, float *, const void *);
void repeat(long times, any *sgemm, const char *trans_a, const char *trans_b, const void *m, const void *n,
            const void *k, const float *a, const void *lda, const float *b, const void *ldb, float *c, const void *ldc)
{
    const float one = 1, zero = 0;
    while (times-- > 0)
        sgemm(trans_a, trans_b, m, n, k, &one, a, lda, b, ldb, &zero, c, ldc);
}
"""


class Blas:
    """The sgemm that a Python package brings, and the loop that calls it."""

    def __init__(self, module: str, names: dict[str, type]) -> None:
        """module: an extension module linked with the library; names: of the function, with its kind of integer."""
        library = ctypes.CDLL(module)
        name = next((name for name in names if hasattr(library, name)), None)
        if name is None:
            sys.exit(f"benchmarks/gemm.py found no sgemm in {module}")
        self._sgemm, self._integer = getattr(library, name), names[name]
        with tempfile.TemporaryDirectory() as folder:
            source, built = Path(folder, "repeat.c"), Path(folder, "repeat.so")
            source.write_text(REPEAT)
            command = [*shlex.split(os.environ.get("CC", "cc")), "-O2", "-shared", "-fPIC", source, "-o", built]
            try:
                subprocess.run(command, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                sys.exit(f"benchmarks/gemm.py needs a C compiler, named by CC or cc: {error}")
            self._repeat = ctypes.CDLL(str(built)).repeat

    def function(self, case: Case) -> Callable[[], np.ndarray]:
        """Its matrices lie in columns, so c is made as b^T a^T of what it takes for b^T and a^T."""
        from pycnn.bench import aligned

        a, b = case.inputs()
        c = aligned(np.zeros((case.m, case.n), np.float32))
        m, k, n, lda, ldb = (
            ctypes.byref(self._integer(size)) for size in (case.m, case.k, case.n, a.shape[1], b.shape[1])
        )
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (a, b, c)]
        trans = [b"T" if turned else b"N" for turned in (case.trans_a, case.trans_b)]
        times = ctypes.c_long(case.repeats)

        def run() -> np.ndarray:
            self._repeat(
                times, self._sgemm, trans[1], trans[0], n, m, k, pointers[1], ldb, pointers[0], lda, pointers[2], n
            )
            return c

        run.arrays = a, b  # which nothing else keeps
        return run


def mkl() -> Blas:
    import torch

    return Blas(torch._C.__file__, {"sgemm_": ctypes.c_int32})


def openblas() -> Blas:
    from numpy._core import _multiarray_umath

    names = {"scipy_sgemm_64_": ctypes.c_int64, "sgemm_64_": ctypes.c_int64, "sgemm_": ctypes.c_int32}
    return Blas(_multiarray_umath.__file__, names)


def our_function(case: Case) -> Callable[[], np.ndarray]:
    from pycnn import calls
    from pycnn.bench import aligned
    from pycnn.plan import Arena, PlanBuilder

    a, b = case.inputs()
    c = aligned(np.zeros((case.m, case.n), np.float32))
    builder = PlanBuilder()
    buffers = [builder.external(name) for name in "cab"]
    for _ in range(case.repeats):
        calls.gemm(builder, case.m, case.n, case.k, *buffers, trans_a=case.trans_a, trans_b=case.trans_b)
    plan = builder.finish()
    binding = plan.bind({"a": a, "b": b, "c": c}, Arena(plan.arena_bytes))

    def run() -> np.ndarray:
        binding.run()
        return c

    return run


def verified(case: Case, contestants: dict[str, Callable[[Case], Callable[[], np.ndarray]]]) -> Functions:
    """What computes the product so many times, by contestant."""
    functions = {name: make(case) for name, make in contestants.items()}
    for name, function in functions.items():
        case.verify(name, function())
    return functions


def times(case: Case, functions: Functions, seconds: float) -> Times:
    """Of one product."""
    from pycnn.bench import best_time

    return {name: best / case.repeats for name, best in best_time(functions, seconds).items()}


def serve_numpy() -> None:
    """Times the cases whose numbers and seconds come in, a line each."""
    blas, known = openblas(), dict[int, Functions]()
    for line in sys.stdin:
        number, seconds = int(line.split()[0]), float(line.split()[1])
        case = CASES[number]
        if number not in known:
            known = {number: verified(case, {"numpy": blas.function})}
        print(times(case, known[number], seconds)["numpy"], flush=True)


class NumPy:
    """The process that times NumPy's products, when it is its turn."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, NUMPY_ONLY]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def time(self, case: Case, seconds: float) -> float:
        self._process.stdin.write(f"{CASES.index(case)} {seconds}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit("the process that times NumPy ended")
        return float(answer)


def in_turn(case: Case, torch: Blas, numpy: NumPy, seconds: float) -> Times:
    """The best times of all turns."""
    functions, turns = verified(case, {"ours": our_function, "torch": torch.function}), []
    for _ in range(TURNS):
        numpy_time = numpy.time(case, seconds / TURNS)
        time.sleep(SPINNING)
        turns.append(times(case, functions, seconds / TURNS) | {"numpy": numpy_time})
    return {name: min(turn[name] for turn in turns) for name in turns[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Matrix products against MKL and OpenBLAS.")
    parser.add_argument("--filter", default="", help="only the cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=0.4, help="for each contestant and case (default 0.4)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results here as well")
    parser.add_argument(NUMPY_ONLY, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    cases = [case for case in CASES if args.filter in case.name]
    if not cases:
        parser.error(f"no case contains {args.filter!r}")
    if args.numpy_only:
        serve_numpy()
        return

    try:
        import torch  # noqa: F401
    except ImportError:
        sys.exit("benchmarks/gemm.py compares with PyTorch, which is not installed: pip install torch")
    from pycnn import native

    peak, torch_blas, numpy = max(native.peak_gflops() for _ in range(5)), mkl(), NumPy()
    print(f"{native.instruction_set()}, {native.get_num_threads()} threads, peak {peak:.0f} GFLOP/s")
    print(f"{'':20}{'us':>12}{'GFLOP/s':>10}{'of peak':>9}{'MKL us':>12}{'ratio':>7}{'OpenBLAS us':>13}{'ratio':>7}")
    rows = []
    for case in cases:
        best = in_turn(case, torch_blas, numpy, args.seconds)
        ours, theirs, numpys = best["ours"], best["torch"], best["numpy"]
        rate = case.flops / ours / 1e9
        rows.append(
            {"case": case.name, "seconds": ours, "gflops": rate, "share_of_peak": rate / peak, "mkl_seconds": theirs,
             "openblas_seconds": numpys, "ratio_mkl": theirs / ours, "ratio_openblas": numpys / ours}
        )  # fmt: skip
        print(f"{case.name:20}{ours * 1e6:12.2f}{rate:10.1f}{rate / peak:9.1%}{theirs * 1e6:12.2f}{theirs / ours:7.2f}"
              f"{numpys * 1e6:13.2f}{numpys / ours:7.2f}", flush=True)  # fmt: skip
    from pycnn.bench import geometric_mean

    for peer in ("mkl", "openblas"):
        print(f"geometric mean of the ratios, {peer}: {geometric_mean([row[f'ratio_{peer}'] for row in rows]):.2f}")
    if args.json:
        args.json.write_text(json.dumps({"peak_gflops": peak, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
