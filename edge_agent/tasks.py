"""Tasks of rounds: fetched as they come, run one at a time, answered, and remembered until the answer is acknowledged."""

import asyncio
import contextlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from edge_agent.link.port import LinkPort
from edge_agent.metrics import LastTask
from edge_agent.state import Waiting, choose
from edge_agent.trainer.ports import DEVICE_GONE, LocalTask, Piece, TaskOutcome, TrainerPort
from shared.clock import Clock
from shared.errors import ShoalError
from shared.ids import JobId, TaskId
from shared.session import AgentEvent, Part, RunTask, TaskResult

_log = structlog.get_logger()
_REMEMBERED_JOBS = 64
_REMEMBERED_TASKS = 4096
_UPLOAD_S = 5.0


@dataclass
class _Entry:
    order: RunTask
    deadline: float  # monotonic
    pieces: "asyncio.Task[tuple[Piece, ...]]"
    cancelled: bool = False


@dataclass
class _Answer:
    event: AgentEvent
    files: tuple[Path, ...] = field(default=())


class TaskRunner:
    """`send` gives an event to the link, which may drop it: answers are repeated at the next session."""

    def __init__(
        self,
        trainer: TrainerPort,
        link: LinkPort,
        clock: Clock,
        send: Callable[[AgentEvent], None],
        last_task: Callable[[], LastTask],
    ) -> None:
        self.idle_since = clock.monotonic()
        self.tasks_done = 0
        self._trainer = trainer
        self._link = link
        self._clock = clock
        self._send = send
        self._last_task = last_task
        self._queue: OrderedDict[TaskId, _Entry] = OrderedDict()
        self._begun: OrderedDict[JobId, int] = OrderedDict()
        self._answers: dict[TaskId, _Answer] = {}
        self._seen: OrderedDict[TaskId, None] = OrderedDict()
        self._current: TaskId | None = None
        self._work = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._draining = False

    # ---- from the link

    def handle(self, order: RunTask) -> None:
        """A repeated task is answered once; while this agent stops, with an error."""
        if order.task_id in self._seen:
            return
        self._remember(order.task_id)
        if self._draining:
            self._answer(order, TaskOutcome(error_code=DEVICE_GONE, error_reason="the agent is stopping"), ())
            return
        pieces = asyncio.create_task(self._fetch(order.parts), name=f"fetch for {order.task_id}")
        self._queue[order.task_id] = _Entry(order, self._clock.monotonic() + order.timeout_s, pieces)
        self._quiet.clear()
        self._work.set()

    async def cancel(self, task_id: TaskId) -> None:
        entry = self._queue.get(task_id)
        if entry is None:
            return
        entry.cancelled = True
        if task_id == self._current:
            entry.pieces.cancel()
            await self._trainer.cancel(task_id)
        else:
            self._drop(task_id)

    def acknowledged(self, event_id: str) -> bool:
        """Whether the event was an answer of a task, which is over now."""
        for task_id, answer in self._answers.items():
            if answer.event.event_id == event_id:
                del self._answers[task_id]
                held = {path for other in self._answers.values() for path in other.files}
                for path in answer.files:
                    if path not in held:
                        path.unlink(missing_ok=True)
                return True
        return False

    @property
    def running(self) -> tuple[TaskId, ...]:
        """What the coordinator may still expect an answer to."""
        return (*self._queue, *self._answers)

    def unacknowledged(self) -> list[AgentEvent]:
        return [answer.event for answer in self._answers.values()]

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    # ---- the loop

    async def run(self) -> None:
        """One task after the other, until cancelled."""
        while True:
            waiting = (Waiting(one.order.task_id, one.order.job_id, one.order.round) for one in self._queue.values())
            chosen = choose(waiting, self._begun)
            if chosen is None:
                self._work.clear()
                self._quiet.set()
                await self._work.wait()
                continue
            self._current = chosen.task
            try:
                await self._run(self._queue[chosen.task])
            finally:
                self._current = None
                self._drop(chosen.task)
                self.idle_since = self._clock.monotonic()

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, and let what is queued end."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._quiet.wait()

    async def _run(self, entry: _Entry) -> None:
        order = entry.order
        self._begun[order.job_id] = order.round
        self._begun.move_to_end(order.job_id)
        while len(self._begun) > _REMEMBERED_JOBS:
            self._begun.popitem(last=False)
        left = entry.deadline - self._clock.monotonic()
        try:
            async with asyncio.timeout(max(left, 0.0) + _UPLOAD_S):  # the trainer keeps the deadline itself
                pieces = await asyncio.shield(entry.pieces)
                outcome = await self._train(order, pieces, entry.deadline)
                parts = () if outcome.error_code else await self._upload(order, outcome.pieces)
        except TimeoutError:
            outcome, parts = _gone(f"not done after {order.timeout_s:g} s"), ()
        except ShoalError as error:
            outcome, parts = _gone(error.message), ()
        except asyncio.CancelledError:
            if not entry.cancelled:
                raise
            outcome, parts = _gone("cancelled"), ()
        if entry.cancelled:
            _log.info("task cancelled", task=order.task_id)
            return
        self.tasks_done += 1
        self._answer(order, outcome, parts)

    async def _train(self, order: RunTask, pieces: tuple[Piece, ...], deadline: float) -> TaskOutcome:
        task = LocalTask(
            task_id=order.task_id,
            run_id=order.run_id,
            node_id=order.node_id,
            message_id=order.message_id,
            message_type=order.message_type,
            client_app=order.client_app,
            secure=order.secure,
            timeout_s=max(deadline - self._clock.monotonic(), 0.001),
            pieces=pieces,
        )
        outcome = await self._trainer.run(task)
        if outcome.metrics:
            self._last_task().learn(order.client_app, outcome.metrics, secure=order.secure)
        return outcome

    async def _fetch(self, parts: Sequence[Part]) -> tuple[Piece, ...]:
        async def one(part: Part) -> Piece:
            return Piece(inline=part.inline) if part.digest is None else Piece(path=await self._link.fetch(part.digest))

        return tuple(await asyncio.gather(*map(one, parts)))

    async def _upload(self, order: RunTask, pieces: Sequence[Piece]) -> tuple[Part, ...]:
        parts = []
        for piece in pieces:
            if piece.path is None or piece.digest is None:
                parts.append(Part(inline=piece.inline))
            else:
                await self._link.put(piece.path, piece.digest, order.task_id)
                parts.append(Part(digest=piece.digest))
        return tuple(parts)

    def _answer(self, order: RunTask, outcome: TaskOutcome, parts: tuple[Part, ...]) -> None:
        if outcome.error_code:
            _log.warning("task failed", task=order.task_id, job=order.job_id, reason=outcome.error_reason)
        result = TaskResult(order.task_id, parts, outcome.error_code, outcome.error_reason)
        event = AgentEvent(f"evt-{secrets.token_hex(8)}", result)
        files = tuple(piece.path for piece in outcome.pieces if piece.path is not None)
        self._answers[order.task_id] = _Answer(event, files)
        self._send(event)

    def _drop(self, task_id: TaskId) -> None:
        entry = self._queue.pop(task_id, None)
        if entry is not None and not entry.pieces.done():
            entry.pieces.cancel()
        elif entry is not None and not entry.pieces.cancelled():
            entry.pieces.exception()  # seen

    def _remember(self, task_id: TaskId) -> None:
        self._seen[task_id] = None
        while len(self._seen) > _REMEMBERED_TASKS:
            self._seen.popitem(last=False)


def _gone(reason: str) -> TaskOutcome:
    return TaskOutcome(error_code=DEVICE_GONE, error_reason=reason)
