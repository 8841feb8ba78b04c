"""Whole jobs: the real service, strategies, store and secure aggregation, on a fleet in memory that runs real client apps."""

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from coordinator.rounds.round import Outcome
from coordinator.rounds.states import JobState
from shared.errors import StorageFull, Unsupported
from shared.ids import DeviceId
from shared.learning.spec import ModelSpec
from shared.secagg.messages import RECORD, Phase
from shared.session import RunTask
from tests.job_place import SMALLER, FaultyStore, Place
from tests.memory_fleet import MemoryAgent
from tests.protocol.secagg.appgrid import START

LINEAR = ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"]


def test_a_plain_job_runs_through_every_state_and_each_transition_is_on_record(place: Place) -> None:
    job = place.run(place.toml(rounds=2))

    assert (job.state, job.round) == (JobState.COMPLETED, 2)
    one = ["PLANNED", "SELECTED", "TRAINED", "AGGREGATED", "COMMITTED"]
    assert place.kinds(job) == ["job.submitted", "job.running", *one, *one, "job.completed"]
    rows = place.committed(job)
    assert [row.round for row in rows] == [1, 2]
    assert all(row.total_weight == 10 + 20 + 30 + 40 == sum(d.weight for d in row.devices) for row in rows)
    assert {d.outcome for row in rows for d in row.devices} == {Outcome.COUNTED}
    assert rows[-1].metrics["loss"] == pytest.approx((10 + 20 / 2 + 30 / 3 + 40 / 4) / 100)


def test_a_plain_job_gives_the_weighted_mean_in_the_models_own_dtypes(place: Place) -> None:
    arrays = place.arrays(place.run(place.toml(rounds=1)))

    goals = {node: _goal(node) for node in range(1, 5)}
    expected = sum(node / 10 * (START["w"] + (goal - START["w"]) / 2) for node, goal in goals.items())
    assert {name: value.dtype for name, value in arrays.items()} == {name: value.dtype for name, value in START.items()}
    assert {name: value.shape for name, value in arrays.items()} == {name: value.shape for name, value in START.items()}
    np.testing.assert_allclose(arrays["w"], expected, rtol=1e-5)
    assert list(arrays["steps"]) == [13, 23]


def test_a_secure_job_runs_through_the_protocols_states_and_no_single_weight_is_known(place: Place) -> None:
    """In the second round the group is there, with keys for it."""
    job = place.run(place.toml(rounds=2, secure=True, more="metrics = { loss = 10.0 }"))

    assert job.state is JobState.COMPLETED, job.reason
    begin, end = ["PLANNED", "SELECTED"], ["MASKED", "CONFIRMED", "UNMASKED", "AGGREGATED", "COMMITTED"]
    assert place.kinds(job)[2:-1] == [*begin, "KEYS", "SHARES", *end, *begin, *end]
    for row in place.committed(job):
        assert row.total_weight == 100
        assert [device.weight for device in row.devices] == [0, 0, 0, 0]
        assert row.metrics["loss"] == pytest.approx(0.4, abs=1e-4)


def test_keys_are_made_for_as_many_rounds_as_the_job_says(place: Place) -> None:
    """Three exchanges each: the second group is made to measure round 2, which is not on record, the third to train round 4."""
    more = "key_rounds = 3\n[evaluate]\nevery = 1\nmetrics = { accuracy = 1.0 }\n"
    job = place.run(place.toml(rounds=4, secure=True, more=more))

    made = [event.round for event in place.store.events(job.id) if event.kind == "KEYS"]
    assert made == [1, 4]


def test_devices_are_told_which_round_of_the_job_counted_them_last_and_of_none_that_was_abandoned(place: Place) -> None:
    """What they still owe is of that round: the sum of an abandoned one is not in the model."""
    told: list[tuple[str, str]] = []

    def note(agent: MemoryAgent, task: RunTask) -> None:
        record = agent._content(task.parts).config_records[RECORD]
        if record["phase"] == Phase.MASKED:
            told.append((str(record["round_id"]), str(record["counted_round"])))

    place.fleet.agents[1].before = note
    store = FaultyStore(place.store, ("commit", 2, ""), StorageFull("the disk is full"))
    service = place.start_service(store)
    job = service.wait(service.submit(place.toml(rounds=3, secure=True)).id, 60.0)

    assert (job.state, store.failures) == (JobState.COMPLETED, 1), job.reason
    (first, abandoned, second, third), counted = zip(*told, strict=True)
    assert counted == ("", first, first, second)
    assert len({first, abandoned, second, third}) == 4


