"""A queue with one worker thread: requests wait here, `batching.decide` says when a batch goes, and the version that
answers it is looked up at that moment. So a swap is one changed reference, and no batch ever has two versions.

Everything but `_work` runs on the event loop, so nothing here needs a lock.
"""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue

from edge_agent.inference.batching import BatchPolicy, BatchState, QueueView, WaitUntil, decide, observe
from edge_agent.inference.buffers import BufferPool
from edge_agent.inference.generation import Generation, Job, Reply, run_batch
from edge_agent.inference.stats import LaneStats, Timing
from shared.clock import Clock
from shared.errors import DeadlineExceeded, NotFound, Overloaded, ShoalError, Unavailable

_NICE = 10  # of background lanes, so that evaluation and shadow runs yield to live ones


@dataclass(frozen=True, slots=True)
class Batch:
    generation: Generation
    jobs: tuple[Job, ...]


class Lane:
    """`bind` gives the version for the next batch, or None when there is none any more; `tap` sees each live answer."""

    def __init__(
        self,
        name: str,
        bind: Callable[[], Generation | None],
        policy: BatchPolicy,
        clock: Clock,
        *,
        background: bool = False,
        tap: Callable[[Job, Reply], None] | None = None,
    ) -> None:
        self.stats = LaneStats()
        self.policy = policy
        self.state = BatchState(policy.max_batch)
        self._name = name
        self._bind = bind
        self._clock = clock
        self._background = background
        self._tap = tap
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Job] = deque()
        self._inbox: SimpleQueue[Batch | None] = SimpleQueue()
        self._running: Batch | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def queued(self) -> int:
        return len(self._queue)

    def adopt(self, policy: BatchPolicy, limit: int) -> None:
        """Follow the policy of a version that just became live; `limit`: the batch size to start from."""
        self.policy = policy
        self.state = BatchState(min(policy.max_batch, max(policy.min_batch, limit)))

    def submit(self, job: Job) -> None:
        """Raises `Overloaded` when the queue is full, `Unavailable` after `close`."""
        if self._closed:
            raise Unavailable(f"{self._name} is shutting down")
        if len(self._queue) >= self.policy.queue_limit:
            self._drop_abandoned()
        if len(self._queue) >= self.policy.queue_limit:
            self.stats.rejected += 1
            raise Overloaded(f"the queue of {self._name} is full ({self.policy.queue_limit} requests): retry later")
        self._queue.append(job)
        self._pump()

    async def idle(self) -> None:
        """Returns once nothing waits and nothing runs."""
        if self._queue or self._running:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def close(self) -> None:
        """Fails what waits and lets the worker thread go after its batch."""
        self._closed = True
        if self._timer:
            self._timer.cancel()
        self._fail_queue(Unavailable(f"{self._name} is shutting down"))
        self._inbox.put(None)

    # ---- choosing a batch

    def _pump(self) -> None:
        """Starts the next batch if the worker is free and `decide` says so."""
        if self._running is not None:
            return
        if self._timer:
            self._timer.cancel()
            self._timer = None
        now = time.monotonic()
        self._drop_expired_head(now)
        if not self._queue:
            self._wake_waiters()
            return
        decision = decide(self._view(), now, self.policy, self.state)
        if isinstance(decision, WaitUntil):
            self._timer = self._loop.call_later(decision.at - now, self._pump)
            return
        generation = self._bind()
        if generation is None:
            self._fail_queue(NotFound(f"{self._name} was removed"))
            return
        count = decision.requests if generation.batchable else 1
        taken = [self._queue.popleft() for _ in range(count)]
        self._start(Batch(generation, tuple(job for job in taken if not self._expired(job, now))))

    def _view(self) -> QueueView:
        head = self._queue[0]
        rows, total, deadline, blocked = [], 0, head.deadline, False
        for job in islice(self._queue, self.state.limit + 1):
            blocked = job.key != head.key
            if blocked or total > self.state.limit:
                break
            rows.append(job.rows)
            total += job.rows
            deadline = min(deadline, job.deadline)
        return QueueView(tuple(rows), head.arrived, deadline, blocked)

    def _drop_expired_head(self, now: float) -> None:
        while self._queue and self._expired(self._queue[0], now):
            self._queue.popleft()

    def _expired(self, job: Job, now: float) -> bool:
        """A request whose caller left, or whose deadline passed, is failed here and costs no compute."""
        gone = job.future.done()
        if not gone and job.deadline > now:
            return False
        self.stats.expired += 1
        if not gone:
            job.future.set_exception(DeadlineExceeded("the deadline passed while the request was queued"))
        return True

    def _drop_abandoned(self) -> None:
        kept = [job for job in self._queue if not job.future.done()]
        self.stats.expired += len(self._queue) - len(kept)
        self._queue = deque(kept)

    # ---- running it

    def _start(self, batch: Batch) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"lane-{self._name}", daemon=True)
            self._thread.start()
        self._running = batch
        batch.generation.started()
        self._inbox.put(batch)

    def _work(self) -> None:
        """The worker thread: runs batches until told to stop."""
        if self._background and sys.platform == "linux":  # elsewhere a thread has no priority of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        pool = BufferPool()
        while (batch := self._inbox.get()) is not None:
            start = time.perf_counter()
            replies, timing = run_batch(batch.generation, batch.jobs, pool)
            took_ms = (time.perf_counter() - start) * 1e3
            try:
                self._loop.call_soon_threadsafe(self._done, batch, replies, timing, took_ms)
            except RuntimeError:  # the loop is closed: nobody waits for answers any more
                return

    def _done(self, batch: Batch, replies: list[Reply | ShoalError], timing: Timing, took_ms: float) -> None:
        self._running = None
        batch.generation.finished()
        self.state = observe(self.policy, self.state, took_ms)
        self._pump()  # the worker computes while the answers go out
        now = time.monotonic()
        rows = sum(job.rows for job in batch.jobs)
        batch.generation.stats.ran(rows, len(batch.jobs), timing, self._clock.now())
        self.stats.batch_rows.add(rows)
        for job, reply in zip(batch.jobs, replies, strict=True):
            self._answer(batch.generation, job, reply, now)
            batch.generation.stats.queue.add(max(0.0, now - job.arrived - took_ms / 1e3))

    def _answer(self, generation: Generation, job: Job, reply: Reply | ShoalError, now: float) -> None:
        waited_s = now - job.arrived
        if isinstance(reply, ShoalError):
            self.stats.failed += 1
            generation.stats.fail.add(waited_s)
            if not job.future.done():
                job.future.set_exception(reply)
            return
        self.stats.answered += 1
        self.stats.latency_ms.add(waited_s * 1e3)
        generation.stats.success.add(waited_s)
        if not job.future.done():
            job.future.set_result(reply)
        if self._tap is not None:
            self._tap(job, reply)

    def _fail_queue(self, error: ShoalError) -> None:
        while self._queue:
            job = self._queue.popleft()
            if not job.future.done():
                job.future.set_exception(error)
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
