"""MobileNetV2 (Sandler et al. 2018)."""

from torch import nn

from shared.learning.networks.blocks import Classifier, Inverted, conv_norm, require_stride
from shared.learning.networks.traits import Traits, network, numbered
from shared.learning.spec import InputSchema

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride of the first block."""
_LAST = 1280
_SMALLEST = 4  # pixels a side that halving leaves
_PERCENT = range(10, 201)


@network(Traits(InputSchema((3, 224, 224), numbered(1000)), protected=("head",), input_kind="image"))
def mobilenet_v2(schema: InputSchema, *, width_percent: int = 100, stem_stride: int = 2) -> nn.Module:
    """3.5 million parameters for 1000 classes at 100 %.

    Two deviations from the paper: an image is halved only while 4 pixels a side are left, so that small ones work, and
    networks below 100 % narrow the last 1280 channels too, which would hold most of their weights. Raises `ValueError`.
    """
    require_stride(stem_stride)
    if not isinstance(width_percent, int) or width_percent not in _PERCENT:
        raise ValueError(f"width_percent is {_PERCENT[0]} to {_PERCENT[-1]}")
    inputs = _channels(32, width_percent)
    stem = conv_norm(schema.shape[0], inputs, kernel=3, stride=stem_stride, padding=1, act=nn.ReLU6())
    side = -(-min(schema.shape[1:]) // stem_stride)
    blocks: list[nn.Module] = []
    for expansion, channels, count, stride in _STAGES:
        first = stride if -(-side // stride) >= _SMALLEST else 1
        side = -(-side // first)
        for index in range(count):
            outputs = _channels(channels, width_percent)
            step = first if index == 0 else 1
            blocks.append(Inverted(inputs, outputs, expansion=expansion, kernel=3, stride=step))
            inputs = outputs
    last = _channels(_LAST, width_percent)
    return Classifier(stem, nn.Sequential(*blocks, conv_norm(inputs, last, act=nn.ReLU6())), last, len(schema.classes))


def _channels(channels: int, percent: int) -> int:
    """A share of `channels`, as a multiple of 8 that is not below 90 % of it."""
    exact = channels * percent / 100
    nearest = max(8, int(exact + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * exact else nearest + 8