@pytest.mark.parametrize("strategy", LINEAR)
def test_a_linear_strategy_gives_the_same_with_and_without_secure_aggregation(place: Place, strategy: str) -> None:
    plain = place.run(place.toml(strategy))
    secret = place.run(place.toml(strategy, secure=True, more="bits = 16\n"))

    assert (plain.state, secret.state) == (JobState.COMPLETED, JobState.COMPLETED), (plain.reason, secret.reason)
    for name, value in place.arrays(plain).items():
        np.testing.assert_allclose(place.arrays(secret)[name], value, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("strategy", ["krum", "multikrum", "fedmedian", "fedtrimmedavg", "bulyan"])
def test_a_robust_strategy_runs_plain_and_is_refused_with_secure_aggregation(place: Place, strategy: str) -> None:
    assert place.run(place.toml(strategy, rounds=2)).state is JobState.COMPLETED

    with pytest.raises(Unsupported, match="cannot run with secure aggregation"):
        place.start_service().submit(place.toml(strategy, secure=True))
    assert len(place.store.jobs()) == 1


def test_each_device_is_sent_the_global_arrays_once_a_round_as_the_same_blob(place: Place) -> None:
    big = save({"w": np.zeros(5000, dtype=np.float32)})
    toml = place.toml(rounds=2)
    (place.folder / "start.safetensors").write_bytes(big)

    job = place.run(toml)

    assert job.state is JobState.COMPLETED, job.reason
    fetched = [agent.fetched for agent in place.fleet.agents.values()]
    assert all(found == fetched[0] and len(found) == 2 for found in fetched)
    assert list(place.fleet.inbox.digests()) == []
    assert set(place.fleet.lasting.digests()) == {job.arrays_digest}


def test_devices_measure_the_new_model_when_the_job_asks_for_it(place: Place) -> None:
    job = place.run(place.toml(rounds=2, more="[evaluate]\nevery = 2\n"))
    secret = place.run(place.toml(rounds=1, secure=True, more="[evaluate]\nevery = 1\nmetrics = { accuracy = 1.0 }\n"))

    accuracy = sum(5 * node * node / 10 for node in range(1, 5)) / sum(5 * node for node in range(1, 5))
    assert ["evaluate_accuracy" in row.metrics for row in place.committed(job)] == [False, True]
    assert place.committed(job)[1].metrics["evaluate_accuracy"] == pytest.approx(accuracy)
    assert place.committed(secret)[0].metrics["evaluate_accuracy"] == pytest.approx(accuracy, abs=1e-4)


def test_pruning_changes_model_and_arrays_in_the_same_commit_and_later_rounds_train_the_smaller_one(
    place: Place,
) -> None:
    prune = f'[[prune]]\nafter_round = 1\nratio = 0.3\n[public]\ndata = "{place.public()}"\n'
    publish = '[publish]\nenabled = true\nnotes = "nightly"\n'
    top = 'model = "digits"'
    job = place.run(place.toml("fedadam", rounds=3, secure=True, more=prune + publish, top=top))

    assert job.state is JobState.COMPLETED, job.reason
    assert job.model_json == SMALLER.to_json()
    assert place.arrays(job)["w"].shape == (2, 4)
    assert job.release == 7
    ((name, model, lineage),) = place.models.published
    assert (name, model.model_json, lineage["job"], lineage["notes"]) == ("digits", job.model_json, job.id, "nightly")
    assert load(model.arrays)["b"].shape == ()
    detail = [event.detail for event in place.store.events(job.id) if event.kind == "COMMITTED"]
    assert [item.get("pruned") for item in detail] == [0.3, None, None]


def test_a_job_starts_from_a_registered_factory(place: Place) -> None:
    job = place.run(place.toml(rounds=1, top='model = "new"\nstart = { factory = "cnn-small" }'))

    assert job.state is JobState.COMPLETED, job.reason
    assert ModelSpec.from_json(job.model_json).factory == "cnn-small"


class Meter:
    """Each look at a device's traffic finds its number of bytes more up, and ten times as many down."""

    def __init__(self) -> None:
        self.looks = 0

    def take(self, device: DeviceId) -> tuple[int, int]:
        self.looks += 1
        number = int(device.removeprefix("dev-"))
        return 10 * number, number


def test_the_bytes_of_each_device_are_those_since_its_selection(place: Place) -> None:
    meter = Meter()
    place.traffic = meter
    (row,) = place.committed(place.run(place.toml(rounds=1)))

    assert [(device.bytes_down, device.bytes_up) for device in row.devices] == [(10, 1), (20, 2), (30, 3), (40, 4)]
    assert (row.bytes_down, row.bytes_up) == (100, 10)
    assert meter.looks == 8
    assert all(device.seconds > 0 for device in row.devices)


def _goal(node: int) -> np.ndarray[Any, Any]:
    """Where `train` pulls a device's "w": the second of its draws."""
    rng = np.random.default_rng(node)
    rng.standard_normal(())
    return rng.standard_normal((3, 4)).astype(np.float32)
