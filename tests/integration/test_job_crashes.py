"""SIGKILL at any moment, by fault injection at every call of the store: the next process ends where an undisturbed one does.

A kill is an exception that no handler of ours may catch, raised before or after a call's transaction, in whichever thread made it.
"""

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.rounds.memory import MemoryJobStore
from coordinator.rounds.ports import JobStore
from coordinator.rounds.round import Job, Outcome
from coordinator.rounds.states import ENDED, JobState, RoundState
from coordinator.store.engine import open_engine
from coordinator.store.migrate import upgrade
from coordinator.store.rounds import SqlJobStore
from shared.secagg.messages import RECORD
from shared.session import RunTask
from tests.job_place import Place, Places, add_devices
from tests.memory_fleet import MemoryAgent, MemoryFleet, Silence

WRITES = ("create", "change", "begin", "advance", "note", "commit", "abandon", "abandon_open")
KEY = "once"


class Killed(BaseException):
    """The process is gone."""


class MortalStore:
    """Kills its process at the `at`-th write, counted from 0; `after` says on which side of the transaction."""

    def __init__(self, inner: JobStore, at: int = -1, *, after: bool = False) -> None:
        self._inner = inner
        self._at = at
        self._after = after
        self.writes: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in WRITES:
            return method

        def call(*args: Any, **options: Any) -> Any:
            self.writes.append(name)
            if len(self.writes) == self._at + 1 and not self._after:
                raise Killed
            result = method(*args, **options)
            if len(self.writes) == self._at + 1:
                raise Killed
            return result

        return call


