"""Secure exchanges for tests: settings, messages, and what the mean of chosen devices must be."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.secure_grid import SecureGrid
from edge_agent.secure_mod import GROUP as SLOT
from edge_agent.secure_mod import ModPolicy
from shared.flower import new_message
from shared.secagg.client import Client
from shared.secagg.messages import RECORD
from shared.secagg.policy import Policy
from shared.secagg.terms import Settings
from tests.protocol.secagg.appgrid import (
    RUN_ID,
    START,
    AppGrid,
    Recorder,
    make_grid,
    start_arrays,
)

CONFIG = SecureConfig(
    max_weight=100,
    clip_range=4.0,
    train_metrics={"loss": (0.0, 10.0)},
    evaluate_metrics={"accuracy": (0.0, 1.0)},
)
PLAIN = ModPolicy(allow_plain=True)
TRAIN = "train"
GROUP = ["keys", "shares"]  # the phases that make a small group …
ROUND = ["masked", "confirmed", "unmasked"]  # … and those of each of its rounds
RECOVERY = [*ROUND, "recovered"]
EVERYBODY = {1, 2, 3, 4, 5}  # nodes of an exchange of the usual size
VICTIM = 2  # whom an attack is aimed at


def secure(inner: AppGrid, authority: Any, config: SecureConfig = CONFIG) -> tuple[SecureGrid, Recorder]:
    seen = Recorder()
    return SecureGrid(inner, config, authority, observer=seen), seen


def messages(
    size: int = 5, kind: str = TRAIN, arrays: ArrayRecord | None = None, *, nodes: Iterable[int] = ()
) -> list[Message]:
    """To the nodes 1 to `size`, or to those named."""
    record = arrays or start_arrays()
    config = ConfigRecord({"server-round": 1, "lr": 0.1})
    return [
        new_message(RecordDict({"arrays": record, "config": config}), run_id=RUN_ID, node_id=node, message_type=kind)
        for node in nodes or range(1, size + 1)
    ]


def exchange(grid: SecureGrid, size: int = 5, **options: Any) -> RecordDict:
    """One, whole: what came back."""
    (reply,) = grid.send_and_receive(messages(size, **options))
    return reply.content


def clients(inner: AppGrid, node: int) -> list[Client]:
    """What a device keeps of the groups that it is in."""
    state = inner.nodes[node].context.state
    slots = [state.config_records[name] for name in state if name.startswith(SLOT)]
    return [Client.from_fields(dict(slot), Policy()) for slot in slots]


def numpy_arrays(content: RecordDict) -> dict[str, np.ndarray[Any, Any]]:
    return {name: array.numpy() for name, array in next(iter(content.array_records.values())).items()}


def means_of(nodes: set[int]) -> tuple[dict[str, np.ndarray[Any, Any]], float]:
    """What training on exactly these nodes gives in plain sight: float64 means and mean loss."""
    grid, _ = make_grid(max(nodes), policy=PLAIN)
    replies = {r.metadata.src_node_id: r.content for r in grid.send_and_receive(messages(max(nodes)))}
    weights = {node: number(replies[node], "num-examples") for node in nodes}
    total = sum(weights.values())
    arrays = {
        name: np.sum([w * numpy_arrays(replies[n])[name].astype(np.float64) for n, w in weights.items()], axis=0)
        / total
        for name in START
    }
    return arrays, sum(w * number(replies[n], "loss") for n, w in weights.items()) / total


def number(content: RecordDict, name: str) -> float:
    value = content.metric_records["metrics"][name]
    assert isinstance(value, int | float)
    return value


def assert_mean_of(content: RecordDict, nodes: set[int]) -> None:
    """Of a first exchange, which takes all the bits that a word holds."""
    expected, _ = means_of(nodes)
    for name, value in numpy_arrays(content).items():
        assert (value.dtype, value.shape) == (START[name].dtype, START[name].shape)
        assert np.allclose(value, expected[name], rtol=0, atol=0.5 if value.dtype.kind == "i" else 2e-7), name
    assert_weight_and_loss_of(content, nodes)


def assert_rounded_mean_of(content: RecordDict, nodes: set[int], settings: Settings, seats: int = 5) -> None:
    """Of a later exchange under `settings`, after one over the same values: as far off as rounding may take it."""
    expected, _ = means_of(nodes)
    bounds = rounding_bounds(settings, START, seats, nodes)
    for name, value in numpy_arrays(content).items():
        assert (value.dtype, value.shape) == (START[name].dtype, START[name].shape)
        if value.dtype.kind == "i":
            assert np.allclose(value, expected[name], rtol=0, atol=0.5)
        else:
            assert np.linalg.norm(value - expected[name]) <= bounds[name] + 1e-6, name
    assert_weight_and_loss_of(content, nodes)


def assert_weight_and_loss_of(content: RecordDict, nodes: set[int]) -> None:
    assert content["metrics"]["num-examples"] == 10 * sum(nodes)
    assert content["metrics"]["loss"] == pytest.approx(means_of(nodes)[1], abs=1e-6)


def rounding_bounds(
    settings: Settings, arrays: Mapping[str, np.ndarray[Any, Any]], seats: int, nodes: set[int]
) -> dict[str, float]:
    """How far rounding may move the mean over `nodes`, by float array, in Euclidean norm."""
    return mean_bounds(settings, arrays, seats, len(nodes), 10 * sum(nodes))


def mean_bounds(
    settings: Settings, arrays: Mapping[str, np.ndarray[Any, Any]], seats: int, counted: int, weight: int
) -> dict[str, float]:
    """The same for so many counted devices, which weigh so much together: see `shared.secagg.quantize`."""
    schema = settings.schema(seats, arrays, bytes(32))
    step = schema.clip / schema.levels * schema.unit_weight * counted / weight
    return {item.name: item.scale * step * math.sqrt(schema.elements) for item in schema.floats}


def watch_settings(inner: AppGrid, node: int = 1) -> list[Settings]:
    """What each exchange from now on goes by, as this node is told."""
    found: list[Settings] = []

    def fault(message: Message) -> Message:
        found.append(Settings.from_fields(dict(message.content.config_records[RECORD])))
        return inner.handle(message)

    inner.faults[node, "masked"] = fault
    return found
