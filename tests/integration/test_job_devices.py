"""What devices do to a job: bad updates, failures, death in the middle of a round."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from coordinator.rounds.memory import MemoryJobStore
from coordinator.rounds.round import Outcome
from coordinator.rounds.states import JobState, RoundState
from shared.client_apps import UNFIT
from shared.errors import ConfigError, Malformed, StorageFull, Unavailable
from shared.flower import APP_NOT_LOADED, reply_error, reply_with
from shared.secagg.messages import RECORD
from shared.session import RunTask
from tests.job_place import OPTIONS, FaultyStore, Place
from tests.memory_fleet import MemoryAgent, MemoryFleet, Silence, failing
from tests.protocol.secagg.appgrid import START, Handler, train


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
    tmp_path: Path, handler: Callable[[Message, Context], Message], reason: str
) -> None:
    place = Place(MemoryFleet(trainers={2: handler}), MemoryJobStore(), tmp_path)
    place.fleet.attach_all()

    job = place.run(place.toml(rounds=1))

    (row,) = place.committed(job)
    found = {str(device.device): (device.outcome, device.reason) for device in row.devices}
    assert found["dev-2"][0] is Outcome.REJECTED
    assert reason in found["dev-2"][1]
    assert [found[f"dev-{node}"] for node in (1, 3, 4)] == [(Outcome.COUNTED, "")] * 3
    assert row.total_weight == 10 + 30 + 40
    assert np.isfinite(place.arrays(job)["w"]).all()
    place.fleet.close()


def test_an_update_with_its_arrays_in_another_order_is_put_in_order(tmp_path: Path) -> None:
    def backwards(message: Message, context: Context) -> Message:
        content = train(message, context).content
        arrays = content.array_records["arrays"]
        ordered = ArrayRecord({name: arrays[name] for name in reversed(list(arrays))})
        return reply_with(message, RecordDict({"metrics": content["metrics"], "other": ordered}))

    place = Place(MemoryFleet(trainers={1: backwards}), MemoryJobStore(), tmp_path)
    usual = Place(MemoryFleet(), MemoryJobStore(), tmp_path)
    for one in (place, usual):
        one.fleet.attach_all()

    for strategy in ("fedavgm", "krum"):
        found, expected = (one.arrays(one.run(one.toml(strategy))) for one in (place, usual))
        assert all((found[name] == expected[name]).all() for name in expected)
    place.fleet.close()
    usual.fleet.close()


@pytest.mark.parametrize("secure", [False, True])
def test_a_device_whose_app_fails_is_dropped_and_the_round_goes_on(tmp_path: Path, secure: bool) -> None:
    place = Place(MemoryFleet(trainers={3: failing}), MemoryJobStore(), tmp_path)
    place.fleet.attach_all()

    job = place.run(place.toml(rounds=1, secure=secure))

    (row,) = place.committed(job)
    lost = next(device for device in row.devices if device.device == "dev-3")
    assert lost.outcome is (Outcome.RECOVERED if secure else Outcome.DROPPED)
    assert "out of memory" in lost.reason
    assert row.total_weight == 10 + 20 + 40
    place.fleet.close()


def test_a_device_killed_after_it_dealt_its_shares_is_recovered_and_takes_part_in_the_next_round(place: Place) -> None:
    def die_in_round_one(agent: MemoryAgent, task: RunTask) -> None:
        if task.round == 1 and "MASKED" not in place.kinds(place.store.jobs()[0]) and shares_dealt():
            agent.restart()
            raise Silence

    def shares_dealt() -> bool:
        return "SHARES" in place.kinds(place.store.jobs()[0])

    place.fleet.agents[2].before = die_in_round_one

    job = place.run(place.toml(rounds=2, secure=True))

    first, second = place.committed(job)
    outcomes = [{str(device.device): device.outcome for device in row.devices} for row in (first, second)]
    assert outcomes[0]["dev-2"] is Outcome.RECOVERED
    assert outcomes[1]["dev-2"] is Outcome.COUNTED
    assert (first.total_weight, second.total_weight) == (10 + 30 + 40, 100)


@pytest.mark.parametrize("phase", ["confirmed", "unmasked"])
def test_a_device_killed_after_it_sent_its_update_is_counted_and_the_round_says_what_became_of_it(
    place: Place, phase: str
) -> None:
    def die(agent: MemoryAgent, task: RunTask) -> None:
        if task.round == 2 and agent._content(task.parts).config_records[RECORD]["phase"] == phase and not died:
            died.append(phase)
            agent.restart()
            raise Silence

    died: list[str] = []
    place.fleet.agents[2].before = die

    job = place.run(place.toml(rounds=3, secure=True))

    rows = place.committed(job)
    assert [{device.outcome for device in row.devices} for row in rows] == [{Outcome.COUNTED}] * 3
    assert [row.total_weight for row in rows] == [100] * 3
    assert {str(device.device): device.reason for device in rows[1].devices if device.reason} == {
        "dev-2": f"{phase}: the agent came back without this task"
    }
    recovered = [event.round for event in place.store.events(job.id) if event.kind == "RECOVERED"]
    assert recovered == [2]
    assert [event.round for event in place.store.events(job.id) if event.kind == "KEYS"] == [1, 3]


def test_a_device_restarted_between_rounds_is_rejected_once_with_the_reason(place: Place) -> None:
    def lose(agent: MemoryAgent, task: RunTask) -> None:
        if task.round == 2 and not lost:
            lost.append(agent.ref.id)
            agent._contexts.clear()  # its trainer was let go: the task is there, the keys are not

    lost: list[str] = []
    place.fleet.agents[3].before = lose

    job = place.run(place.toml(rounds=3, secure=True))

    first, second, third = place.committed(job)
    (found,) = [device for device in second.devices if device.outcome is not Outcome.COUNTED]
    assert (found.device, found.outcome) == ("dev-3", Outcome.REJECTED)
    assert found.reason.startswith("masked: this device has no keys for this group")
    assert (first.total_weight, second.total_weight, third.total_weight) == (100, 10 + 20 + 40, 100)
    assert [row.attempt for row in (first, second, third)] == [1, 1, 1]


def test_devices_that_have_all_lost_their_keys_cost_one_attempt(place: Place) -> None:
    def lose(agent: MemoryAgent, task: RunTask) -> None:
        if task.round == 2 and agent.ref.id not in lost:
            lost.add(agent.ref.id)
            agent._contexts.clear()

    lost: set[str] = set()
    for agent in place.fleet.agents.values():
        agent.before = lose

    job = place.run(place.toml(rounds=2, secure=True))

    assert (job.state, job.round) == (JobState.COMPLETED, 2)
    _, wasted, second = place.store.rounds(job.id)
    assert (wasted.state, wasted.attempt, second.attempt) == (RoundState.ABANDONED, 1, 2)
    assert "of 4 rejected: masked: this device has no keys for this group" in wasted.reason
    assert second.total_weight == 100


def test_too_few_counted_devices_abandon_the_round_and_it_is_run_again(place: Place) -> None:
    def fail_once(agent: MemoryAgent, task: RunTask) -> None:
        if len(place.store.rounds(task.job_id)) == 1:
            raise RuntimeError("not today")

    for node in (1, 2, 3):
        place.fleet.agents[node].before = fail_once

    job = place.run(place.toml(rounds=1))

    lost, counted = place.store.rounds(job.id)
    assert (lost.state, counted.state, counted.attempt) == (RoundState.ABANDONED, RoundState.COMMITTED, 2)
    assert lost.reason.endswith("of 4 devices counted, 2 are needed")
    assert [device.reason for device in lost.devices].count("RuntimeError: not today") == 3
    assert lost.total_weight == 0


def test_a_job_whose_rounds_keep_failing_fails_with_the_reason_and_keeps_what_is_committed(place: Place) -> None:
    def fail_from_round_two(agent: MemoryAgent, task: RunTask) -> None:
        if task.round > 1:
            raise RuntimeError("no more")

    for agent in place.fleet.agents.values():
        agent.before = fail_from_round_two
    selection = "[selection]\nmin_devices = 4\nmax_attempts = 2\n"

    job = place.run(place.toml(rounds=3, more=selection))

    assert (job.state, job.round) == (JobState.FAILED, 1)
    assert "round 2 was abandoned 2 times" in job.reason
    assert place.arrays(job)["w"].shape == (3, 4)


def test_a_job_that_fails_of_rejected_updates_says_what_was_wrong_with_them(tmp_path: Path) -> None:
    handler, reason = BAD_UPDATES["no arrays"]
    place = Place(MemoryFleet(trainers=dict.fromkeys((1, 2, 3), handler)), MemoryJobStore(), tmp_path)
    place.fleet.attach_all()
    job = place.run(place.toml(rounds=1, more="[selection]\nmin_devices = 4\nquorum = 0.5\nmax_attempts = 1\n"))
    assert job.state is JobState.FAILED
    assert f"3 of 4 rejected: {reason}" in job.reason
    place.fleet.close()


def test_an_aggregate_that_overflows_never_becomes_the_global_model(place: Place) -> None:
    selection = "[selection]\nmin_devices = 4\nmax_attempts = 1\n"
    huge = "options = { server_momentum = 0.9, server_learning_rate = 1e308 }"
    toml = place.toml("fedavgm", rounds=1, more=selection).replace(OPTIONS["fedavgm"], huge)

    job = place.run(toml)

    assert job.state is JobState.FAILED
    assert "not finite" in job.reason
    assert job.round == 0


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
def test_an_attempt_that_fails_after_aggregation_leaves_no_trace_in_the_strategys_memory(
    place: Place, strategy: str
) -> None:
    usual = place.arrays(place.run(place.toml(strategy)))
    full = FaultyStore(place.store, fail_at=("commit", 2, ""), error=StorageFull("no space"))

    service = place.start_service(full)
    job = service.wait(service.submit(place.toml(strategy)).id, 30.0)

    assert full.failures == 1
    assert [row.attempt for row in place.committed(job)] == [1, 2, 1]
    assert place.store.rounds(job.id)[1].reason == "no space"
    assert [place.losses(one) for one in place.store.jobs()] == [[], []]
    assert all((place.arrays(job)[name] == usual[name]).all() for name in usual)


def test_a_database_that_does_not_answer_is_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.rounds.service.STORE_RETRY_S", 0.01)
    usual = place.arrays(place.run(place.toml("fedadam")))
    for call in [("commit", 2, ""), ("begin", 2, ""), ("change", 0, "job.completed")]:
        away = FaultyStore(place.store, fail_at=call, error=Unavailable("no answer"))
        service = place.start_service(away)

        job = service.wait(service.submit(place.toml("fedadam")).id, 30.0)

        assert (job.state, away.failures, place.losses(job)) == (JobState.COMPLETED, 1, [])
        assert all((place.arrays(job)[name] == usual[name]).all() for name in usual)


# ---- what another attempt would not help


def refusing(code: int, reason: str = "lr is positive") -> Callable[[Message, Context], Message]:
    def handler(message: Message, context: Context) -> Message:
        return reply_error(message, code, reason)

    return handler


def place_with(tmp_path: Path, trainers: Mapping[int, Handler]) -> Place:
    found = Place(MemoryFleet(trainers=trainers), MemoryJobStore(), tmp_path)
    found.fleet.attach_all()
    return found


@pytest.mark.parametrize("secure", [False, True], ids=["in the open", "in secret"])
@pytest.mark.parametrize("code", [UNFIT, APP_NOT_LOADED], ids=["a task that fits no device", "an app that none has"])
def test_a_round_that_every_device_refuses_for_good_is_not_run_again(tmp_path: Path, code: int, secure: bool) -> None:
    place = place_with(tmp_path, dict.fromkeys(range(1, 5), refusing(code)))

    job = place.run(place.toml(rounds=2, secure=secure))

    (row,) = place.store.rounds(job.id)
    assert (job.state, job.round, row.state) == (JobState.FAILED, 0, RoundState.ABANDONED)
    assert "round 1 would end like this again" in job.reason
    assert "lr is positive" in job.reason
    assert "lr is positive" in row.reason
    assert Outcome.REJECTED in {device.outcome for device in row.devices}
    assert len(row.devices) == 4
    place.fleet.close()


def test_devices_that_refuse_for_good_cost_nothing_while_the_others_are_enough(tmp_path: Path) -> None:
    place = place_with(tmp_path, dict.fromkeys((1, 2), refusing(UNFIT)))

    job = place.run(place.toml(rounds=1))

    (row,) = place.committed(job)
    assert [device.outcome for device in row.devices] == [Outcome.REJECTED] * 2 + [Outcome.COUNTED] * 2
    place.fleet.close()


def test_a_round_that_is_short_of_devices_for_other_reasons_too_is_run_again(tmp_path: Path) -> None:
    place = place_with(tmp_path, {1: refusing(UNFIT)})

    def fail_once(agent: MemoryAgent, task: RunTask) -> None:
        if len(place.store.rounds(task.job_id)) == 1:
            raise RuntimeError("not today")

    for node in (2, 3, 4):
        place.fleet.agents[node].before = fail_once

    job = place.run(place.toml(rounds=1))

    assert [row.state for row in place.store.rounds(job.id)] == [RoundState.ABANDONED, RoundState.COMMITTED]
    place.fleet.close()


def test_a_round_of_some_devices_is_run_again_with_others(tmp_path: Path) -> None:
    """Those who were asked cannot do it; those who will be asked next perhaps can."""
    place = place_with(tmp_path, dict.fromkeys(range(1, 5), refusing(UNFIT)))
    some = "[selection]\nmin_devices = 2\nfraction = 0.5\nmax_attempts = 3\n"

    job = place.run(place.toml(rounds=1, more=some))

    assert "round 1 was abandoned 3 times" in job.reason
    assert len(place.store.rounds(job.id)) == 3
    place.fleet.close()


def test_a_round_that_one_device_spoils_is_run_again_when_others_may_still_come(tmp_path: Path) -> None:
    place = Place(MemoryFleet(trainers={1: refusing(UNFIT)}), MemoryJobStore(), tmp_path)
    agents = list(place.fleet.agents.values())
    for agent in agents[:3]:
        agent.attach()

    def the_last_one_comes(_agent: MemoryAgent, task: RunTask) -> None:
        if len(place.store.rounds(task.job_id)) == 1:
            agents[3].attach()

    agents[0].before = the_last_one_comes

    job = place.run(place.toml(rounds=1, more="[selection]\nmin_devices = 3\nquorum = 0.75\n"))

    assert [row.state for row in place.store.rounds(job.id)] == [RoundState.ABANDONED, RoundState.COMMITTED]
    place.fleet.close()


OURS: dict[str, tuple[Exception, str]] = {
    "an input error": (ConfigError("pruning leaves every layer as it is"), "pruning leaves every layer as it is"),
    "a damaged file": (Malformed("public.npz holds no arrays"), "public.npz holds no arrays"),
    "a mistake of ours": (KeyError("a mistake"), "internal error: KeyError: 'a mistake'"),
}


@pytest.mark.parametrize(("error", "reason"), OURS.values(), ids=OURS)
def test_a_job_that_ends_of_our_own_error_leaves_no_round_open(place: Place, error: Exception, reason: str) -> None:
    def raises(step: str) -> None:
        if step == "prune":
            raise error

    place.models.before = raises
    toml = place.toml(rounds=2, top='model = "digits"', more="[[prune]]\nafter_round = 1\nratio = 0.3\n")

    job = place.run(toml)

    (row,) = place.store.rounds(job.id)
    assert (job.state, job.reason) == (JobState.FAILED, reason)
    assert (row.state, row.reason, len(row.devices)) == (RoundState.ABANDONED, reason, 4)
    assert row.ended_at > 0
    assert place.kinds(job)[-2:] == ["ABANDONED", "job.failed"]
    assert list(place.fleet.lasting.digests()) == [job.arrays_digest]


def test_a_round_whose_end_cannot_be_written_at_once_ends_with_its_job(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def configure_train(*arguments: object) -> list[Message]:
        raise TypeError("a mistake in a strategy")

    monkeypatch.setattr("flwr.serverapp.strategy.FedAvg.configure_train", configure_train)
    broken = FaultyStore(place.store, fail_at=("abandon", 1, ""), error=TypeError("a mistake in the store"))
    service = place.start_service(broken)

    job = service.wait(service.submit(place.toml()).id, 30.0)

    (row,) = place.store.rounds(job.id)
    assert (broken.failures, job.state, row.state) == (1, JobState.FAILED, RoundState.ABANDONED)
    assert row.reason == job.reason == "internal error: TypeError: a mistake in the store"
