"""One coordinator and many agents as real processes on this machine, each agent with a home, a token and data of its
own.

The fleet does what an operating system's service manager would: an agent that dies is started again after a moment.
One that keeps dying without having been killed on purpose ends the simulation with the last line of its log.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from shared.clock import Clock, SystemClock
from shared.errors import ChildFailed, InputError, NotFound
from shared.files import write_atomic
from simulations.commands import Agent, Coordinator
from simulations.data import Dataset
from simulations.processes import Child, Processes
from simulations.shards import write_shard

_READY_S = 60.0
_LONGEST_ROOT = 60  # a Unix socket's path must fit in 108 bytes, and ours are HOME/run/NAME.sock

T = TypeVar("T")


@dataclass(frozen=True)
class Restart:
    """As systemd's Restart=always: after `delay_s`; given up after `limit` deaths of its own."""

    delay_s: float = 0.5
    limit: int = 3


@contextlib.contextmanager
def workplace(*, keep: bool = False) -> Iterator[Path]:
    """A new folder for a simulation, with a path short enough for sockets; deleted at the end unless `keep`."""
    place = tempfile.gettempdir()
    root = Path(tempfile.mkdtemp(prefix="shoal-", dir=place if len(place) < _LONGEST_ROOT - 20 else "/tmp"))  # noqa: S108
    try:
        yield root
    finally:
        if not keep:
            shutil.rmtree(root, ignore_errors=True)


async def at_most(count: int, jobs: Sequence[Awaitable[T]]) -> list[T]:
    """The results of `jobs`, `count` of them at a time: starting Python costs a core half a second."""
    turn = asyncio.Semaphore(count)

    async def one(job: Awaitable[T]) -> T:
        async with turn:
            return await job

    return await asyncio.gather(*(one(job) for job in jobs))


class Fleet:
    """Use as a context: leaving it ends every process. Names of devices are their agents' names."""

    def __init__(
        self, root: Path, names: Sequence[str], *, restart: Restart | None = None, clock: Clock | None = None
    ) -> None:
        if len(str(root)) > _LONGEST_ROOT:
            raise InputError(
                f"{root} is too long for a Unix socket; choose a folder of at most {_LONGEST_ROOT} letters"
            )
        self.root = root
        self.names = tuple(names)
        self.processes = Processes(root / "logs", clock=clock)
        self.coordinator = Coordinator(self.processes, root / "c")
        self.agents = {name: Agent(self.processes, name, root / f"a{place}") for place, name in enumerate(names)}
        self.restarts = dict.fromkeys(names, 0)
        self._restart = restart or Restart()
        self._clock = clock or SystemClock()
        self._server: Child | None = None
        self._children: dict[str, Child] = {}
        self._killed: set[int] = set()
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._addresses: Mapping[str, Any] = {}

    async def __aenter__(self) -> Self:
        await self.processes.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        await self.processes.__aexit__(kind, error, trace)

    # ---- coordinator

    async def start_coordinator(self) -> None:
        """Make its home if there is none, start it, and wait until it answers."""
        if not self.coordinator.home.exists():
            await self.coordinator.init()
        self._server = await self.coordinator.serve()
        ready = self.coordinator.home / "run" / "ready.json"
        self._addresses = await self.processes.ready(self._server, ready, timeout_s=_READY_S)

    @property
    def enrolment(self) -> str:
        """Where devices join, HOST:PORT."""
        return f"localhost:{self._addresses['enrolment']}"

    @property
    def metrics_port(self) -> int:
        return int(self._addresses["metrics"])

    async def kill_coordinator(self) -> float:
        """SIGKILL; returns when (seconds since the epoch). Start it again with `start_coordinator`."""
        if self._server is None:
            raise NotFound("no coordinator runs")
        at = self._clock.now()
        self._server.signal(signal.SIGKILL)
        await self._server.wait()
        return at

    # ---- agents

    async def enrol(self, addresses: Mapping[str, str] | None = None) -> None:
        """All devices, each with a single-use token. `addresses` sends some to another address, a `link` for one."""
        tokens = await self.coordinator.tokens(len(self.names))
        jobs = []
        for (name, agent), token in zip(self.agents.items(), tokens, strict=True):
            file = self.root / f"{name}.token"
            write_atomic(file, token.encode(), mode=0o600)
            jobs.append(self._enrol(agent, (addresses or {}).get(name, self.enrolment), file))
        await at_most(os.cpu_count() or 1, jobs)

    async def _enrol(self, agent: Agent, address: str, token: Path) -> None:
        try:
            await agent.enroll(address, token)
        finally:
            token.unlink()  # noqa: ASYNC240 (a moment on local disk)

    async def ingest(self, shards: Mapping[str, Dataset]) -> None:
        """Give devices samples of their own."""
        await at_most(os.cpu_count() or 1, [self._ingest(self.agents[name], data) for name, data in shards.items()])

    async def _ingest(self, agent: Agent, samples: Dataset) -> None:
        file = self.root / f"{agent.name}.safetensors"
        await asyncio.to_thread(write_shard, file, samples)
        try:
            await agent.ingest(file)
        finally:
            file.unlink()

    async def start_agents(self) -> None:
        """Start all, wait until each is up, and keep them up."""
        await at_most(os.cpu_count() or 1, [self._start(name) for name in self.names])
        for name in self.names:
            self._keepers[name] = asyncio.create_task(self._keep(name), name=f"keep {name}")

    async def _start(self, name: str) -> None:
        agent = self.agents[name]
        self._children[name] = await agent.run()
        await self.processes.ready(self._children[name], agent.ready, timeout_s=_READY_S)

    async def _keep(self, name: str) -> None:
        deaths = 0
        while True:
            child = self._children[name]
            await child.wait()
            if child.pid not in self._killed:
                deaths += 1
                if deaths > self._restart.limit:
                    raise child.failure()
            await asyncio.sleep(self._restart.delay_s)
            self._children[name] = await self.agents[name].run()
            self.restarts[name] += 1

    def pid(self, name: str) -> int:
        return self._child(name).pid

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> float:
        """Signal an agent's process on purpose; returns when (seconds since the epoch). It is started again."""
        child = self._child(name)
        self._killed.add(child.pid)
        at = self._clock.now()
        child.signal(number)
        return at

    async def back(self, name: str) -> None:
        """Wait until a device that was killed is ready again. Raises `ChildFailed`, `DeadlineExceeded`."""
        child = self._child(name)
        while child.pid in self._killed:
            await asyncio.sleep(self._restart.delay_s)
            self.check()
            child = self._child(name)
        await self.processes.ready(child, self.agents[name].ready, timeout_s=_READY_S)

    def _child(self, name: str) -> Child:
        try:
            return self._children[name]
        except KeyError:
            raise NotFound(f"no agent {name} runs") from None

    def check(self) -> None:
        """Raises `ChildFailed` when the coordinator is gone, or an agent was given up."""
        if self._server is not None and self._server.exit_code not in (None, -signal.SIGKILL):
            raise self._server.failure()
        for keeper in self._keepers.values():
            if keeper.done() and not keeper.cancelled() and (error := keeper.exception()) is not None:
                raise error if isinstance(error, ChildFailed) else ChildFailed(str(error))

    async def watching(self, work: Awaitable[T]) -> T:
        """`work`, given up with `ChildFailed` as soon as a process that should live has died for good."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait([task, *self._keepers.values()], timeout=1, return_when=asyncio.FIRST_COMPLETED)
                self.check()
            return await task
        finally:
            task.cancel()
