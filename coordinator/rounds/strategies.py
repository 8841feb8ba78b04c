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

from coordinator.rounds.exchange import Bounds, SecureConfig
from coordinator.rounds.linear import least_groups, require_linear
from coordinator.rounds.plan import JobSpec
from coordinator.rounds.secrecy import MIN_CLIENTS
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
    strategy = _made(spec)
    if spec.secure.enabled:
        config = secure_config(spec)
        require_linear(strategy, config)
        _check_groups(spec, config)
    return strategy


def _check_groups(spec: JobSpec, config: SecureConfig) -> None:
    """Whether the fewest devices that a round begins with make enough groups. Raises `ConfigError`."""
    fewest = config.least_groups * config.min_group
    if config.groups > 1 and spec.selection.min_devices < fewest:
        raise ConfigError(
            f"{spec.strategy.name} needs {config.least_groups} groups of at least {config.min_group} devices: set it to {fewest} "
            "or more",
            path="job.selection.min_devices",
        )


def _made(spec: JobSpec) -> FedAvg:
    """Raises `ConfigError`."""
    kind = _CLASSES.get(spec.strategy.name)
    if kind is None:
        raise ConfigError(
            f"unknown strategy {spec.strategy.name!r}; one of {', '.join(NAMES)}", path="job.strategy.name"
        )
    return kind(
        fraction_train=1.0,
        fraction_evaluate=1.0,
        min_train_nodes=spec.selection.min_devices,
        min_evaluate_nodes=1,
        min_available_nodes=1,
        **_options(kind, spec.strategy.options),
    )


def secure_config(spec: JobSpec) -> SecureConfig:
    """The job's [secure] section, as SecureGrid takes it. Raises `Unsupported` for a strategy that nothing could come of."""
    exchanges = spec.rounds * (2 if spec.evaluate.every else 1)
    return SecureConfig(
        min_clients=MIN_CLIENTS,
        groups=spec.secure.groups,
        min_group=spec.secure.min_group,
        least_groups=min(least_groups(_made(spec)), spec.secure.groups),
        rates=spec.secure.rates,
        group_rounds=min(spec.secure.key_rounds, exchanges),
        bits=spec.secure.bits,
        feedback=spec.secure.error_feedback and not spec.privacy.enabled,
        subsample=spec.secure.subsample,
        delta_broadcast=spec.secure.delta_broadcast,
        clip_range=spec.secure.clip_range,
        max_weight=spec.secure.max_weight,
        train_metrics=_bounds(spec.secret_metrics),
        evaluate_metrics={} if spec.privacy.enabled else _bounds(spec.evaluate.metrics),
        privacy=spec.privacy.terms(spec.rounds),
    )


def _bounds(metrics: Mapping[str, float]) -> Bounds:
    return {name: (0.0, highest) for name, highest in metrics.items()}


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
