"""Report 001's tensor: nested lists with the operations that a network needs (its section II.A)."""

import math
from collections.abc import Callable, Sequence
from itertools import product
from numbers import Real
from typing import Any

from pycnn import shapes
from pycnn.reference.conv import Padding, conv2d
from pycnn.reference.gemm import gemm
from pycnn.reference.lists import Nested, Pair, apply, flatten, reshape, shape_of, zeros
from pycnn.reference.pool import avg_pool2d, max_pool2d


class Tensor:
    """A number, vector, matrix ... of any rank; `data` is the nested list, a copy of what was given.

    The spatial axes are the last two. Every method returns something new.
    """

    def __init__(self, data: Any) -> None:
        self._shape = shape_of("Tensor", "data", data)
        self.data = apply(lambda value: value, data)

    @classmethod
    def fill(cls, *dims: int, val: float = 0.0) -> "Tensor":
        """A tensor of the given sizes, every element `val`."""
        shape = shapes.sizes("Tensor.fill", "dims", dims)
        return cls(reshape([val] * math.prod(shape), shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def __repr__(self) -> str:
        return f"Tensor({self.data})"

    def __eq__(self, other: object) -> bool:
        return self.data == other.data if isinstance(other, Tensor) else NotImplemented

    # ------------------------------------------------------------------------------------- elements

    def flatten(self) -> "Tensor":
        """One axis, the elements in row-major order."""
        return Tensor(flatten(self.data))

    def reshape(self, *dims: int) -> "Tensor":
        """The same elements in row-major order with other sizes."""
        shape = shapes.sizes("Tensor.reshape", "dims", dims)
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(f"[Tensor.reshape] {self.shape} has not as many elements as {shape}")
        return Tensor(reshape(flatten(self.data), shape))

    def activate(self, func: Callable[[float], float]) -> "Tensor":
        """func of each element."""
        return Tensor(apply(func, self.data))

    def _elementwise(self, op: str, func: Callable[[Any, Any], Any], other: Any) -> "Tensor":
        if isinstance(other, Real):
            return self.activate(lambda value: func(value, other))
        if not isinstance(other, Tensor):
            return NotImplemented
        shapes.expect_shape(f"Tensor {op}", "the right operand", other.shape, self.shape)
        return Tensor(apply(func, self.data, other.data))

    def __add__(self, other: "Tensor | float") -> "Tensor":
        return self._elementwise("+", lambda a, b: a + b, other)

    def __sub__(self, other: "Tensor | float") -> "Tensor":
        return self._elementwise("-", lambda a, b: a - b, other)

    def __mul__(self, other: "Tensor | float") -> "Tensor":
        """Element by element; `dot` is the matrix product."""
        return self._elementwise("*", lambda a, b: a * b, other)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: float) -> "Tensor":
        return self._elementwise("-", lambda a, b: b - a, other)

    # ------------------------------------------------------------------------------------- matrices

    def dot(self, other: "Tensor") -> "Tensor | float":
        """The product of two vectors (a number), of two matrices, or of two batches of matrices."""
        _expect_tensor("dot", other)
        rank = len(self.shape)
        if len(other.shape) != rank or rank not in (1, 2, 3):
            raise ValueError(
                f"[Tensor.dot] needs two tensors of 1, 2 or 3 axes, got shapes {self.shape} and {other.shape}"
            )
        if rank == 1:
            shapes.expect_shape("Tensor.dot", "other", other.shape, self.shape)
            return sum(a * b for a, b in zip(self.data, other.data, strict=True))
        if rank == 2:
            return Tensor(gemm(self.data, other.data))
        shapes.expect_shape("Tensor.dot", "other's batch", other.shape[:1], self.shape[:1])
        return Tensor([gemm(a, b) for a, b in zip(self.data, other.data, strict=True)])

    def T(self) -> "Tensor":
        """The first two axes exchanged: a matrix's transpose, or batch and channels of images."""
        self._need_two_axes("T")
        return Tensor([list(column) for column in zip(*self.data, strict=True)])

    # ------------------------------------------------------------------------------- spatial axes

    def _need_two_axes(self, method: str) -> None:
        if len(self.shape) < 2:
            raise ValueError(f"[Tensor.{method}] needs at least two axes, got shape {self.shape}")

    def _each_plane(self, method: str, func: Callable[[Nested], Nested]) -> "Tensor":
        """func of each matrix of the last two axes."""
        self._need_two_axes(method)

        def walk(data: Nested, rank: int) -> Nested:
            return func(data) if rank == 2 else [walk(item, rank - 1) for item in data]

        return Tensor(walk(self.data, len(self.shape)))

    def add_pad(self, pad_size: Padding, pad_val: float = 0.0) -> "Tensor":
        """`pad_val` around each plane.

        `pad_size` is an int, (height, width) or ((top, bottom), (left, right)).
        """
        top, bottom, left, right = shapes.padding4("Tensor.add_pad", pad_size)

        def pad(plane: Nested) -> Nested:
            width = left + len(plane[0]) + right
            above, below = ([[pad_val] * width for _ in range(rows)] for rows in (top, bottom))
            return above + [[pad_val] * left + row + [pad_val] * right for row in plane] + below

        return self._each_plane("add_pad", pad)

    def unpad(self, pad_size: Padding) -> "Tensor":
        """Each plane without its border: takes back `add_pad` of the same size."""
        top, bottom, left, right = shapes.padding4("Tensor.unpad", pad_size)
        self._need_two_axes("unpad")
        h, w = self.shape[-2:]
        if top + bottom >= h or left + right >= w:
            raise ValueError(f"[Tensor.unpad] pad_size {pad_size} leaves nothing of planes of {(h, w)}")
        rows, columns = slice(top, h - bottom), slice(left, w - right)
        return self._each_plane("unpad", lambda plane: [row[columns] for row in plane[rows]])

    def flip(self) -> "Tensor":
        """Each plane turned by 180 degrees."""
        return self._each_plane("flip", lambda plane: [row[::-1] for row in plane[::-1]])

    def dilate(self, dilation: Pair) -> "Tensor":
        """dilation - 1 zeros between the neighbours in each plane."""
        step_h, step_w = shapes.pair("Tensor.dilate", "dilation", dilation, 1)

        def spread(plane: Nested) -> Nested:
            h, w = len(plane), len(plane[0])
            wide = zeros(((h - 1) * step_h + 1, (w - 1) * step_w + 1))
            for i, j in product(range(h), range(w)):
                wide[i * step_h][j * step_w] = plane[i][j]
            return wide

        return self._each_plane("dilate", spread)

    # ------------------------------------------------------------------- convolution and pooling

    def _images(self, method: str) -> Nested:
        """The data as (B, C, H, W); a matrix is one image of one channel."""
        if len(self.shape) not in (2, 4):
            raise ValueError(f"[Tensor.{method}] needs (H, W) or (B, C, H, W), got shape {self.shape}")
        return [[self.data]] if len(self.shape) == 2 else self.data

    def _as_given(self, images: Nested) -> "Tensor":
        """`images` with the rank of this tensor."""
        return Tensor(images[0][0] if len(self.shape) == 2 else images)

    def conv(self, kernel: "Tensor", stride: Pair = 1) -> "Tensor":
        """Cross-correlation: images (B, C, H, W) with (K, C, R, S), or a matrix with a matrix."""
        _expect_tensor("conv", kernel)
        if len(kernel.shape) != len(self.shape):
            raise ValueError(
                f"[Tensor.conv] needs a kernel of as many axes, got shapes {self.shape} and {kernel.shape}"
            )
        return self._as_given(conv2d(self._images("conv"), kernel._images("conv"), stride=stride))

    def max_pool(self, kernel_size: Pair = 2, stride: Pair | None = None) -> "tuple[Tensor, Tensor]":
        """(pooled, masks): masks has this tensor's shape, 1 where a window has its (first) maximum, else 0.

        For windows that do not overlap, equation 6 is masks times each window's gradient. The stride is the
        kernel size unless given.
        """
        images = self._images("max_pool")
        pooled, argmax = max_pool2d(images, kernel_size, stride=stride)
        masks = apply(lambda _: 0, images)
        for mask, places in zip(_planes(masks), _planes(argmax), strict=True):
            for place in flatten(places):
                i, j = divmod(place, self.shape[-1])
                mask[i][j] = 1
        return self._as_given(pooled), self._as_given(masks)

    def avg_pool(self, kernel_size: Pair = 2, stride: Pair | None = None) -> "Tensor":
        """The mean of each window; the stride is the kernel size unless given."""
        return self._as_given(avg_pool2d(self._images("avg_pool"), kernel_size, stride=stride))


def _expect_tensor(method: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"[Tensor.{method}] needs another Tensor, got {type(value).__name__}")


def _planes(images: Sequence[Nested]) -> list[Nested]:
    return [plane for image in images for plane in image]
