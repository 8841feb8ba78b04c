"""Flower's own SuperLink and SuperNodes on this machine, running the echo app: what our rounds are measured against."""

import asyncio
import os
import socket
import sys
from itertools import pairwise
from pathlib import Path

from shared.errors import ChildFailed, DeadlineExceeded
from simulations.processes import Child, Processes, program

APP = Path(__file__).with_name("flower_app")
_START_S = 60.0
_TRY_EVERY_S = 0.2


async def seconds_a_round(processes: Processes, work: Path, *, nodes: int, parameters: int, rounds: int) -> list[float]:
    """FedAvg over `nodes` SuperNodes whose ClientApp returns its input. Raises `ChildFailed`, `DeadlineExceeded`."""
    (port, *node_ports) = _free_ports(nodes + 1)
    environment = _environment(work, port)
    times = work / "times"
    argv = [program("flower-superlink"), "--insecure", "--port", str(port), "--database", str(work / "state.db")]
    argv.append("--disable-runtime-dependency-installation")
    link = await processes.spawn("flower-superlink", argv, environment=environment)
    await _listening(link, port)
    children = [link]
    for index, node_port in enumerate(node_ports):
        argv = [program("flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}"]
        argv += ["--port", str(node_port), "--node-config", f"partition-id={index} num-partitions={nodes}"]
        children.append(await processes.spawn(f"flower-supernode-{index}", argv, environment=environment))
    config = f"times='{times}' rounds={rounds} nodes={nodes} parameters={parameters}"
    argv = [program("flwr"), "run", str(APP), "--stream", "--run-config", config]
    run = await processes.spawn("flwr-run", argv, environment=environment)
    await run.wait()
    await processes.stop(*children)
    ends = [float(text) for text in times.read_text().split()] if times.is_file() else []
    if len(ends) != rounds + 1:
        raise ChildFailed(f"Flower finished {max(0, len(ends) - 1)} of {rounds} rounds", detail=f"log: {run.log}")
    return [end - start for start, end in pairwise(ends)]


def _environment(work: Path, port: int) -> dict[str, str]:
    """A Flower home of its own, and a PATH on which Flower finds the programs that it starts."""
    home = work / "flower-home"
    home.mkdir(parents=True)
    address = f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(address)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {"FLWR_HOME": str(home), "PATH": path}


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on. Flower takes numbers only, so another program could still get there first."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


async def _listening(child: Child, port: int) -> None:
    for _ in range(round(_START_S / _TRY_EVERY_S)):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if child.exit_code is not None:
                raise child.failure() from None
            await asyncio.sleep(_TRY_EVERY_S)
        else:
            writer.close()
            return
    raise DeadlineExceeded(f"{child.name} does not listen after {_START_S:g} s", detail=f"log: {child.log}")
