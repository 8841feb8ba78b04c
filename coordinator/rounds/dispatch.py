"""Tasks on their way: who was asked, who answered, who is gone. The thread-safe meeting point of job threads and sessions.

A task belongs to the session that it was sent on. If its device comes back on another one still running it, the task moves there;
if it comes back without it, or not within `reconnect_grace_s`, the task has failed. What counts is what `Sessions.connected`
says, not the order in which attach and detach are heard of: they only make us look.
"""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace

from coordinator.fleet.ports import Sessions
from coordinator.rounds.closing import Close, Policy, Reason, WaitUntil, closing
from shared.clock import Clock
from shared.errors import RoundAborted, ShoalError
from shared.ids import DeviceId, Digest, TaskId
from shared.session import NODE_UNAVAILABLE, Acknowledged, CancelTask, Event, Hello, RunTask, TaskResult

LOOK_EVERY_S = 1.0  # for what nobody tells us: a device put in quarantine, a clock that a test moves
MAX_STRAYS = 10_000


@dataclass(frozen=True)
class _Task:
    """`session` is the hello of the stream that it was sent on; `lost_at` since when that stream is not there."""

    device: DeviceId
    session: Hello | None
    started_at: float
    lost_at: float | None = None
    result: TaskResult | None = None
    finished_at: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What came of one task. `result.error_code` is 0 for success; `seconds` from asking to answer."""

    device: DeviceId
    result: TaskResult
    seconds: float


@dataclass
class Cancellation:
    """Set by whoever stops a job; waiting for answers then ends at once."""

    reason: str = ""

    def check(self) -> None:
        """Raises `RoundAborted` once it is set."""
        if self.reason:
            raise RoundAborted(self.reason)


class Dispatcher:
    """A `SessionListener`."""

    def __init__(self, sessions: Sessions, clock: Clock, *, reconnect_grace_s: float) -> None:
        self._sessions = sessions
        self._clock = clock
        self._grace_s = reconnect_grace_s
        self._changed = threading.Condition()
        self._tasks: dict[TaskId, _Task] = {}
        self._news = 0  # counts attachments and wake-ups
        self._strays: list[Digest] = []

    # ---- from job threads

    def start(self, device: DeviceId, task: RunTask) -> None:
        """Send a task; if the device is not connected it has failed already."""
        session = self._sessions.connected().get(device)
        with self._changed:
            self._tasks[task.task_id] = _Task(device, session, self._clock.monotonic())
        try:
            self._sessions.send(device, task)
        except ShoalError as error:
            with self._changed:
                self._finish(task.task_id, _gone(task.task_id, error.message))

    def answers(
        self, tasks: Iterable[TaskId], policy: Policy, cancellation: Cancellation
    ) -> Generator[tuple[TaskId, Answer]]:
        """One answer a task, as they come, until the policy closes; then the late ones are cancelled, and fail.

        Raises `RoundAborted` when the job is being cancelled; its tasks are then cancelled too.
        """
        wanted = tuple(tasks)
        pending = set(wanted)
        started, why = self._clock.monotonic(), ""
        try:
            while pending and not why:
                found = self._next(wanted, pending, policy, started, cancellation)
                if isinstance(found, Close):
                    why = "no answer in time" if found.reason is Reason.DEADLINE else f"cancelled: {found.reason}"
                    continue
                for task_id, answer in found:
                    pending.discard(task_id)
                    yield task_id, answer
        except BaseException:
            self._note_strays(task.result for task_id, task in self._forget(wanted).items() if task_id in pending)
            raise
        for task_id, task in self._forget(wanted).items():
            if task_id in pending:  # its answer may have come while we closed
                result, ended = task.result or _gone(task_id, why), self._clock.monotonic()
                yield (
                    task_id,
                    Answer(task.device, result, (task.finished_at if task.result else ended) - task.started_at),
                )

    def wait_for_devices(self, enough: Callable[[], bool], timeout_s: float, cancellation: Cancellation) -> bool:
        """Wait until `enough()` holds; it is asked again whenever a device attaches. False: not in time.

        Raises `RoundAborted` when the job is being cancelled.
        """
        deadline = self._clock.monotonic() + timeout_s
        while True:
            cancellation.check()
            with self._changed:
                seen = self._news
            if enough():
                return True
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return False
            with self._changed:
                if seen == self._news:
                    self._changed.wait(min(left, LOOK_EVERY_S))

    def pause(self, seconds: float, cancellation: Cancellation) -> None:
        """Wait. Raises `RoundAborted` when the job is being cancelled."""
        self.wait_for_devices(lambda: False, seconds, cancellation)

    def wake(self) -> None:
        """Let waiting threads look again: a cancellation was set, a test's clock moved."""
        with self._changed:
            self._news += 1
            self._changed.notify_all()

    def take_strays(self) -> list[Digest]:
        """Blobs of answers that came too late; whoever takes them deletes them."""
        with self._changed:
            strays, self._strays = self._strays, []
        return strays

    # ---- from sessions

    def attached(self, device: DeviceId, hello: Hello) -> None:
        self.wake()

    def detached(self, device: DeviceId) -> None:
        self.wake()

    def received(self, device: DeviceId, event_id: str, event: Event) -> None:
        """Late and unknown results are acknowledged too: the round that asked is over, nobody needs them."""
        if not isinstance(event, TaskResult):
            return
        with self._changed:
            task = self._tasks.get(event.task_id)
            if task is not None and task.device == device and task.result is None:
                self._finish(event.task_id, event)
            elif task is None:
                self._note_strays([event])
        try:
            self._sessions.send(device, Acknowledged(event_id))
        except ShoalError:
            return  # gone again: it repeats the result and is acknowledged then

    # ---- inside

    def _next(
        self,
        wanted: tuple[TaskId, ...],
        pending: set[TaskId],
        policy: Policy,
        started: float,
        cancellation: Cancellation,
    ) -> list[tuple[TaskId, Answer]] | Close:
        """Wait for answers that were not handed out yet, or until the policy closes."""
        with self._changed:
            while True:
                cancellation.check()
                self._judge_lost(pending)
                tasks = [self._tasks[task_id] for task_id in wanted]
                ready = [(task_id, answer) for task_id in wanted if (answer := self._answer(task_id, pending))]
                if ready:
                    return ready
                verdict = _verdict(policy, self._clock.monotonic(), started, tasks)
                if isinstance(verdict, Close):
                    return verdict
                self._changed.wait(max(min(verdict.at - self._clock.monotonic(), LOOK_EVERY_S), 0.0))

    def _answer(self, task_id: TaskId, pending: set[TaskId]) -> Answer | None:
        task = self._tasks[task_id]
        if task_id not in pending or task.result is None:
            return None
        return Answer(task.device, task.result, task.finished_at - task.started_at)

    def _judge_lost(self, pending: Iterable[TaskId]) -> None:
        """Fail the tasks whose device came back without them, or stayed away too long."""
        connected = self._sessions.connected()
        now = self._clock.monotonic()
        for task_id in pending:
            task = self._tasks[task_id]
            if task.result is not None:
                continue
            session = connected.get(task.device)
            if session is None:
                lost_at = now if task.lost_at is None else task.lost_at
                self._tasks[task_id] = replace(task, lost_at=lost_at)
                if now - lost_at >= self._grace_s:
                    self._finish(task_id, _gone(task_id, f"no connection for {self._grace_s:g} s"))
            elif session is task.session or task_id in session.running_tasks:
                self._tasks[task_id] = replace(task, session=session, lost_at=None)
            else:
                self._finish(task_id, _gone(task_id, "the agent came back without this task"))

    def _finish(self, task_id: TaskId, result: TaskResult) -> None:
        self._tasks[task_id] = replace(self._tasks[task_id], result=result, finished_at=self._clock.monotonic())
        self._changed.notify_all()

    def _note_strays(self, results: Iterable[TaskResult | None]) -> None:
        with self._changed:
            for result in results:
                if result is not None and len(self._strays) < MAX_STRAYS:
                    self._strays += [part.digest for part in result.parts if part.digest is not None]

    def _forget(self, tasks: Iterable[TaskId]) -> dict[TaskId, _Task]:
        """Let go of tasks and tell the devices that still work on one."""
        with self._changed:
            taken = {task_id: self._tasks.pop(task_id) for task_id in tasks}
        for task_id, task in taken.items():
            if task.result is None:
                with contextlib.suppress(ShoalError):  # not connected: nothing to cancel
                    self._sessions.send(task.device, CancelTask(task_id))
        return taken


def _verdict(policy: Policy, now: float, started: float, tasks: list[_Task]) -> Close | WaitUntil:
    answered = [task.finished_at for task in tasks if task.result is not None and not task.result.error_code]
    failed = [task.finished_at for task in tasks if task.result is not None and task.result.error_code]
    return closing(policy, now, started, len(tasks), answered=answered, failed=failed)


def _gone(task_id: TaskId, reason: str) -> TaskResult:
    return TaskResult(task_id, error_code=NODE_UNAVAILABLE, error_reason=reason)
