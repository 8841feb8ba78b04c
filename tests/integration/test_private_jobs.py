"""Private jobs: what is on record of what they spent, whoever adds the noise, and that they end before they overspend."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save

from coordinator.cli.job import show_job
from coordinator.rounds.memory import MemoryJobStore
from coordinator.rounds.ports import JobStore
from coordinator.rounds.privacy import NOISE, SPENT, detail_of
from coordinator.rounds.round import Event as Line
from coordinator.rounds.round import Job
from coordinator.rounds.states import JobState, RoundState
from coordinator.rpc import admin_views as views
from coordinator.store.engine import open_engine
from coordinator.store.migrate import upgrade
from coordinator.store.rounds import SqlJobStore
from shared.errors import StorageFull, Unsupported
from shared.ids import JobId
from shared.privacy.accountant import epsilon
from shared.privacy.events import CentralGaussian, Event, Skellam
from shared.privacy.ledger import event_from_row
from tests.job_place import FaultyStore, Place, add_devices
from tests.memory_fleet import MemoryFleet
from tests.protocol.secagg.appgrid import START

FLOATS = {name: value for name, value in START.items() if value.dtype.kind == "f"}
EPSILON, DELTA = 6.0, 1e-5
MECHANISMS = ["distributed", "central"]


def private(place: Place, mechanism: str, *, rounds: int = 2, spare: int = 1, more: str = "") -> str:
    text = place.toml(
        rounds=rounds,
        secure=True,
        more=f'[privacy]\nmechanism = "{mechanism}"\nepsilon = {EPSILON}\ndelta = {DELTA}\nspare_rounds = {spare}\n{more}',
    )
    (place.folder / "start.safetensors").write_bytes(save(FLOATS))
    return text


def noises(store: JobStore, job: Job) -> list[tuple[int, int, Event]]:
    """Round, attempt and noise of each line of history that says it."""
    lines = [line for line in store.events(job.id) if NOISE in line.detail]
    return [(line.round, line.attempt, event_from_row(json.loads(str(line.detail[NOISE])))) for line in lines]


@pytest.fixture(params=["memory", "sql"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A place over either store."""
    fleet = MemoryFleet()
    store: JobStore = MemoryJobStore()
    if request.param == "sql":
        engine = open_engine(f"sqlite:///{tmp_path / 'jobs.db'}")
        upgrade(engine)
        add_devices(engine, fleet)
        store = SqlJobStore(engine)
    place = Place(fleet, store, tmp_path)
    fleet.attach_all()
    yield place
    place.close()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_round_is_on_record_with_what_it_cost_and_the_job_with_all_of_it(kept: Place, mechanism: str) -> None:
    job = kept.run(private(kept, mechanism))

    assert job.state is JobState.COMPLETED, job.reason
    (one, two) = noises(kept.store, job)
    assert [one[:2], two[:2]] == [(1, 1), (2, 1)]
    assert one[2] == two[2]
    assert isinstance(one[2], Skellam if mechanism == "distributed" else CentralGaussian)
    first, both = (epsilon({one[2]: count}, DELTA) for count in (1, 2))
    assert [row.metrics["epsilon"] for row in kept.committed(job)] == [first, both]
    assert kept.services[-1].spent(job) == both < EPSILON
    assert epsilon({one[2]: 3}, DELTA) == pytest.approx(EPSILON, rel=0.01), "with the spare round"
    spends = [len(one.spends) for ledgers in kept.fleet.ledgers.values() for one in ledgers.read().values()]
    assert spends == ([2, 2, 2, 2] if mechanism == "distributed" else [])


def test_no_number_of_a_device_is_in_the_history_of_a_private_job(place: Place) -> None:
    job = place.run(private(place, "distributed"))

    for row in place.committed(job):
        assert row.total_weight == len(row.devices) == 4
        assert set(row.metrics) == {"epsilon"}
        assert {device.weight for device in row.devices} == {0}


