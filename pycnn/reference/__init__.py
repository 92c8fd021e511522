"""The definition of every operation, in plain Python: nested lists in, nested lists out.

Written to be read: the loop nest is the formula, and the docstring names its source. Numbers are Python
floats, that is double precision. Reports 000 to 004 are the student reports that the project grew from.
"""

from pycnn.reference.channels import (
    concatenate,
    concatenate_backward,
    scale_channels,
    scale_channels_backward,
)
from pycnn.reference.conv import conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward
from pycnn.reference.elementwise import (
    activation,
    activation_backward,
    add,
    dropout,
    dropout_backward,
    philox4x32,
)
from pycnn.reference.gemm import dense, dense_backward, gemm
from pycnn.reference.lcg import LCG
from pycnn.reference.loss import (
    binary_cross_entropy,
    cross_entropy,
    huber,
    mae,
    mse,
    softmax_cross_entropy,
)
from pycnn.reference.norm import BatchNormCache, batch_norm, batch_norm_backward
from pycnn.reference.optimizer import adagrad_update, adam_update, rmsprop_update, sgd_update
from pycnn.reference.pool import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
)
from pycnn.reference.resize import (
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    upsample2d,
    upsample2d_backward,
    zero_pad2d,
    zero_pad2d_backward,
)
from pycnn.reference.softmax import softmax, softmax_backward
from pycnn.reference.tensor import Tensor

__all__ = [
    "LCG",
    "BatchNormCache",
    "Tensor",
    "activation",
    "activation_backward",
    "adagrad_update",
    "adam_update",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "add",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm",
    "batch_norm_backward",
    "binary_cross_entropy",
    "concatenate",
    "concatenate_backward",
    "conv2d",
    "conv2d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "cross_entropy",
    "dense",
    "dense_backward",
    "dropout",
    "dropout_backward",
    "gemm",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "huber",
    "mae",
    "max_pool2d",
    "max_pool2d_backward",
    "mse",
    "philox4x32",
    "scale_channels",
    "scale_channels_backward",
    "rmsprop_update",
    "sgd_update",
    "softmax",
    "softmax_backward",
    "softmax_cross_entropy",
    "upsample2d",
    "upsample2d_backward",
    "zero_pad2d",
    "zero_pad2d_backward",
]
