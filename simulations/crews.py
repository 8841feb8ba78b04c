"""Agents by the process that they live in: one of its own each, as on a device, or many in one host.

A crew is what can die and be started again as a whole. Both kinds join with single-use tokens, and keep their homes.
"""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from shared.files import write_atomic
from simulations.commands import Agent
from simulations.data import Dataset
from simulations.processes import Child, Processes
from simulations.shards import write_shard

_HOST_DEADLINE_S = 300.0


class Crew(Protocol):
    @property
    def name(self) -> str:
        """Of the process."""
        ...

    @property
    def agents(self) -> tuple[Agent, ...]:
        """Those who live in it."""
        ...

    async def enrol(self, address: str, tokens: Sequence[str]) -> None:
        """Join, each agent with its own token. Raises `ChildFailed`."""
        ...

    async def ingest(self, agent: Agent, samples: Dataset) -> None:
        """Give one of its agents samples of its own. Raises `ChildFailed`."""
        ...

    async def run(self) -> Child:
        """Start the process; each agent's ready file says when it serves."""
        ...


class Alone:
    """One agent in a process of its own, driven by the commands that a device's owner would type."""

    def __init__(self, agent: Agent) -> None:
        self.name = agent.name
        self.agents: tuple[Agent, ...] = (agent,)
        self._agent = agent

    async def enrol(self, address: str, tokens: Sequence[str]) -> None:
        (token,) = tokens
        file = self._agent.home.with_suffix(".token")
        write_atomic(file, token.encode(), mode=0o600)
        try:
            await self._agent.enroll(address, file)
        finally:
            file.unlink()

    async def ingest(self, agent: Agent, samples: Dataset) -> None:
        file = agent.home.with_suffix(".safetensors")
        await asyncio.to_thread(write_shard, file, samples)
        try:
            await agent.ingest(file)
        finally:
            file.unlink()

    async def run(self) -> Child:
        return await self._agent.run()


class Hosted:
    """Many agents in one process (see `hosts`)."""

    def __init__(self, processes: Processes, name: str, agents: Sequence[Agent], folder: Path) -> None:
        self.name = name
        self.agents = tuple(agents)
        self._processes = processes
        self._plan = folder / f"{name}.json"
        self._homes = [{"name": agent.name, "home": str(agent.home)} for agent in agents]

    async def enrol(self, address: str, tokens: Sequence[str]) -> None:
        agents = [{**one, "token": token} for one, token in zip(self._homes, tokens, strict=True)]
        self._write({"agents": agents, "enrolment": address})
        try:
            await self._processes.call(self._argv("enrol"), timeout_s=_HOST_DEADLINE_S)
        finally:
            self._plan.unlink()

    async def ingest(self, agent: Agent, samples: Dataset) -> None:
        from edge_agent.config import Home
        from edge_agent.storage import DataStore

        await asyncio.to_thread(DataStore(Home(agent.home).data).ingest, samples.x, samples.y)

    async def run(self) -> Child:
        self._write({"agents": self._homes})
        return await self._processes.spawn(self.name, self._argv("run"))

    def _argv(self, action: str) -> list[str]:
        return [sys.executable, "-m", "simulations.hosts", action, str(self._plan)]

    def _write(self, plan: Mapping[str, object]) -> None:
        write_atomic(self._plan, json.dumps(plan).encode(), mode=0o600)


def crews_of(processes: Processes, agents: Sequence[Agent], hosts: int, folder: Path) -> tuple[Crew, ...]:
    """Each agent alone for `hosts` 0, else all of them dealt to so many hosts, as evenly as can be."""
    if not hosts:
        return tuple(Alone(agent) for agent in agents)
    parts = [agents[place::hosts] for place in range(min(hosts, len(agents)))]
    return tuple(Hosted(processes, f"host-{place}", part, folder) for place, part in enumerate(parts, start=1))
