"""Builds the C extension; everything else is in pyproject.toml."""

import sysconfig

from setuptools import setup

# Free-threaded interpreters have no stable ABI; all others share one wheel from Python 3.11 on.
abi3 = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp311"}}

setup(cffi_modules=["pycnn/_build.py:ffi"], options=abi3)
