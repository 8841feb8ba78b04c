"""What a bad update costs: the device that sent it, never the job's model."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from coordinator.rounds.round import Outcome
from coordinator.rounds.states import JobState
from shared.flower import reply_with
from tests.job_place import OPTIONS, Place, Places
from tests.memory_fleet import MemoryFleet
from tests.protocol.secagg.appgrid import START, train


def hurt(value: float) -> Callable[[Message, Context], Message]:
    def handler(message: Message, context: Context) -> Message:
        reply = train(message, context)
        arrays = {name: array.numpy().copy() for name, array in reply.content.array_records["arrays"].items()}
        arrays["w"][0, 0] = value
        return reply_with(
            message, RecordDict({**reply.content, "arrays": ArrayRecord({n: Array(v) for n, v in arrays.items()})})
        )

    return handler


def changed(**records: ArrayRecord | MetricRecord | None) -> Callable[[Message, Context], Message]:
    def handler(message: Message, context: Context) -> Message:
        content = {**train(message, context).content, **records}
        return reply_with(message, RecordDict({name: item for name, item in content.items() if item is not None}))

    return handler


def arrays_with(**others: Array) -> Callable[[Message, Context], Message]:
    return changed(arrays=ArrayRecord({**{name: Array(value) for name, value in START.items()}, **others}))


def metrics_with(**others: float) -> Callable[[Message, Context], Message]:
    return changed(metrics=MetricRecord({"num-examples": 1, "loss": 1.0, "private": 1.0, **others}))


LYING = Array("float32", (3, 4), "numpy.ndarray", Array(np.zeros(5)).data)
NO_WEIGHT = "num-examples is not a positive whole number"
BAD_UPDATES: dict[str, tuple[Callable[[Message, Context], Message], str]] = {
    "NaN": (hurt(float("nan")), "w holds NaN or infinite values"),
    "infinity": (hurt(float("inf")), "w holds NaN or infinite values"),
    "another shape": (arrays_with(w=Array(np.zeros((4, 3), np.float32))), "w is float32 (4, 3), not float32 (3, 4)"),
    "another dtype": (arrays_with(w=Array(np.zeros((3, 4)))), "w is float64 (3, 4), not float32 (3, 4)"),
    "a name too many": (arrays_with(extra=Array(START["w"])), "other names than the model's"),
    "a name too few": (changed(arrays=ArrayRecord({"w": Array(START["w"])})), "other names than the model's"),
    "bytes that lie about their shape": (arrays_with(w=LYING), "an array is not what it says it is"),
    "no arrays": (changed(arrays=None), "an update holds one ArrayRecord"),
    "no metrics": (changed(metrics=None), "an update holds one MetricRecord"),
    "no weight": (changed(metrics=MetricRecord({"loss": 1.0})), NO_WEIGHT),
    "a weight of zero": (metrics_with(**{"num-examples": 0}), NO_WEIGHT),
    "a negative weight": (metrics_with(**{"num-examples": -5}), NO_WEIGHT),
    "half an example": (metrics_with(**{"num-examples": 0.5}), NO_WEIGHT),
    "a weight that drowns the others": (metrics_with(**{"num-examples": 1e300}), NO_WEIGHT),
    "a metric that is not finite": (metrics_with(loss=float("nan")), "metric loss is not finite"),
    "other metrics than the rest": (metrics_with(mine=1.0), "its metrics are not those that most devices report"),
}


@pytest.mark.parametrize(("handler", "reason"), BAD_UPDATES.values(), ids=BAD_UPDATES)
def test_a_bad_update_is_rejected_by_name_with_the_reason_and_the_round_goes_on(
    places: Places, handler: Callable[[Message, Context], Message], reason: str
) -> None:
    place = places.make(MemoryFleet(trainers={2: handler}))

    job = place.run(place.toml(rounds=1))

    (row,) = place.committed(job)
    found = {str(device.device): (device.outcome, device.reason) for device in row.devices}
    assert found["dev-2"][0] is Outcome.REJECTED
    assert reason in found["dev-2"][1]
    assert [found[f"dev-{node}"] for node in (1, 3, 4)] == [(Outcome.COUNTED, "")] * 3
    assert row.total_weight == 10 + 30 + 40
    assert np.isfinite(place.arrays(job)["w"]).all()


def test_an_update_with_its_arrays_in_another_order_is_put_in_order(places: Places) -> None:
    def backwards(message: Message, context: Context) -> Message:
        content = train(message, context).content
        arrays = content.array_records["arrays"]
        ordered = ArrayRecord({name: arrays[name] for name in reversed(list(arrays))})
        return reply_with(message, RecordDict({"metrics": content["metrics"], "other": ordered}))

    place, usual = places.make(MemoryFleet(trainers={1: backwards})), places.make()

    for strategy in ("fedavgm", "krum"):
        found, expected = (one.arrays(one.run(one.toml(strategy))) for one in (place, usual))
        assert all((found[name] == expected[name]).all() for name in expected)


def test_a_job_that_fails_of_rejected_updates_says_what_was_wrong_with_them(places: Places) -> None:
    handler, reason = BAD_UPDATES["no arrays"]
    place = places.make(MemoryFleet(trainers=dict.fromkeys((1, 2, 3), handler)))
    job = place.run(place.toml(rounds=1, more="[selection]\nmin_devices = 4\nquorum = 0.5\nmax_attempts = 1\n"))
    assert job.state is JobState.FAILED
    assert f"3 of 4 rejected: {reason}" in job.reason


def test_an_aggregate_that_overflows_never_becomes_the_global_model(place: Place) -> None:
    selection = "[selection]\nmin_devices = 4\nmax_attempts = 1\n"
    huge = "options = { server_momentum = 0.9, server_learning_rate = 1e308 }"
    toml = place.toml("fedavgm", rounds=1, more=selection).replace(OPTIONS["fedavgm"], huge)

    job = place.run(toml)

    assert job.state is JobState.FAILED
    assert "not finite" in job.reason
    assert job.round == 0
