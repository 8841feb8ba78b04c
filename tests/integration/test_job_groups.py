"""Jobs whose devices are summed in secret groups: robust strategies run on the real service, and say who was with whom."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from coordinator.rounds.round import Outcome
from coordinator.rounds.states import JobState
from shared.client_apps import UNFIT
from shared.errors import ConfigError, Unsupported
from shared.flower import reply_error, reply_with
from shared.session import RunTask
from tests.job_place import Place, Places
from tests.memory_fleet import MemoryAgent, MemoryFleet
from tests.protocol.secagg.appgrid import START, train

GROUPS = "groups = 3\nmin_group = 5\nmetrics = { loss = 10.0 }\n"


def poisoned(message: Message, context: Context) -> Message:
    """What it learnt, a thousand times over."""
    content = train(message, context).content
    arrays = {name: array.numpy() for name, array in content.array_records["arrays"].items()}
    far = {name: np.asarray(START[name] + 1000 * (value - START[name]), value.dtype) for name, value in arrays.items()}
    records = {"arrays": ArrayRecord({n: Array(v) for n, v in far.items()}), "metrics": content["metrics"]}
    return reply_with(message, RecordDict(records))


@pytest.fixture
def fifteen(places: Places) -> Place:
    return places.make(MemoryFleet(15))


def test_a_job_with_a_robust_strategy_goes_through_the_states_of_one_with_a_single_sum(fifteen: Place) -> None:
    job = fifteen.run(fifteen.toml("fedmedian", rounds=2, secure=True, more=GROUPS))

    assert job.state is JobState.COMPLETED, job.reason
    begin, end = ["PLANNED", "SELECTED"], ["MASKED", "CONFIRMED", "UNMASKED", "AGGREGATED", "COMMITTED"]
    assert fifteen.kinds(job)[2:-1] == [*begin, "KEYS", "SHARES", *end, *begin, *end]
    first, second = fifteen.committed(job)
    for row in (first, second):
        assert row.total_weight == sum(range(10, 160, 10))
        assert sorted(device.group for device in row.devices) == [1] * 5 + [2] * 5 + [3] * 5
        assert {device.outcome for device in row.devices} == {Outcome.COUNTED}
    assert [device.group for device in first.devices] == [device.group for device in second.devices]
    assert {event.detail.get("groups") for event in fifteen.store.events(job.id) if event.kind == "AGGREGATED"} == {3}


def test_a_poisoned_device_moves_the_median_of_groups_much_less_than_the_mean(places: Places) -> None:
    moved = {}
    for strategy in ("fedavg", "fedmedian"):
        found = []
        for name, trainers in (("calm", {}), ("poisoned", {2: poisoned})):
            place = places.make(MemoryFleet(15, trainers), folder=f"{strategy}-{name}")
            job = place.run(place.toml(strategy, rounds=1, secure=True, more=GROUPS + "clip_range = 100.0\n"))
            assert job.state is JobState.COMPLETED, job.reason
            found.append(place.arrays(job)["w"])
        moved[strategy] = np.linalg.norm(found[1] - found[0])
    assert moved["fedmedian"] < 3
    assert moved["fedavg"] > 10


def test_a_group_that_comes_to_no_sum_is_told_of_and_the_round_counts_without_it(fifteen: Place) -> None:
    together: set[str] = set()

    def fail(agent: MemoryAgent, task: RunTask) -> None:
        if task.round == 2 and agent.ref.id in together:
            raise RuntimeError("not today")

    def look(agent: MemoryAgent, task: RunTask) -> None:
        """Once round 1 is committed: two devices that are in one group."""
        if task.round == 2 and not together:
            (row,) = fifteen.committed(fifteen.store.jobs()[0])
            together.update([str(device.device) for device in row.devices if device.group == 2][:2])
        fail(agent, task)

    for agent in fifteen.fleet.agents.values():
        agent.before = look

    job = fifteen.run(fifteen.toml("fedavg", rounds=2, secure=True, more=GROUPS))

    assert job.state is JobState.COMPLETED, job.reason
    _, row = fifteen.committed(job)
    lost = {device.outcome for device in row.devices if device.group == 2}
    assert lost == {Outcome.DROPPED}
    assert {device.outcome for device in row.devices if device.group != 2} == {Outcome.COUNTED}
    innocent = [device.reason for device in row.devices if device.group == 2 and str(device.device) not in together]
    assert all(reason.startswith("its group came to no sum: only 3 devices sent vectors") for reason in innocent)
    assert row.total_weight == sum(10 * int(str(d.device)[4:]) for d in row.devices if d.group != 2)


def test_the_median_is_not_taken_of_two_groups(fifteen: Place) -> None:
    def die(agent: MemoryAgent, task: RunTask) -> None:
        if agent.ref.id in ("dev-1", "dev-2", "dev-3", "dev-4", "dev-5", "dev-6"):
            raise RuntimeError("not today")

    for agent in fifteen.fleet.agents.values():
        agent.before = die

    more = GROUPS + "[selection]\nmin_devices = 15\nquorum = 0.1\nmax_attempts = 2\n"
    job = fifteen.run(fifteen.toml("fedmedian", rounds=1, secure=True, more=more))

    assert (job.state, job.round) == (JobState.FAILED, 0)
    assert "of 3 groups are left, 3 are needed" in job.reason


def test_a_round_whose_devices_that_can_do_it_are_too_few_for_its_groups_is_not_run_again(places: Places) -> None:
    def unfit(message: Message, context: Context) -> Message:
        return reply_error(message, UNFIT, "too large for this device")

    place = places.make(MemoryFleet(15, dict.fromkeys(range(1, 6), unfit)))
    job = place.run(place.toml("fedmedian", rounds=1, secure=True, more=GROUPS))

    assert (job.state, len(place.store.rounds(job.id))) == (JobState.FAILED, 1)
    assert "would end like this again" in job.reason


def test_a_job_is_refused_for_groups_that_could_not_be(fifteen: Place) -> None:
    service = fifteen.start_service()
    for strategy, more, error, says in (
        ("fedmedian", "groups = 2\n", Unsupported, r"set \[secure\] groups to 3 or more"),
        (
            "fedmedian",
            "groups = 3\nmin_group = 6\n",
            ConfigError,
            r"min_devices: fedmedian needs 3 groups of at least 6 .* 18 or more",
        ),
        ("bulyan", "groups = 9\nmin_group = 3\n", Unsupported, "num_malicious_nodes to 1 or more"),
        ("krum", "groups = 9\n", ConfigError, "needs 5 groups of at least 5 devices: set it to 25 or more"),
    ):
        with pytest.raises(error, match=says):
            service.submit(fifteen.toml(strategy, secure=True, more=more))
    assert fifteen.store.jobs() == []
