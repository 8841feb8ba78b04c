"""The trainer inside this process, for hosting many agents in one: they share imports, warm apps and one thread.

No isolation: no memory cap, and a task that will not end cannot be killed, only given up.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

from edge_agent.trainer.ports import DEVICE_GONE, LocalTask, SpecialiseRequest, TaskOutcome
from edge_agent.trainer.variant import Variant
from edge_agent.trainer.worker import Worker, WorkerSettings
from shared.errors import DeadlineExceeded
from shared.ids import TaskId

T = TypeVar("T")


@cache
def _the_thread() -> ThreadPoolExecutor:
    """One for the whole process, however many agents live in it: torch is not to be used by two at once."""
    return ThreadPoolExecutor(1, thread_name_prefix="trainer")


class InlineTrainer:
    """Implements `TrainerPort`."""

    def __init__(self, settings: WorkerSettings, worker: Worker | None = None) -> None:
        self._worker = worker or Worker(settings)
        self._turn = asyncio.Lock()
        self._running: tuple[TaskId, asyncio.Event] | None = None

    async def run(self, task: LocalTask) -> TaskOutcome:
        async with self._turn:
            stop = asyncio.Event()
            self._running = (task.task_id, stop)
            work = asyncio.ensure_future(self._in_thread(lambda: self._worker.run(task)))
            stopped = asyncio.create_task(stop.wait())
            timeout_s = task.timeout_s if task.timeout_s < float("inf") else None
            try:
                await asyncio.wait({work, stopped}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._running = None
                stopped.cancel()
                if not work.done():
                    work.cancel()  # taken back if it has not begun, else its result is dropped
            if work.done() and not work.cancelled():
                return work.result()
            reason = "cancelled" if stop.is_set() else f"not done after {task.timeout_s:g} s; given up"
            return TaskOutcome(error_code=DEVICE_GONE, error_reason=reason)

    async def specialise(self, request: SpecialiseRequest) -> Variant:
        async with self._turn:
            try:
                async with asyncio.timeout(request.timeout_s if request.timeout_s < float("inf") else None):
                    return await self._in_thread(lambda: self._worker.specialise(request))
            except TimeoutError:
                raise DeadlineExceeded(f"the trainer did not finish within {request.timeout_s:g} s") from None

    async def warm(self, client_app: str = "") -> None:
        async with self._turn:
            await self._in_thread(lambda: self._worker.warm(client_app))

    async def cancel(self, task_id: TaskId) -> None:
        if self._running is not None and self._running[0] == task_id:
            self._running[1].set()

    async def release(self) -> None:
        async with self._turn:
            await self._in_thread(self._worker.forget)

    @staticmethod
    async def _in_thread(call: Callable[[], T]) -> T:
        loop: Any = asyncio.get_running_loop()
        result: T = await loop.run_in_executor(_the_thread(), call)
        return result
