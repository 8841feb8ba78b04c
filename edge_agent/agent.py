"""The agent's loop: serve what was proven, then talk to the coordinator, train, install, report.

Every part runs in a named task; if one dies the process stops with its error, and whoever supervises it starts it again. Stopping
means: take nothing new, let what runs end, cut off what has not ended by then.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import structlog

from edge_agent import local
from edge_agent.client_app.memory import forget_halves
from edge_agent.config import AgentConfig, Home
from edge_agent.device_profile import to_report
from edge_agent.inference.ports import InferencePort, ModelStatus
from edge_agent.journal import Journal
from edge_agent.link.credentials import Membership
from edge_agent.link.link import Link
from edge_agent.metrics import Sampler
from edge_agent.storage import DataStore
from edge_agent.tasks import TaskRunner
from edge_agent.trainer.ports import TrainerPort
from edge_agent.updater import Updater
from shared.clock import Clock
from shared.errors import ShoalError, StorageFull
from shared.files import atomic_file
from shared.ids import new_event_id
from shared.learning.profile import Profile
from shared.session import (
    Acknowledged,
    AgentEvent,
    CancelTask,
    Command,
    Heartbeat,
    Hello,
    Install,
    RunTask,
    Serving,
    Withdraw,
)

_log = structlog.get_logger()
_TIDY_S = 5.0
_CLOSE_S = 15.0
_CANCEL_AGAIN_S = 1.0


@dataclass(frozen=True)
class Parts:
    """Everything that the loop drives. Built by `app`."""

    home: Home
    config: AgentConfig
    profile: Profile
    membership: Membership
    clock: Clock
    journal: Journal
    trainer: TrainerPort
    inference: InferencePort


class Agent:
    """`connect` gives it its moving parts; `run` lasts until `stop` or a failure."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._stop = asyncio.Event()
        self._link: Link
        self._updater: Updater
        self._tasks: TaskRunner
        self._sampler: Sampler
        self.ready = asyncio.Event()
        self._changed = asyncio.Event()  # what is served

    def connect(self, link: Link, updater: Updater, tasks: TaskRunner, sampler: Sampler) -> None:
        self._link, self._updater, self._tasks, self._sampler = link, updater, tasks, sampler

    @property
    def home(self) -> Home:
        return self._parts.home

    def stop(self) -> None:
        """Drain, then end. Safe to repeat."""
        self._stop.set()

    async def restore(self) -> None:
        """Serve what was proven last. Also called when the inference service was restarted."""
        await self._updater.restore()

    def report(self, receipt: AgentEvent) -> None:
        """Send a receipt, and then what is served: who sees the one need not wait for the other."""
        self._link.send(receipt)
        self._changed.set()

    # ---- the link's questions

    async def opening(self) -> Sequence[AgentEvent]:
        """The hello, then everything that the coordinator has not acknowledged."""
        hello = Hello(
            agent_version=version("shoal"),
            profile_json=to_report(self._parts.profile),
            labels=self._parts.membership.labels,
            serving=await self._updater.serving(),
            running_tasks=self._tasks.running,
        )
        receipts = await asyncio.to_thread(self._parts.journal.outbox)
        return [AgentEvent(new_event_id(), hello), *receipts, *self._tasks.unacknowledged()]

    def handle(self, command: Command) -> None:
        match command.order:
            case RunTask() as task:
                self._tasks.handle(task)
            case CancelTask() as cancel:
                self._tasks.cancel(cancel.task_id)
            case Install() | Withdraw():
                self._updater.handle(command)
            case Acknowledged() as acknowledged:
                if not self._tasks.acknowledged(acknowledged.event_id):
                    self._updater.acknowledged(acknowledged.event_id)
            case _:
                _log.warning("order not understood", order=type(command.order).__name__)

    # ---- life

    async def run(self) -> None:
        """Raises what ended it, unless it was asked to stop."""
        home, inference = self._parts.home, self._parts.inference
        self._sweep()
        await inference.start()
        try:
            await self.restore()
            server = await local.serve(home.status_socket, self.status)
            try:
                self._write_ready()
                self.ready.set()
                await self._live()
            finally:
                home.ready_file.unlink(missing_ok=True)
                server.close()
        finally:
            async with asyncio.timeout(_CLOSE_S):
                await self._parts.trainer.release()
            await inference.stop()
            self._parts.journal.close()

    def _sweep(self) -> None:
        """What a former process left: updates, whose tasks are given to others by now, and copies of examples."""
        home = self._parts.home
        for left in (home.forget_updates, DataStore(home.data).forget_halves, partial(forget_halves, home.state)):
            with contextlib.suppress(OSError):
                left()

    async def _live(self) -> None:
        loops: Mapping[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "session": self._link.run,
            "certificate": self._link.keep_renewed,
            "tasks": self._tasks.run,
            "updater": self._updater.run,
            "heartbeat": self._beat,
            "metrics": self._sample,
            "tidy": self._tidy,
        }
        running = {asyncio.create_task(loop(), name=name): name for name, loop in loops.items()}
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            done, _ = await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
            ended = [task for task in running if task in done]
            for task in ended:
                error = task.exception() if not task.cancelled() else None
                _log.error("a part of the agent ended; stopping", part=running[task], exc_info=error)
            if stopping in done:
                _log.info("stopping", tasks=len(self._tasks.running))
                await self._tasks.drain(self._parts.config.drain_s)
                await self._sampler.flush()
            for task in ended:
                task.result()  # raises what ended it
        finally:
            await _cancelled({stopping, *running})

    def _write_ready(self) -> None:
        content = {
            "pid": os.getpid(),
            "inference": self._parts.inference.address,
            "device": self._parts.membership.device,
            "name": self._parts.membership.name,
        }
        try:
            with atomic_file(self._parts.home.ready_file, durable=False) as file:
                file.write(json.dumps(content).encode())
        except StorageFull as error:  # it serves all the same
            _log.warning("nobody is told that it is ready", reason=error.message)
        _log.info("ready", inference=content["inference"], device=content["name"])

    # ---- side tasks

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._link.heartbeat_s):
                    await self._changed.wait()
            await self._link.attached.wait()
            self._changed.clear()
            self._link.send(AgentEvent(new_event_id(), Heartbeat(await self._updater.serving())))

    async def _sample(self) -> None:
        while True:
            await self._sampler.sample()
            if self._link.attached.is_set():
                await self._sampler.flush()
            await asyncio.sleep(self._parts.config.metrics_every_s)

    async def _tidy(self) -> None:
        """Let the trainer go when nobody needs it, and keep the cache small. What is left over costs room, no more."""
        held = True
        while True:
            await asyncio.sleep(min(_TIDY_S, self._parts.config.trainer_idle_s))
            idle_s = self._parts.clock.monotonic() - self._tasks.idle_since
            busy = self._tasks.busy or self._updater.busy
            if busy or self._tasks.keys_needed or idle_s < self._parts.config.trainer_idle_s:
                held = True
            elif held:
                await self._parts.trainer.release()
                held = False
            if busy or self._tasks.busy:
                continue
            try:
                if not held:  # so nobody writes there
                    self._parts.home.forget_updates(self._tasks.files)
                await asyncio.to_thread(self._link.transfers.cache.prune, self._parts.clock.now())
            except OSError as error:
                _log.warning("not tidied", reason=str(error))

    # ---- status

    async def status(self) -> Mapping[str, Any]:
        """For `edge-agent status`."""
        try:
            models = (await self._parts.inference.slots.status()).models
        except ShoalError:  # it is being restarted
            return {**self._about(), "models": []}
        serving = {item.model: item for item in await self._updater.serving()}
        return {**self._about(), "models": [_model_of(one, serving.get(one.model)) for one in models]}

    def _about(self) -> dict[str, Any]:
        link = self._link
        return {
            "running": True,
            "pid": os.getpid(),
            "device": self._parts.membership.device,
            "name": self._parts.membership.name,
            "session": link.state.value,
            "reason": link.reason,
            "inference": self._parts.inference.address,
            "sent_bytes": link.transfers.sent_bytes,
            "received_bytes": link.transfers.received_bytes,
            "tasks": list(self._tasks.running),
            "tasks_ended": self._tasks.ended,
            "installs": installs_of(self._parts.journal),
            "unacknowledged": len(self._parts.journal.outbox()),
            "spooled_metrics": self._parts.journal.spool_size(),
            "last_task": {sample.name: sample.value for sample in self._sampler.last_task.samples},
        }


def _model_of(status: ModelStatus, serving: Serving | None) -> dict[str, Any]:
    return {
        "model": status.model,
        "release": status.live.version if status.live else 0,
        "runtime": status.live.runtime if status.live else "",
        "digest": status.live.digest if status.live else "",
        "bundle_digest": serving.bundle_digest if serving else "",
        "proven": bool(serving and serving.proven),
        "requests": status.requests,
        "errors": status.errors,
    }


def installs_of(journal: Journal, limit: int = 10) -> list[dict[str, Any]]:
    """The newest orders about releases, as plain values."""
    return [
        {
            "rollout": record.order.rollout_id,
            "order": type(record.order).__name__.lower(),
            "model": record.order.model,
            "release": record.order.release,
            "state": record.state.value,
            "reason": record.reason,
        }
        for record in journal.installs()[-limit:]
    ]


async def _cancelled(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel until all have ended: a library in between may swallow one cancellation."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN_S)
