"""Devices that always change a model alike, and what they owe: what rounding took, by the last round that counted them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.secure_grid import SecureGrid
from edge_agent.residuals import LEFT
from shared.flower import new_message, reply_with
from tests.protocol.secagg.appgrid import AppGrid, make_grid
from tests.protocol.secagg.exchanges import numpy_arrays

Values = np.ndarray[Any, Any]
SIZE = 300
NODES = (1, 2, 3)
CONFIG = SecureConfig(max_weight=100, bits=4, group_rounds=16)
PATTERN = np.random.default_rng(5).standard_normal((11, SIZE)).astype(np.float32)


def towards(message: Message, context: Context) -> Message:
    """The same change in every round, `factor` times, another one on each device."""
    arrays, factor = numpy_arrays(message.content), message.content.config_records["config"]["factor"]
    moved = {name: Array(value + factor * PATTERN[context.node_id][: value.size]) for name, value in arrays.items()}
    metrics = MetricRecord({"num-examples": 10 * context.node_id})
    return reply_with(message, RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics}))


def change_of(size: int = SIZE) -> Values:
    """The mean change of the three in plain sight."""
    return np.average(PATTERN[list(NODES)], axis=0, weights=NODES)[:size]


def three(config: SecureConfig = CONFIG) -> tuple[AppGrid, SecureGrid]:
    inner, authority = make_grid(3, trainers=dict.fromkeys(NODES, towards))
    return inner, SecureGrid(inner, config, authority)


def replies(grid: SecureGrid, kind: str, factor: float, model: Mapping[str, Values]) -> list[RecordDict]:
    """What one exchange with every node comes to, of each group."""
    record = ArrayRecord({name: Array(value) for name, value in model.items()})
    content = RecordDict({"arrays": record, "config": ConfigRecord({"factor": factor})})
    run = inner_of(grid).nodes[1].context.run_id
    nodes = grid.get_node_ids()
    batch = [new_message(content, run_id=run, node_id=node, message_type=kind) for node in nodes]
    return [reply.content for reply in grid.send_and_receive(batch)]


def ask(
    grid: SecureGrid, kind: str = "train", *, factor: float = 1.0, sizes: Mapping[str, int] | None = None
) -> Values:
    """One exchange with every node, over zeros. Returns the change of "w"."""
    zeros = {name: np.zeros(size, np.float32) for name, size in (sizes or {"w": SIZE}).items()}
    (content,) = replies(grid, kind, factor, zeros)
    return numpy_arrays(content)["w"] if kind == "train" else np.zeros(0)


def inner_of(grid: SecureGrid) -> AppGrid:
    assert isinstance(grid.inner, AppGrid)
    return grid.inner


def switch(inner: AppGrid, run: int) -> None:
    """The devices work for another run now, each with the context that it has."""
    for node in inner.nodes.values():
        node.context.run_id = run


def kept(inner: AppGrid, node: int) -> dict[str, dict[str, Values]]:
    """What a device holds, by run and round, and by array."""
    state = inner.nodes[node].context.state
    names = [name for name in state if name.startswith(LEFT)]
    return {
        name.removeprefix(LEFT): {n: array.numpy() for n, array in state.array_records[name].items()} for name in names
    }


def all_owed(grid: SecureGrid, node: int) -> dict[str, Values]:
    """By array, as a device will see it that is told the truth."""
    inner = inner_of(grid)
    run = inner.nodes[node].context.run_id
    return kept(inner, node).get(f"{run}.{grid.carried.counted.get(node, 'none')}", {})


def owed(grid: SecureGrid, node: int) -> Values:
    return all_owed(grid, node).get("w", np.zeros(SIZE, np.float32))
