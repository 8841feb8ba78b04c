"""One device against a whole job: it costs that device its part, and nobody else anything."""

import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import RecordDict
from fsspec.implementations.memory import MemoryFileSystem

from coordinator.models import ReleasePublisher
from coordinator.releases.release import Release
from coordinator.rounds.loop import EXCLUDED
from coordinator.rounds.owned import OwnedBlobs
from coordinator.rounds.ports import ModelState
from coordinator.rounds.round import Job, Outcome
from coordinator.rounds.states import JobState, RoundState
from shared.blobs import MemoryBlobs
from shared.errors import ChildFailed, StorageFull, Unavailable
from shared.flower import decode_records, encode_records
from shared.ids import DeviceId, Digest
from shared.remote_blobs import open_blobs
from shared.secagg.messages import RECORD
from shared.session import Part, RunTask, TaskResult
from tests.job_place import FaultyStore, Place, Places
from tests.memory_fleet import MemoryAgent, MemoryFleet
from tests.unit.releases.factories import a_manifest

Rewrite = Callable[[RecordDict], None]
FIVE = "[selection]\nmin_devices = 4\nquorum = 0.5\n"


def lying(place: Place, node: int, rewrite: Rewrite) -> None:
    """What this device answers is changed on its way, after its own code."""
    agent = place.fleet.agents[node]
    honest = agent._run

    def run(task: RunTask) -> TaskResult:
        result = honest(task)
        content = RecordDict()
        for part in result.parts:
            content.update(decode_records(place.fleet.inbox.read(part.digest) if part.digest else part.inline))
        rewrite(content)
        return TaskResult(task.task_id, parts=(Part(inline=encode_records(content)),))

    agent._run = run  # type: ignore[method-assign]


def metric(value: Any) -> Rewrite:
    def rewrite(content: RecordDict) -> None:
        content.metric_records["metrics"]["loss"] = value

    return rewrite


def header(text: str) -> Rewrite:
    """An array whose `.npy` header says this."""

    def rewrite(content: RecordDict) -> None:
        array = content.array_records["arrays"]["w"]
        plain = text.encode("latin1").ljust(118) + b"\n"
        array.data = b"\x93NUMPY\x01\x00" + len(plain).to_bytes(2, "little") + plain + bytes(48)

    return rewrite


def garbage_letters(content: RecordDict) -> None:
    record: Any = content.config_records.get(RECORD, {})
    if "boxes" in record:
        record["boxes"] = [bytes(len(box)) for box in record["boxes"]]


HOSTILE: dict[str, Rewrite] = {
    "an integer that no float holds": metric(10**400),
    "an integer of more than 64 bits": metric(10**30),
    "an integer of more than 64 bits in a list": metric([1, 10**30]),
    "a header that is no header": header("'''"),
    "a header of brackets": header("(" * 100),
    "a header with a structured type": header(
        "{'descr': [('a', '<f4', 3, 4, 5)], 'fortran_order': False, 'shape': (3, 4), }"
    ),
    "a header with a negative shape": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-3, -4), }"),
    "a header with an endless number": header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 40 + ",), }"
    ),
}


@pytest.mark.parametrize("rewrite", HOSTILE.values(), ids=HOSTILE)
def test_a_job_is_not_ended_by(rewrite: Rewrite, place: Place) -> None:
    lying(place, 2, rewrite)
    job = place.run(place.toml(rounds=1))
    assert (job.state, job.reason) == (JobState.COMPLETED, "")
    (row,) = place.committed(job)
    assert {item.device: item.outcome for item in row.devices} == {
        "dev-2": Outcome.REJECTED,
        **dict.fromkeys(("dev-1", "dev-3", "dev-4"), Outcome.COUNTED),
    }


@pytest.fixture
def five(places: Places) -> Place:
    found = places.make(MemoryFleet(5), attach=False)
    lying(found, 1, garbage_letters)
    found.fleet.attach_all()
    return found


def exclusions(place: Place, job: Job) -> list[tuple[int, int, str]]:
    events = place.store.events(job.id)
    return [(item.round, item.attempt, str(item.detail["device"])) for item in events if item.kind == EXCLUDED]


