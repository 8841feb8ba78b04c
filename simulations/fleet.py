"""One coordinator and many agents on this machine, each agent with a home, a token and data of its own: a process each, or many in
a few host processes.

The fleet does what an operating system's service manager would: a process that dies is started again after a moment.
One that keeps dying without having been killed on purpose ends the simulation with the last line of its log.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from shared.clock import Clock, SystemClock
from shared.errors import ChildFailed, InputError, NotFound
from shared.files import write_atomic
from shared.settings import Scalar
from simulations.commands import Agent, Coordinator
from simulations.crews import Crew, crews_of
from simulations.data import Dataset
from simulations.jobfile import to_toml
from simulations.processes import Child, Processes

_READY_S = 60.0
_RESTART_AFTER_S = 0.5
_DEATHS = 3  # of its own accord, after which a process is given up
_LONGEST_ROOT = 60  # a Unix socket's path must fit in 108 bytes, and ours are HOME/run/NAME.sock

T = TypeVar("T")


@contextlib.contextmanager
def workplace(*, keep: bool = False) -> Iterator[Path]:
    """A new folder for a simulation, with a path short enough for sockets; deleted at the end unless `keep`, or unless the
    simulation failed: then its logs are needed.
    """
    place = tempfile.gettempdir()
    root = Path(tempfile.mkdtemp(prefix="shoal-", dir=place if len(place) < _LONGEST_ROOT - 20 else "/tmp"))  # noqa: S108
    try:
        yield root
    except ChildFailed:
        keep = True
        raise
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
        self,
        root: Path,
        names: Sequence[str],
        *,
        hosts: int = 0,
        clock: Clock | None = None,
    ) -> None:
        """`hosts` 0: a process an agent; else all agents live in so many processes. Raises `InputError`."""
        if len(str(root)) > _LONGEST_ROOT:
            raise InputError(
                f"{root} is too long for a Unix socket; choose a folder of at most {_LONGEST_ROOT} letters"
            )
        self.root = root
        self.names = tuple(names)
        self.processes = Processes(root / "logs", clock=clock)
        self.coordinator = Coordinator(self.processes, root / "c")
        self.agents = {name: Agent(self.processes, name, root / f"a{place}") for place, name in enumerate(names)}
        self._crews = crews_of(self.processes, tuple(self.agents.values()), hosts, root)
        self._crew_of = {agent.name: crew for crew in self._crews for agent in crew.agents}
        self.restarts = {crew.name: 0 for crew in self._crews}
        self._clock = clock or SystemClock()
        self._server: Child | None = None
        self._killed: set[int] = set()
        self._children: dict[str, Child] = {}  # by crew
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._ports: Mapping[str, Any] = {}

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
        """Make its home if there is none, start it where it was before, and wait until it answers."""
        if not self.coordinator.home.exists():
            await self.coordinator.init()
        self._server = await self.coordinator.serve(self._ports)
        ready = self.coordinator.home / "run" / "ready.json"
        content = await self.processes.ready(self._server, ready, timeout_s=_READY_S)
        self._ports = {name: content[name] for name in ("enrolment", "fleet", "metrics")}

    @property
    def enrolment(self) -> str:
        """Where devices join, HOST:PORT."""
        return f"localhost:{self._ports['enrolment']}"

    @property
    def fleet_port(self) -> int:
        """Where agents hold their sessions, on the loopback address."""
        return int(self._ports["fleet"])

    async def kill_coordinator(self) -> float:
        """SIGKILL; returns when (seconds since the epoch). Start it again with `start_coordinator`."""
        if self._server is None:
            raise NotFound("no coordinator runs")
        at = self._clock.now()
        self._killed.add(self._server.pid)
        self._server.signal(signal.SIGKILL)
        await self._server.wait()
        return at

    # ---- agents

    async def enrol(self) -> None:
        """All devices, each with a single-use token."""
        tokens = await self.coordinator.tokens(len(self.names))
        of = dict(zip(self.names, tokens, strict=True))
        jobs = [crew.enrol(self.enrolment, [of[agent.name] for agent in crew.agents]) for crew in self._crews]
        await at_most(os.cpu_count() or 1, jobs)

    def configure(self, name: str, settings: Mapping[str, Scalar]) -> None:
        """Write a device's settings file (see `edge_agent.config`), for its agent's next start."""
        write_atomic(self.agents[name].home / "agent.toml", to_toml(settings).encode())

    async def ingest(self, shards: Mapping[str, Dataset]) -> None:
        """Give devices samples of their own."""
        jobs = [self._crew_of[name].ingest(self.agents[name], data) for name, data in shards.items()]
        await at_most(os.cpu_count() or 1, jobs)

    async def start_agents(self) -> None:
        """Start all, wait until each is up, and keep them up."""
        await at_most(os.cpu_count() or 1, [self._start(crew) for crew in self._crews])
        for crew in self._crews:
            self._keepers[crew.name] = asyncio.create_task(self._keep(crew), name=f"keep {crew.name}")

    async def _start(self, crew: Crew) -> None:
        self._children[crew.name] = await crew.run()
        await self._ready(crew)

    async def _ready(self, crew: Crew) -> None:
        child = self._children[crew.name]
        for agent in crew.agents:
            await self.processes.ready(child, agent.ready, timeout_s=_READY_S)

    async def _keep(self, crew: Crew) -> None:
        deaths = 0
        while True:
            child = self._children[crew.name]
            await child.wait()
            if child.pid not in self._killed:
                deaths += 1
                if deaths > _DEATHS:
                    raise child.failure()
            await asyncio.sleep(_RESTART_AFTER_S)
            self._children[crew.name] = await crew.run()
            self.restarts[crew.name] += 1

    def pid(self, name: str) -> int:
        """Of the process that a device's agent lives in."""
        return self._child(name).pid

    def memory(self) -> dict[str, int]:
        """Resident bytes of each process that agents live in, children included, by its name."""
        return {name: _resident(child.pid) for name, child in self._children.items()}

    def kill(self, name: str) -> float:
        """SIGKILL an agent's process; returns when (seconds since the epoch). It is started again.

        A host takes all of its agents with it.
        """
        child = self._child(name)
        self._killed.add(child.pid)
        at = self._clock.now()
        child.signal(signal.SIGKILL)
        return at

    async def back(self, name: str) -> None:
        """Wait until a device that was killed is ready again. Raises `ChildFailed`, `DeadlineExceeded`."""
        while self._child(name).pid in self._killed:
            await asyncio.sleep(_RESTART_AFTER_S)
            self.check()
        await self._ready(self._crew_of[name])

    def _child(self, name: str) -> Child:
        try:
            return self._children[self._crew_of[name].name]
        except KeyError:
            raise NotFound(f"no agent {name} runs") from None

    def check(self) -> None:
        """Raises `ChildFailed` when the coordinator is gone, or an agent was given up."""
        server = self._server
        if server is not None and server.exit_code is not None and server.pid not in self._killed:
            raise server.failure()
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


def _resident(pid: int) -> int:
    """0 for a process that is gone."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    return total


def settle(work: Awaitable[T]) -> T:
    """Run to the end; Ctrl-C cancels, and the fleet's own clean-up runs before it is raised again."""
    return asyncio.run(_as_coroutine(work))


async def _as_coroutine(work: Awaitable[T]) -> T:
    return await work