def test_devices_spend_before_the_coordinator_hears_of_them_and_it_says_so_before_it_asks(place: Place) -> None:
    job = place.run(private(place, "distributed", rounds=1))

    kinds = place.kinds(job)
    assert kinds.index("SHARES") < kinds.index(SPENT) < kinds.index("MASKED")


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_of_a_round_that_could_not_be_committed_devices_noise_is_spent_and_the_coordinators_never_left_it(
    place: Place, mechanism: str
) -> None:
    store = FaultyStore(place.store, ("commit", 2, ""), StorageFull("the disk is full"))
    service = place.start_service(store)
    job = service.wait(service.submit(private(place, mechanism)).id, 60.0)

    assert (job.state, store.failures) == (JobState.COMPLETED, 1), job.reason
    attempts = [(1, 1), (2, 1), (2, 2)] if mechanism == "distributed" else [(1, 1), (2, 2)]
    found = noises(place.store, job)
    assert [item[:2] for item in found] == attempts
    assert service.spent(job) == epsilon({found[0][2]: len(attempts)}, DELTA) <= EPSILON
    committed = [e for e in place.store.events(job.id) if e.kind == RoundState.COMMITTED]
    assert all((NOISE in event.detail) == (mechanism == "central") for event in committed)


class Remembering:
    """A store that has one more line of history for every job but `known`: a spend."""

    def __init__(self, inner: JobStore, known: Job, spent: Event) -> None:
        self._inner, self._known, self._spent = inner, known, spent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def events(self, job: JobId, after_id: int = 0) -> list[Line]:
        forged = [] if job == self._known.id else [Line(job, 9, 1, 0.0, SPENT, detail_of(self._spent))]
        return [*forged, *self._inner.events(job, after_id)]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_job_that_would_overspend_by_its_own_history_ends_and_says_what_is_left(place: Place, mechanism: str) -> None:
    text = private(place, mechanism, rounds=2, spare=0)
    known = place.run(text)
    spent = noises(place.store, known)[0][2]
    service = place.start_service(Remembering(place.store, known, spent))
    job = service.wait(service.submit(text).id, 60.0)

    assert (job.state, job.round) == (JobState.FAILED, 1)
    assert re.search(
        f"of {EPSILON:g} at delta {DELTA:g}, [0-9.]+ is spent and [0-9.]+ left: submit another job", job.reason
    )


SHOWN = {"distributed": "noise by devices", "central": "noise by the coordinator alone, which sees exact sums"}


@pytest.mark.parametrize(("mechanism", "who"), SHOWN.items())
def test_an_admin_reads_what_a_job_has_spent_and_who_adds_the_noise(
    place: Place, mechanism: str, who: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = place.run(private(place, mechanism))
    spent = place.services[-1].spent(job)
    capsys.readouterr()

    show_job(views.job(job, spent=spent), as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"privacy epsilon {spent:.4g} of 6 spent, at delta 1e-05; {who}" in shown
    show_job(views.job(job, spent=spent), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["privacy"], told["epsilon"], told["epsilon_spent"]) == (mechanism, EPSILON, spent)


def test_an_admin_reads_that_a_job_is_not_private(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    job = place.run(place.toml(rounds=1, secure=True))
    assert place.services[-1].spent(job) == 0.0
    capsys.readouterr()
    show_job(views.job(job), as_json=False)
    assert "privacy    none: nothing bounds what its sums say" in capsys.readouterr().out


def test_failing_rounds_end_a_job_when_its_spare_rounds_are_gone(place: Place) -> None:
    store = FaultyStore(place.store, ("commit", 1, ""), StorageFull("the disk is full"))
    service = place.start_service(store)
    job = service.wait(service.submit(private(place, "distributed", rounds=1, spare=0)).id, 60.0)

    assert job.state is JobState.FAILED
    assert "is spent" in job.reason
    assert "left" in job.reason
    assert len(noises(place.store, job)) == 1
    assert place.committed(job) == []


def test_a_job_whose_privacy_no_noise_gives_is_refused_before_anything_is_stored(place: Place) -> None:
    text = private(place, "distributed").replace(f"epsilon = {EPSILON}", "epsilon = 1e-9")
    with pytest.raises(Unsupported, match=r"no noise that can be drawn|does not fit into a word"):
        place.run(text)
    assert place.store.jobs() == []


def test_a_private_job_over_integer_arrays_is_refused_before_anything_is_stored(place: Place) -> None:
    text = private(place, "distributed")
    (place.folder / "start.safetensors").write_bytes(save(dict(START)))
    with pytest.raises(Unsupported, match="'steps' is int64"):
        place.run(text)
    assert place.store.jobs() == []
