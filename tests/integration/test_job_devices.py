"""What devices do to a job that fail, die or come back in the middle of a round."""

import pytest

from coordinator.rounds.round import Outcome
from coordinator.rounds.states import JobState, RoundState
from shared.secagg.messages import RECORD
from shared.session import RunTask
from tests.job_place import Place, Places
from tests.memory_fleet import MemoryAgent, MemoryFleet, Silence, failing


@pytest.mark.parametrize("secure", [False, True])
def test_a_device_whose_app_fails_is_dropped_and_the_round_goes_on(places: Places, secure: bool) -> None:
    place = places.make(MemoryFleet(trainers={3: failing}))

    job = place.run(place.toml(rounds=1, secure=secure))

    (row,) = place.committed(job)
    lost = next(device for device in row.devices if device.device == "dev-3")
    assert lost.outcome is (Outcome.RECOVERED if secure else Outcome.DROPPED)
    assert "out of memory" in lost.reason
    assert row.total_weight == 10 + 20 + 40


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
