"""The real `edge-agent` program: enrolment, SIGKILL at bad moments, one agent a home, status."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edge_agent.config import Home
from edge_agent.inference.probe import Probe
from edge_agent.journal import Journal
from edge_agent.link.enrolment import fetch_authority
from edge_agent.state import InstallState
from shared.client_apps import app_names
from shared.clock import SystemClock
from shared.errors import Unavailable
from shared.files import write_atomic
from shared.signing.certificates import Authority, generate_key, key_to_pem, make_csr, to_pem
from shared.signing.tokens import JoinToken
from tests.integration.agent_kit import MODEL, Kit, bundle, examples, kit, pid_alive, until
from tests.integration.test_agent_link import endless

# What the programs set for themselves must do.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "GRPC_"))}


@dataclass
class Done:
    code: int
    out: str
    err: str


async def edge_agent(*words: str, stdin: bytes = b"") -> Done:
    pipe = asyncio.subprocess.PIPE
    program = Path(sys.executable).with_name("edge-agent")
    process = await asyncio.create_subprocess_exec(program, *words, stdin=pipe, stdout=pipe, stderr=pipe, env=CLEAN)
    out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    return Done(process.returncode or 0, out.decode(), err.decode())


@asynccontextmanager
async def running_program(home: Home) -> AsyncIterator[asyncio.subprocess.Process]:
    """`edge-agent run`, ready; killed at the end if it lives."""
    home.ready_file.unlink(missing_ok=True)
    program = Path(sys.executable).with_name("edge-agent")
    process = await asyncio.create_subprocess_exec(program, "run", "--home", str(home.path), env=CLEAN)
    try:
        await until(lambda: home.ready_file.exists() or process.returncode is not None, 30)
        assert process.returncode is None
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def ready(home: Home) -> dict[str, Any]:
    return dict(json.loads(home.ready_file.read_text()))


async def version_served(home: Home) -> int:
    probe = Probe(str(ready(home)["inference"]))
    answer = await probe.infer(MODEL, examples(1)[0])
    await probe.close()
    return answer.version


def children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


@asynccontextmanager
async def enrolled_by_command(tmp_path: Path) -> AsyncIterator[Kit]:
    """A kit whose second device joined through the command line."""
    async with kit(tmp_path) as k:
        home = Home(tmp_path / "b")
        words = ("enroll", "--home", str(home.path), "--coordinator", f"localhost:{k.front.enrolment_port}")
        done = await edge_agent(
            *words, "--name", "cam-2", "--label", "site=lab", "--token-file", "-", stdin=k.front.token().encode()
        )
        assert done.code == 0, done.err
        k.device = k.front.registry.device("cam-2")
        k.home = home
        write_atomic(home.identity / "root.json", k.repository.first_root)  # the front has a root of its own
        yield k


async def test_a_device_joins_runs_and_is_asked_what_it_does(tmp_path: Path) -> None:
    async with enrolled_by_command(tmp_path) as k:
        assert k.device.labels == {"site": "lab"}
        assert json.loads(k.device.profile_json)["client_apps"] == app_names()
        assert not list(k.home.identity.glob("enrolling*")), "the key is kept in one place"
        assert (k.home.identity / "current" / "key.pem").stat().st_mode & 0o077 == 0
        at_rest = await edge_agent("status", "--home", str(k.home.path), "--json")
        assert json.loads(at_rest.out)["running"] is False
        shard = tmp_path / "shard.npz"
        x, y = examples(100)
        np.savez(shard, x=x, y=y)
        done = await edge_agent("ingest", "--home", str(k.home.path), str(shard))
        assert done.code == 0
        assert "shard.npz: 100 examples added as 00000000-" in done.out
        k.publish(1, bundle())
        async with running_program(k.home) as process:
            await k.attached()
            assert (await k.receipt(k.install(1))).state == "proven"
            status = json.loads((await edge_agent("status", "--home", str(k.home.path), "--json")).out)
            assert (status["session"], status["models"][0]["release"]) == ("attached", 1)
            assert status["inference"] == ready(k.home)["inference"]
            people = await edge_agent("status", "--home", str(k.home.path))
            assert "model       lines:1 on" in people.out
            assert "tasks       0 done, 0 failed, 0 refused, 0 cancelled, 0 under way\n" in people.out
            second = await edge_agent("run", "--home", str(k.home.path))
            assert second.code == 4
            assert "runs in" in second.err
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 20) == 0
        assert not k.home.ready_file.exists()


async def test_killed_while_serving_it_comes_back_serving_without_the_coordinator(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        k.publish(1, bundle())
        async with running_program(k.home) as process:
            await k.attached()
            await k.receipt(k.install(1))
            family = [process.pid, *children(process.pid)]
            process.kill()
            await process.wait()
            await until(lambda: not any(pid_alive(pid) for pid in family))  # the kernel ends its children
    async with running_program(k.home):
        assert await version_served(k.home) == 1


@pytest.mark.slow
@pytest.mark.parametrize("state", ["fetched", "specialised", "loaded", "judged", "swapped"])
async def test_killed_in_the_middle_of_an_install_it_serves_the_old_release_and_then_finishes(
    tmp_path: Path, state: str
) -> None:
    async with kit(tmp_path) as k:
        k.ingest()
        k.publish(1, bundle())
        k.publish(2, bundle(2.0))
        async with running_program(k.home) as process:
            await k.attached()
            await k.receipt(k.install(1))
            rollout = k.install(2)
            await _stopped_at(k, process, state)
        async with running_program(k.home):
            first_seen = await version_served(k.home)
            assert first_seen in (1, 2)
            await k.attached()
            receipt = await k.receipt(rollout)
            assert (receipt.state, receipt.release) == ("proven", 2)
            assert await version_served(k.home) == 2


async def _stopped_at(k: Kit, process: asyncio.subprocess.Process, state: str) -> None:
    """SIGKILL as soon as the journal shows that state, or a later one."""
    order = ["verified", "fetched", "specialised", "loaded", "judged", "swapped", "proven", "reported"]
    journal = Journal(k.home.journal)
    try:

        def reached() -> bool:
            records = [record for record in journal.installs() if record.order.release == 2]
            return bool(records) and order.index(records[0].state.value) >= order.index(state)

        await asyncio.to_thread(_spin, reached)
        process.kill()
        await process.wait()
        proven = {InstallState.PROVEN, InstallState.REPORTED} & {one.state for one in journal.installs()[1:]}
        assert journal.proven(MODEL)[0].release == (2 if proven else 1)
    finally:
        journal.close()


def _spin(reached: Callable[[], bool]) -> None:
    """Look without a pause: an install passes through its states in milliseconds."""
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline


async def test_a_trainer_dies_with_its_supervisor_in_the_middle_of_a_task(tmp_path: Path) -> None:
    async with kit(tmp_path) as k, running_program(k.home) as process:
        await k.attached()
        k.front.hub.send(k.device.id, endless(k))
        await until(lambda: len(children(process.pid)) == 2)
        family = children(process.pid)
        process.kill()
        await process.wait()
        await until(lambda: not any(pid_alive(pid) for pid in family))


async def test_a_token_of_another_fleet_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        stranger = JoinToken.create(Authority.create("other", k.front.clock.now()).fingerprint)
        words = ("enroll", "--home", str(tmp_path / "c"), "--coordinator", f"localhost:{k.front.enrolment_port}")
        done = await edge_agent(*words, "--name", "cam-9", "--token-file", "-", stdin=stranger.text.encode())
        assert done.code == 14
        assert "is not the one that issued this token" in done.err
        assert done.err.count("\n") == 1
        assert not (tmp_path / "c" / "identity" / "enrolment.json").exists()


async def test_who_dials_the_fleet_port_to_join_is_told_which_port_it_is(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        words = ("enroll", "--home", str(tmp_path / "c"), "--coordinator", f"localhost:{k.front.fleet_port}")
        done = await edge_agent(*words, "--name", "cam-9", "--token-file", "-", stdin=k.front.token().encode())
        assert done.code == 2
        assert "as a coordinator's fleet port does; give its enrolment port" in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("way", ["a reset", "a close"])
async def test_a_peer_that_hangs_up_after_the_handshake_is_not_there_rather_than_a_fleet_port(
    tmp_path: Path, way: str
) -> None:
    now, key = SystemClock().now(), generate_key()
    authority = Authority.create("test", now)
    certificate = authority.issue(make_csr(key, "c"), "c", "coordinator", now=now, valid_for_s=60.0)
    for name, content in (("key.pem", key_to_pem(key)), ("cert.pem", to_pem(certificate))):
        (tmp_path / name).write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    def hang_up(listening: socket.socket) -> None:
        with context.wrap_socket(listening.accept()[0], server_side=True) as connection:
            if way == "a reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                with contextlib.suppress(ssl.SSLError):  # it says goodbye, and is not answered
                    connection.unwrap()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        peer = asyncio.create_task(asyncio.to_thread(hang_up, listening))
        with pytest.raises(Unavailable, match="is it the enrolment port, 7450") as refused:
            await asyncio.to_thread(fetch_authority, address, JoinToken.create(authority.fingerprint))
        await peer
    assert refused.value.exit_code == 23


async def test_what_the_coordinator_cannot_take_was_typed_here(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        words = ("enroll", "--home", str(tmp_path / "c"), "--coordinator", f"localhost:{k.front.enrolment_port}")
        name = "dev-0123456789abcdef"
        done = await edge_agent(*words, "--name", name, "--token-file", "-", stdin=k.front.token().encode())
        assert (done.code, done.err) == (2, f"error: {name} looks like a device id; choose another name\n")


async def test_an_inference_port_that_is_taken_is_named_in_one_line(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            words = ("run", "--home", str(k.home.path), "--inference-port", str(port), "--log-level", "error")
            done = await edge_agent(*words)
        assert (done.code, done.err.count("\n")) == (25, 1)
        assert f"127.0.0.1:{port} is taken by another program" in done.err


async def test_a_device_that_needs_approval_waits_and_repeats_itself_safely(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        tokens, _ = k.front.registry.create_tokens(
            count=1, valid_for_s=60.0, labels={}, require_approval=True, actor="test"
        )
        where = ("--home", str(tmp_path / "c"), "--coordinator", f"localhost:{k.front.enrolment_port}")
        words = ("enroll", *where, "--name", "cam-9", "--token", tokens[0].text)
        done = await edge_agent(*words, "--no-wait")
        assert (done.code, "waits for approval" in done.out) == (0, True)
        told = json.loads((await edge_agent(*words, "--no-wait", "--json")).out)
        assert (told["state"], told["name"]) == ("pending", "cam-9")
        waiting = asyncio.create_task(edge_agent(*words))
        k.front.registry.approve("cam-9", "admin")
        assert (await waiting).code == 0
        again = await edge_agent(*words)
        assert (again.code, "is enrolled as" in again.out) == (0, True)
        told |= {"state": "enrolled"}
        assert json.loads((await edge_agent(*words, "--json")).out) == told
        other = await edge_agent(*words[:-3], "cam-8", *words[-2:])
        assert other.code == 4
        assert "belongs to device cam-9" in other.err
