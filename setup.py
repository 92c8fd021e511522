"""Builds the C extension; everything else is in pyproject.toml."""

import os
import sysconfig
from concurrent.futures import ThreadPoolExecutor

from setuptools import setup
from setuptools.command.build_ext import build_ext


class ParallelBuild(build_ext):
    """Compiles the instruction sets' files, each of which takes most of a minute, at the same time."""

    def build_extension(self, ext):
        compile_all = self.compiler.compile

        def compile_each(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_all([source], **options), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile_each
        super().build_extension(ext)


# Free-threaded interpreters have no stable ABI; all others share one wheel from Python 3.11 on.
abi3 = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp311"}}

setup(
    cffi_modules=["pycnn/_build.py:ffi"],
    cmdclass={"build_ext": ParallelBuild},
    options=abi3,
)
