"""Jobs as an admin sees them: refused, submitted twice, stopped, watched, two at once."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from coordinator.rounds.states import JobState, RoundState
from shared.blobs import MemoryBlobs
from shared.errors import ConfigError, Conflict, StorageFull, Unsupported
from shared.ids import Digest
from shared.session import CancelTask, RunTask
from tests.job_place import Place, Places
from tests.memory_fleet import MemoryAgent, MemoryFleet, Silence

IMPOSSIBLE: dict[str, tuple[str, type[Exception], str]] = {
    "a start file that is not there": ("gone", ConfigError, "start.arrays_file"),
    "an unknown strategy": ("fedmagic", ConfigError, "strategy.name"),
    "an unknown option": ("option", ConfigError, "strategy.options.speed"),
    "a start file that is not safetensors": ("garbage", ConfigError, "job.start"),
    "a start with NaN": ("nan", ConfigError, "NaN"),
    "a start file from somewhere": ("relative", ConfigError, "start.arrays_file: write the whole path"),
    "a start file that is a folder": ("folder", ConfigError, "start.arrays_file"),
    "an array that no secret sum holds": ("dtype", Unsupported, "array 'w' is uint64"),
    "rates that no round of min_devices bears": (
        "rates",
        ConfigError,
        "job: of 4 clients, 1 may drop out and 1 may be",
    ),
}


@pytest.mark.parametrize(("what", "error", "says"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_job_is_refused_before_anything_is_stored(
    place: Place, what: str, error: type[Exception], says: str
) -> None:
    secure = {"dtype": "bits = 8", "rates": "dropout = 0.45\ncorrupt = 0.45"}.get(what, "")
    toml = place.toml(secure=bool(secure), more=secure)
    arrays = place.folder / "start.safetensors"
    match what:
        case "gone":
            arrays.unlink()
        case "fedmagic":
            toml = toml.replace("fedavg", "fedmagic")
        case "option":
            toml = toml.replace('name = "fedavg"', 'name = "fedavg"\noptions = { speed = 9 }')
        case "garbage":
            arrays.write_bytes(b"pickle?")
        case "relative":
            toml = toml.replace(str(arrays), "start.safetensors")
        case "folder":
            toml = toml.replace(str(arrays), str(place.folder))
        case "dtype":
            arrays.write_bytes(save({"w": np.zeros(3, np.uint64)}))
        case "nan":
            arrays.write_bytes(save({"w": np.array([np.nan], dtype=np.float32)}))

    with pytest.raises(error, match=says):
        place.start_service().submit(toml)

    assert place.store.jobs() == []
    assert list(place.fleet.lasting.digests()) == []


def test_rates_that_a_round_of_all_there_are_does_not_bear_are_refused(places: Places) -> None:
    """Three of eight may drop out where half must reveal a share, but not four of nine."""
    place = places.make(MemoryFleet(9))
    selection = "dropout = 0.45\ncorrupt = 0.0\n[selection]\nmin_devices = 8\n"
    with pytest.raises(Unsupported, match="of 9 clients, 4 may drop out and 0 may be corrupt: too many"):
        place.start_service().submit(place.toml(secure=True, more=selection))
    assert place.store.jobs() == []


USELESS_PUBLIC_DATA: dict[str, tuple[Callable[[Place], Path], str]] = {
    "that is not there": (lambda place: place.folder / "gone.npz", "there is no file"),
    "without its folder": (lambda place: Path(place.public().name), "write the whole path"),
    "that cannot be read": (lambda place: place.folder / "start.safetensors", "no arrays x and y"),
    "of another shape than the model's input": (lambda place: place.public((1, 3, 3)), r"the model takes \[1, 2, 2\]"),
    "with more classes than the model's": (lambda place: place.public(labels=4), "and 3 classes"),
}


@pytest.mark.parametrize(("make", "says"), USELESS_PUBLIC_DATA.values(), ids=USELESS_PUBLIC_DATA)
def test_public_data_is_refused_before_anything_is_stored(
    place: Place, make: Callable[[Place], Path], says: str
) -> None:
    top = 'model = "digits"'
    place.toml()  # it writes start.safetensors
    with pytest.raises(ConfigError, match=says) as caught:
        place.start_service().submit(place.toml(top=top, more=f'[public]\ndata = "{make(place)}"\n'))
    assert caught.value.path == "job.public.data"
    assert place.store.jobs() == []


def say_they_have(place: Place, *apps: frozenset[str] | None) -> None:
    for agent, has in zip(place.fleet.agents.values(), apps, strict=True):
        agent.ref = replace(agent.ref, client_apps=has)


def test_an_app_that_no_device_says_it_has_is_refused_with_those_that_there_are(place: Place) -> None:
    say_they_have(place, frozenset(), *[frozenset({"echo", "letters"})] * 3)
    with pytest.raises(
        ConfigError, match=r"job.client_app: .*'numbers'; there are echo, image-classifier, softmax, letters"
    ):
        place.start_service().submit(place.toml())
    assert place.store.jobs() == []


@pytest.mark.parametrize("last", [frozenset({"numbers"}), None], ids=["one has it", "an older agent does not say"])
def test_an_app_that_a_device_may_have_is_accepted(place: Place, last: frozenset[str] | None) -> None:
    say_they_have(place, *[frozenset({"echo"})] * 3, last)
    assert place.start_service().submit(place.toml()).name == "test"


def test_one_device_that_lists_very_many_apps_does_not_hide_why_a_job_is_refused(place: Place) -> None:
    many = frozenset(f"a{number:063d}" for number in range(64))
    say_they_have(place, *[frozenset({"echo"})] * 3, many)
    with pytest.raises(ConfigError, match=r"there are echo, image-classifier, softmax, a0.* and 47 more$") as refused:
        place.start_service().submit(place.toml())
    assert len(str(refused.value)) < 2000


def test_any_app_is_accepted_before_there_are_devices(places: Places) -> None:
    empty = places.make(MemoryFleet(0))
    service = empty.start_service()
    toml = empty.toml(more="[selection]\nmin_devices = 2\n")
    for app in ("numbers", "echo"):
        assert service.submit(toml.replace("numbers", app)).state is JobState.SUBMITTED


def test_the_same_key_again_gives_the_same_job_and_another_job_under_it_is_refused(place: Place) -> None:
    service = place.start_service()
    first = service.submit(place.toml(), "key-1")

    assert service.submit(place.toml(), "key-1").id == first.id
    with pytest.raises(Conflict, match="use a new key"):
        service.submit(place.toml(rounds=9), "key-1")
    assert len(service.jobs()) == 1


def test_stop_abandons_the_present_round_tells_the_devices_and_keeps_what_is_committed(place: Place) -> None:
    hanging = threading.Barrier(5)

    def hang(agent: MemoryAgent, task: RunTask) -> None:
        if task.round == 2:
            hanging.wait(20.0)
            raise Silence

    for agent in place.fleet.agents.values():
        agent.before = hang
    service = place.start_service()
    job = service.submit(place.toml(rounds=5))
    hanging.wait(20.0)

    assert service.stop(job.id).state is JobState.STOPPING
    ended = service.wait(job.id, 10.0)

    assert (ended.state, ended.round) == (JobState.STOPPED, 1)
    assert [row.state for row in place.store.rounds(job.id)] == [RoundState.COMMITTED, RoundState.ABANDONED]
    assert len(place.fleet.sessions.orders(CancelTask)) == 4
    with pytest.raises(Conflict):
        place.store.commit(ended, place.store.rounds(job.id)[1], place.store.events(job.id)[0])


def test_stop_of_a_job_that_no_thread_runs_ends_it_at_once(place: Place) -> None:
    place.fleet.agents[1].detach()
    service = place.start_service()
    job = service.submit(place.toml())
    service.close()
    assert service.job(job.id).state is JobState.RUNNING

    assert place.start_service().stop(job.id).state is JobState.STOPPED


def test_close_leaves_a_job_running_and_the_next_service_goes_on_with_it(place: Place) -> None:
    agent = place.fleet.agents[1]
    agent.detach()
    first = place.start_service()
    job = first.submit(place.toml(rounds=2))
    first.close()
    assert [row.state for row in place.store.rounds(job.id)] in ([], [RoundState.ABANDONED])

    agent.attach()
    second = place.start_service()
    second.resume()

    assert second.wait(job.id, 30.0).state is JobState.COMPLETED


def test_a_watcher_is_told_of_every_line_of_history_until_it_ends_its_subscription(place: Place) -> None:
    service = place.start_service()
    seen: list[int] = []
    end = service.subscribe(lambda job: seen.append(len(place.store.events(job))))

    job = service.wait(service.submit(place.toml(rounds=1)).id, 30.0)
    end()
    told = len(seen)
    service.wait(service.submit(place.toml(rounds=1)).id, 30.0)

    assert seen[-1] == len(place.store.events(job.id))
    assert len(seen) == told


def test_two_jobs_at_once_share_the_fleet_and_each_gives_what_it_gives_alone(place: Place) -> None:
    files = [place.toml("fedadam", rounds=4), place.toml("fedprox", rounds=4)]
    alone = [place.arrays(place.run(toml)) for toml in files]
    service = place.start_service()

    jobs = [service.submit(toml) for toml in files]
    ended = [service.wait(job.id, 60.0) for job in jobs]

    assert all(job.state is JobState.COMPLETED for job in ended)
    assert [place.losses(job) for job in ended] == [[], []]
    for job, expected in zip(ended, alone, strict=True):
        assert all((place.arrays(job)[name] == expected[name]).all() for name in expected)


class FullBlobs(MemoryBlobs):
    def write(self, data: bytes) -> Digest:
        raise StorageFull("no space left")


def test_a_full_disk_refuses_a_job_and_nothing_is_stored(place: Place) -> None:
    place.fleet.lasting = FullBlobs()

    with pytest.raises(StorageFull):
        place.start_service().submit(place.toml())
    assert place.store.jobs() == []
