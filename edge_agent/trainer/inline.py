"""The trainer inside this process, for hosting many agents in one: they share imports, warm apps and one thread.

No isolation: no memory cap, and a task that will not end cannot be killed, only given up.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

from edge_agent.trainer.ports import LocalTask, SpecialiseRequest, TaskOutcome
from edge_agent.trainer.variant import Variant
from edge_agent.trainer.worker import Worker, WorkerSettings
from shared.errors import DeadlineExceeded
from shared.session import NODE_UNAVAILABLE

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

    async def run(self, task: LocalTask) -> TaskOutcome:
        async with self._turn:
            try:
                async with _limit(task.timeout_s):
                    return await self._in_thread(lambda: self._worker.run(task))
            except TimeoutError:
                reason = f"not done after {task.timeout_s:g} s; given up"
                return TaskOutcome(error_code=NODE_UNAVAILABLE, error_reason=reason)

    async def specialise(self, request: SpecialiseRequest) -> Variant:
        async with self._turn:
            try:
                async with _limit(request.timeout_s):
                    return await self._in_thread(lambda: self._worker.specialise(request))
            except TimeoutError:
                raise DeadlineExceeded(f"the trainer did not finish within {request.timeout_s:g} s") from None

    async def release(self) -> None:
        async with self._turn:
            await self._in_thread(self._worker.forget)

    @staticmethod
    async def _in_thread(call: Callable[[], T]) -> T:
        loop: Any = asyncio.get_running_loop()
        result: T = await loop.run_in_executor(_the_thread(), call)  # cancelled before its turn, it never begins
        return result


def _limit(timeout_s: float) -> asyncio.Timeout:
    return asyncio.timeout(timeout_s if timeout_s < float("inf") else None)
