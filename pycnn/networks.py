"""Ready models, not built yet: known networks, and those of the reports.

Each function returns a `Sequential` whose weights are drawn when it is first used, with `seed` if that is given; shapes
are those of the images that it is meant for, (N, C, H, W). All but report 000's and 002's for cats and dogs end in
logits, for cross entropy.
"""

from pycnn.layers import (
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Layer,
    MaxPool2D,
    ReLU,
    Residual,
)
from pycnn.model import Sequential

Layers = list[Layer]


def _conv(filters: int, kernel: int, stride: int = 1, padding: int = 0) -> Layer:
    return Conv2D(filters, kernel, stride, padding, activation="relu")


def _dense(*units: int, last: str | None = None) -> Layers:
    """Flatten, then dense layers with ReLU between them."""
    return [Flatten(), *(Dense(n, activation="relu") for n in units[:-1]), Dense(units[-1], activation=last)]


def _conv_norm(filters: int, kernel: int = 3, stride: int = 1) -> Layers:
    """A convolution that keeps the size (but for its stride), and batch norm."""
    return [Conv2D(filters, kernel, stride, padding=kernel // 2, bias=False), BatchNorm()]


# ------------------------------------------------------------------------------------------ the reports


def report_000(classes: int = 3, seed: int | None = None) -> Sequential:
    """Report 000's network, section III.A, for (N, 3, 120, 120): 4 filters 3x3, pooling, 14400 > 12 > softmax."""
    return Sequential([_conv(4, 3, padding=1), MaxPool2D(2), *_dense(12, classes, last="softmax")], seed)


def report_001(classes: int = 10, seed: int | None = None) -> Sequential:
    """Report 001's network for digits (N, 1, 8, 8): 4 filters 3x3, pooling, 64 > 32 > 10."""
    return Sequential([_conv(4, 3, padding=1), MaxPool2D(2), *_dense(32, classes)], seed)


def report_002(classes: int = 10, seed: int | None = None) -> Sequential:
    """Report 002's network for MNIST (N, 1, 28, 28), listing 10: 16 filters 6x6, pooling, 1936 > 160 > 10."""
    return Sequential([_conv(16, 6), MaxPool2D(2), *_dense(160, classes)], seed)


def report_002_deep(classes: int = 10, seed: int | None = None) -> Sequential:
    """Report 002's deep network for (N, 1, 28, 28), listing 9: 16 filters 4x4, 32 of 6x6, pooling, 64 of 8x8,
    576 > 320 > 128 > 10."""
    return Sequential([_conv(16, 4), _conv(32, 6), MaxPool2D(2), _conv(64, 8), *_dense(320, 128, classes)], seed)


def report_002_cats_and_dogs(seed: int | None = None) -> Sequential:
    """Report 002's network for cats and dogs (N, 3, 50, 50), listing 13: 16 filters 10x10 of stride 2, pooling,
    1600 > 160 > 1 with a sigmoid, for binary cross entropy."""
    return Sequential([_conv(16, 10, 2), MaxPool2D(2), *_dense(160, 1, last="sigmoid")], seed)


def report_003(classes: int = 10, seed: int | None = None) -> Sequential:
    """Report 003's network for MNIST (N, 1, 28, 28): one filter 2x2 of stride 3, 81 > 30 > 20 > 10."""
    return Sequential([_conv(1, 2, 3), *_dense(30, 20, classes)], seed)


def report_004(classes: int = 10, seed: int | None = None) -> Sequential:
    """Report 004's network for MNIST (N, 1, 28, 28), section III: one filter 10x10, another, pooling, 25 > 10."""
    return Sequential([_conv(1, 10), _conv(1, 10), MaxPool2D(2), *_dense(classes)], seed)


# --------------------------------------------------------------------------------------- known networks


def lenet5(classes: int = 10, seed: int | None = None) -> Sequential:
    """LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998) for (N, 1, 28, 28), with ReLU, max pooling and full connections,
    as it is used today: 6 and 16 filters 5x5, 400 > 120 > 84 > 10."""
    layers = [_conv(6, 5, padding=2), MaxPool2D(2), _conv(16, 5), MaxPool2D(2), *_dense(120, 84, classes)]
    return Sequential(layers, seed)


def vgg(classes: int = 10, seed: int | None = None) -> Sequential:
    """A small VGG (Simonyan and Zisserman 2015) with batch norm for (N, 3, 32, 32): two convolutions 3x3 of 32, of 64
    and of 128 filters, with pooling after each two, then 2048 > 128 > 10."""
    layers: Layers = []
    for filters in (32, 64, 128):
        layers += [*_conv_norm(filters), ReLU(), *_conv_norm(filters), ReLU(), MaxPool2D(2)]
    return Sequential([*layers, *_dense(128, classes)], seed)


def _block(filters: int, stride: int, project: bool) -> Layers:
    """Two convolutions 3x3 and their shortcut (He, Zhang, Ren and Sun 2016, figure 2)."""
    shortcut = _conv_norm(filters, 1, stride) if project else None
    return [Residual([*_conv_norm(filters, 3, stride), ReLU(), *_conv_norm(filters)], shortcut), ReLU()]


def _bottleneck(filters: int, stride: int, project: bool) -> Layers:
    """1x1, 3x3 and 1x1 to four times the filters (He et al. 2016, figure 5); the 3x3 has the stride, as in PyTorch."""
    shortcut = _conv_norm(4 * filters, 1, stride) if project else None
    body = [*_conv_norm(filters, 1), ReLU(), *_conv_norm(filters, 3, stride), ReLU(), *_conv_norm(4 * filters, 1)]
    return [Residual(body, shortcut), ReLU()]


def _imagenet_stem() -> Layers:
    return [*_conv_norm(64, 7, 2), ReLU(), MaxPool2D(3, 2, padding=1)]


def resnet20(classes: int = 10, seed: int | None = None) -> Sequential:
    """ResNet-20 of He, Zhang, Ren and Sun 2016, section 4.2, for CIFAR-10 (N, 3, 32, 32): three stages of three blocks
    of 16, 32 and 64 filters; shortcuts of another shape are 1x1 convolutions (option B)."""
    layers = [*_conv_norm(16), ReLU()]
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(3):
            down = stage > 0 and block == 0
            layers += _block(filters, 2 if down else 1, down)
    return Sequential([*layers, GlobalAvgPool2D(), Dense(classes)], seed)


def resnet18(classes: int = 1000, seed: int | None = None) -> Sequential:
    """ResNet-18 of He, Zhang, Ren and Sun 2016, table 1, for ImageNet (N, 3, 224, 224)."""
    layers = _imagenet_stem()
    for stage, filters in enumerate((64, 128, 256, 512)):
        down = stage > 0
        layers += _block(filters, 2 if down else 1, down) + _block(filters, 1, False)
    return Sequential([*layers, GlobalAvgPool2D(), Dense(classes)], seed)


def resnet50(classes: int = 1000, seed: int | None = None) -> Sequential:
    """ResNet-50 of He, Zhang, Ren and Sun 2016, table 1, for ImageNet (N, 3, 224, 224)."""
    layers = _imagenet_stem()
    for stage, (filters, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)):
        layers += _bottleneck(filters, 2 if stage else 1, True)
        for _ in range(blocks - 1):
            layers += _bottleneck(filters, 1, False)
    return Sequential([*layers, GlobalAvgPool2D(), Dense(classes)], seed)


def _inverted_residual(inputs: int, outputs: int, expansion: int, stride: int) -> Layers:
    """1x1 to more channels, a depthwise 3x3, 1x1 back without activation (Sandler et al. 2018, figure 4)."""
    wide = [*_conv_norm(inputs * expansion, 1), ReLU()] if expansion > 1 else []
    depthwise = [DepthwiseConv2D(3, stride, padding=1, bias=False), BatchNorm(), ReLU()]
    body = [*wide, *depthwise, *_conv_norm(outputs, 1)]
    return [Residual(body)] if stride == 1 and inputs == outputs else body


def mobilenet_v2(classes: int = 1000, seed: int | None = None) -> Sequential:
    """MobileNetV2 of Sandler, Howard, Zhu, Zhmoginov and Chen 2018, table 2, for ImageNet (N, 3, 224, 224); with ReLU
    in the place of ReLU6."""
    layers, channels = [*_conv_norm(32, 3, 2), ReLU()], 32
    for expansion, outputs, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for i in range(repeats):
            layers += _inverted_residual(channels, outputs, expansion, stride if i == 0 else 1)
            channels = outputs
    return Sequential([*layers, *_conv_norm(1280, 1), ReLU(), GlobalAvgPool2D(), Dropout(0.2), Dense(classes)], seed)
