"""The compiled kernels: which instruction set runs, on how many threads, and which kernels there are."""

import os
from typing import Any, NamedTuple

from pycnn import shapes
from pycnn._kernels import ffi, lib
from pycnn._version import __version__

MAX_THREADS = 1024


class Kernel(NamedTuple):
    """A row of the kernel table: number, descriptor's C type, how many arrays it takes, whether it wants workspace."""

    index: int
    desc: str
    arrays: int
    workspace: bool


def _text(chars: Any) -> str:
    return ffi.string(chars).decode()


KERNELS = {
    _text(lib.pycnn_kernel_name(i)): Kernel(
        i,
        f"pycnn_{_text(lib.pycnn_kernel_desc(i))} *",
        lib.pycnn_kernel_arrays(i),
        bool(lib.pycnn_kernel_has_workspace(i)),
    )
    for i in range(lib.pycnn_kernel_count())
}
INSTRUCTION_SETS = [_text(lib.pycnn_isa_name(i)) for i in range(lib.pycnn_isa_count())]


def usable_instruction_sets() -> list[str]:
    """Those that this machine can run, the best first."""
    return [name for i, name in enumerate(INSTRUCTION_SETS) if lib.pycnn_isa_usable(i)]


def instruction_set() -> str:
    """The one in use."""
    return INSTRUCTION_SETS[lib.pycnn_isa_selected()]


def vector_floats() -> int:
    """Of a register of the instruction set in use."""
    return lib.pycnn_vector_bytes() // 4


def _select_instruction_set(name: str) -> None:
    usable = usable_instruction_sets()
    if name not in INSTRUCTION_SETS:
        raise ValueError(f"PYCNN_ISA must be empty or one of {', '.join(INSTRUCTION_SETS)}, got {name!r}")
    if name not in usable:
        raise ValueError(f"PYCNN_ISA is {name!r}, which this machine cannot run; it can run {', '.join(usable)}")
    lib.pycnn_isa_select(INSTRUCTION_SETS.index(name))


_select_instruction_set(os.environ.get("PYCNN_ISA", "").strip() or usable_instruction_sets()[0])
_threads = min(lib.pycnn_processors(), MAX_THREADS)
_winograd = True


def set_num_threads(n: int) -> None:
    """Sets the number of threads that the kernels use, 1..1024. Results do not depend on it."""
    global _threads
    n = shapes.integer("set_num_threads", "n", n)
    if not 1 <= n <= MAX_THREADS:
        raise ValueError(f"[set_num_threads] n must be in 1..{MAX_THREADS}, got {n}")
    _threads = n if lib.pycnn_has_openmp() else 1


def get_num_threads() -> int:
    """The number of threads that the kernels use."""
    return _threads


def config(*, winograd: bool | None = None) -> dict[str, bool]:
    """Sets what is given and returns all settings; they hold for every plan made from then on.

    winograd: whether convolutions of stride 1 may use Winograd's algorithm, which is faster. Its rounding
    error is up to 5e-6 of the largest result (1e-5 for the gradient of the weights) instead of 1e-6, and a NaN or
    infinity in the input reaches all outputs of the 4x4 patches whose windows hold it.
    """
    global _winograd
    if winograd is not None:
        _winograd = shapes.boolean("config", "winograd", winograd)
    return {"winograd": _winograd}


def plan_settings() -> tuple[int, bool]:
    """What every plan depends on besides its shapes."""
    return _threads, _winograd


def info() -> dict[str, Any]:
    """Version, compiler, the instruction set in use, those usable here, threads, OpenMP."""
    return {
        "version": __version__,
        "compiler": _text(lib.pycnn_compiler()),
        "isa": instruction_set(),
        "usable_isas": usable_instruction_sets(),
        "threads": get_num_threads(),
        "openmp": bool(lib.pycnn_has_openmp()),
    }


def peak_gflops(threads: int | None = None, seconds: float = 0.02) -> float:
    """The measured multiply-add rate of this machine in GFLOP/s: a loop of FMAs in registers, best of five."""
    threads = threads or _threads
    iterations = 20_000
    rate = lib.pycnn_peak_gflops(threads, iterations)
    flops_an_iteration = 4 * 14 * vector_floats()
    iterations = max(iterations, int(seconds * rate * 1e9 / flops_an_iteration / threads))
    return max(lib.pycnn_peak_gflops(threads, iterations) for _ in range(5))
