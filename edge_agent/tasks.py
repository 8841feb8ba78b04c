"""Tasks of rounds: fetched as they come, run one at a time, answered, and remembered until the answer is acknowledged."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from edge_agent.link.port import LinkPort
from edge_agent.metrics import LastTask
from edge_agent.state import Waiting, choose
from edge_agent.trainer.ports import APP_NOT_LOADED, REFUSED, LocalTask, Piece, TaskOutcome, TrainerPort
from shared.client_apps import UNFIT
from shared.clock import Clock
from shared.errors import ShoalError
from shared.ids import JobId, TaskId, new_event_id
from shared.session import NODE_UNAVAILABLE, AgentEvent, Part, RunTask, TaskResult

_log = structlog.get_logger()
_REMEMBERED_JOBS = 64
_REMEMBERED_TASKS = 4096
_UPLOAD_S = 5.0
# A coordinator asks for the next phase of a secure round when all have answered, or the deadline is over.
_NEXT_PHASE_S = 30.0


@dataclass
class _Entry:
    order: RunTask
    deadline: float  # monotonic
    pieces: "asyncio.Task[tuple[Piece, ...]]"
    work: "asyncio.Task[None] | None" = None


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
        last_task: LastTask,
    ) -> None:
        self.idle_since = clock.monotonic()
        self.ended = {"done": 0, "failed": 0, "refused": 0, "cancelled": 0}
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
        self._keys_until = 0.0  # monotonic
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
            self._answer(order, TaskOutcome(error_code=NODE_UNAVAILABLE, error_reason="the agent is stopping"), ())
            return
        pieces = asyncio.create_task(self._fetch(order.parts), name=f"fetch for {order.task_id}")
        deadline = self._clock.monotonic() + order.timeout_s
        self._queue[order.task_id] = _Entry(order, deadline, pieces)
        if order.secure:
            self._keys_until = max(self._keys_until, deadline + _NEXT_PHASE_S)
        self._quiet.clear()
        self._work.set()

    def cancel(self, task_id: TaskId) -> None:
        """It gets no answer. Wherever it is - fetched, waiting for the trainer, trained, sent - it goes no further."""
        entry = self._queue.get(task_id)
        if entry is None:
            return
        _log.info("task cancelled", task=task_id)
        if entry.work is None:
            self._drop(task_id)
            self.ended["cancelled"] += 1
        else:
            entry.work.cancel()

    def acknowledged(self, event_id: str) -> bool:
        """Whether the event was an answer of a task, which is over now."""
        for task_id, answer in self._answers.items():
            if answer.event.event_id == event_id:
                del self._answers[task_id]
                self._forget(answer.files)
                return True
        return False

    @property
    def files(self) -> frozenset[Path]:
        """What may have to be sent again."""
        return frozenset(path for answer in self._answers.values() for path in answer.files)

    @property
    def running(self) -> tuple[TaskId, ...]:
        """What the coordinator may still expect an answer to."""
        return (*self._queue, *self._answers)

    def unacknowledged(self) -> list[AgentEvent]:
        return [answer.event for answer in self._answers.values()]

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    @property
    def keys_needed(self) -> bool:
        """Whether a secure round may go on whose keys are in the trainer: other devices may train for long after this one has."""
        return self._clock.monotonic() < self._keys_until

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
                await self._carried_out(self._queue[chosen.task])
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

    async def _carried_out(self, entry: _Entry) -> None:
        """In a task of its own, which may be cancelled at any point."""
        entry.work = asyncio.create_task(self._run(entry), name=f"task {entry.order.task_id}")
        try:
            await asyncio.wait([entry.work])
        finally:
            if not entry.work.done():  # this agent stops
                entry.work.cancel()
                await asyncio.wait([entry.work])
        if entry.work.cancelled():
            self.ended["cancelled"] += 1

    async def _run(self, entry: _Entry) -> None:
        order = entry.order
        self._begun[order.job_id] = order.round
        self._begun.move_to_end(order.job_id)
        while len(self._begun) > _REMEMBERED_JOBS:
            self._begun.popitem(last=False)
        try:
            outcome, parts = await self._worked(entry)
        except TimeoutError:
            outcome, parts = _gone(f"not done after {order.timeout_s:g} s"), ()
        except ShoalError as error:
            outcome, parts = _gone(error.message), ()
        except Exception as error:  # noqa: BLE001  # whatever it was costs this task, not the agent
            _log.error("task failed", task=order.task_id, exc_info=error)
            outcome, parts = _gone(f"this device failed: {type(error).__name__}; see its log"), ()
        self.ended[_how(outcome)] += 1
        self._answer(order, outcome, parts)

    async def _worked(self, entry: _Entry) -> tuple[TaskOutcome, tuple[Part, ...]]:
        left = entry.deadline - self._clock.monotonic()
        async with asyncio.timeout(max(left, 0.0) + _UPLOAD_S):  # the trainer keeps the deadline itself
            pieces = await asyncio.shield(entry.pieces)
            outcome = await self._train(entry.order, pieces, entry.deadline)
            try:
                parts = () if outcome.error_code else await self._upload(entry.order, outcome.pieces)
            except BaseException:
                self._forget(_files(outcome))  # there will be no answer that names them
                raise
        return outcome, parts

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
            self._last_task.learn(order.client_app, outcome.metrics, secure=order.secure)
        return outcome

    async def _fetch(self, parts: Sequence[Part]) -> tuple[Piece, ...]:
        async def one(part: Part) -> Piece:
            if part.digest is None:
                return Piece(inline=part.inline)
            return Piece(path=await self._link.fetch(part.digest), digest=part.digest)

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
        event = AgentEvent(new_event_id(), result)
        self._answers[order.task_id] = _Answer(event, _files(outcome))
        self._send(event)

    def _forget(self, files: Iterable[Path]) -> None:
        """Unless another answer is the same."""
        held = self.files
        for path in files:
            if path not in held:
                path.unlink(missing_ok=True)

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


def _files(outcome: TaskOutcome) -> tuple[Path, ...]:
    return tuple(piece.path for piece in outcome.pieces if piece.path is not None)


def _how(outcome: TaskOutcome) -> str:
    """Refused: this device, or its app, would say so again."""
    if not outcome.error_code:
        return "done"
    return "refused" if outcome.error_code in (REFUSED, UNFIT, APP_NOT_LOADED) else "failed"


def _gone(reason: str) -> TaskOutcome:
    return TaskOutcome(error_code=NODE_UNAVAILABLE, error_reason=reason)