def test_a_device_that_deals_garbage_is_named_and_takes_no_part_in_the_job_any_more(five: Place) -> None:
    job = five.run(five.toml(rounds=2, secure=True, more=FIVE))

    assert job.state is JobState.COMPLETED
    first, again, second = five.store.rounds(job.id)
    assert [row.state for row in (first, again, second)] == [RoundState.ABANDONED, *[RoundState.COMMITTED] * 2]
    outcomes = {item.device: (item.outcome, item.reason) for item in first.devices}
    assert outcomes[DeviceId("dev-1")] == (Outcome.REJECTED, "dealt shares that 4 devices could not use")
    assert {item.outcome for item in first.devices if item.device != "dev-1"} == {Outcome.DROPPED}
    for row in (again, second):
        assert [item.device for item in row.devices] == ["dev-2", "dev-3", "dev-4", "dev-5"]
    assert exclusions(five, job) == [(1, 1, "dev-1")]


def test_who_was_left_out_of_a_job_stays_out_after_a_restart(five: Place) -> None:
    def stop(agent: MemoryAgent, task: RunTask) -> None:
        if task.round == 2:
            five.services[0].stop("test")

    five.fleet.agents[2].before = stop
    job = five.run(five.toml(rounds=3, secure=True, more=FIVE))
    assert exclusions(five, job) == [(1, 1, "dev-1")]
    five.fleet.agents[2].before = lambda agent, task: None
    store: Any = five.store
    store._jobs[job.id] = Job(**{**vars(job), "state": JobState.RUNNING})  # as if it had been killed, not stopped

    service = five.start_service()
    service.resume()
    done = service.wait(job.id, 60.0)

    assert done.state is JobState.COMPLETED
    assert exclusions(five, job) == [(1, 1, "dev-1")]
    assert all("dev-1" not in {item.device for item in row.devices} for row in five.committed(job))


# ---- our own faults on the way


def test_a_release_that_could_not_be_built_is_tried_again(place: Place) -> None:
    tries = []

    def twice(step: str) -> None:
        tries.append(step)
        if step == "publish" and len(tries) < 3:
            raise ChildFailed("the worker was killed")

    place.models.before = twice
    publish = f'[public]\ndata = "{place.public()}"\n[publish]\nenabled = true\n'
    job = place.run(place.toml(rounds=1, top='model = "digits"', more=publish))
    assert (job.state, job.release, tries) == (JobState.COMPLETED, 7, ["publish"] * 3)


def test_a_release_that_can_never_be_built_ends_the_job_with_the_reason(place: Place) -> None:
    def never(step: str) -> None:
        if step == "publish":
            raise ChildFailed("the int8 graph differs")

    place.models.before = never
    publish = f'[public]\ndata = "{place.public()}"\n[publish]\nenabled = true\n'
    job = place.run(place.toml(rounds=1, top='model = "digits"', more=publish))
    assert (job.state, job.reason, job.round) == (JobState.FAILED, "the int8 graph differs", 1)


def test_a_commit_that_fails_leaves_no_arrays_behind(place: Place) -> None:
    """Neither the smaller arrays nor the strategy's memory: nobody would ever ask for them."""
    prune = f'[[prune]]\nafter_round = 1\nratio = 0.5\n[public]\ndata = "{place.public()}"\n'
    once = "[selection]\nmin_devices = 4\nmax_attempts = 1\n"
    store = FaultyStore(place.store, ("commit", 1, ""), StorageFull("the disk is full"))
    service = place.start_service(store)
    toml = place.toml("fedavgm", rounds=2, top='model = "digits"', more=prune + once)
    job = service.wait(service.submit(toml).id, 60.0)
    assert (store.failures, job.state) == (1, JobState.FAILED)
    assert list(place.fleet.lasting.digests()) == [job.arrays_digest]


# ---- an end in the middle, and what it leaves


def test_stopping_does_not_wait_for_the_worker_and_the_job_goes_on_at_the_next_start(place: Place) -> None:
    began, killed = threading.Event(), threading.Event()

    def worker(step: str) -> None:
        if step == "kill":
            killed.set()
        elif not began.is_set():
            began.set()
            assert killed.wait(30)
            raise ChildFailed("the worker was stopped, as the coordinator stops")

    place.models.before = worker
    publish = f'[public]\ndata = "{place.public()}"\n[publish]\nenabled = true\n'
    service = place.start_service()
    job = service.submit(place.toml(rounds=1, top='model = "digits"', more=publish))
    assert began.wait(30)

    service.close()

    assert killed.is_set()
    assert service._running == {}  # it was waited for, and did end
    assert (service.job(job.id).state, service.job(job.id).round) == (JobState.RUNNING, 1)
    again = place.start_service()
    again.resume()
    assert again.wait(job.id, 60).release == 7