@pytest.fixture
def _quiet_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed thread is what these tests are about; anything else that ends one still fails them."""
    usual = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not Killed:
            usual(args)

    monkeypatch.setattr(threading, "excepthook", hook)


def job_file(place: Place, *, secure: bool) -> str:
    public = f'[public]\ndata = "{place.public()}"\n'
    more = f"[[prune]]\nafter_round = 1\nratio = 0.3\n{public}[publish]\nenabled = true\n"
    if secure:
        more = "bits = 16\n" + more
    return place.toml("fedadam", rounds=2, secure=secure, more=more, top='model = "digits"')


def undisturbed(folder: Path, *, secure: bool) -> tuple[dict[str, np.ndarray[Any, Any]], int]:
    """What the job ends with, and how many writes it makes."""
    with closing(Place(MemoryFleet(), MemoryJobStore(), folder)) as place:
        place.fleet.attach_all()
        store = MortalStore(place.store)
        service = place.start_service(store)
        job = service.wait(service.submit(job_file(place, secure=secure), KEY).id, 30.0)
        assert job.state is JobState.COMPLETED, job.reason
        return place.arrays(job), len(store.writes)


def live_and_die(place: Place, database: str, toml: str, at: int, *, after: bool) -> None:
    """One process: submit or resume, until it is killed."""
    engine = open_engine(database)
    service = place.start_service(MortalStore(SqlJobStore(engine), at, after=after))
    try:
        service.resume()
        service.wait(service.submit(toml, KEY).id, 30.0)
    except Killed:
        pass
    finally:
        engine.dispose()


def live_on(place: Place, database: str, toml: str) -> Job:
    """The process after that: nothing is open when it starts to work, and it finishes the job."""
    engine = open_engine(database)
    place.store = SqlJobStore(engine)
    service = place.start_service()
    service.resume()
    return service.wait(service.submit(toml, KEY).id, 30.0)


def crash_and_compare(tmp_path: Path, *, secure: bool, after: bool) -> None:
    (tmp_path / "calm").mkdir()
    expected, writes = undisturbed(tmp_path / "calm", secure=secure)
    assert writes == (15 if secure else 9)
    for at in range(writes):
        folder = tmp_path / f"killed at {at}"
        folder.mkdir()
        database = f"sqlite:///{folder / 'test.db'}"
        engine = open_engine(database)
        upgrade(engine)
        with closing(Place(MemoryFleet(), MemoryJobStore(), folder)) as place:
            add_devices(engine, place.fleet)
            engine.dispose()
            place.fleet.attach_all()
            toml = job_file(place, secure=secure)

            live_and_die(place, database, toml, at, after=after)
            job = live_on(place, database, toml)

            assert_as_if_nothing_happened(place, job, expected, rounded=secure)


def assert_as_if_nothing_happened(
    place: Place, job: Job, expected: dict[str, np.ndarray[Any, Any]], *, rounded: bool = False
) -> None:
    """To the last bit in the open. What a secret sum is rounded to is left to chance, so there to what 16 bits are good for."""
    assert job.state is JobState.COMPLETED, job.reason
    assert [found.id for found in place.store.jobs()] == [job.id]
    found = place.arrays(job)
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-3 if rounded else 0)
    rows = place.store.rounds(job.id)
    assert all(row.state in ENDED for row in rows)
    assert [row.round for row in rows if row.state is RoundState.COMMITTED] == [1, 2]
    for row in rows:
        counted = sum(device.outcome is Outcome.COUNTED for device in row.devices)
        assert counted == (4 if row.state is RoundState.COMMITTED else 0)
        assert row.total_weight == (100 if row.state is RoundState.COMMITTED else 0)
    assert len(place.models.published) == 1
    assert job.release == 7


@pytest.mark.slow
@pytest.mark.usefixtures("_quiet_deaths")
@pytest.mark.parametrize("after", [False, True], ids=["before a commit", "after a commit"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])
def test_a_job_killed_at_any_write_ends_as_if_nothing_had_happened(
    tmp_path: Path, *, secure: bool, after: bool
) -> None:
    crash_and_compare(tmp_path, secure=secure, after=after)


@pytest.mark.usefixtures("_quiet_deaths")
@pytest.mark.parametrize("step", ["prune", "publish"])
def test_a_job_killed_while_its_model_is_pruned_or_published_does_neither_twice(place: Place, step: str) -> None:
    expected, _ = undisturbed(place.folder, secure=False)
    deaths: list[str] = []

    def die_once(reached: str) -> None:
        if reached == step and not deaths:
            deaths.append(step)
            raise Killed

    place.models.before = die_once
    first = place.start_service()
    first.wait(first.submit(job_file(place, secure=False), KEY).id, 30.0)
    assert deaths == [step]
    second = place.start_service()
    second.resume()
    job = second.wait(place.store.jobs()[0].id, 30.0)

    assert_as_if_nothing_happened(place, job, expected)


@pytest.mark.usefixtures("_quiet_deaths")
@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_six_rounds_are_three_rounds_a_restart_and_three_more(place: Place, strategy: str) -> None:
    straight = place.arrays(place.run(place.toml(strategy, rounds=6)))
    per_round = 2  # selected, committed
    store = MortalStore(
        place.store, 2 + 1 + 3 * per_round
    )  # create, abandon_open, start; three rounds; then the fourth begins
    first = place.start_service(store)
    job = first.wait(first.submit(place.toml(strategy, rounds=6)).id, 30.0)
    assert job.round == 3

    second = place.start_service()
    second.resume()
    resumed = place.arrays(second.wait(job.id, 30.0))

    assert [place.losses(one) for one in place.store.jobs()] == [[], []]
    assert all((resumed[name] == straight[name]).all() for name in straight)


PLAIN = {("train plain", RoundState.SELECTED), ("evaluate plain", RoundState.AGGREGATED)}
SECRET = {  # a group is made in the first round, and in the second its next rounds are taken
    ("train keys", RoundState.SELECTED),
    ("train shares", RoundState.KEYS),
    ("train masked", RoundState.SHARES),
    ("train masked", RoundState.SELECTED),
    ("train confirmed", RoundState.MASKED),
    ("train unmasked", RoundState.CONFIRMED),
    *((f"evaluate {phase}", RoundState.AGGREGATED) for phase in ("masked", "confirmed", "unmasked")),
}
RECOVERED = SECRET | {("train recovered", RoundState.UNMASKED)}
SEEN: dict[str, tuple[bool, bool, set[tuple[str, RoundState]]]] = {
    "in the open": (False, False, PLAIN),
    "in secret": (True, False, SECRET),
    "in secret, and a device goes away": (True, True, RECOVERED),
}


@pytest.mark.parametrize(("secure", "dying", "expected"), SEEN.values(), ids=SEEN)
def test_no_device_is_asked_anything_before_the_transition_that_led_there_is_written(
    places: Places, secure: bool, dying: bool, expected: set[tuple[str, RoundState]]
) -> None:
    """Transitions that nobody saw may share a transaction; these are seen."""
    place = places.make(attach=False)
    seen: set[tuple[str, RoundState]] = set()

    def note(agent: MemoryAgent, task: RunTask) -> None:
        content = agent._content(task.parts)
        phase = str(content.config_records[RECORD]["phase"]) if RECORD in content else "plain"
        row = place.store.rounds(task.job_id)[-1]
        if dying and (agent.ref.id, task.round, task.message_type, phase) == ("dev-2", 2, "train", "unmasked"):
            agent.restart()
            raise Silence
        seen.add((f"{task.message_type} {phase}", row.state))

    for agent in place.fleet.agents.values():
        agent.before = note
    place.fleet.attach_all()
    evaluate = "[evaluate]\nevery = 1\nmetrics = { accuracy = 1.0 }\n"
    job = place.run(place.toml(rounds=2, secure=secure, more=evaluate))

    assert job.state is JobState.COMPLETED
    group = {(f"evaluate {phase}", RoundState.AGGREGATED) for phase in ("keys", "shares")}
    assert seen == (expected | group if dying else expected)
