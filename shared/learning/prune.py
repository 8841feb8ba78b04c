"""Structured pruning: channels really removed, and the removal kept as data that any device can repeat bit for bit."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import nn

from shared.errors import ConfigError, Malformed
from shared.learning.models import build, example_batch, find_factory, load_state, state_of, traits_of
from shared.learning.spec import ModelSpec, PruneStep
from shared.learning.state import State


@dataclass(frozen=True)
class Size:
    parameters: int
    macs: int  # multiply-accumulates for one example


def prune(spec: ModelSpec, state: State, ratio: float, *, round_to: int = 8) -> tuple[ModelSpec, State]:
    """Remove about `ratio` of the present channels of every layer, the least important first, and keep a multiple of
    `round_to` (less in a layer that has fewer). Importance is the L2 norm over everything that goes with a channel (DepGraph,
    Fang et al. 2023). The layers that the factory protects, or else the answers' layer, are never touched. Deterministic.

    Raises `ConfigError` when the ratio leaves nothing to remove, `UpdateRejected` when the state does not fit.
    """
    if not 0 < ratio < 1:
        raise ConfigError("ratio is a share between 0 and 1")
    module = build(spec)
    load_state(module, state)
    module.eval()
    protected = _protected(module, spec)
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example_batch(spec.schema),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        pruning_ratio_dict=_ratios(module, ratio, round_to),
        ignored_layers=protected or [_answers(module, len(spec.schema.classes))],
    )
    pruner.step()
    steps = tuple(PruneStep(layer, outputs, tuple(channels)) for layer, outputs, channels in pruner.pruning_history())
    if not steps:
        raise ConfigError(f"pruning {ratio:.0%} leaves every layer as it is: take more, or leave the step out")
    return spec.pruned(steps), state_of(module)


def _ratios(module: nn.Module, ratio: float, round_to: int) -> dict[nn.Module, float]:
    """Rounding is done here and not by Torch-Pruning, which rounds down and empties a layer of fewer than `round_to`."""
    ratios: dict[nn.Module, float] = {}
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            channels = layer.weight.shape[0]
            multiple = round_to if channels > round_to else 4 if channels > 4 else 1
            kept = max(multiple, round(channels * (1 - ratio) / multiple) * multiple)
            ratios[layer] = max(0.0, 1.0 - kept / channels)
    return ratios


def _protected(module: nn.Module, spec: ModelSpec) -> list[nn.Module]:
    """Raises `ConfigError` for a factory that protects what its network does not have."""
    layers = dict(module.named_modules())
    names = traits_of(find_factory(spec.factory)).protected
    for name in names:
        if name not in layers:
            raise ConfigError(f"{spec.factory} protects {name!r}, which is no layer of it")
    return [layers[name] for name in names]


def _answers(module: nn.Module, classes: int) -> nn.Module:
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers or layers[-1].weight.shape[0] != classes:
        raise ConfigError("the network's last layer does not give its answers: it cannot be pruned")
    return layers[-1]


def apply_history(module: nn.Module, spec: ModelSpec) -> None:
    """Repeat `spec.history` on a fresh network, in place. Raises `Malformed` for one that does not fit it, or that removes
    outputs of a layer that the factory protects, `ConfigError` for a factory that protects what it does not have.
    """
    _check_history(module, spec)
    protected = {part for layer in _protected(module, spec) for part in layer.modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_batch(spec.schema))
    layers = dict(module.named_modules())
    for step in spec.history:
        layer = layers[step.layer]
        width = int(layer.weight.shape[0 if step.outputs else 1])
        if max(step.channels) >= width or len(step.channels) >= width:
            raise Malformed(f"pruning history removes channels that {step.layer} does not have")
        removal = _removal(graph, layer, step.outputs)
        group = graph.get_pruning_group(layer, removal, list(step.channels))
        if not graph.check_pruning_group(group):
            raise Malformed(f"pruning history would empty a layer at {step.layer}")
        if any(d.target.module in protected and graph.is_out_channel_pruning_fn(d.handler) for d, _ in group):
            raise Malformed(f"pruning history at {step.layer} removes outputs of a layer that {spec.factory} protects")
        group.prune(record_history=False)


def _check_history(module: nn.Module, spec: ModelSpec) -> None:
    layers = dict(module.named_modules())
    for step in spec.history:
        if not isinstance(layers.get(step.layer), nn.Conv1d | nn.Conv2d | nn.Linear):
            raise Malformed(f"pruning history names {step.layer[:80]!r}, which is no layer of {spec.factory}")


def _removal(graph: Any, layer: nn.Module, outputs: bool) -> Any:
    pruner = graph.get_pruner_of_module(layer)
    return pruner.prune_out_channels if outputs else pruner.prune_in_channels


def size_of(spec: ModelSpec) -> Size:
    """Of the float network."""
    module = build(spec).eval()
    with warnings.catch_warnings(), torch.no_grad():
        macs, parameters = torch_pruning.utils.count_ops_and_params(module, example_batch(spec.schema, 1))
    return Size(int(parameters), int(macs))
