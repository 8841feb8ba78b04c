"""Flower's strategies by name, with checked options, and their own state as arrays so that a resumed job goes on exactly."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from safetensors.numpy import load, save

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.linear import require_linear
from coordinator.rounds.plan import JobSpec
from shared.errors import ConfigError
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
_OURS = frozenset(  # fixed by how jobs work: the grid selects by [selection], and what it selected all take part
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
        fraction_train=1.0,
        fraction_evaluate=1.0,
        min_train_nodes=spec.selection.min_devices,
        min_evaluate_nodes=1,
        min_available_nodes=1,
        **_options(kind, spec.strategy.options),
    )
    if spec.secure.enabled:
        require_linear(strategy, secure_config(spec))
    return strategy


def secure_config(spec: JobSpec) -> SecureConfig:
    """The job's [secure] section, as SecureGrid takes it."""
    exchanges = spec.rounds * (2 if spec.evaluate.every else 1)
    return SecureConfig(
        min_clients=3,
        rates=spec.secure.rates,
        group_rounds=min(spec.secure.key_rounds, exchanges),
        bits=spec.secure.bits,
        feedback=spec.secure.error_feedback,
        clip_range=spec.secure.clip_range,
        max_weight=spec.secure.max_weight,
        train_metrics={name: (0.0, highest) for name, highest in spec.secret_metrics.items()},
        evaluate_metrics={name: (0.0, highest) for name, highest in spec.evaluate.metrics.items()},
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
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError("a finite number is needed", path=f"job.strategy.options.{name}")
    return dict(options)


def save_state(strategy: FedAvg) -> bytes:
    """What the strategy remembers between rounds (momenta, not its options), as safetensors; empty if nothing."""
    state: dict[str, NDArray[Any]] = {}
    for name in _MOMENTA:
        for key, value in (getattr(strategy, name, None) or {}).items():
            state[f"{name}/{key}"] = np.asarray(value, order="C")
    for place, value in enumerate(getattr(strategy, "momentum_vector", None) or ()):
        state[f"momentum_vector/{place:06d}"] = np.asarray(value, order="C")
    return save(state) if state else b""


def load_state(strategy: FedAvg, data: bytes, arrays: ArrayRecord) -> None:
    """Put back what `save_state` kept, nothing else, and the global model that FedAvgM compares with."""
    tensors = load(data) if data else {}
    for name in _MOMENTA:
        found = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        if hasattr(strategy, name):
            setattr(strategy, name, {key: found[key] for key in arrays} if found else None)
    momentum = [tensors[key] for key in sorted(tensors) if key.startswith("momentum_vector/")]
    if isinstance(strategy, flower.FedAvgM):
        strategy.momentum_vector = momentum or None
        strategy.current_arrays = arrays  # the FedOpt family takes it from `configure_train`


def restore_dtypes(arrays: ArrayRecord, reference: ArrayRecord) -> ArrayRecord:
    """Aggregated arrays in the dtypes of the model: strategies hand back float64 for integers, and FedAdam for float32."""
    out = ArrayRecord()
    for name, wanted in reference.items():
        value = to_numpy(arrays[name])
        if str(value.dtype) == wanted.dtype:
            out[name] = arrays[name]
        else:
            rounded = np.rint(value) if np.dtype(wanted.dtype).kind in "iu" else value
            out[name] = Array(np.asarray(rounded, dtype=wanted.dtype))
    return out
