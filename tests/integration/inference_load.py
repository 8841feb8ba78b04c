"""What the integration tests of the inference service share: processes, clients and the load they make."""

import asyncio
import contextlib
import os
import select
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_agent.inference.ports import InferencePort, ModelSpec
from edge_agent.inference.probe import Answer, Probe
from edge_agent.inference.process import InferenceProcess
from shared.errors import ShoalError
from tests.unit.inference.onnx_models import ones


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[InferenceProcess]:
    service = InferenceProcess(folder / "run")
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


@contextlib.asynccontextmanager
async def probing(service: InferencePort) -> AsyncIterator[Probe]:
    probe = Probe(service.address)
    try:
        yield probe
    finally:
        await probe.close()


async def go_live(service: InferencePort, spec: ModelSpec) -> None:
    await service.slots.load(spec)
    await service.slots.swap(spec.model, spec.version)


def wait_for_end(pid: int, timeout_s: float = 20.0) -> bool:
    """Whether the process, which need not be our child, ended in time. No polling: the kernel tells."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], timeout_s)[0])
    finally:
        os.close(handle)


@dataclass
class Load:
    """Clients that ask one after the other without a pause until told to stop."""

    service: InferencePort
    clients: int
    answers: list[list[Answer]] = field(default_factory=list)
    errors: list[ShoalError] = field(default_factory=list)
    wrong: list[Answer] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _seen: dict[tuple[int, int], asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    async def __aenter__(self) -> "Load":
        self.answers = [[] for _ in range(self.clients)]
        self._tasks = [asyncio.create_task(self._ask(client)) for client in range(self.clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def seen(self, version: int) -> None:
        """Returns once `version` has answered every client."""
        async with asyncio.timeout(30):
            for client in range(self.clients):
                await self._seen[client, version].wait()

    async def _ask(self, client: int) -> None:
        """The models multiply by their version, so an answer says who really gave it."""
        mine = self.answers[client]
        async with probing(self.service) as probe:
            while not self._stop.is_set():
                try:
                    answer = await probe.infer("digits", ones(1 + len(mine) % 3))
                except ShoalError as error:
                    self.errors.append(error)
                    continue
                mine.append(answer)
                if not np.array_equal(answer.logits, ones(len(answer.logits)) * answer.version):
                    self.wrong.append(answer)
                self._seen[client, answer.version].set()
