"""The load generator as a child process, and its latest counts while it runs."""

import asyncio
import contextlib
import json
import sys

from shared.errors import ChildFailed
from shared.files import write_atomic
from shared.settings import from_mapping
from simulations.answers import Answers, load_answers
from simulations.loadgen import LoadPlan, LoadStatus
from simulations.processes import Child, Processes


class Loader:
    """`start`, tell it of kills, then `stop` for what became of every request."""

    def __init__(self, processes: Processes, plan: LoadPlan) -> None:
        self._processes = processes
        self._plan = plan
        self._child: Child | None = None
        self._reading: asyncio.Task[None] | None = None
        self.status: LoadStatus | None = None

    async def start(self) -> None:
        """Begin to send. Returns when the first counts are here."""
        file = self._plan.out.with_suffix(".plan.json")
        await asyncio.to_thread(write_atomic, file, _to_json(self._plan))
        argv = [sys.executable, "-m", "simulations.loadgen", str(file)]
        self._child = await self._processes.spawn("load", argv, talk=True)
        first = asyncio.Event()
        self._reading = asyncio.create_task(self._read(self._child, first), name="load status")
        arrived = asyncio.create_task(first.wait())
        await asyncio.wait([arrived, self._reading], return_when=asyncio.FIRST_COMPLETED)
        arrived.cancel()
        if not first.is_set():
            raise self._child.failure()

    async def _read(self, child: Child, first: asyncio.Event) -> None:
        while line := await child.read_line():
            self.status = from_mapping(LoadStatus, json.loads(line))
            first.set()

    def killed(self, device: str, at: float) -> None:
        """A device's agent was killed on purpose at `at`: what that cut is not a failure, and is counted apart."""
        if self._child is not None:
            self._child.write_line(json.dumps({"killed": device, "at": at}))

    async def stop(self) -> Answers:
        """Raises `ChildFailed` when it did not end well."""
        if self._child is None or self._reading is None:
            raise ChildFailed("the load generator was never started")
        self._child.write_line(json.dumps({"stop": True}))
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        if await self._child.wait() != 0:
            raise self._child.failure()
        return await asyncio.to_thread(load_answers, self._plan.out)


def _to_json(plan: LoadPlan) -> bytes:
    targets = [
        {"name": one.name, "ready": str(one.ready), "shard": str(one.shard), "rate_hz": one.rate_hz}
        for one in plan.targets
    ]
    values = {"model": plan.model, "out": str(plan.out), "targets": targets}
    return json.dumps({**values, "seed": plan.seed, "timeout_s": plan.timeout_s}).encode()
