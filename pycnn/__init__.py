"""Convolutional neural networks on the CPU: fast C kernels, each checked by a readable pure-Python twin."""

from pycnn import (
    augment,
    callbacks,
    datasets,
    layers,
    losses,
    networks,
    ops,
    optimizers,
    plot,
    reference,
    schedules,
)
from pycnn._version import __version__
from pycnn.callbacks import Callback, CSVLogger, EarlyStopping, LambdaCallback, ModelCheckpoint, ReduceLROnPlateau
from pycnn.classification import classification_report
from pycnn.executor import backend
from pycnn.functional import Input, Model
from pycnn.layers import *  # noqa: F403
from pycnn.losses import BinaryCrossEntropy, CrossEntropy, Huber, MeanAbsoluteError, MeanSquaredError
from pycnn.model import NonFiniteLossError, Sequential, load
from pycnn.native import config, get_num_threads, info, set_num_threads
from pycnn.optimizers import SGD, Adagrad, AdagradMomentum, Adam, AdamW, RMSprop
from pycnn.schedules import CosineDecay, ExponentialDecay, OneCycle, PiecewiseConstant, StepDecay
from pycnn.training import History

__all__ = [
    "SGD",
    "Adagrad",
    "AdagradMomentum",
    "Adam",
    "AdamW",
    "BinaryCrossEntropy",
    "CSVLogger",
    "Callback",
    "CosineDecay",
    "CrossEntropy",
    "EarlyStopping",
    "ExponentialDecay",
    "History",
    "Huber",
    "Input",
    "LambdaCallback",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Model",
    "ModelCheckpoint",
    "NonFiniteLossError",
    "OneCycle",
    "PiecewiseConstant",
    "RMSprop",
    "ReduceLROnPlateau",
    "Sequential",
    "StepDecay",
    "__version__",
    "augment",
    "backend",
    "callbacks",
    "classification_report",
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
    "plot",
    "reference",
    "schedules",
    "set_num_threads",
    *layers.__all__,
]
