"""Secure exchanges for tests: settings, messages, and what the mean of chosen devices must be."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.secure_grid import SecureGrid
from edge_agent.secure_mod import ModPolicy
from shared.flower import new_message
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


def secure(inner: AppGrid, authority: Any, config: SecureConfig = CONFIG) -> tuple[SecureGrid, Recorder]:
    seen = Recorder()
    return SecureGrid(inner, config, authority, observer=seen), seen


def messages(size: int = 5, kind: str = TRAIN, arrays: ArrayRecord | None = None) -> list[Message]:
    record = arrays or start_arrays()
    config = ConfigRecord({"server-round": 1, "lr": 0.1})
    return [
        new_message(RecordDict({"arrays": record, "config": config}), run_id=RUN_ID, node_id=node, message_type=kind)
        for node in range(1, size + 1)
    ]


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
    expected, loss = means_of(nodes)
    got = numpy_arrays(content)
    for name, value in got.items():
        assert (value.dtype, value.shape) == (START[name].dtype, START[name].shape)
        assert np.allclose(value, expected[name], rtol=0, atol=0.5 if value.dtype.kind == "i" else 2e-7), name
    assert content["metrics"]["num-examples"] == 10 * sum(nodes)
    assert content["metrics"]["loss"] == pytest.approx(loss, abs=1e-6)
