"""The same bits from any number of threads and in every run; and the ops in threads and forks of Python."""

import concurrent.futures
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import channels_last, contiguous, generator, normal

import pycnn as cnn

ops = cnn.ops


def conv2d(x_shape, w_shape, **options):
    """Forward and backward, of contiguous and of channels-last arrays."""

    def run(layout):
        x, w = layout(normal(x_shape, "x")), normal(w_shape, "w")
        y = ops.conv2d(x, w, normal(w_shape[0], "b"), **options)
        return y, *ops.conv2d_backward(layout(normal(y.shape, "dy")), x, w, **options)

    return run


def conv_transpose2d(layout):
    x, w = layout(normal((5, 60, 17, 15), "x")), normal((60, 70, 3, 3), "w")
    y = ops.conv_transpose2d(x, w, normal(70, "b"), stride=2, padding=1)
    return y, *ops.conv_transpose2d_backward(layout(normal(y.shape, "dy")), x, w, stride=2, padding=1)


def max_pool2d(layout):
    x = layout(np.round(4 * normal((6, 70, 40, 40))))
    y, argmax = ops.max_pool2d(x, 3, stride=1, padding=1)
    return y, argmax, ops.max_pool2d_backward(layout(normal(y.shape, "dy")), argmax, x.shape)


def max_pool2d_of_windows_side_by_side(layout):
    x = layout(np.round(4 * normal((6, 70, 40, 40))))
    y, argmax = ops.max_pool2d(x, 2)
    return y, argmax, ops.max_pool2d_backward(layout(normal(y.shape, "dy")), argmax, x.shape)


def max_pool2d_of_one_window_elsewhere(layout):
    """Zeros of either sign, which sums and copies of gradients would treat differently."""
    x = layout(np.round(4 * normal((6, 70, 40, 40))))
    y, argmax = ops.max_pool2d(x, 2)
    argmax[0, 0, 0, 0] = 5
    dy = np.copysign(np.float32(0), normal(y.shape, "dy"))
    return ops.max_pool2d_backward(layout(dy), argmax, x.shape)


def avg_pool2d(layout):
    x = layout(normal((6, 70, 40, 40)))
    y = ops.avg_pool2d(x, 3, stride=2, padding=1)
    return y, ops.avg_pool2d_backward(layout(normal(y.shape, "dy")), x.shape, 3, stride=2, padding=1)


def global_avg_pool2d(layout):
    x = layout(normal((6, 70, 40, 40)))
    return ops.global_avg_pool2d(x), ops.global_avg_pool2d_backward(normal((6, 70), "dy"), x.shape)


def gemm(m, n, k, **options):
    def run(_):
        a = normal((k, m) if options.get("trans_a") else (m, k), "a")
        b = normal((n, k) if options.get("trans_b") else (k, n), "b")
        return ops.gemm(a, b, **({"alpha": 0.5, "beta": 2, "out": normal((m, n), "out")} | options))

    return run


def dense(_):
    x, w, b, dy = normal((300, 257)), normal((257, 130)), normal(130), normal((300, 130))
    return ops.dense(x, w, b), *ops.dense_backward(dy, x, w)


def activation(layout):
    x, dy = layout(normal((5, 10, 60, 60), "x")), layout(normal((5, 10, 60, 60), "dy"))
    return [v for name in ("gelu", "relu") for v in (ops.activation(x, name), ops.activation_backward(dy, x, name))]


def losses(_):
    logits, labels = normal((5000, 11)), generator("labels").integers(0, 11, 5000)
    loss, gradient = ops.softmax_cross_entropy(logits, labels)
    rows_loss, rows_gradient = ops.softmax_cross_entropy(logits, np.eye(11)[labels])
    return ops.softmax(logits), loss, gradient, rows_loss, rows_gradient


