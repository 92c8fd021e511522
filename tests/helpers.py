"""What the tests of operations share: inputs, memory layouts, comparisons, and convolution in double precision.

Inputs are float32, and the twin gets the very same numbers, so a difference is the kernels' rounding alone.
"""

import inspect
import math
import zlib
from contextlib import contextmanager

import numpy as np

import pycnn as cnn
from pycnn.native import lib
from pycnn.plan import Arena, PlanBuilder

VL = lib.pycnn_vector_bytes() // 4

# Relative to the largest output. The kernels round each product and sum to 2^-24 = 6e-8; running sums restart
# after at most 576 terms, so the errors, which partly cancel, come to a few times 1e-7. An index off by one,
# or one term lost of a thousand, is beyond 1e-2.
TOLERANCE = 2e-6


def generator(*key):
    """A random generator that depends on the key alone."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def normal(shape, *key):
    """Normal float32 numbers that depend on shape and key alone."""
    return generator(shape, *key).standard_normal(shape).astype(np.float32)


@contextmanager
def winograd(on):
    """cnn.config(winograd=on) for a while."""
    before = cnn.config()["winograd"]
    cnn.config(winograd=on)
    try:
        yield
    finally:
        cnn.config(winograd=before)


def run_shared(build, arrays, threads):
    """Runs the calls of `build`, however small, on so many threads."""
    builder = PlanBuilder()
    builder.threads = threads
    build(builder)
    plan = builder.finish()
    plan.threads = threads
    for i in range(plan.length):
        plan._calls[i].parallel = True
    plan.bind(arrays, Arena(plan.arena_bytes)).run()


# ------------------------------------------------------------------------------------------ layouts


def contiguous(x):
    return np.array(x, order="C")


def channels_last(x):
    """A copy in NHWC memory; arrays of another rank are only copied."""
    return np.array(x.transpose(0, 2, 3, 1), order="C").transpose(0, 3, 1, 2) if x.ndim == 4 else contiguous(x)


def strided(x):
    """A copy that is neither contiguous nor channels-last: every second element, the last axis backwards."""
    memory = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)
    view = memory[..., ::-2]
    view[...] = x
    return view


LAYOUTS = {"contiguous": contiguous, "channels_last": channels_last, "strided": strided}


def is_channels_last(x):
    """Channels-last and not contiguous as well, which counts as contiguous."""
    return x.ndim == 4 and not x.flags.c_contiguous and x.transpose(0, 2, 3, 1).flags.c_contiguous


def assert_layout(result, given):
    """A result is in the memory order of the image it was made from; a strided image gives a contiguous one."""
    if is_channels_last(given) and result.ndim == 4:
        assert result.transpose(0, 2, 3, 1).flags.c_contiguous, result.strides
    else:
        assert result.flags.c_contiguous, result.strides


# -------------------------------------------------------------------------------------- comparisons


def error(actual, expected, floor=0.0):
    """max |actual - expected| / max |expected|, or over `floor` where that is more; NaN and infinity must meet
    their like."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    assert np.isfinite(actual[finite]).all()
    if not finite.any():
        return 0.0
    difference = np.abs(actual[finite] - expected[finite]).max()
    largest = max(np.abs(expected[finite]).max(), floor)
    return difference if largest == 0 else difference / largest


def assert_close(actual, expected, tolerance=TOLERANCE, floor=0.0):
    found = error(actual, expected, floor)
    assert found <= tolerance, f"error {found:.3g} > {tolerance:.3g}"


def as_lists(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


def run(name, *args, **options):
    """(ops.name's results, the twin's), both as tuples.

    On the way: inputs stay as they are, results are new, writable float32 (argmax: int32) arrays.
    """
    kept = [np.array(a) if isinstance(a, np.ndarray) else a for a in args]
    results = getattr(cnn.ops, name)(*args, **options)
    results = results if isinstance(results, tuple) else (results,)
    for argument, copy in zip(args, kept, strict=True):
        if isinstance(argument, np.ndarray):
            np.testing.assert_array_equal(argument, copy, err_msg=f"{name} changed an input")
    for result in results:
        if isinstance(result, np.ndarray):
            assert result.dtype == (np.int32 if name == "max_pool2d" and result is results[1] else np.float32)
            assert result.flags.writeable
            assert not any(isinstance(a, np.ndarray) and np.shares_memory(result, a) for a in args)
    expected = getattr(cnn.reference, name)(*map(as_lists, args), **options)
    return results, expected if isinstance(expected, tuple) else (expected,)


def check(name, *args, tolerance=TOLERANCE, floor=0.0, **options):
    """Compares ops.name with its twin in every result, and returns the results; argmax must be the same."""
    results, expected = run(name, *args, **options)
    assert len(results) == len(expected)
    for actual, wanted in zip(results, expected, strict=True):
        if isinstance(actual, np.ndarray) and actual.dtype == np.int32:
            np.testing.assert_array_equal(actual, wanted)
        else:
            assert_close(actual, wanted, tolerance, floor)
    return results if len(results) > 1 else results[0]


def parameters(function):
    """Its parameters without annotations, as written in a signature: "x, w, *, stride=1"."""
    signature = inspect.signature(function)
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))[1:-1]


# ---------------------------------------------------------------------- convolution in double precision


