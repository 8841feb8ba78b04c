"""A depthwise-separable network for sensor windows (after Zhang et al. 2017, who made it for sounds)."""

from torch import nn

from shared.learning.networks.blocks import Classifier, conv_norm, require_width
from shared.learning.networks.traits import Traits, network, numbered
from shared.learning.spec import InputSchema

_KERNEL = 5


@network(Traits(InputSchema((6, 1, 128), numbered(12)), protected=("head",), input_kind="window"))
def dscnn_1d(schema: InputSchema, *, width: int = 32) -> nn.Module:
    """One convolution and three depthwise-separable ones along time, of `width` to 4 times as many channels: 18,000 parameters
    at 6x1x128. Raises `ValueError`.

    Two-dimensional layers of height 1: torchao puts no fake quantization on Conv1d.
    """
    require_width(width)
    stem = _along_time(schema.shape[0], width, stride=2)
    blocks = [_separable(width, 2 * width, 2), _separable(2 * width, 2 * width, 1), _separable(2 * width, 4 * width, 2)]
    return Classifier(stem, nn.Sequential(*blocks), 4 * width, len(schema.classes))


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    each = _along_time(inputs, inputs, stride=stride, groups=inputs)
    return nn.Sequential(each, conv_norm(inputs, outputs, act=nn.ReLU()))


def _along_time(inputs: int, outputs: int, *, stride: int, groups: int = 1) -> nn.Sequential:
    return conv_norm(
        inputs,
        outputs,
        kernel=(1, _KERNEL),
        stride=(1, stride),
        padding=(0, _KERNEL // 2),
        groups=groups,
        act=nn.ReLU(),
    )
