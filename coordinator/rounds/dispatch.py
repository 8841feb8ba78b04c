"""Tasks on their way: who was asked, who answered, who is gone. The thread-safe meeting point of job threads and sessions."""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from coordinator.fleet.ports import Sessions
from coordinator.rounds.closing import Closing
from shared.clock import Clock
from shared.errors import RoundAborted, ShoalError
from shared.ids import DeviceId, TaskId
from shared.session import Acknowledged, CancelTask, Event, Hello, RunTask, TaskResult

GONE = 5  # Flower's ErrorCode.NODE_UNAVAILABLE


@dataclass(frozen=True)
class _Task:
    device: DeviceId
    started_at: float
    result: TaskResult | None = None
    finished_at: float = 0.0
    detached_at: float | None = None


@dataclass(frozen=True)
class Answer:
    """What came of one task. `result.error_code` is 0 for success; `seconds` from asking to answer."""

    device: DeviceId
    result: TaskResult
    seconds: float


@dataclass
class Cancellation:
    """Set by whoever stops a job; waiting for answers then ends at once."""

    requested: bool = field(default=False)


class Dispatcher:
    """A `SessionListener`. A task whose device detaches fails unless the device comes back, still running it, within
    `reconnect_grace_s`; a device that comes back without it fails it at once."""

    def __init__(self, sessions: Sessions, clock: Clock, *, reconnect_grace_s: float) -> None:
        self._sessions = sessions
        self._clock = clock
        self._grace_s = reconnect_grace_s
        self._changed = threading.Condition()
        self._tasks: dict[TaskId, _Task] = {}

    # ---- from job threads

    def start(self, device: DeviceId, task: RunTask) -> None:
        """Send a task; if the device is not connected it has failed already."""
        now = self._clock.monotonic()
        with self._changed:
            self._tasks[task.task_id] = _Task(device, now)
        try:
            self._sessions.send(device, task)
        except ShoalError as error:
            with self._changed:
                self._finish(task.task_id, TaskResult(task.task_id, error_code=GONE, error_reason=error.message))

    def wait(
        self, tasks: Iterable[TaskId], closing: Closing, timeout_s: float, cancellation: Cancellation
    ) -> Mapping[TaskId, Answer]:
        """Wait by the rule, cancel who is late, and return an answer for every task.

        Raises `RoundAborted` when the job is being cancelled.
        """
        wanted = tuple(tasks)
        deadline = self._clock.monotonic() + timeout_s
        with self._changed:
            while not cancellation.requested:
                self._fail_gone(wanted)
                finished = tuple(task.finished_at for task in self._view(wanted) if task.result is not None)
                left = (
                    closing.until(asked=len(wanted), finished_at=finished, deadline=deadline) - self._clock.monotonic()
                )
                if left <= 0:
                    break
                self._changed.wait(min(left, self._next_expiry(wanted), 1.0))
            collected = {task_id: self._tasks.pop(task_id) for task_id in wanted}
        late = [(task_id, task.device) for task_id, task in collected.items() if task.result is None]
        for task_id, device in late:
            self._cancel(device, task_id)
        if cancellation.requested:
            raise RoundAborted("the job is being stopped")
        return {task_id: _answer(task_id, task) for task_id, task in collected.items()}

    def wait_for_devices(self, enough: Callable[[], bool], timeout_s: float, cancellation: Cancellation) -> bool:
        """Wait until `enough()` holds; it is asked again whenever a device attaches. False: not in time.

        Raises `RoundAborted` when the job is being cancelled.
        """
        with self._changed:
            held = self._changed.wait_for(lambda: cancellation.requested or enough(), timeout_s)
        if cancellation.requested:
            raise RoundAborted("the job is being stopped")
        return held

    def wake(self) -> None:
        """Let waiting threads look at their cancellation."""
        with self._changed:
            self._changed.notify_all()

    # ---- from sessions

    def attached(self, device: DeviceId, hello: Hello) -> None:
        with self._changed:
            for task_id, task in tuple(self._tasks.items()):
                if task.device != device or task.result is not None or task.detached_at is None:
                    continue
                if task_id in hello.running_tasks:
                    self._tasks[task_id] = replace(task, detached_at=None)
                else:
                    self._finish(task_id, _gone(task_id, "the agent restarted"))
            self._changed.notify_all()

    def detached(self, device: DeviceId) -> None:
        now = self._clock.monotonic()
        with self._changed:
            for task_id, task in tuple(self._tasks.items()):
                if task.device == device and task.result is None and task.detached_at is None:
                    self._tasks[task_id] = replace(task, detached_at=now)
            self._changed.notify_all()

    def received(self, device: DeviceId, event_id: str, event: Event) -> None:
        if not isinstance(event, TaskResult):
            return
        with self._changed:
            task = self._tasks.get(event.task_id)
            if task is not None and task.device == device and task.result is None:
                self._finish(event.task_id, event)
        # Late or unknown results are acknowledged too: the round that asked is over, nobody needs them.
        self._sessions.send(device, Acknowledged(event_id))

    # ---- inside, with the lock held

    def _view(self, tasks: tuple[TaskId, ...]) -> list[_Task]:
        return [self._tasks[task_id] for task_id in tasks]

    def _finish(self, task_id: TaskId, result: TaskResult) -> None:
        self._tasks[task_id] = replace(self._tasks[task_id], result=result, finished_at=self._clock.monotonic())
        self._changed.notify_all()

    def _fail_gone(self, tasks: tuple[TaskId, ...]) -> None:
        now = self._clock.monotonic()
        for task_id in tasks:
            task = self._tasks[task_id]
            if task.result is None and task.detached_at is not None and now - task.detached_at >= self._grace_s:
                self._finish(task_id, _gone(task_id, f"no connection for {self._grace_s:.0f} s"))

    def _next_expiry(self, tasks: tuple[TaskId, ...]) -> float:
        now = self._clock.monotonic()
        waits = [
            task.detached_at + self._grace_s - now
            for task in self._view(tasks)
            if task.result is None and task.detached_at is not None
        ]
        return max(min(waits, default=float("inf")), 0.001)

    def _cancel(self, device: DeviceId, task_id: TaskId) -> None:
        try:
            self._sessions.send(device, CancelTask(task_id))
        except ShoalError:
            return  # not connected, so nothing to cancel: a returning agent is told that nobody waits


def _gone(task_id: TaskId, reason: str) -> TaskResult:
    return TaskResult(task_id, error_code=GONE, error_reason=reason)


def _answer(task_id: TaskId, task: _Task) -> Answer:
    if task.result is None:
        return Answer(task.device, _gone(task_id, "no answer in time"), 0.0)
    return Answer(task.device, task.result, task.finished_at - task.started_at)
