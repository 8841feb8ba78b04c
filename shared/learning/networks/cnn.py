"""A plain convolutional network for small images."""

from torch import nn

from shared.learning.networks.blocks import require_width
from shared.learning.networks.traits import Traits, network, numbered
from shared.learning.spec import InputSchema


@network(Traits(InputSchema((1, 28, 28), numbered(10)), protected=("6",), input_kind="image"))
def cnn_small(schema: InputSchema, *, width: int = 16) -> nn.Sequential:
    """Three convolutions of `width`, 2 and 4 times as many channels, for small images: 29,000 parameters at 1x28x28.

    Raises `ValueError`.
    """
    require_width(width)
    channels, height, across = schema.shape
    layers: list[nn.Module] = []
    size = (height, across)
    stride = _halving(size)
    layers.append(_block(channels, width, kernel=5, stride=stride))
    size = (-(-size[0] // stride[0]), -(-size[1] // stride[1]))
    for narrow, wide in ((width, 2 * width), (2 * width, 4 * width)):
        pool = _halving(size)
        layers += [_block(narrow, wide, kernel=3, stride=(1, 1)), nn.MaxPool2d(pool)]
        size = (size[0] // pool[0], size[1] // pool[1])
    head = nn.Linear(4 * width * size[0] * size[1], len(schema.classes))
    return nn.Sequential(*layers, nn.Flatten(1), head)


def _halving(size: tuple[int, int]) -> tuple[int, int]:
    """A step of 2 along an axis that is long enough, so that sequences (height 1) work too."""
    return (2 if size[0] > 1 else 1, 2 if size[1] > 1 else 1)


def _block(inputs: int, outputs: int, *, kernel: int, stride: tuple[int, int]) -> nn.Sequential:
    """Without names, unlike the newer networks: the states of models that exist call these layers by number."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
