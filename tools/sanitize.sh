#!/bin/sh
# Builds the package with AddressSanitizer and UndefinedBehaviorSanitizer in an environment of its own and runs
# the kernel tests there, in every instruction set of this machine.
# usage: sanitize.sh FOLDER [PYTEST ARGUMENTS]
set -eu
folder=$1/sanitize
shift
python=$folder/bin/python
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$folder"
"$python" -m pip install --quiet numpy cffi "setuptools>=77" pytest

# Sanitized code is many times the size, and takes as much longer to optimize.
flags="-O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
CFLAGS=$flags LDFLAGS=$flags "$python" -m pip install --quiet --no-build-isolation --no-deps --force-reinstall .

compiler=${CC:-gcc}
preload="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libubsan.so)"
# Python itself keeps memory until its end, so leaks are not looked for; tests ask for more memory than there is.
export PYTHONSAFEPATH=1 # what is installed, not the sources here
run() { LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 "$@"; }
run "$python" -c "from pycnn import _kernels; print(_kernels.__file__)"
for isa in $(run "$python" -c "from pycnn import native; print(*native.usable_instruction_sets())"); do
    echo "instruction set $isa, sanitized"
    PYCNN_ISA=$isa run "$folder/bin/pytest" -p no:cacheprovider tests/test_ops.py tests/test_layers.py \
        tests/test_errors.py tests/test_training.py tests/test_kernels.py tests/test_winograd.py "$@"
done
