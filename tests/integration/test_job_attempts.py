"""Which rounds are run again, and which end their job: another attempt would not help."""

from collections.abc import Callable

import pytest
from flwr.app import Context, Message

from coordinator.rounds.round import Outcome
from coordinator.rounds.states import JobState, RoundState
from shared.client_apps import UNFIT
from shared.errors import ConfigError, Malformed, StorageFull, Unavailable
from shared.flower import APP_NOT_LOADED, reply_error
from shared.session import RunTask
from tests.job_place import FaultyStore, Place, Places
from tests.memory_fleet import MemoryAgent, MemoryFleet


def fail_once(place: Place, *nodes: int) -> None:
    """In the job's first attempt."""

    def before(agent: MemoryAgent, task: RunTask) -> None:
        if len(place.store.rounds(task.job_id)) == 1:
            raise RuntimeError("not today")

    for node in nodes:
        place.fleet.agents[node].before = before


def test_too_few_counted_devices_abandon_the_round_and_it_is_run_again(place: Place) -> None:
    fail_once(place, 1, 2, 3)

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


@pytest.mark.parametrize("secure", [False, True], ids=["in the open", "in secret"])
@pytest.mark.parametrize("code", [UNFIT, APP_NOT_LOADED], ids=["a task that fits no device", "an app that none has"])
def test_a_round_that_every_device_refuses_for_good_is_not_run_again(places: Places, code: int, secure: bool) -> None:
    place = places.make(MemoryFleet(trainers=dict.fromkeys(range(1, 5), refusing(code))))

    job = place.run(place.toml(rounds=2, secure=secure))

    (row,) = place.store.rounds(job.id)
    assert (job.state, job.round, row.state) == (JobState.FAILED, 0, RoundState.ABANDONED)
    assert "round 1 would end like this again" in job.reason
    assert "lr is positive" in job.reason
    assert "lr is positive" in row.reason
    assert Outcome.REJECTED in {device.outcome for device in row.devices}
    assert len(row.devices) == 4


def test_devices_that_refuse_for_good_cost_nothing_while_the_others_are_enough(places: Places) -> None:
    place = places.make(MemoryFleet(trainers=dict.fromkeys((1, 2), refusing(UNFIT))))

    job = place.run(place.toml(rounds=1))

    (row,) = place.committed(job)
    assert [device.outcome for device in row.devices] == [Outcome.REJECTED] * 2 + [Outcome.COUNTED] * 2


def test_a_round_that_is_short_of_devices_for_other_reasons_too_is_run_again(places: Places) -> None:
    place = places.make(MemoryFleet(trainers={1: refusing(UNFIT)}))

    fail_once(place, 2, 3, 4)

    job = place.run(place.toml(rounds=1))

    assert [row.state for row in place.store.rounds(job.id)] == [RoundState.ABANDONED, RoundState.COMMITTED]


def test_a_round_of_some_devices_is_run_again_with_others(places: Places) -> None:
    """Those who were asked cannot do it; those who will be asked next perhaps can."""
    place = places.make(MemoryFleet(trainers=dict.fromkeys(range(1, 5), refusing(UNFIT))))
    some = "[selection]\nmin_devices = 2\nfraction = 0.5\nmax_attempts = 3\n"

    job = place.run(place.toml(rounds=1, more=some))

    assert "round 1 was abandoned 3 times" in job.reason
    assert len(place.store.rounds(job.id)) == 3


def test_a_round_that_one_device_spoils_is_run_again_when_others_may_still_come(places: Places) -> None:
    place = places.make(MemoryFleet(trainers={1: refusing(UNFIT)}), attach=False)
    agents = list(place.fleet.agents.values())
    for agent in agents[:3]:
        agent.attach()

    def the_last_one_comes(_agent: MemoryAgent, task: RunTask) -> None:
        if len(place.store.rounds(task.job_id)) == 1:
            agents[3].attach()

    agents[0].before = the_last_one_comes

    job = place.run(place.toml(rounds=1, more="[selection]\nmin_devices = 3\nquorum = 0.75\n"))

    assert [row.state for row in place.store.rounds(job.id)] == [RoundState.ABANDONED, RoundState.COMMITTED]


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
