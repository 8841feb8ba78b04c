"""Flower's strategies by name, with checked options, and their own state as arrays so that a resumed job goes on exactly."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from safetensors.numpy import load, save

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.plan import JobSpec
from coordinator.rounds.secure_grid import require_linear
from shared.errors import ConfigError, Unsupported
from shared.flower import to_numpy
from shared.settings import Scalar

_CLASSES: Mapping[str, type[FedAvg]] = {
    "fedavg": flower.FedAvg,
    "fedprox": flower.FedProx,
    "fedavgm": flower.FedAvgM,
    "fedadam": flower.FedAdam,
    "fedyogi": flower.FedYogi,
    "fedadagrad": flower.FedAdagrad,
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "bulyan": flower.Bulyan,
}
NAMES = tuple(_CLASSES)
_OURS = frozenset(  # set from [selection], or fixed by how jobs work
    {
        "fraction_train",
        "fraction_evaluate",
        "min_train_nodes",
        "min_evaluate_nodes",
        "min_available_nodes",
        "weighted_by_key",
        "arrayrecord_key",
        "configrecord_key",
        "train_metrics_aggr_fn",
        "evaluate_metrics_aggr_fn",
    }
)
_MOMENTA = ("m_t", "v_t")


def build(spec: JobSpec) -> FedAvg:
    """The job's strategy. Raises `ConfigError` for an unknown name or option, `Unsupported` for one that needs single updates
    while the job sums in secret."""
    kind = _CLASSES.get(spec.strategy.name)
    if kind is None:
        raise ConfigError(
            f"unknown strategy {spec.strategy.name!r}; one of {', '.join(NAMES)}", path="job.strategy.name"
        )
    strategy = kind(
        fraction_train=spec.selection.fraction,
        fraction_evaluate=0.0,
        min_train_nodes=spec.selection.min_devices,
        min_available_nodes=spec.selection.min_devices,
        **_options(kind, spec.strategy.options),
    )
    if spec.secure.enabled:
        require_linear(strategy, secure_config(spec))
    elif spec.secure != type(spec.secure)(enabled=False):
        raise Unsupported("the job turns secure aggregation off and configures it: remove one of the two")
    return strategy


def secure_config(spec: JobSpec) -> SecureConfig:
    """The job's [secure] section, as SecureGrid takes it."""
    return SecureConfig(
        min_clients=3,
        threshold_share=spec.secure.threshold,
        clip_range=spec.secure.clip_range,
        max_weight=spec.secure.max_weight,
        train_metrics={name: (0.0, highest) for name, highest in spec.secure.metrics.items()},
    )


def _options(kind: type[FedAvg], options: Mapping[str, Scalar]) -> dict[str, Any]:
    known = {name: item for name, item in inspect.signature(kind).parameters.items() if name not in _OURS}
    for name, value in options.items():
        if name not in known:
            choices = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"unknown option; {kind.__name__} has {choices}", path=f"job.strategy.options.{name}")
        if type(value) is not type(known[name].default) and not (
            isinstance(known[name].default, float) and type(value) is int
        ):
            wanted = type(known[name].default).__name__
            raise ConfigError(f"expected {wanted}, found {value!r}", path=f"job.strategy.options.{name}")
    return dict(options)


def save_state(strategy: FedAvg) -> bytes:
    """What the strategy remembers between rounds (momenta, not its options), as safetensors; empty if nothing."""
    state: dict[str, NDArray[Any]] = {}
    for name in _MOMENTA:
        for key, value in (getattr(strategy, name, None) or {}).items():
            state[f"{name}/{key}"] = np.ascontiguousarray(value)
    for place, value in enumerate(getattr(strategy, "momentum_vector", None) or ()):
        state[f"momentum_vector/{place:06d}"] = np.ascontiguousarray(value)
    return save(state) if state else b""


def load_state(strategy: FedAvg, data: bytes, arrays: ArrayRecord) -> None:
    """Put back what `save_state` kept, and the global model that FedAvgM compares with."""
    tensors = load(data) if data else {}
    for name in _MOMENTA:
        found = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        if found:
            setattr(strategy, name, {key: found[key] for key in arrays})
    momentum = [tensors[key] for key in sorted(tensors) if key.startswith("momentum_vector/")]
    if momentum:
        strategy.momentum_vector = momentum  # type: ignore[attr-defined]  # FedAvgM's own
    if hasattr(strategy, "current_arrays"):
        is_fedopt = isinstance(strategy, flower.FedAdam | flower.FedYogi | flower.FedAdagrad)
        strategy.current_arrays = {key: to_numpy(value) for key, value in arrays.items()} if is_fedopt else arrays


def forget_state(strategy: FedAvg) -> None:
    """As if no round had been run."""
    for name in (*_MOMENTA, "momentum_vector", "current_arrays"):
        if hasattr(strategy, name):
            setattr(strategy, name, None)


def restore_dtypes(arrays: ArrayRecord, reference: ArrayRecord) -> ArrayRecord:
    """Aggregated arrays in the dtypes of the model: strategies hand back float64 for integers, and FedAdam for float32."""
    from flwr.app import Array

    out = ArrayRecord()
    for name, wanted in reference.items():
        value = to_numpy(arrays[name])
        if str(value.dtype) == wanted.dtype:
            out[name] = arrays[name]
        else:
            rounded = np.rint(value) if np.dtype(wanted.dtype).kind in "iu" else value
            out[name] = Array(rounded.astype(wanted.dtype))
    return out
