"""The parts that the networks share, and the limits of their arguments."""

from collections import OrderedDict

import torch
from torch import nn

MAX_WIDTH = 512
Pair = int | tuple[int, int]


def conv_norm(
    inputs: int,
    outputs: int,
    *,
    kernel: Pair = 1,
    stride: Pair = 1,
    padding: Pair = 0,
    groups: int = 1,
    act: nn.Module | None = None,
    pad: nn.Module | None = None,
) -> nn.Sequential:
    """`conv` and `norm`, after `pad` and before `act` where they are given: that is how the layers are called in a pruning
    history and in a state.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if pad is not None:
        parts["pad"] = pad
    parts["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    parts["norm"] = nn.BatchNorm2d(outputs)
    if act is not None:
        parts["act"] = act
    return nn.Sequential(parts)


class Inverted(nn.Module):
    """Expand, convolve each channel by itself, project; added to the input where both have one shape (Sandler et al. 2018)."""

    def __init__(
        self, inputs: int, outputs: int, *, expansion: int, kernel: int, stride: int, pad: nn.Module | None = None
    ) -> None:
        """`pad` replaces the symmetric padding of the convolution in the middle."""
        super().__init__()
        hidden = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.expand = conv_norm(inputs, hidden, act=nn.ReLU6()) if expansion > 1 else nn.Identity()
        self.depthwise = conv_norm(
            hidden,
            hidden,
            kernel=kernel,
            stride=stride,
            padding=kernel // 2 if pad is None else 0,
            groups=hidden,
            act=nn.ReLU6(),
            pad=pad,
        )
        self.project = conv_norm(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


class Classifier(nn.Module):
    """`stem`, then `blocks`, one mean a channel, and `head`, whose outputs are the answers."""

    def __init__(self, stem: nn.Module, blocks: nn.Module, width: int, classes: int) -> None:
        """`width` channels come out of `blocks`."""
        super().__init__()
        self.stem = stem
        self.blocks = blocks
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten(1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.flat(self.pool(self.blocks(self.stem(x)))))
        return logits


def require_width(width: int) -> None:
    """Raises `ValueError`."""
    if not isinstance(width, int) or width % 8 or not 8 <= width <= MAX_WIDTH:
        raise ValueError(f"width is a multiple of 8, at most {MAX_WIDTH}")


def require_stride(stride: int) -> None:
    """Raises `ValueError`."""
    if stride not in (1, 2):
        raise ValueError("stem_stride is 1 or 2")
