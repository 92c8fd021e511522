"""Convolutional neural networks on the CPU: fast C kernels, each checked by a readable pure-Python twin."""

from pycnn import datasets, layers, losses, networks, ops, optimizers, reference
from pycnn._version import __version__
from pycnn.executor import backend
from pycnn.functional import Input, Model
from pycnn.layers import *  # noqa: F403
from pycnn.losses import BinaryCrossEntropy, CrossEntropy, MeanSquaredError
from pycnn.model import History, NonFiniteLossError, Sequential, load
from pycnn.native import config, get_num_threads, info, set_num_threads
from pycnn.optimizers import SGD, Adam

__all__ = [
    "SGD",
    "Adam",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "History",
    "Input",
    "MeanSquaredError",
    "Model",
    "NonFiniteLossError",
    "Sequential",
    "__version__",
    "backend",
    "config",
    "datasets",
    "get_num_threads",
    "info",
    "layers",
    "load",
    "losses",
    "networks",
    "ops",
    "optimizers",
    "reference",
    "set_num_threads",
    *layers.__all__,
]
