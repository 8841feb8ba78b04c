"""Stock Flower strategies and real client apps, with secure aggregation between them."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from coordinator.rounds.exchange import Fate, SecureConfig, Timeouts
from coordinator.rounds.secure_grid import SecureGrid, Sources
from edge_agent.secure_mod import ModPolicy
from shared.clock import ManualClock
from shared.errors import RoundAborted, Unavailable, Unsupported
from shared.flower import decode_records, reply_with
from shared.secagg.graph import Rates
from shared.secagg.messages import RECORD, VECTOR_RECORD
from shared.secagg.packing import Layout
from shared.secagg.schema import BITS
from tests.protocol.secagg.appgrid import (
    RUN_ID,
    START,
    AppGrid,
    Fault,
    Recorder,
    make_grid,
    silent,
    train,
)
from tests.protocol.secagg.exchanges import (
    CONFIG,
    GROUP,
    PLAIN,
    ROUND,
    assert_mean_of,
    exchange,
    messages,
    number,
    numpy_arrays,
    rounding_bounds,
    secure,
    watch_settings,
)

# ---- stock strategies


def build(kind: type[Strategy], **options: Any) -> Callable[[], Strategy]:
    return lambda: kind(min_train_nodes=4, min_evaluate_nodes=4, min_available_nodes=4, **options)  # type: ignore[call-arg]


FLOATS = {name: value for name, value in START.items() if value.dtype.kind == "f"}
STRATEGIES = {  # each with how much it may make of an error in the mean
    "FedAvg": (build(flower.FedAvg), 1.0),
    "FedProx": (build(flower.FedProx, proximal_mu=0.5), 1.0),
    "FedAvgM": (build(flower.FedAvgM, server_learning_rate=0.7, server_momentum=0.9), 3.0),
    "FedAdam": (build(flower.FedAdam, tau=0.1), 2.0),  # eta / tau, of an error and of its square
    "FedYogi": (build(flower.FedYogi, tau=0.1), 2.0),
    "FedAdagrad": (build(flower.FedAdagrad, tau=0.1), 2.0),
}


@pytest.mark.parametrize(("strategy", "growth"), STRATEGIES.values(), ids=STRATEGIES)
def test_a_stock_strategy_gives_what_it_gives_without_secure_aggregation(
    strategy: Callable[[], Strategy], growth: float
) -> None:
    """In the first round to float32, in the second as near as 16 bits an element are."""
    floats = ArrayRecord({name: Array(value) for name, value in FLOATS.items()})
    for rounds in (1, 2):
        plain = strategy().start(make_grid(4, policy=PLAIN)[0], floats, num_rounds=rounds)
        inner, authority = make_grid(4)
        grid, seen = secure(inner, authority, replace(CONFIG, bits=16))
        used = watch_settings(inner)
        result = strategy().start(grid, floats, num_rounds=rounds)
        bounds = dict.fromkeys(FLOATS, 4e-07)
        if rounds == 2:
            last = [item for item in used if item.metrics[0].name == "loss"][-1]
            bounds = rounding_bounds(last, FLOATS, 4, {1, 2, 3, 4})
        for name, array in plain.arrays.items():
            off = np.linalg.norm(result.arrays[name].numpy() - array.numpy())
            assert off <= growth * bounds[name] + 1e-6, name
            assert off < 0.01 * np.linalg.norm(array.numpy() - START[name])
        for server_round in range(1, rounds + 1):
            loss = plain.train_metrics_clientapp[server_round]["loss"]
            assert result.train_metrics_clientapp[server_round]["loss"] == pytest.approx(loss, abs=1e-6)
            accuracy = plain.evaluate_metrics_clientapp[server_round]["accuracy"]
            assert result.evaluate_metrics_clientapp[server_round]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert [item.category for item in seen.summaries] == ["train", "evaluate"] * rounds
        assert {outcome.fate for item in seen.summaries for outcome in item.outcomes.values()} == {Fate.COUNTED}
        assert len({item.round_id for item in seen.summaries}) == 2 * rounds
        assert seen.passed == [[*GROUP, *ROUND], *[ROUND] * (2 * rounds - 1)]


@pytest.mark.parametrize("bits", BITS)
def test_later_exchanges_are_as_near_as_their_bits_allow_and_not_much_nearer(bits: int) -> None:
    inner, authority = make_grid(trainers=dict.fromkeys(range(1, 6), alike))
    grid, _ = secure(inner, authority, replace(CONFIG, bits=bits, feedback=False))
    zeros: dict[str, np.ndarray[Any, Any]] = {"w": np.zeros(2000, np.float32), "b": np.zeros((30, 10), np.float64)}
    batch = messages(arrays=ArrayRecord({name: Array(value) for name, value in zeros.items()}))
    plain = make_grid(5, policy=PLAIN, trainers=dict.fromkeys(range(1, 6), alike))[0].send_and_receive(batch)
    contents = [numpy_arrays(reply.content) for reply in plain]
    grid.send_and_receive(batch)
    for _ in range(3):
        bounds = rounding_bounds(grid.settings("train"), zeros, 5, {1, 2, 3, 4, 5})
        (reply,) = grid.send_and_receive(batch)
        for name, value in numpy_arrays(reply.content).items():
            mean = np.mean([one[name].astype(np.float64) for one in contents], axis=0)
            assert bounds[name] / 50 < np.linalg.norm(value - mean) < bounds[name] + 1e-6, name


def alike(message: Message, context: Context) -> Message:
    """Changes of about the same size on all devices, which weigh the same; in one array much smaller than in the other."""
    rng = np.random.default_rng(context.node_id)
    sizes = {"w": 1.0, "b": 1e-4}
    arrays = numpy_arrays(message.content)
    new = {n: Array(np.asarray(rng.standard_normal(v.shape) * sizes[n], v.dtype)) for n, v in arrays.items()}
    metrics = MetricRecord({"num-examples": 30, "loss": 1.0})
    return reply_with(message, RecordDict({"arrays": ArrayRecord(new), "metrics": metrics}))


def test_the_bytes_of_a_vector_are_those_of_the_formula_and_no_more() -> None:
    inner, authority = make_grid()
    grid, _ = secure(inner, authority)
    arrays = ArrayRecord({"w": Array(np.zeros(100_000, np.float32))})
    for _ in range(2):
        grid.send_and_receive(messages(arrays=arrays))
    first, second = (
        next(iter(decode_records(blob).array_records[VECTOR_RECORD].values())).data
        for node, phase, blob in inner.sent
        if (node, phase) == (1, "masked")
    )
    exact = 3 + 1 + 1  # count, weight, clipped, one array's size, one metric
    assert len(first) == Layout(100_000 + 2 * exact, 32).size
    assert len(second) == Layout(100_000 + 4 * exact, 8 + 3).size
    assert len(second) < 0.35 * 4 * 100_000


def test_a_train_exchange_comes_back_as_one_reply_with_the_mean_and_the_total_weight() -> None:
    grid, seen = secure(*make_grid())
    (reply,) = grid.send_and_receive(messages(), timeout=60)
    assert_mean_of(reply.content, {1, 2, 3, 4, 5})
    assert reply.metadata.src_node_id == 0
    assert seen.fates == dict.fromkeys(range(1, 6), "counted")
    assert seen.summaries[0].total_weight == 150
    assert [str(phase) for phase, _ in seen.phases] == [*GROUP, *ROUND]


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
    grid, seen = secure(*make_grid(policy=ModPolicy(allow_plain=True)))
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
        for phase in (*GROUP, *ROUND):
            inner.faults[node, phase] = spying(inner, requests)
    secure(inner, authority)[0].send_and_receive(messages(3))
    assert calls == [["arrays", "config"]] * 3
    assert {phase for phase, _ in requests} == {*GROUP, *ROUND}
    assert {phase for phase, names in requests if "arrays" in names} == {"masked"}


def spying(grid: AppGrid, requests: list[tuple[str, list[str]]]) -> Fault:
    def fault(message: Message) -> Message:
        requests.append((str(message.content[RECORD]["phase"]), list(message.content)))
        return grid.handle(message)

    return fault


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


def test_another_schema_for_one_device_is_refused_by_it() -> None:
    """A server that shows other settings than it says that all were shown gets no vector."""
    inner, authority = make_grid(3)

    def other(message: Message) -> Message:
        message.content.config_records[RECORD]["float_range"] = 1e-3
        return inner.handle(message)

    inner.faults[1, "masked"] = other
    grid, seen = secure(inner, authority)
    with pytest.raises(RoundAborted):
        grid.send_and_receive(messages(3))
    assert "not those that the others were given" in seen.reason(1)
    assert seen.fates[1] == "rejected"


# ---- time


def test_the_phases_share_the_time_given() -> None:
    clock = ManualClock()
    inner, authority = make_grid(3)
    for node in (1, 2, 3):
        inner.faults[node, "masked"] = spending(inner, clock, 20)
    inner.faults[2, "unmasked"] = silent
    config = SecureConfig(timeouts=Timeouts(before_s=5, masked_s=3600, after_s=10), rates=Rates(0, 0))
    grid = SecureGrid(inner, config, authority, sources=Sources(clock=clock))
    assert_times(inner, grid, 100, [5, 5, 70, 10, 10, 10])
    del inner.faults[2, "unmasked"]
    assert_times(inner, grid, 100, [5, 5, 70, 10, 10])
    assert_times(inner, grid, 100, [70, 10, 10])
    assert_times(inner, grid, None, [3600, 10, 10])


def assert_times(inner: AppGrid, grid: SecureGrid, timeout: float | None, expected: list[float]) -> None:
    inner.budgets.clear()
    grid.send_and_receive(messages(3), timeout=timeout)
    assert inner.budgets == expected


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
    with pytest.raises(RoundAborted, match="ran out of time before the phase confirmed"):
        SecureGrid(inner, CONFIG, authority, observer=seen, sources=Sources(clock=clock)).send_and_receive(
            messages(3), timeout=100
        )
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


class TwiceGrid(AppGrid):
    """As Flower's own, which stamps the messages first and then sends them."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        for message in messages:
            assert message.metadata.dst_node_id
        return list(super().send_and_receive(messages, timeout=timeout))


def test_it_wraps_a_grid_that_goes_over_its_messages_twice() -> None:
    inner, authority = make_grid()
    grid, seen = secure(TwiceGrid(inner.nodes), authority)
    assert_mean_of(exchange(grid), {1, 2, 3, 4, 5})
    assert seen.passed == [[*GROUP, *ROUND]]
