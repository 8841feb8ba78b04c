"""Networks by registered name, and the passage between a network and its state.

A factory is `(schema, **arguments) -> nn.Module`, and may be marked with its traits (`networks/traits.py`). Ours are in
`networks/`; others come from installed packages through the entry-point group `shoal.models`. Nothing a peer sends can add one.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

import numpy as np
import torch
from torch import nn

from shared.errors import ConfigError, Malformed, NotFound
from shared.learning.networks.cnn import cnn_small
from shared.learning.networks.dscnn import dscnn_1d
from shared.learning.networks.efficientnet import efficientnet_lite0
from shared.learning.networks.mobilenet import mobilenet_v2
from shared.learning.networks.resnet import resnet8, resnet18
from shared.learning.networks.traits import Trained, Traits, network, traits_of
from shared.learning.spec import InputSchema, ModelSpec, new_spec
from shared.learning.state import State, check_like
from shared.settings import Numbers, Scalar

__all__ = [
    "GROUP",
    "Factory",
    "Trained",
    "Traits",
    "build",
    "example_batch",
    "factory_names",
    "find_factory",
    "initial_state",
    "load_state",
    "network",
    "starting_point",
    "state_of",
    "traits_of",
]

GROUP = "shoal.models"
Factory = Callable[..., nn.Module]
_WEIGHTS = "weights"  # an argument of the start, where a factory has trained ones; the network does not depend on it


_BUILT_IN: Mapping[str, Factory] = {
    "cnn-small": cnn_small,
    "dscnn-1d": dscnn_1d,
    "efficientnet-lite0": efficientnet_lite0,
    "mobilenet-v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet8": resnet8,
}


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
        traits_of(factory).require(spec.schema)
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


def starting_point(factory: str, arguments: Mapping[str, Scalar], rng: np.random.Generator) -> tuple[ModelSpec, State]:
    """A new model from a job file's plain values: what they leave open of the schema is the factory's default.

    `weights`, where the factory has trained ones, names those to start from, and mean and std are theirs; layers that give
    answers stay fresh if the classes are others. Raises like `build` and `new_spec`, `ConfigError` for weights that there are
    not or that do not fit, and what reading them raises.
    """
    traits = traits_of(find_factory(factory))
    rest, usual = dict(arguments), traits.default_schema
    name = rest.pop(_WEIGHTS, "") if traits.weights else ""
    if name == "":
        spec = new_spec(factory, rest, default=usual)
        return spec, initial_state(spec, rng)
    if name not in traits.weights:
        raise ConfigError(f"{factory} has the weights {', '.join(traits.weights)}, not {name!r}", path="model.weights")
    trained = traits.weights[str(name)]
    spec = new_spec(factory, {"mean": _plain(trained.mean), "std": _plain(trained.std), **rest}, default=usual)
    fresh = initial_state(spec, rng)
    return spec, _with_weights(fresh, trained.read(), traits.protected, f"{factory}'s {name} weights")


def _plain(numbers: Numbers) -> Scalar:
    """As a job file has them."""
    return ",".join(map(str, numbers)) if isinstance(numbers, tuple) else numbers


def _with_weights(fresh: State, trained: State, protected: tuple[str, ...], name: str) -> State:
    state: State = {}
    for key, array in fresh.items():
        found = trained.get(key)
        if found is not None and found.shape == array.shape:
            state[key] = found
        elif key.rpartition(".")[0] in protected:
            state[key] = array
        else:
            wanted = "nothing" if found is None else list(found.shape)
            raise ConfigError(f"{name} do not fit: they have {wanted} for {key}, this model {list(array.shape)}")
    return state