def batch_norm(layout):
    x, (mean, var) = layout(normal((7, 33, 41, 40))), np.ones((2, 33), np.float32)
    y, cache = ops.batch_norm(x, normal(33, "gamma"), normal(33, "beta"), mean, var, training=True)
    return y, mean, var, *ops.batch_norm_backward(layout(normal(y.shape, "dy")), cache)


def batch_norm_of_rows(_):
    x, (mean, var) = normal((3000, 70)), np.ones((2, 70), np.float32)
    y, cache = ops.batch_norm(x, normal(70, "gamma"), normal(70, "beta"), mean, var, training=True)
    return y, mean, var, *ops.batch_norm_backward(normal(y.shape, "dy"), cache)


IMAGE_CASES = {
    "conv2d 3x5": conv2d((3, 70, 17, 19), (40, 70, 3, 5), padding=1),
    "conv2d rows of taps": conv2d((3, 3, 41, 40), (40, 3, 7, 7), padding=((3, 2), (2, 3)), stride=2),
    "conv2d of few channels, one image": conv2d((1, 2, 90, 80), (20, 2, 5, 5), stride=2, padding=2),
    "conv2d of few filters": conv2d((5, 3, 70, 61), (3, 3, 5, 4), padding=2),
    "conv2d of few filters, one image": conv2d((1, 2, 150, 160), (3, 2, 5, 5), stride=(1, 2)),
    "conv2d of small images": conv2d((70, 20, 7, 7), (30, 20, 3, 3), padding=1),
    "conv2d of wide pixels": conv2d((6, 300, 15, 14), (40, 300, 3, 3), padding=1, stride=2),
    "conv2d 1x1": conv2d((5, 100, 15, 17), (70, 100, 1, 1)),
    "conv2d 1x1 of copied rows": conv2d((2, 520, 11, 12), (36, 520, 1, 1)),
    "conv2d 1x1 of one pixel": conv2d((3, 600, 1, 1), (1000, 600, 1, 1)),
    "conv2d stride 2": conv2d((3, 40, 33, 32), (40, 40, 3, 3), stride=2, padding=1),
    "conv2d stride 3, kernel 2": conv2d((4, 50, 40, 40), (50, 50, 2, 2), stride=3),
    "conv2d dilation": conv2d((2, 30, 30, 31), (40, 30, 3, 3), dilation=2, padding=2),
    "conv2d groups": conv2d((3, 72, 21, 20), (48, 24, 3, 3), padding=1, groups=3),
    "conv2d large batch of small images": conv2d((90, 30, 4, 4), (40, 30, 3, 4), padding=1),
    "Winograd by blocks of patches": conv2d((3, 40, 33, 31), (50, 40, 3, 3), padding=1),
    "Winograd by panels of filters": conv2d((2, 130, 10, 9), (140, 130, 3, 3), padding=1),
    "conv2d small groups": conv2d((3, 72, 21, 20), (72, 8, 3, 3), padding=1, groups=9),
    "conv2d small groups, stride 2": conv2d((5, 66, 31, 30), (88, 3, 3, 3), padding=1, stride=2, groups=22),
    "depthwise": conv2d((5, 70, 41, 40), (70, 1, 3, 3), padding=1, groups=70),
    "depthwise stride 2": conv2d((6, 50, 60, 61), (50, 1, 5, 5), padding=2, stride=2, groups=50),
    "depthwise with a multiplier": conv2d((3, 50, 41, 40), (100, 1, 3, 3), padding=1, groups=50),
    "conv_transpose2d": conv_transpose2d,
    "max_pool2d": max_pool2d,
    "max_pool2d of windows side by side": max_pool2d_of_windows_side_by_side,
    "max_pool2d of one window elsewhere": max_pool2d_of_one_window_elsewhere,
    "avg_pool2d": avg_pool2d,
    "global_avg_pool2d": global_avg_pool2d,
    "activation": activation,
    "batch_norm": batch_norm,
}
CASES = IMAGE_CASES | {
    "gemm": gemm(130, 120, 110),
    "gemm of long rows": gemm(50, 70, 1100),
    "gemm transposed": gemm(90, 150, 300, trans_a=True, trans_b=True),
    "gemm with c turned": gemm(40, 350, 300, trans_b=True, beta=0),
    "gemm summed row by row": gemm(90, 150, 700, trans_a=True, alpha=1, beta=0),
    "gemm of one row": gemm(1, 900, 400),
    "gemm of one column": gemm(900, 1, 400),
    "dense": dense,
    "losses": losses,
    "batch_norm of rows": batch_norm_of_rows,
}


