"""Brings a scenario's faults about: at their moment, once each, and told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from simulations.commands import Event
from simulations.link import CALM, Link
from simulations.scenario import Fault

Killed = Callable[[str, float], None]


class Victims(Protocol):
    """What faults need of a fleet."""

    def kill(self, name: str) -> float:
        """SIGKILL; returns when (seconds since the epoch)."""
        ...

    async def back(self, name: str) -> None:
        """Wait until it serves again."""
        ...


@dataclass(frozen=True)
class Came:
    """A fault that came about; `at` in seconds since the job's start."""

    fault: Fault
    at: float

    @property
    def text(self) -> str:
        fault = self.fault
        match fault.kind:
            case "kill":
                return f"device-{fault.device}'s agent is killed with SIGKILL"
            case "cut":
                return f"device-{fault.device}'s connections are cut"
            case "partition":
                return f"device-{fault.device} is partitioned for {fault.for_s:g} s: connected, and nothing passes"
            case "delay":
                late = f"{fault.delay_s:g} to {fault.delay_s + fault.jitter_s:g} s"
                return f"what device-{fault.device} sends and gets is {late} late for {fault.for_s:g} s"
            case "throttle":
                rate = f"{fault.bytes_per_s / 1e3:g} kB/s"
                return f"device-{fault.device} has {rate} each way for {fault.for_s:g} s"


def device_name(number: int) -> str:
    """Devices are counted from 1."""
    return f"device-{number}"


@contextlib.asynccontextmanager
async def open_links(faults: Sequence[Fault], port: int, *, seed: int) -> AsyncIterator[Mapping[int, Link]]:
    """A link to the coordinator's `port` for each device whose network will misbehave."""
    numbers = sorted({fault.device for fault in faults if fault.kind != "kill"})
    seeds = np.random.SeedSequence(seed).spawn(len(numbers))
    async with contextlib.AsyncExitStack() as stack:
        yield {
            number: await stack.enter_async_context(Link(("127.0.0.1", port), np.random.default_rng(one)))
            for number, one in zip(numbers, seeds, strict=True)
        }


class Faults:
    """`begin` when the job starts, `seen` for each of its events, `end` when it has ended."""

    def __init__(
        self,
        faults: Sequence[Fault],
        fleet: Victims,
        links: Mapping[int, Link],
        *,
        say: Callable[[str], None],
        killed: Killed,
    ) -> None:
        self.came: list[Came] = []
        self._waiting = list(faults)
        self._fleet = fleet
        self._links = links
        self._say = say
        self._killed = killed
        self._lasting: dict[int, list[Fault]] = {number: [] for number in links}
        self._tasks: set[asyncio.Task[None]] = set()
        self._began = 0.0

    def begin(self) -> None:
        self._began = asyncio.get_running_loop().time()
        for fault in [one for one in self._waiting if not one.phase]:
            self._start(fault)

    def seen(self, event: Event) -> None:
        for fault in [one for one in self._waiting if one.due(event)]:
            self._start(fault)

    async def end(self) -> None:
        """What has not come does not come any more, and links are calm. Raises what went wrong with a fault."""
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def all_back(self) -> int:
        """Wait until every killed agent serves again; how many that were. Raises `ChildFailed`, `DeadlineExceeded`."""
        killed = {one.fault.device for one in self.came if one.fault.kind == "kill"}
        for number in killed:
            await self._fleet.back(device_name(number))
            self._say(f"device-{number}'s agent serves again")
        return len(killed)

    def _start(self, fault: Fault) -> None:
        """One that is due now comes about before this returns: a round may be over a moment later."""
        self._waiting.remove(fault)
        if not fault.after_s:
            self._strike(fault)
        if fault.after_s or fault.lasts:
            self._tasks.add(asyncio.create_task(self._bring_about(fault), name=f"{fault.kind} {fault.device}"))

    async def _bring_about(self, fault: Fault) -> None:
        if fault.after_s:
            await asyncio.sleep(fault.after_s)
            self._strike(fault)
        if not fault.lasts:
            return
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            self._lasting[fault.device].remove(fault)
            self._set_weather(fault.device)
        self._say(f"device-{fault.device}'s {fault.kind} is over")

    def _strike(self, fault: Fault) -> None:
        match fault.kind:
            case "kill":
                name = device_name(fault.device)
                self._killed(name, self._fleet.kill(name))
            case "cut":
                self._links[fault.device].cut()
            case _:
                self._lasting[fault.device].append(fault)
                self._set_weather(fault.device)
        self.came.append(Came(fault, asyncio.get_running_loop().time() - self._began))
        self._say(self.came[-1].text)

    def _set_weather(self, device: int) -> None:
        """The newest fault that lasts counts."""
        lasting = self._lasting[device]
        self._links[device].change(lasting[-1].weather() if lasting else CALM)
