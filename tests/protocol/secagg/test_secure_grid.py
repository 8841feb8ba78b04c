"""Stock Flower strategies and real client apps, with secure aggregation between them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from coordinator.rounds.exchange import SecureConfig, Timeouts
from coordinator.rounds.secure_grid import SecureGrid
from shared.clock import ManualClock
from shared.errors import RoundAborted, Unavailable, Unsupported
from shared.flower import decode_records
from shared.secagg.messages import RECORD, VECTOR_RECORD, WORDS_TYPE
from tests.protocol.secagg.appgrid import (
    RUN_ID,
    START,
    AppGrid,
    Fault,
    Recorder,
    make_grid,
    train,
)
from tests.protocol.secagg.exchanges import (
    CONFIG,
    PLAIN,
    assert_mean_of,
    messages,
    number,
    numpy_arrays,
    secure,
)

# ---- stock strategies


def build(kind: type[Strategy], **options: Any) -> Callable[[], Strategy]:
    return lambda: kind(min_train_nodes=4, min_evaluate_nodes=4, min_available_nodes=4, **options)  # type: ignore[call-arg]


STRATEGIES = {
    "FedAvg": (build(flower.FedAvg), 1.0),
    "FedProx": (build(flower.FedProx, proximal_mu=0.5), 1.0),
    "FedAvgM": (build(flower.FedAvgM, server_learning_rate=0.7, server_momentum=0.9), 3.0),
    "FedAdam": (build(flower.FedAdam), 100.0),  # an error may grow by eta / tau
    "FedYogi": (build(flower.FedYogi), 100.0),
    "FedAdagrad": (build(flower.FedAdagrad), 100.0),
}


@pytest.mark.parametrize(("strategy", "growth"), STRATEGIES.values(), ids=STRATEGIES)
def test_a_stock_strategy_gives_what_it_gives_without_secure_aggregation(
    strategy: Callable[[], Strategy], growth: float
) -> None:
    """Two rounds. Both runs round to float32 (1e-7), secure aggregation to 4 * 100 / 2^29 / total weight (1e-8)."""
    floats = ArrayRecord({name: Array(value) for name, value in START.items() if value.dtype.kind == "f"})
    plain = strategy().start(make_grid(4, policy=PLAIN)[0], floats, num_rounds=2)
    grid, seen = secure(*make_grid(4))
    result = strategy().start(grid, floats, num_rounds=2)
    for name, array in plain.arrays.items():
        assert np.allclose(result.arrays[name].numpy(), array.numpy(), rtol=0, atol=2e-7 * growth * 2), name
    for server_round in (1, 2):
        loss = plain.train_metrics_clientapp[server_round]["loss"]
        assert result.train_metrics_clientapp[server_round]["loss"] == pytest.approx(loss, abs=1e-6)
        accuracy = plain.evaluate_metrics_clientapp[server_round]["accuracy"]
        assert result.evaluate_metrics_clientapp[server_round]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert [item.category for item in seen.summaries] == ["train", "evaluate"] * 2
    assert {fate for item in seen.summaries for fate in item.outcomes.values()} == set(
        seen.summaries[0].outcomes.values()
    )
    assert len({item.round_id for item in seen.summaries}) == 4


def test_a_train_exchange_comes_back_as_one_reply_with_the_mean_and_the_total_weight() -> None:
    grid, seen = secure(*make_grid())
    (reply,) = grid.send_and_receive(messages(), timeout=60)
    assert_mean_of(reply.content, {1, 2, 3, 4, 5})
    assert reply.metadata.src_node_id == 0
    assert seen.fates == dict.fromkeys(range(1, 6), "counted")
    assert seen.summaries[0].total_weight == 150
    assert [str(phase) for phase, _ in seen.phases] == ["keys", "shares", "masked", "unmasked"]


def test_integer_arrays_come_back_as_integers_nearest_the_mean() -> None:
    grid, _ = secure(*make_grid(3))
    (reply,) = grid.send_and_receive(messages(3))
    mean = (1 * 1 + 2 * 2 + 3 * 3) / 6  # each node adds its id, weighted by its id
    assert numpy_arrays(reply.content)["steps"].tolist() == [round(10 + mean), round(20 + mean)]


def test_an_evaluate_exchange_gives_mean_metrics_and_no_arrays() -> None:
    grid, _ = secure(*make_grid())
    (reply,) = grid.send_and_receive(messages(kind="evaluate"))
    assert list(reply.content) == ["metrics"]
    assert reply.content["metrics"]["num-examples"] == 75
    assert reply.content["metrics"]["accuracy"] == pytest.approx(sum(n * n for n in range(1, 6)) / 150, abs=1e-6)


def test_a_query_passes_through_and_so_does_an_empty_batch() -> None:
    grid, seen = secure(*make_grid())
    replies = list(grid.send_and_receive(messages(kind="query")))
    assert sorted(number(reply.content, "node") for reply in replies) == [1, 2, 3, 4, 5]
    assert list(grid.send_and_receive([])) == []
    assert seen.summaries == []


def test_the_rest_of_a_grid_is_the_inner_one() -> None:
    inner, authority = make_grid(2)
    grid, _ = secure(inner, authority)
    assert (list(grid.get_node_ids()), grid.run) == ([1, 2], RUN_ID)
    message = grid.create_message(RecordDict(), "query", 1, "g")
    message.metadata.__dict__["_message_id"] = "q1"
    assert list(grid.pull_messages(grid.push_messages([message]))) == [message]


# ---- what leaves a device


def test_flower_weakness_metrics_and_counts_in_clear_here_a_reply_holds_one_masked_vector() -> None:
    inner, authority = make_grid()
    secure(inner, authority)[0].send_and_receive(messages(), timeout=60)
    masked = {node: decode_records(blob) for node, phase, blob in inner.sent if phase == "masked"}
    assert set(masked) == {1, 2, 3, 4, 5}
    for content in masked.values():
        assert set(content) == {RECORD, VECTOR_RECORD}
        assert set(content[RECORD]) == {"phase", "round_id"}
        (vector,) = content.array_records[VECTOR_RECORD].values()
        assert (vector.dtype, vector.stype) == ("uint32", WORDS_TYPE)
        assert len(vector.data) == 4 * (2 + 1 + sum(value.size for value in START.values()))


def test_an_undeclared_metric_stays_on_the_device() -> None:
    inner, authority = make_grid()
    (reply,) = secure(inner, authority)[0].send_and_receive(messages())
    assert "private" not in reply.content["metrics"]
    assert not any(b"private" in blob for _, _, blob in inner.sent)


def test_nothing_but_the_masked_phase_carries_the_model_or_reaches_the_app() -> None:
    calls: list[list[str]] = []

    def counting(message: Message, context: Context) -> Message:
        calls.append(sorted(message.content))
        return train(message, context)

    inner, authority = make_grid(3, trainers=dict.fromkeys((1, 2, 3), counting))
    requests: list[tuple[str, list[str]]] = []
    for node in (1, 2, 3):
        for phase in ("keys", "shares", "masked", "unmasked"):
            inner.faults[node, phase] = spying(inner, requests)
    secure(inner, authority)[0].send_and_receive(messages(3))
    assert calls == [["arrays", "config"]] * 3
    assert {phase for phase, names in requests if "arrays" in names} == {"masked"}


def spying(grid: AppGrid, requests: list[tuple[str, list[str]]]) -> Fault:
    def fault(message: Message) -> Message:
        requests.append((str(message.content[RECORD]["phase"]), list(message.content)))
        return grid.handle(message)

    return fault


def test_flower_weakness_legacy_api_only_here_new_style_messages_and_mods() -> None:
    """`ClientApp.train` with `Message` in and out is all that is used: see `appgrid.make_grid`."""
    (reply,) = secure(*make_grid(3))[0].send_and_receive(messages(3))
    assert isinstance(reply, Message)


# ---- what a secure exchange cannot be


def personal() -> list[Message]:
    batch = messages(3)
    other = ArrayRecord({name: Array(np.asarray(value + 1)) for name, value in START.items()})
    return [*batch[:2], *messages(3, arrays=other)[2:]]


def without_arrays() -> list[Message]:
    batch = messages(3)
    for message in batch:
        message.content = RecordDict({"config": ConfigRecord({})})
    return batch


def of_dtype(dtype: str) -> list[Message]:
    return messages(3, arrays=ArrayRecord({"w": Array(np.zeros(2, dtype))}))


IMPOSSIBLE: dict[str, Callable[[], list[Message]]] = {
    "train and evaluate at once": lambda: [*messages(3)[:2], *messages(3, kind="evaluate")[2:]],
    "two messages to one device": lambda: [*messages(3), *messages(1)],
    "different arrays for different devices": personal,
    "no arrays": without_arrays,
    "bool arrays": lambda: of_dtype("bool"),
    "64-bit unsigned arrays": lambda: of_dtype("uint64"),
}


@pytest.mark.parametrize("batch", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_exchange_with(batch: Callable[[], list[Message]]) -> None:
    """… is refused before any device hears of it."""
    inner, authority = make_grid(3)
    with pytest.raises(Unsupported):
        secure(inner, authority)[0].send_and_receive(batch())
    assert inner.budgets == []


def test_equal_arrays_in_different_records_are_the_same_arrays() -> None:
    batch = [message for node in range(3) for message in messages(3)[node : node + 1]]
    (reply,) = secure(*make_grid(3))[0].send_and_receive(batch)
    assert_mean_of(reply.content, {1, 2, 3})


def test_train_messages_cannot_be_pushed_past_the_masks() -> None:
    inner, authority = make_grid(3)
    with pytest.raises(Unsupported, match="send_and_receive"):
        secure(inner, authority)[0].push_messages(messages(3))
    assert inner.pushed == []


def test_a_change_of_schema_between_keys_and_training_is_refused_by_the_device() -> None:
    """A server that shows other arrays, or other settings, than the devices signed for gets no vector."""
    inner, authority = make_grid(3)

    def other(message: Message) -> Message:
        message.content.config_records[RECORD]["float_range"] = 1e-3
        return inner.handle(message)

    inner.faults[1, "masked"] = other
    grid, seen = secure(inner, authority)
    with pytest.raises(RoundAborted):
        grid.send_and_receive(messages(3))
    assert "not those its keys were made for" in seen.reason(1)
    assert seen.fates[1] == "rejected"


# ---- time


def test_the_phases_share_the_time_given() -> None:
    clock = ManualClock()
    inner, authority = make_grid(3)
    for node in (1, 2, 3):
        inner.faults[node, "masked"] = spending(inner, clock, 20)
    config = SecureConfig(timeouts=Timeouts(keys_s=5, shares_s=5, masked_s=3600, unmasked_s=10))
    SecureGrid(inner, config, authority, clock=clock).send_and_receive(messages(3), timeout=100)
    assert inner.budgets == [5, 5, 90, 10]
    inner.budgets.clear()
    SecureGrid(inner, config, authority, clock=clock).send_and_receive(messages(3), timeout=None)
    assert inner.budgets == [5, 5, 3600, 10]


def spending(grid: AppGrid, clock: ManualClock, seconds: float) -> Fault:
    def fault(message: Message) -> Message:
        clock.advance(seconds)
        return grid.handle(message)

    return fault


def test_an_exchange_that_runs_out_of_time_aborts() -> None:
    clock = ManualClock()
    inner, authority = make_grid(3)
    inner.faults[3, "masked"] = spending(inner, clock, 101)
    seen = Recorder()
    with pytest.raises(RoundAborted, match="ran out of time before the phase unmasked"):
        SecureGrid(inner, CONFIG, authority, observer=seen, clock=clock).send_and_receive(messages(3), timeout=100)
    assert seen.fates == dict.fromkeys((1, 2, 3), "abandoned")


def test_an_inner_grid_that_fails_closes_the_exchange_too() -> None:
    class Down(AppGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            raise Unavailable("the hub is stopping")

    inner, authority = make_grid(3)
    grid, seen = secure(Down(inner.nodes), authority)
    with pytest.raises(Unavailable):
        grid.send_and_receive(messages(3))
    assert [summary.aborted for summary in seen.summaries] == ["the hub is stopping"]