def test_a_thread_that_cannot_be_stopped_does_not_keep_the_coordinator(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.rounds.service.CLOSE_S", 0.1)
    began, over = threading.Event(), threading.Event()

    def deaf(step: str) -> None:
        if step == "publish":
            began.set()
            assert over.wait(30)

    place.models.before = deaf
    publish = f'[public]\ndata = "{place.public()}"\n[publish]\nenabled = true\n'
    service = place.start_service()
    job = service.submit(place.toml(rounds=1, top='model = "digits"', more=publish))
    assert began.wait(30)
    service.close()
    assert service.job(job.id).state is JobState.RUNNING
    over.set()
    service.wait(job.id, 60)


def test_blobs_of_a_killed_process_are_swept_and_nobody_elses(place: Place, tmp_path: Path) -> None:
    """A round that was aggregated and not committed, and what its tasks alone needed; a release lies beside them."""
    store = place.fleet.lasting
    release = store.write(b"a release's file")
    place.fleet.lasting = OwnedBlobs(store, tmp_path / "notes")
    job = place.run(place.toml(rounds=2))
    place.fleet.lasting.write(b"arrays of a round that did not commit")

    owned = OwnedBlobs(store, tmp_path / "notes")
    place.start_service().sweep(owned.digests())

    assert set(store.digests()) == {release, job.arrays_digest}
    assert list(owned.digests()) == [job.arrays_digest]


def test_a_store_that_fails_does_not_keep_the_coordinator_from_starting(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = place.fleet.lasting.write(b"arrays of a round that did not commit")
    service = place.start_service()

    def fails(digest: Digest) -> None:
        raise Unavailable("the store fails")

    monkeypatch.setattr(place.fleet.lasting, "delete", fails)
    service.sweep([left])
    monkeypatch.undo()
    assert place.fleet.lasting.has(left)


def test_a_blob_store_that_fails_once_costs_a_round_and_not_the_job(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.rounds.service.STORE_RETRY_S", 0.0)
    remote = open_blobs(f"memory://{uuid.uuid4().hex}", place.folder / "staging")
    place.fleet.lasting = remote
    for agent in place.fleet.agents.values():
        agent.lasting = remote
    really, writes = MemoryFileSystem.pipe_file, []

    def once(*args: Any, **options: Any) -> Any:
        writes.append(args)
        if len(writes) == 2:  # the first aggregate
            raise ConnectionError("connection reset by the object store")
        return really(*args, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", once)
    job = place.run(place.toml(rounds=2))
    assert (job.state, job.reason) == (JobState.COMPLETED, "")
    assert [row.state for row in place.store.rounds(job.id)] == [RoundState.ABANDONED, *[RoundState.COMMITTED] * 2]


class Releases:
    """What `ReleasePublisher` needs of `ReleaseService`."""

    def __init__(self) -> None:
        self.made: list[Release] = []

    def releases(self) -> list[Release]:
        return self.made

    def publish(self, folder: Path, model: str, lineage: Mapping[str, str | int]) -> Release:
        manifest = replace(a_manifest(len(self.made) + 1, model), lineage=dict(lineage))
        self.made.append(Release(manifest))
        return self.made[-1]


def test_a_job_that_asks_again_after_a_crash_gets_the_release_it_made(tmp_path: Path) -> None:
    """The coordinator died between signing the release and writing its number into the job."""
    releases, built = Releases(), []
    builder: Any = SimpleNamespace(bundle=lambda *args: built.append(args))
    publisher = ReleasePublisher(releases, builder, MemoryBlobs(), tmp_path)  # type: ignore[arg-type]
    model = ModelState("{}", b"")
    first = publisher.publish("digits", model, "data", {"job": "job-1", "rounds": 3})
    assert publisher.publish("digits", model, "data", {"job": "job-1", "rounds": 3}) == first
    assert publisher.publish("digits", model, "data", {"job": "job-2", "rounds": 3}) == first + 1
    assert len(built) == 2
