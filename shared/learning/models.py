"""Networks by registered name, and the passage between a network and its state.

A factory is `(schema, **arguments) -> nn.Module`. Ours are below; others come from installed packages through the
entry-point group `shoal.models`. Nothing a peer sends can add one.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

import numpy as np
import torch
from torch import nn

from shared.errors import Malformed, NotFound
from shared.learning.spec import InputSchema, ModelSpec
from shared.learning.state import State, check_like

GROUP = "shoal.models"
Factory = Callable[..., nn.Module]
_MAX_WIDTH = 512


def cnn_small(schema: InputSchema, *, width: int = 16) -> nn.Sequential:
    """Three convolutions of `width`, 2 and 4 times as many channels, for small images: 29,000 parameters at 1x28x28.

    BatchNorm keeps its defaults: torchao's rewriting of it knows no others. Raises `ValueError`.
    """
    if len(schema.shape) != 3:
        raise ValueError(f"cnn-small takes images, channels x height x width, not {list(schema.shape)}")
    if width % 8 or not 8 <= width <= _MAX_WIDTH:
        raise ValueError(f"width is a multiple of 8, at most {_MAX_WIDTH}")
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
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


_BUILT_IN: Mapping[str, Factory] = {"cnn-small": cnn_small}


def factory_names() -> list[str]:
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def find_factory(name: str) -> Factory:
    """Ours before a package's. Raises `NotFound`, which lists what there is."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    for point in entry_points(group=GROUP, name=name):
        factory: Factory = point.load()
        return factory
    raise NotFound(f"no model factory {name!r} is installed here; there are {', '.join(factory_names())}")


def build(spec: ModelSpec) -> nn.Module:
    """The network that `spec` describes, pruned as it says, with the factory's own fresh weights.

    Raises `NotFound` for an unknown factory, `Malformed` for arguments or a history that do not fit it.
    """
    factory = find_factory(spec.factory)
    try:
        module = factory(spec.schema, **spec.arguments)
    except (TypeError, ValueError) as error:
        raise Malformed(f"the factory {spec.factory} refuses its arguments", detail=str(error)[:200]) from error
    if spec.history:
        from shared.learning.prune import apply_history  # Torch-Pruning, only for pruned networks

        apply_history(module, spec)
    return module


def example_batch(schema: InputSchema, size: int = 2) -> torch.Tensor:
    """Zeros of the right shape, for tracing."""
    return torch.zeros((size, *schema.shape))


def state_of(module: nn.Module) -> State:
    """A copy of the float parameters and buffers; counters stay behind."""
    return {name: value.detach().numpy().copy() for name, value in _floats(module).items()}


def load_state(module: nn.Module, state: State) -> None:
    """In place. Raises `UpdateRejected` for other names, shapes or non-finite values, and then changes nothing."""
    targets = _floats(module)
    check_like(state, {name: tuple(value.shape) for name, value in targets.items()})
    with torch.no_grad():
        for name, value in targets.items():
            value.copy_(torch.from_numpy(np.array(state[name])))
            if name.endswith("running_var"):
                value.clamp_(min=0.0)  # the rounding of a secret sum may leave a variance a hair below zero


def _floats(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.state_dict(keep_vars=True).items() if value.dtype == torch.float32}


def initial_state(spec: ModelSpec, rng: np.random.Generator) -> State:
    """Fresh weights from `rng` alone, distributed as PyTorch starts its layers: uniform within 1 / sqrt(fan-in) for everything
    with two axes or more, zero biases, identity BatchNorm. Wider starts (He et al. 2015) ended 0.5 points lower on digits.
    Raises like `build`.
    """
    module = build(spec)
    state = state_of(module)
    learned = {name for name, _ in module.named_parameters()}
    for name in sorted(state):
        array = state[name]
        if array.ndim > 1:
            bound = float(np.prod(array.shape[1:])) ** -0.5
            state[name] = rng.uniform(-bound, bound, array.shape).astype(np.float32)
        elif name in learned and name.endswith(".bias"):
            state[name] = np.zeros_like(array)
    return state
