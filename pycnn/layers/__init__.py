"""The layers, a file a family. A new layer is a new file here: a subclass of Layer, imported below."""

from pycnn.layers.activation import (
    ELU,
    GELU,
    Activation,
    HardSwish,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from pycnn.layers.attention import SqueezeExcite
from pycnn.layers.base import Layer
from pycnn.layers.convolution import Conv2D, ConvTranspose2D, DepthwiseConv2D
from pycnn.layers.core import Dense, Dropout
from pycnn.layers.merging import Add, Concatenate
from pycnn.layers.normalization import BatchNorm
from pycnn.layers.pooling import AdaptiveAvgPool2D, AvgPool2D, GlobalAvgPool2D, GlobalMaxPool2D, MaxPool2D
from pycnn.layers.reshaping import Flatten, Reshape, UpSample2D, ZeroPad2D
from pycnn.layers.residual import Residual

__all__ = [
    "ELU",
    "GELU",
    "Activation",
    "Add",
    "AdaptiveAvgPool2D",
    "AvgPool2D",
    "BatchNorm",
    "Concatenate",
    "Conv2D",
    "ConvTranspose2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2D",
    "GlobalMaxPool2D",
    "HardSwish",
    "Layer",
    "LeakyReLU",
    "MaxPool2D",
    "ReLU",
    "Reshape",
    "Residual",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "SqueezeExcite",
    "Tanh",
    "UpSample2D",
    "ZeroPad2D",
]
