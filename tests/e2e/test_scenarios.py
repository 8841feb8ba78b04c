"""`simulate run` as people type it: a scenario that holds, one that cannot, and one that is stopped half way."""

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from simulations.processes import SILENCED, program
from tests.e2e.kit import pretend_digits

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e"), pytest.mark.timeout(240)]
RECOVERED = "devices dropped, their masks taken out: at least 1"
IMPOSSIBLE = """
name = "impossible"
devices = 3
hosts = 1

[data]
minimum = 10

[job]
name = "impossible"
client_app = "echo"
rounds = 1

[job.selection]
min_devices = 3

[expect]
recovered_at_least = 1
"""

BAD_NETWORK = """
name = "bad-network-in-one-process"
devices = 4
hosts = 1

[data]
alpha = 5.0

[job]
name = "bad-network"
client_app = "softmax"
rounds = 2

[job.selection]
min_devices = 4
quorum = 0.5
wait_quantile = 0.75
grace_s = 5.0
wait_for_devices_s = 30.0

[[fault]]
kind = "delay"
device = 1
for_s = 60.0
delay_s = 0.05

[[fault]]
kind = "cut"
device = 2
round = 1
phase = "KEYS"

[[fault]]
kind = "partition"
device = 3
round = 2
phase = "SELECTED"
for_s = 60.0

[expect]
rounds_committed = 2
counted_at_least = 3
"""


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where `simulate` makes its fleets; short, for their sockets, and empty again when they are gone."""
    with tempfile.TemporaryDirectory(prefix="e2e-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def environment(tmp_path: Path, scratch: Path) -> dict[str, str]:
    return {**os.environ, **SILENCED, **pretend_digits(tmp_path / "sets"), "TMPDIR": str(scratch)}


async def simulate(environment: dict[str, str], *words: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    argv = [program("simulate"), "run", *words]
    return await asyncio.create_subprocess_exec(
        *argv, stdout=pipe, stderr=pipe, env=environment, start_new_session=True, preexec_fn=_hear_ctrl_c
    )


def _hear_ctrl_c() -> None:
    """Whoever runs the tests in the background may have had it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def ended(process: asyncio.subprocess.Process) -> tuple[str, str]:
    """Its output and its complaints."""
    printed, complaints = await asyncio.wait_for(process.communicate(), 200)
    return printed.decode(), complaints.decode()


def report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


async def test_a_round_is_summed_though_a_device_dies_while_its_masks_are_out(
    environment: dict[str, str], tmp_path: Path, scratch: Path
) -> None:
    process = await simulate(environment, "kill-while-masks-are-out", "--report", str(tmp_path))
    printed, complaints = await ended(process)
    assert process.returncode == 0, printed + complaints
    assert "device-2's agent is killed with SIGKILL" in printed
    found = report(tmp_path)
    assert found["held"]
    assert [fault["text"] for fault in found["faults"]] == ["device-2's agent is killed with SIGKILL"]
    second = {device["name"]: device["outcome"] for device in found["rounds"][1]["devices"]}
    assert second == {**dict.fromkeys(["device-1", "device-3", "device-4"], "counted"), "device-2": "recovered"}
    assert list(scratch.iterdir()) == []


async def test_a_scenario_that_does_not_hold_says_what_did_not_and_fails(
    environment: dict[str, str], tmp_path: Path, scratch: Path
) -> None:
    file = tmp_path / "impossible.toml"
    file.write_text(IMPOSSIBLE)
    process = await simulate(environment, str(file), "--report", str(tmp_path))
    printed, _ = await ended(process)
    assert process.returncode == 1
    assert f"NOT HELD  {RECOVERED} (0)" in printed
    assert "held      the job ends completed (completed)" in printed
    assert [check["text"] for check in report(tmp_path)["checks"] if not check["held"]] == [RECOVERED]
    assert list(scratch.iterdir()) == []


async def test_a_device_that_is_cut_off_costs_its_own_part_of_the_round_alone(
    environment: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "network.toml"
    file.write_text(BAD_NETWORK)
    process = await simulate(environment, str(file), "--report", str(tmp_path))
    printed, complaints = await ended(process)
    assert process.returncode == 0, printed + complaints
    last = {device["name"]: device["outcome"] for device in report(tmp_path)["rounds"][-1]["devices"]}
    lost = last.pop("device-3")
    assert lost in {"recovered", "dropped"}, "the cut may have cost round 1's group: then it dealt no shares in round 2"
    assert last == dict.fromkeys(["device-1", "device-2", "device-4"], "counted")


async def test_ctrl_c_in_the_middle_leaves_no_process_and_no_file(environment: dict[str, str], scratch: Path) -> None:
    process = await simulate(environment, "kill-while-masks-are-out")
    assert process.stdout is not None
    while b"rounds of softmax" not in await asyncio.wait_for(process.stdout.readline(), 90):
        assert not process.stdout.at_eof()
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) > 8  # the coordinator, four agents, their inference services, …
    process.send_signal(signal.SIGINT)
    _, complaints = await ended(process)
    assert (process.returncode, complaints.split()) == (130, ["stopped"])
    assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    assert list(scratch.iterdir()) == []
