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
from pycnn.layers.base import Layer
from pycnn.layers.convolution import Conv2D, ConvTranspose2D, DepthwiseConv2D
from pycnn.layers.core import Dense, Dropout, Flatten
from pycnn.layers.normalization import BatchNorm
from pycnn.layers.pooling import AvgPool2D, GlobalAvgPool2D, MaxPool2D
from pycnn.layers.residual import Residual

__all__ = [
    "ELU",
    "GELU",
    "Activation",
    "AvgPool2D",
    "BatchNorm",
    "Conv2D",
    "ConvTranspose2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2D",
    "HardSwish",
    "Layer",
    "LeakyReLU",
    "MaxPool2D",
    "ReLU",
    "Residual",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
]
