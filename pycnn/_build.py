"""Describes the C extension to cffi; setuptools runs this when the package is built."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from cffi import FFI

SOURCES = [
    "csrc/dispatch.c",
    "csrc/plan.c",
    *(f"csrc/isa/{isa}.c" for isa in ("avx512", "avx2", "neon", "baseline")),
]
OPENMP = "-fopenmp"


def declarations() -> str:
    """What stands between the two cffi marks of the C interface."""
    text = Path("csrc/pycnn.h").read_text()
    return text.split("/* cffi: begin */")[1].split("/* cffi: end */")[0]


def has_openmp() -> bool:
    """Whether the compiler builds and links a program with OpenMP."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    if not shutil.which(compiler[0]):
        compiler = ["cc"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
        command = [*compiler, OPENMP, str(source), "-o", str(Path(folder, "probe"))]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            return False


def openmp_flags() -> list[str]:
    if has_openmp():
        return [OPENMP]
    print("pycnn: this compiler has no OpenMP, so the kernels will run on one thread", file=sys.stderr)
    return []


def default_flags() -> list[str]:
    """What CFLAGS leaves open. Python's own flags often ask for debug information, three times the size of the
    kernels, and for less optimization."""
    given = os.environ.get("CFLAGS", "").split()
    optimization = [] if any(flag.startswith("-O") for flag in given) else ["-O3"]
    return optimization + ([] if "-g" in given else ["-g0"])


ffi = FFI()
ffi.cdef(re.sub(r"/\*.*?\*/", "", declarations(), flags=re.DOTALL))
flags = openmp_flags()
ffi.set_source(
    "pycnn._kernels",
    '#include "pycnn.h"',
    sources=SOURCES,
    include_dirs=["csrc"],
    depends=[str(path) for pattern in ("*.h", "*.def") for path in sorted(Path("csrc").rglob(pattern))],
    # The dispatcher chooses the instruction set at run time, so none is named here.
    extra_compile_args=["-std=gnu11", "-fno-math-errno", *default_flags(), *flags],
    extra_link_args=flags,
    py_limited_api=not sysconfig.get_config_var("Py_GIL_DISABLED"),
)