@pytest.fixture
def set_threads():
    """cnn.set_num_threads; the number is put back afterwards."""
    before = cnn.get_num_threads()
    yield cnn.set_num_threads
    cnn.set_num_threads(before)


def bits(results):
    return [np.asarray(r).tobytes() for r in (results if isinstance(results, (tuple, list)) else [results])]


@pytest.mark.skipif(not cnn.info()["openmp"], reason="built without OpenMP")
@pytest.mark.parametrize(
    ("case", "layout"),
    [
        *(pytest.param(case, contiguous, id=name) for name, case in CASES.items()),
        *(pytest.param(case, channels_last, id=f"{name}, channels-last") for name, case in IMAGE_CASES.items()),
    ],
)
def test_bits_do_not_depend_on_threads_or_runs(case, layout, set_threads, monkeypatch):
    used = []
    run_once = ops.run_once

    def recording(plan, arrays):
        used.append(plan.threads)
        run_once(plan, arrays)

    monkeypatch.setattr(ops, "run_once", recording)
    set_threads(1)
    expected = bits(case(layout))
    # Tasks go to whichever thread is free, so runs on the same number of threads are not alike either.
    for threads in (2, 3, 2, 3, 2):
        set_threads(threads)
        used.clear()
        assert bits(case(layout)) == expected, threads
        assert set(used) == {threads}, "the shape is too small to be shared out among threads"


def test_plans_of_little_work_run_on_one_thread(set_threads, monkeypatch):
    used = []
    monkeypatch.setattr(ops, "run_once", lambda plan, _: used.append(plan.threads))
    set_threads(2)
    ops.gemm(np.ones((2, 2)), np.ones((2, 2)))
    assert used == [1]


def test_number_of_threads(set_threads):
    set_threads(3)
    assert cnn.get_num_threads() == cnn.info()["threads"] == (3 if cnn.info()["openmp"] else 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_ops_in_several_python_threads_at_once(threads, set_threads):
    """Each thread has scratch memory of its own, also for plans that they share."""
    set_threads(threads)
    cases = [case for name, case in CASES.items() if not name.startswith("conv2d") or "rows" in name]
    expected = [bits(case(contiguous)) for case in cases]

    def work(first):
        order = [(first + i) % len(cases) for i in range(len(cases))]
        return all(bits(cases[i](contiguous)) == expected[i] for i in order)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, [0, 0, 7, 12]))


# A child has 10 seconds for what takes milliseconds; its parent checks that it can go on itself.
FORK = """
import os, sys, threading, time
import numpy as np
import pycnn as cnn

cnn.set_num_threads(2)
x = np.linspace(-1, 1, 400 * 400, dtype=np.float32).reshape(400, 400)
expected = cnn.ops.gemm(x, x)

def right():
    return np.array_equal(cnn.ops.gemm(x, x), expected)

def fork(generations):
    child = os.fork()
    if child == 0:
        os._exit(0 if right() and (generations == 1 or fork(generations - 1) == 0) else 1)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) if right() else 2
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return 3

if sys.argv[1] == "thread":
    codes = []
    thread = threading.Thread(target=lambda: codes.append(fork(1) if right() else 4))
    thread.start()
    thread.join()
    sys.exit(codes[0])
sys.exit(fork(int(sys.argv[1])) or fork(1))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("how", ["1", "2", "thread"])
def test_ops_in_a_forked_child(how):
    """A child of a process that has used its threads, a grandchild, and the child of another Python thread."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK, how], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.returncode, done.stderr)
