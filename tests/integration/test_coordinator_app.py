"""The coordinator's process: what it sweeps, what it survives, how it stops."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from coordinator import app
from coordinator.app import DAY_S, initialise, open_store, regularly, running, sweep
from coordinator.config import CoordinatorConfig, Home, load_config
from coordinator.fleet.device import AuditEntry, TokenRecord
from coordinator.releases.rollouts import RolloutService
from coordinator.store.engine import open_engine
from coordinator.store.fleet import SqlFleetStore
from shared.blobs import FolderBlobs
from shared.clock import SystemClock
from shared.errors import ConfigError
from shared.ids import digest_of

ANY_PORT = CoordinatorConfig(enrolment_port=0, fleet_port=0, metrics_port=0, log_level="info")

_SERVE = """
import sys, threading
from pathlib import Path
from coordinator.app import serve
from coordinator.config import Home, load_config
from coordinator.rounds.service import JobService

def close(self):
    print("closing", flush=True)
    threading.Event().wait()

if sys.argv[2] == "stuck":
    JobService.close = close
home = Home(Path(sys.argv[1]))
serve(home, load_config(home))
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "home")
    initialise(found, ANY_PORT)
    return found


@pytest.mark.parametrize("name", ["c", "what?mode=memory", "a b%20c"], ids=["plain", "a question", "blanks"])
def test_a_home_may_be_named_from_where_one_stands_and_hold_what_urls_mean_something_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    initialise(Home(Path(name)), ANY_PORT)
    assert (tmp_path / name / "coordinator.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_database_that_cannot_be_leaves_no_half_made_home(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        initialise(Home(tmp_path / "home"), CoordinatorConfig(database_url="sqlite:///elsewhere.db"))
    assert not (tmp_path / "home").exists()


async def test_a_side_task_survives_any_mistake_and_takes_its_next_turn() -> None:
    """Else one bad row ends the coordinator at every start."""
    turns, third = 0, asyncio.Event()
    loop = asyncio.get_running_loop()

    def do() -> None:
        nonlocal turns
        turns += 1
        if turns == 3:
            loop.call_soon_threadsafe(third.set)
            return
        raise (KeyError("a mistake"), RuntimeError("another"))[turns - 1]

    with capture_logs() as logs:
        side = asyncio.create_task(regularly("census", 0.0, do))
        await asyncio.wait_for(third.wait(), 10)
        side.cancel()
    assert [(entry["what"], type(entry["exc_info"])) for entry in logs[:2]] == [
        ("census", KeyError),
        ("census", RuntimeError),
    ]


async def test_a_coordinator_whose_tick_always_fails_serves_and_stops(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tick(self: RolloutService) -> None:
        loop.call_soon_threadsafe(failed.set)
        raise RuntimeError("a mistake in our own code")

    monkeypatch.setattr(RolloutService, "tick", tick)
    serving = asyncio.create_task(app._serve(home, ANY_PORT))
    await asyncio.wait({serving, asyncio.create_task(failed.wait())}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    assert not serving.done()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(serving, 20)


def test_leftovers_of_a_former_process_are_swept_and_nothing_else(home: Home) -> None:
    blobs = FolderBlobs(home.blobs)
    kept, half = blobs.write(b"kept"), digest_of(b"half")
    blobs.append(half, 0, b"ha")
    (home.blobs / kept[:2] / f".{half}.0123.tmp").write_bytes(b"half")
    (home.work / "shoal-build-x" / "deep").mkdir(parents=True)
    (home.work / "shoal-build-x" / "deep" / "weights").write_bytes(b"w")
    (home.work / "file").write_bytes(b"w")
    FolderBlobs(home.staging).append(half, 0, b"ha")
    keys = {path: path.read_bytes() for path in home.keys.iterdir()}

    sweep(home)
    open_store(home, ANY_PORT, SystemClock().now())

    assert list(home.work.iterdir()) == []
    assert list(home.staging.iterdir()) == []
    assert FolderBlobs(home.blobs).received(half) == 0
    assert [path.name for path in (home.blobs / kept[:2]).iterdir()] == [kept]
    assert {path: path.read_bytes() for path in home.keys.iterdir()} == keys


def test_in_a_folder_that_others_share_only_what_is_old_is_swept(home: Home, tmp_path: Path) -> None:
    config, now = replace(ANY_PORT, blobs_url=f"file://{tmp_path}/shared"), SystemClock().now()
    blobs = open_store(home, config, now)
    old, fresh, kept = digest_of(b"old"), digest_of(b"fresh"), blobs.write(b"kept")
    for half in (old, fresh):
        blobs.append(half, 0, b"x")

    (arrival,) = (tmp_path / "shared").rglob(old)
    for path in (arrival, tmp_path / "shared" / kept[:2] / kept):
        os.utime(path, (now - 2 * DAY_S,) * 2)
    open_store(home, config, now)

    assert (blobs.received(old), blobs.received(fresh), blobs.read(kept)) == (0, 1, b"kept")


async def test_history_older_than_the_setting_is_forgotten_and_newer_stays(home: Home) -> None:
    config = CoordinatorConfig(enrolment_port=0, fleet_port=0, metrics_port=0, retention_days=10.0)
    async with running(home, config) as parts:
        engine = open_engine(config.database(home.path))
        store, now = SqlFleetStore(engine), SystemClock().now()
        for days in (11, 9):
            then = now - days * DAY_S
            token = TokenRecord(f"days.{days}", "", {}, False, then - DAY_S, then)
            store.add_tokens([token], AuditEntry(then, "admin", f"days.{days}", "fleet"))
        parts.forget()
        assert [entry.action for entry in store.audit(10)] == ["days.9"]
        assert [token.id for token in store.tokens()] == ["days.9"]
        engine.dispose()


def test_a_retention_of_nothing_is_refused(home: Home) -> None:
    with pytest.raises(ConfigError, match="retention_days must be positive"):
        load_config(home, {"retention_days": 0.0})
    assert load_config(home, {"retention_days": None}).retention_days == 90.0


@contextlib.contextmanager
def served(home: Home, how: str) -> Iterator["subprocess.Popen[str]"]:
    """A coordinator in a process of its own, once it serves."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(home.path), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stderr is not None
            assert any("coordinator serves" in line for line in process.stderr)
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process
        finally:
            process.kill()


def test_one_signal_stops_in_order(home: Home) -> None:
    with served(home, "in order") as process:
        assert home.ready_file.exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not home.ready_file.exists()


def test_a_second_signal_does_not_wait_for_what_is_under_way(home: Home) -> None:
    with served(home, "stuck") as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "closing\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
