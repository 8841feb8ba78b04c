"""Child processes of a simulation: real ones, killed for real."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shared.errors import ChildFailed, DeadlineExceeded
from simulations import guard
from simulations.processes import Processes

SLEEPER = [sys.executable, "-c", "import time; time.sleep(300)"]
# A parent that moves to a session of its own, starts a child in another, and says so in its ready file.
PARENT = """
import json, os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
with open(sys.argv[1] + ".tmp", "w") as file:
    json.dump({"pid": os.getpid(), "child": child.pid}, file)
os.replace(sys.argv[1] + ".tmp", sys.argv[1])
time.sleep(300)
"""


def _ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_nothing_survives_the_end_not_even_an_orphan_in_another_session(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    async with Processes(tmp_path / "logs") as processes:
        parent = await processes.spawn("parent", [sys.executable, "-c", PARENT, str(ready)])
        orphan = (await processes.ready(parent, ready, timeout_s=20))["child"]
        parent.signal(signal.SIGKILL)
        await parent.wait()
        assert not _ended(orphan)
    assert _ended(orphan)
    assert guard.marked(processes.mark) == []


@pytest.mark.slow
def test_nothing_survives_a_simulator_that_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    simulator = f"""
import asyncio, sys
from pathlib import Path
from simulations.processes import Processes
async def main():
    async with Processes(Path({str(tmp_path / "logs")!r})) as processes:
        parent = await processes.spawn("parent", [sys.executable, "-c", {PARENT!r}, {str(ready)!r}])
        await processes.ready(parent, Path({str(ready)!r}), timeout_s=20)
        print(processes.mark, flush=True)
        await parent.wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", simulator], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        mark = process.stdout.readline().strip()
        family = guard.marked(mark)
        assert len(family) == 2
        process.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


async def test_a_child_that_ends_before_it_is_ready_is_named_with_the_last_line_of_its_log(tmp_path: Path) -> None:
    async with Processes(tmp_path / "logs") as processes:
        child = await processes.spawn("agent-1", [sys.executable, "-c", "import sys; sys.exit('no such home')"])
        with pytest.raises(ChildFailed, match="agent-1 ended with 1: no such home"):
            await processes.ready(child, tmp_path / "ready.json", timeout_s=20)


async def test_a_ready_file_of_an_earlier_run_does_not_count(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    ready.write_text(json.dumps({"pid": os.getpid()}))
    async with Processes(tmp_path / "logs") as processes:
        child = await processes.spawn("agent-1", SLEEPER)
        with pytest.raises(DeadlineExceeded, match=r"agent-1 was not ready within 0\.2 s"):
            await processes.ready(child, ready, timeout_s=0.2)


async def test_a_child_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    )
    async with Processes(tmp_path / "logs") as processes:
        child = await processes.spawn("stubborn", [sys.executable, "-c", stubborn], talk=True)
        assert await child.read_line() == "up\n"
        await processes.stop(child, grace_s=0.2)
        assert child.exit_code == -signal.SIGKILL


async def test_children_are_silenced_and_talked_to(tmp_path: Path) -> None:
    script = "import os, sys; print(os.environ['FLWR_TELEMETRY_ENABLED'], os.environ['GREETING'], input())"
    async with Processes(tmp_path / "logs") as processes:
        child = await processes.spawn(
            "talker", [sys.executable, "-c", script], talk=True, environment={"GREETING": "hello"}
        )
        child.write_line("world")
        assert await child.read_line() == "0 hello world\n"
        assert await child.wait() == 0


async def test_a_command_gives_what_it_printed_or_the_last_line_it_complained_with(tmp_path: Path) -> None:
    async with Processes(tmp_path / "logs") as processes:
        assert await processes.call([sys.executable, "-c", "print('yes')"]) == "yes\n"
        script = "import sys; print('error: no such device', file=sys.stderr); sys.exit(3)"
        with pytest.raises(ChildFailed, match="ended with 3: error: no such device"):
            await processes.call([sys.executable, "-c", script])
        with pytest.raises(DeadlineExceeded):
            await processes.call(SLEEPER, timeout_s=0.2)
        with pytest.raises(ChildFailed, match="cannot be started"):
            await processes.spawn("ghost", ["/no/such/program"])
