"""Matrix products: gemm, and the dense layer made of it."""

from itertools import product

from pycnn import shapes
from pycnn.reference.lists import Nested, expect, shape_of, zeros


def _transposed(a: Nested) -> Nested:
    return [list(column) for column in zip(*a, strict=True)]


def gemm(
    a: Nested,
    b: Nested,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    alpha: float = 1.0,
    beta: float = 0.0,
    out: Nested | None = None,
) -> Nested:
    """c[i][j] = alpha * sum over p of op(a)[i][p] * op(b)[p][j] + beta * out[i][j].

    op transposes where asked to. `out` is written and returned; with beta = 0 it is not read, so a NaN in
    it does not matter (Dongarra, Du Croz, Hammarling & Duff 1990, the level 3 BLAS).
    """
    a_shape, b_shape = shape_of("gemm", "a", a), shape_of("gemm", "b", b)
    if a_shape == (0,) and len(b_shape) == 2:
        # No rows: the length they would have is b's.
        a_shape = (0, b_shape[1 if trans_b else 0])
    m, n, k = shapes.gemm("gemm", a_shape, b_shape, trans_a, trans_b)
    alpha, beta = shapes.number("gemm", "alpha", alpha), shapes.number("gemm", "beta", beta)
    if out is not None:
        expect("gemm", "out", out, (m, n))
    elif beta != 0:
        raise ValueError(f"[gemm] out must be given with beta={beta:g}, which reads it")
    a = _transposed(a) if trans_a else a
    b = _transposed(b) if trans_b else b
    c = zeros((m, n))
    for i, j in product(range(m), range(n)):
        c[i][j] = alpha * sum(a[i][p] * b[p][j] for p in range(k))
        if beta != 0:
            c[i][j] += beta * out[i][j]
    if out is None:
        return c
    # Written only now, since out may be a or b.
    for row, values in zip(out, c, strict=True):
        row[:] = values
    return out


def dense(x: Nested, w: Nested, b: Nested | None = None) -> Nested:
    """y[n][j] = b[j] + sum over i of x[n][i] * w[i][j]; report 003, equation 1.

    x (N, in), w (in, out), b (out,) -> y (N, out).
    """
    x_shape, w_shape = shape_of("dense", "x", x), shape_of("dense", "w", w)
    b_shape = None if b is None else shape_of("dense", "b", b)
    if x_shape == (0,):
        return []
    _, inputs, outputs = shapes.dense("dense", x_shape, w_shape, b_shape)
    b = zeros((outputs,)) if b is None else b
    return [[b[j] + sum(row[i] * w[i][j] for i in range(inputs)) for j in range(outputs)] for row in x]


def dense_backward(dy: Nested, x: Nested, w: Nested) -> tuple[Nested, Nested, Nested]:
    """(dx, dw, db): dw = x^T dy and dx = dy w^T, report 001, equations 10 and 11; db sums dy over n."""
    op = "dense_backward"
    x_shape, w_shape = shape_of(op, "x", x), shape_of(op, "w", w)
    if x_shape == (0,):
        expect(op, "dy", dy, (0,))
        return [], zeros(w_shape), zeros(w_shape[1:])
    n, _, outputs = shapes.dense(op, x_shape, w_shape)
    expect(op, "dy", dy, (n, outputs))
    return gemm(dy, w, trans_b=True), gemm(x, dy, trans_a=True), [sum(column) for column in _transposed(dy)]