def _both(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _paddings(padding):
    height, width = _both(padding)
    return (_both(height), _both(width)) if isinstance(height, tuple) else ((height, height), (width, width))


def conv2d_output(x_shape, w_shape, stride=1, padding=0, dilation=1, groups=1):
    """The shape of y."""
    sizes = []
    for axis in range(2):
        size = x_shape[2 + axis] + sum(_paddings(padding)[axis])
        sizes.append((size - _both(dilation)[axis] * (w_shape[2 + axis] - 1) - 1) // _both(stride)[axis] + 1)
    return (x_shape[0], w_shape[0], *sizes)


def _conv2d_taps(x_shape, w_shape, stride, padding, dilation, groups):
    """The shape of the padded x, and for each tap (r, s, where its input pixels lie in the padded x)."""
    (top, bottom), (left, right) = _paddings(padding)
    n, c, h, width = x_shape
    _, _, oh, ow = conv2d_output(x_shape, w_shape, stride, padding, dilation, groups)
    taps = []
    for r in range(w_shape[2]):
        for s in range(w_shape[3]):
            (sh, sw), (dh, dw) = _both(stride), _both(dilation)
            rows = slice(r * dh, r * dh + sh * (oh - 1) + 1, sh)
            taps.append((r, s, np.s_[..., rows, slice(s * dw, s * dw + sw * (ow - 1) + 1, sw)]))
    inner = np.s_[..., top : top + h, left : left + width]
    return (n, groups, c // groups, h + top + bottom, width + left + right), inner, taps


def conv2d_double(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    """y of a convolution, tap by tap in double precision."""
    shape, inner, taps = _conv2d_taps(x.shape, w.shape, stride, padding, dilation, groups)
    padded = np.zeros(shape)
    padded[inner] = x.reshape(*shape[:3], *x.shape[2:])
    filters = w.astype(np.float64).reshape(groups, -1, *w.shape[1:])
    y = sum(np.einsum("ngchw,gkc->ngkhw", padded[where], filters[..., r, s], optimize=True) for r, s, where in taps)
    y = y.reshape(x.shape[0], w.shape[0], *y.shape[3:])
    return y if b is None else y + b.astype(np.float64)[:, None, None]


def conv2d_backward_double(dy, x, w, stride=1, padding=0, dilation=1, groups=1):
    """(dx, dw, db) of a convolution, tap by tap in double precision."""
    shape, inner, taps = _conv2d_taps(x.shape, w.shape, stride, padding, dilation, groups)
    padded, dpadded = np.zeros(shape), np.zeros(shape)
    padded[inner] = x.reshape(*shape[:3], *x.shape[2:])
    filters = w.astype(np.float64).reshape(groups, -1, *w.shape[1:])
    dfilters = np.zeros_like(filters)
    dy = dy.astype(np.float64)
    gradient = dy.reshape(dy.shape[0], groups, -1, *dy.shape[2:])
    for r, s, where in taps:
        dpadded[where] += np.einsum("ngkhw,gkc->ngchw", gradient, filters[..., r, s], optimize=True)
        dfilters[..., r, s] = np.einsum("ngkhw,ngchw->gkc", gradient, padded[where], optimize=True)
    return dpadded[inner].reshape(x.shape), dfilters.reshape(w.shape), dy.sum(axis=(0, 2, 3))


# ----------------------------------------------------------------------------------- shape generators


def conv2d_cases(count, seed):
    """Random (x shape, w shape, options), small enough for the twin."""
    rng = generator("conv2d", seed)
    cases = []
    while len(cases) < count:
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        c, k = groups * int(rng.integers(1, 5)), groups * int(rng.integers(1, 5))
        r, s = map(int, rng.integers(1, 5, 2))
        options = {
            "stride": tuple(map(int, rng.integers(1, 4, 2))),
            "padding": tuple(tuple(map(int, rng.integers(0, 4, 2))) for _ in range(2)),
            "dilation": tuple(map(int, rng.integers(1, 3, 2))),
            "groups": groups,
        }
        x_shape = (int(rng.integers(1, 3)), c, *map(int, rng.integers(1, 8, 2)))
        w_shape = (k, c // groups, r, s)
        output = conv2d_output(x_shape, w_shape, **options)
        if min(output) > 0 and math.prod(output) * c // groups * r * s < 15_000:
            cases.append((x_shape, w_shape, options))
    return cases


def pool2d_cases(count, seed):
    """Random (x shape, kernel_size, options of max_pool2d) that leave an output."""
    rng = generator("pool2d", seed)
    cases = []
    while len(cases) < count:
        r, s = map(int, rng.integers(1, 5, 2))
        options = {
            "stride": None if rng.random() < 0.2 else tuple(map(int, rng.integers(1, 4, 2))),
            "padding": (int(rng.integers(0, r // 2 + 1)), int(rng.integers(0, s // 2 + 1))),
            "dilation": tuple(map(int, rng.choice([1, 1, 2], 2))),
            "ceil_mode": bool(rng.random() < 0.5),
        }
        shape = (int(rng.integers(1, 3)), int(rng.integers(1, 6)), *map(int, rng.integers(1, 8, 2)))
        axes = zip(shape[2:], (r, s), options["padding"], options["dilation"], strict=True)
        # A dilation beyond the size could leave a window without input.
        if all(d <= size and size + 2 * p > d * (k - 1) for size, k, p, d in axes):
            cases.append((shape, (r, s), options))
    return cases
