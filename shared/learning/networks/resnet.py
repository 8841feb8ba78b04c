"""Residual networks (He et al. 2016): ResNet-8 as in MLPerf Tiny, and ResNet-18."""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import nn

from shared.learning.networks.blocks import Classifier, conv_norm, require_stride, require_width
from shared.learning.networks.traits import Traits, network, numbered
from shared.learning.spec import InputSchema


class Residual(nn.Module):
    """Two convolutions added to the input, which is projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_norm(inputs, outputs, kernel=3, stride=stride, padding=1, act=nn.ReLU())
        self.second = conv_norm(outputs, outputs, kernel=3, padding=1)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, stride=stride)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(self.second(self.first(x)) + self.shortcut(x))
        return y


@network(Traits(InputSchema((3, 32, 32), numbered(10)), protected=("head",), input_kind="image"))
def resnet8(schema: InputSchema, *, width: int = 24, stem_stride: int = 1) -> nn.Module:
    """Three residual blocks of `width`, 2 and 4 times as many channels: 174,000 parameters. `stem_stride` 2 takes a quarter of the
    work. Raises `ValueError`.
    """
    require_width(width)
    require_stride(stem_stride)
    stem = conv_norm(schema.shape[0], width, kernel=3, stride=stem_stride, padding=1, act=nn.ReLU())
    blocks = _blocks(width, ((width, 1), (2 * width, 2), (4 * width, 2)))
    return Classifier(stem, blocks, 4 * width, len(schema.classes))


@network(Traits(InputSchema((3, 224, 224), numbered(1000)), protected=("head",), input_kind="image"))
def resnet18(schema: InputSchema, *, width: int = 64) -> nn.Module:
    """Eight residual blocks of `width` to 8 times as many channels: 11.7 million parameters for 1000 classes. Its first layers
    halve an image twice: for images of 64 pixels and more. Raises `ValueError`.
    """
    require_width(width)
    first = conv_norm(schema.shape[0], width, kernel=7, stride=2, padding=3, act=nn.ReLU())
    stem = nn.Sequential(OrderedDict(first=first, pool=nn.MaxPool2d(3, 2, 1)))
    stages = [(width * 2**stage, 2 if stage and not half else 1) for stage in range(4) for half in range(2)]
    return Classifier(stem, _blocks(width, stages), 8 * width, len(schema.classes))


def _blocks(inputs: int, stages: Iterable[tuple[int, int]]) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for outputs, stride in stages:
        blocks.append(Residual(inputs, outputs, stride))
        inputs = outputs
    return nn.Sequential(*blocks)
