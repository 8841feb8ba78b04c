"""Flower's own SuperLink on this machine, with SuperNodes or with its simulation engine: where our apps also run."""

import asyncio
import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.link.credentials import store_identity
from shared.errors import DeadlineExceeded
from shared.signing.certificates import Authority
from shared.signing.identity import DeviceIdentity
from simulations.processes import Child, Processes, program

_START_S = 60.0
_TRY_EVERY_S = 0.2
_NAME = "lab"  # of the SuperLink, in Flower's own configuration
_YEAR_S = 365 * 86_400.0


@dataclass
class FlowerEngine:
    """A SuperLink and what belongs to it, under `work`; the processes are those of `processes`, which ends them."""

    processes: Processes
    work: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list)
    _port: int = 0

    async def start(self, *, simulation: bool = False) -> None:
        """The SuperLink, and wait until it listens. Raises `ChildFailed`, `DeadlineExceeded`."""
        (self._port,) = _free_ports(1)
        self._prepare()
        argv = [program("flower-superlink"), "--insecure", "--port", str(self._port)]
        argv += ["--database", str(self.work / "state.db"), "--disable-runtime-dependency-installation"]
        link = await self._spawn("flower-superlink", [*argv, "--simulation"] if simulation else argv)
        await _listening(link, self._port)

    async def add_nodes(self, settings: Sequence[str]) -> None:
        """A SuperNode for each `--node-config`."""
        for index, (port, config) in enumerate(zip(_free_ports(len(settings)), settings, strict=True)):
            argv = [program("flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{self._port}"]
            await self._spawn(f"flower-supernode-{index}", [*argv, "--port", str(port), "--node-config", config])

    async def run(self, app: Path, config: str, *, name: str = "flwr-run", federation: str = "") -> Path:
        """`flwr run` to its end; returns its log. Raises `ChildFailed` if it did not end well."""
        argv = [program("flwr"), "run", str(app), _NAME, "--stream", "--run-config", config]
        child = await self._spawn(name, [*argv, "--federation-config", federation] if federation else argv)
        if await child.wait():
            raise child.failure()
        return child.log

    async def stop(self) -> None:
        await self.processes.stop(*self.children)

    async def _spawn(self, name: str, argv: Sequence[str]) -> Child:
        child = await self.processes.spawn(name, argv, environment=self.environment)
        self.children.append(child)
        return child

    def _prepare(self) -> None:
        """A Flower home of its own, and a PATH on which Flower finds the programs that it starts."""
        home = self.work / "flower-home"
        home.mkdir(parents=True)
        address = f'[superlink]\ndefault = "{_NAME}"\n[superlink.{_NAME}]\naddress = "127.0.0.1:{self._port}"\n'
        (home / "config.toml").write_text(f"{address}insecure = true\n")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self.environment = {**self.environment, "FLWR_HOME": str(home), "PATH": path}


def make_identities(folder: Path, names: Iterable[str], now: float) -> None:
    """`authority.der`, and an identity folder for each name, as `edge_agent.flower_node` reads them. The authority's key is gone
    then: nobody joins later.
    """
    authority = Authority.create("simulation", now)
    for name in names:
        identity = DeviceIdentity.create(authority, f"device-{name}", now=now, valid_for_s=_YEAR_S)
        store_identity(folder / name, identity, authority.certificate_der)
    (folder / "authority.der").write_bytes(authority.certificate_der)


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
