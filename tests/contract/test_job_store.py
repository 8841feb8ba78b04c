"""What every store of jobs and rounds must do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

from coordinator.rounds.memory import MemoryJobStore
from coordinator.rounds.ports import JobStore
from coordinator.rounds.round import DeviceRow, Event, Job, Outcome, RoundRow
from coordinator.rounds.states import JobEvent, JobState, RoundState
from coordinator.store.rounds import SqlJobStore
from shared.errors import Conflict, NotFound
from shared.ids import DeviceId, JobId, digest_of
from tests.job_place import add_devices
from tests.memory_fleet import MemoryFleet

PATH = (RoundState.SELECTED, RoundState.TRAINED, RoundState.AGGREGATED)
ROWS = (
    DeviceRow(DeviceId("dev-1"), Outcome.COUNTED, "", 10, 100, 50, 0.5),
    DeviceRow(DeviceId("dev-2"), Outcome.REJECTED, "w holds NaN", 0, 100, 50, 0.25, 3),
)


@pytest.fixture
def store(store_kind: Callable[[type, type], object]) -> JobStore:
    made: JobStore = store_kind(MemoryJobStore, SqlJobStore)  # type: ignore[assignment]
    if isinstance(made, SqlJobStore):
        with closing(MemoryFleet(size=2)) as fleet:
            add_devices(made._engine, fleet)
    return made


def job(number: int = 1, key: str = "") -> Job:
    return Job(
        id=JobId(f"job-{number}"),
        name="nightly",
        state=JobState.SUBMITTED,
        toml="rounds = 2",
        run_id=(1 << 62) - number,
        created_at=float(number),
        key=key,
        arrays_digest=digest_of(b"start"),
        model_json='{"factory": "cnn"}',
    )


def event(kind: str, number: int = 0, attempt: int = 0, at: float = 5.0) -> Event:
    return Event(JobId("job-1"), number, attempt, at, kind, {"why": "test", "count": 3, "share": 0.5})


def row(number: int = 1, attempt: int = 1) -> RoundRow:
    return RoundRow(JobId("job-1"), number, attempt, RoundState.PLANNED, 4.0)


def running(store: JobStore) -> Job:
    store.create(job(), event("job.submitted"))
    return store.change(JobId("job-1"), JobEvent.START, event("job.running"))


def aggregated(store: JobStore, number: int = 1, attempt: int = 1) -> RoundRow:
    begun = row(number, attempt)
    store.begin(begun, event("PLANNED", number, attempt))
    for state in PATH:
        store.advance(begun, event(state, number, attempt))
    return replace(
        begun,
        state=RoundState.COMMITTED,
        ended_at=9.0,
        total_weight=10,
        arrays_digest=digest_of(b"new"),
        metrics={"loss": 0.25},
        bytes_down=200,
        bytes_up=100,
        devices=ROWS,
    )


def following(old: Job, number: int = 1) -> Job:
    return replace(
        old, round=number, arrays_digest=digest_of(b"new"), model_json="{}", strategy_digest=digest_of(b"momenta")
    )


def snapshot(store: JobStore) -> tuple[list[Job], list[RoundRow], list[Event]]:
    return store.jobs(), store.rounds(JobId("job-1")), store.events(JobId("job-1"))


def test_a_job_comes_back_as_it_was_created(store: JobStore) -> None:
    assert store.create(job(), event("job.submitted")) == job()
    assert store.job("job-1") == store.job("nightly") == job()
    (first,) = store.events(JobId("job-1"))
    assert replace(first, id=0) == event("job.submitted")


def test_a_name_means_the_newest_job_of_that_name(store: JobStore) -> None:
    for number in (1, 2):
        store.create(job(number), replace(event("job.submitted"), job=JobId(f"job-{number}")))
    assert store.job("nightly").id == "job-2"
    assert [found.id for found in store.jobs()] == ["job-1", "job-2"]
    with pytest.raises(NotFound, match="job list"):
        store.job("weekly")


def test_the_same_key_again_gives_the_first_job_unchanged(store: JobStore) -> None:
    store.create(job(1, "key"), event("job.submitted"))

    again = store.create(replace(job(2, "key"), name="other"), event("job.submitted"))

    assert again == job(1, "key")
    assert store.by_key("key") == job(1, "key")
    assert store.by_key("other") is None
    assert len(store.jobs()) == len(store.events(JobId("job-1"))) == 1


def test_jobs_without_a_key_are_all_different(store: JobStore) -> None:
    for number in (1, 2):
        store.create(job(number), replace(event("job.submitted"), job=JobId(f"job-{number}")))
    assert len(store.jobs()) == 2
    assert store.by_key("") is None


def test_of_many_submissions_at_once_under_one_key_there_is_one_job(store: JobStore) -> None:
    def submit(number: int) -> str:
        return store.create(job(number, "key"), replace(event("job.submitted"), job=JobId(f"job-{number}"))).id

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(submit, range(1, 9)))
    assert found == {store.jobs()[0].id}
    assert len(store.jobs()) == 1


def test_a_job_goes_through_its_states_and_its_end_is_dated(store: JobStore) -> None:
    running(store)
    store.change(JobId("job-1"), JobEvent.STOP, event("job.stopping"), reason="enough")
    ended = store.change(JobId("job-1"), JobEvent.STOPPED, event("job.stopped", at=8.0))

    assert ended == store.job("job-1")
    assert (ended.state, ended.ended_at, ended.reason) == (JobState.STOPPED, 8.0, "enough")


def test_an_illegal_change_raises_and_changes_nothing(store: JobStore) -> None:
    running(store)
    store.change(JobId("job-1"), JobEvent.COMPLETE, event("job.completed"), release=7)
    before = snapshot(store)

    for trigger in JobEvent:
        with pytest.raises(Conflict):
            store.change(JobId("job-1"), trigger, event("job.running"))
    with pytest.raises(NotFound):
        store.change(JobId("job-9"), JobEvent.STOP, event("job.stopping"))
    assert snapshot(store) == before
    assert store.job("job-1").release == 7


def test_a_commit_writes_job_round_devices_and_event_together(store: JobStore) -> None:
    old = running(store)
    done = aggregated(store)

    store.commit(following(old), done, event("COMMITTED", 1, 1))

    assert store.job("job-1") == following(old)
    assert store.rounds(JobId("job-1")) == [done]
    assert store.events(JobId("job-1"))[-1].kind == "COMMITTED"


def test_several_transitions_in_one_call_are_all_in_the_history_in_order(store: JobStore) -> None:
    old = running(store)
    done = replace(aggregated(store, 1, 1), attempt=2)
    store.begin(row(1, 2), event("PLANNED", 1, 2), event("SELECTED", 1, 2))
    assert store.rounds(JobId("job-1"))[-1].state is RoundState.SELECTED

    store.commit(following(old), done, *(event(kind, 1, 2) for kind in ("TRAINED", "AGGREGATED", "COMMITTED")))

    assert store.rounds(JobId("job-1"))[-1] == done
    kinds = [item.kind for item in store.events(JobId("job-1")) if item.attempt == 2]
    assert kinds == ["PLANNED", "SELECTED", "TRAINED", "AGGREGATED", "COMMITTED"]


def test_of_several_transitions_one_that_is_illegal_undoes_all(store: JobStore) -> None:
    old = running(store)
    store.begin(row(), event("PLANNED", 1, 1), event("SELECTED", 1, 1))
    before = snapshot(store)

    for kinds in (["TRAINED", "KEYS"], ["TRAINED", "job.running"], ["TRAINED", "SELECTED"]):
        with pytest.raises(Conflict):
            store.advance(row(), *(event(kind, 1, 1) for kind in kinds))
    for kinds in (["TRAINED", "AGGREGATED"], ["TRAINED", "COMMITTED"], []):
        with pytest.raises(Conflict):
            store.commit(following(old), replace(row(), devices=ROWS), *(event(kind, 1, 1) for kind in kinds))
    for kinds in (["SELECTED"], ["PLANNED", "TRAINED"], []):
        with pytest.raises(Conflict):
            store.begin(row(1, 2), *(event(kind, 1, 2) for kind in kinds))

    assert snapshot(store) == before


def test_a_commit_does_not_undo_a_stop_that_came_meanwhile(store: JobStore) -> None:
    old = running(store)
    done = aggregated(store)
    store.change(JobId("job-1"), JobEvent.STOP, event("job.stopping"))

    store.commit(following(old), done, event("COMMITTED", 1, 1))

    assert store.job("job-1").state is JobState.STOPPING
    assert store.job("job-1").round == 1


def test_no_round_is_committed_twice_out_of_turn_or_to_a_job_that_has_ended(store: JobStore) -> None:
    old = running(store)
    done = aggregated(store)
    second_try, early = aggregated(store, 1, 2), aggregated(store, 2, 1)
    with pytest.raises(Conflict):
        store.commit(following(old, 2), early, event("COMMITTED", 2, 1))
    store.commit(following(old), done, event("COMMITTED", 1, 1))
    before = snapshot(store)

    for late in (done, second_try):
        with pytest.raises(Conflict):
            store.commit(following(old), late, event("COMMITTED", 1, late.attempt))
    with pytest.raises(Conflict):
        store.commit(following(old), early, event("COMMITTED", 2, 1))
    assert snapshot(store) == before

    store.change(JobId("job-1"), JobEvent.FAIL, event("job.failed"))
    with pytest.raises(Conflict):
        store.commit(following(old, 2), early, event("COMMITTED", 2, 1))


def test_a_round_that_was_not_aggregated_cannot_be_committed(store: JobStore) -> None:
    old = running(store)
    store.begin(row(), event("PLANNED", 1, 1))
    before = snapshot(store)

    with pytest.raises(Conflict):
        store.commit(following(old), replace(row(), devices=ROWS), event("COMMITTED", 1, 1))
    with pytest.raises(Conflict):
        store.advance(row(), event("AGGREGATED", 1, 1))
    with pytest.raises(Conflict):
        store.begin(row(), event("PLANNED", 1, 1))
    with pytest.raises(NotFound):
        store.advance(row(3), event("SELECTED", 3, 1))
    assert snapshot(store) == before


def test_an_abandoned_attempt_keeps_what_became_of_its_devices(store: JobStore) -> None:
    running(store)
    lost = replace(aggregated(store), state=RoundState.ABANDONED, total_weight=0, reason="too few")

    store.abandon(lost, event("ABANDONED", 1, 1))

    assert store.rounds(JobId("job-1")) == [lost]
    assert store.job("job-1").round == 0
    with pytest.raises(Conflict):
        store.abandon(lost, event("ABANDONED", 1, 1))


def test_after_a_crash_every_open_attempt_is_abandoned_and_no_other(store: JobStore) -> None:
    old = running(store)
    store.commit(following(old), aggregated(store), event("COMMITTED", 1, 1))
    store.abandon(replace(aggregated(store, 2, 1), reason="before"), event("ABANDONED", 2, 1))
    aggregated(store, 2, 2)
    store.begin(row(2, 3), event("PLANNED", 2, 3))
    crash = Event(JobId("job-1"), 0, 0, 20.0, "ABANDONED", {"reason": "the coordinator stopped"})

    assert store.abandon_open(JobId("job-1"), crash) == 2
    assert store.abandon_open(JobId("job-1"), crash) == 0

    found = [(item.round, item.attempt, item.state, item.reason) for item in store.rounds(JobId("job-1"))]
    assert found == [
        (1, 1, RoundState.COMMITTED, ""),
        (2, 1, RoundState.ABANDONED, "before"),
        (2, 2, RoundState.ABANDONED, "the coordinator stopped"),
        (2, 3, RoundState.ABANDONED, "the coordinator stopped"),
    ]
    assert [(item.round, item.attempt) for item in store.events(JobId("job-1")) if item.at == 20.0] == [(2, 2), (2, 3)]


def test_events_come_in_order_and_can_be_read_on(store: JobStore) -> None:
    running(store)
    store.note(event("evaluate.failed", 1, 1))
    everything = store.events(JobId("job-1"))

    assert [item.kind for item in everything] == ["job.submitted", "job.running", "evaluate.failed"]
    assert store.events(JobId("job-1"), everything[1].id) == everything[2:]
    assert store.events(JobId("job-2")) == []


def test_jobs_are_counted_by_state(store: JobStore) -> None:
    running(store)
    store.create(job(2), replace(event("job.submitted"), job=JobId("job-2")))
    assert dict(store.counts()) == {"running": 1, "submitted": 1}
