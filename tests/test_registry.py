"""What belongs together is all there: kernels and their callers, ops and twins, ops and tests, instruction sets."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import parameters

import pycnn as cnn
from pycnn import calls, native, shapes
from pycnn.plan import PlanBuilder

# The names and arguments that the public contract promises, for ops and reference alike.
FUNCTIONS = {
    "conv2d": "x, w, b=None, *, stride=1, padding=0, dilation=1, groups=1",
    "conv2d_backward": "dy, x, w, *, stride=1, padding=0, dilation=1, groups=1",
    "conv_transpose2d": "x, w, b=None, *, stride=1, padding=0, output_padding=0, dilation=1, groups=1",
    "conv_transpose2d_backward": "dy, x, w, *, stride=1, padding=0, output_padding=0, dilation=1, groups=1",
    "max_pool2d": "x, kernel_size, *, stride=None, padding=0, dilation=1, ceil_mode=False",
    "max_pool2d_backward": "dy, argmax, input_shape",
    "avg_pool2d": "x, kernel_size, *, stride=None, padding=0, ceil_mode=False, count_include_pad=True",
    "avg_pool2d_backward": (
        "dy, input_shape, kernel_size, *, stride=None, padding=0, ceil_mode=False, count_include_pad=True"
    ),
    "global_avg_pool2d": "x",
    "global_avg_pool2d_backward": "dy, input_shape",
    "gemm": "a, b, *, trans_a=False, trans_b=False, alpha=1.0, beta=0.0, out=None",
    "dense": "x, w, b=None",
    "dense_backward": "dy, x, w",
    "activation": "x, name, **options",
    "activation_backward": "dy, x, name, **options",
    "softmax": "x",
    "softmax_cross_entropy": "logits, labels",
    "batch_norm": "x, gamma, beta, running_mean, running_var, *, training, momentum=0.9, eps=1e-05",
    "batch_norm_backward": "dy, cache",
}
PACKAGE = Path(cnn.__file__).parent
TESTS = Path(__file__).parent
CSRC = TESTS.parent / "csrc"

every_function = pytest.mark.parametrize("name", FUNCTIONS)


def kernels_called(tree):
    """The strings that a module hands on as kernels: in a builder's `call` or `prepare`, after a builder in a function
    of `calls`, or assigned to a name that says so."""
    for node in ast.walk(tree):
        given = []
        if isinstance(node, ast.Call):
            builder = node.args and (ast.unparse(node.args[0]).split(".")[-1] == "b")
            if builder or (isinstance(node.func, ast.Attribute) and node.func.attr in ("call", "prepare")):
                given = node.args
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id in ("kernel", "name") for t in targets):
                given = [node.value]
        for value in given:
            yield from (n.value for n in ast.walk(value) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def test_every_kernel_has_a_caller():
    files = [f for f in PACKAGE.rglob("*.py") if "reference" not in f.parts]
    called = {name for file in files for name in kernels_called(ast.parse(file.read_text()))}
    unused = set(native.KERNELS) - called - {f"pack_{name}" for name in calls.PACKED}
    assert not unused, f"kernels.def has {sorted(unused)}, which nothing in pycnn/ calls"


@every_function
def test_ops_and_reference_have_every_function_with_its_arguments(name):
    for module in (cnn.ops, cnn.reference):
        assert hasattr(module, name), f"{module.__name__} has no {name}"
        assert parameters(getattr(module, name)) == FUNCTIONS[name], f"{module.__name__}.{name}"
        assert inspect.getdoc(getattr(module, name)), f"{module.__name__}.{name} has no docstring"


def test_every_op_is_promised_and_has_a_twin():
    public = {
        name
        for name, value in vars(cnn.ops).items()
        if inspect.isfunction(value) and value.__module__ == cnn.ops.__name__ and not name.startswith("_")
    }
    for name in public:
        assert hasattr(cnn.reference, name), f"ops.{name} has no twin in reference"
        assert parameters(getattr(cnn.ops, name)) == parameters(getattr(cnn.reference, name)), name
    assert public == set(FUNCTIONS), "the list in this test and ops differ"


@every_function
def test_every_op_is_in_a_test(name):
    others = [f.read_text() for f in TESTS.glob("test_*.py") if f.name != Path(__file__).name]
    assert any(re.search(rf"\b(ops|f)\.{name}\b|check\(\"{name}\"|\"{name}\"", text) for text in others)


def test_activations_are_in_the_order_of_the_kernels():
    """The number of an activation is its place in both lists."""
    header = CSRC / "kernels" / "elementwise.h"
    if not header.exists():
        pytest.skip("no C sources here")
    table = re.search(r"#define ACTIVATIONS\(A\)(.*?[^\\])\n", header.read_text(), re.DOTALL).group(1)
    assert re.findall(r"\bA\((\w+),", table) == list(shapes.ACTIVATION_OPTIONS)


def test_kernels_are_those_of_the_table():
    definitions = CSRC / "kernels.def"
    if not definitions.exists():
        pytest.skip("no C sources here")
    rows = re.findall(r"^KERNEL(_WS)?\((\w+), (\w+), (\d+)\)", definitions.read_text(), re.MULTILINE)
    assert [(name, f"pycnn_{desc} *", int(arrays), bool(workspace)) for workspace, name, desc, arrays in rows] == [
        (name, kernel.desc, kernel.arrays, kernel.workspace) for name, kernel in native.KERNELS.items()
    ]


def test_a_call_with_another_number_of_arrays_is_refused():
    builder = PlanBuilder()
    with pytest.raises(TypeError, match=r"^\[add\] takes 3 arrays, got 2$"):
        builder.call("add", [builder.external("y"), builder.external("a")], size=1)


# ------------------------------------------------------------------------------- the environment


def import_with(expression, **environment):
    """Imports the package in a new process, and prints an expression of it."""
    changed = {k: v for k, v in os.environ.items() if k not in ("PYCNN_ISA", "OMP_NUM_THREADS")} | environment
    code = f"import pycnn as cnn; print(({expression}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=changed, timeout=60)


def test_this_run_uses_the_instruction_set_asked_for():
    asked = os.environ.get("PYCNN_ISA", "").strip()
    assert cnn.info()["isa"] == (asked or native.usable_instruction_sets()[0])


@pytest.mark.parametrize("isa", native.usable_instruction_sets())
def test_pycnn_isa_selects(isa):
    """And the kernels that run are those of the set: they have its vector width."""
    expression = "cnn.info()['isa'], cnn.native.lib.pycnn_vector_bytes(), float(cnn.ops.gemm([[2.0]], [[3.0]])[0, 0])"
    done = import_with(expression, PYCNN_ISA=isa)
    width = {"avx512": 64, "avx2": 32, "baseline": 16, "neon": 16}[isa]
    assert done.stdout.strip() == str((isa, width, 6.0)), done.stderr


def test_an_empty_pycnn_isa_is_the_best():
    assert import_with("cnn.info()['isa']", PYCNN_ISA="").stdout.strip() == native.usable_instruction_sets()[0]


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "avx512 avx2", *native.INSTRUCTION_SETS, "neon", "avx512"])
def test_an_unknown_or_unusable_instruction_set_is_refused(isa):
    if isa in native.usable_instruction_sets():
        pytest.skip("usable here")
    done = import_with("1", PYCNN_ISA=isa)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ValueError: PYCNN_ISA") and isa in last, done.stderr


@pytest.mark.skipif(not cnn.info()["openmp"], reason="built without OpenMP")
@pytest.mark.parametrize("threads", ["1", "3"])
def test_omp_num_threads_is_respected(threads):
    done = import_with("cnn.get_num_threads(), cnn.info()['threads']", OMP_NUM_THREADS=threads)
    assert done.stdout.strip() == f"({threads}, {threads})", done.stderr


def test_info():
    info = cnn.info()
    assert {"version", "compiler", "isa", "usable_isas", "threads", "openmp"} <= set(info)
    assert info["version"] == cnn.__version__
    assert info["isa"] in info["usable_isas"] and set(info["usable_isas"]) <= set(native.INSTRUCTION_SETS)
    assert info["usable_isas"][-1] == "baseline" and isinstance(info["compiler"], str)
    info["usable_isas"].clear()
    assert cnn.info()["usable_isas"]
