"""The trainer as a child process: started when it is needed, killed at a task's deadline, let go when idle."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog

from edge_agent.trainer import wire
from edge_agent.trainer.ports import APP_CRASHED, LocalTask, SpecialiseRequest, TaskOutcome
from edge_agent.trainer.variant import Variant, read_variant
from edge_agent.trainer.worker import WorkerSettings, settings_to_json
from protos.edge.v1 import trainer_pb2_grpc
from shared.errors import ChildFailed, DeadlineExceeded, ShoalError, Unavailable
from shared.rpc_errors import error_from_rpc
from shared.session import NODE_UNAVAILABLE

_log = structlog.get_logger()
_START_S = 60.0
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    memory_mib: int = 0  # 0: none
    threads: int = 1


@dataclass
class _Child:
    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel
    stub: Any


class ProcessTrainer:
    """Implements `TrainerPort`. The child dies with the thread that starts it: the event loop's."""

    def __init__(self, socket: Path, settings: WorkerSettings, limits: Limits) -> None:
        self._socket = socket
        self._settings = settings
        self._limits = limits
        self._turn = asyncio.Lock()
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        return self._child.process.pid if self._child else None

    async def run(self, task: LocalTask) -> TaskOutcome:
        async with self._turn:
            try:
                request = wire.task_to_proto(task)
                response = await self._ask(lambda stub: stub.Run(request), task.timeout_s)
                return wire.outcome_from_proto(response)
            except DeadlineExceeded:
                return TaskOutcome(
                    error_code=NODE_UNAVAILABLE, error_reason=f"not done after {task.timeout_s:g} s; stopped"
                )
            except ShoalError as error:
                return TaskOutcome(error_code=APP_CRASHED, error_reason=str(error)[:500])

    async def specialise(self, request: SpecialiseRequest) -> Variant:
        async with self._turn:
            message = wire.request_to_proto(request)
            await self._ask(lambda stub: stub.Specialise(message), request.timeout_s)
        return await asyncio.to_thread(read_variant, request.out_dir)

    async def release(self) -> None:
        async with self._turn:
            await self._end()

    # ---- inside, with the turn held

    async def _ask(self, call: Callable[[Any], Awaitable[T]], timeout_s: float) -> T:
        """Raises the trainer's own error, `DeadlineExceeded` after killing it, `ChildFailed` when it died."""
        try:
            async with asyncio.timeout(timeout_s if timeout_s < float("inf") else None):
                child = await self._present()
                async with _dead_or(child.process):
                    return await call(child.stub)
        except TimeoutError:
            await self._end()
            raise DeadlineExceeded(f"the trainer did not finish within {timeout_s:g} s and was stopped") from None
        except _Died:
            code = self._child.process.returncode if self._child else None
            await self._end()
            raise ChildFailed(f"the trainer died (exit code {code})") from None
        except grpc.RpcError as error:
            known = error_from_rpc(error)
            if isinstance(known, Unavailable) and not isinstance(known, DeadlineExceeded):
                await self._end()
                raise ChildFailed("the trainer died") from error
            if isinstance(known, ChildFailed):  # out of memory, or half imported: begin afresh
                await self._end()
            raise known from error
        # Whoever asked has gone, and a client app cannot be interrupted; the next task starts another.
        except BaseException:
            await self._end()
            raise

    async def _present(self) -> _Child:
        if self._child is not None and self._child.process.returncode is None:
            return self._child
        await self._end()
        self._socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        threads = str(self._limits.threads)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edge_agent.trainer", "--socket", str(self._socket)),
            *("--settings", json.dumps(settings_to_json(self._settings))),
            *("--memory-mib", str(self._limits.memory_mib), "--parent", str(os.getpid())),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                "OPENBLAS_NUM_THREADS": threads,
                "MALLOC_ARENA_MAX": "2",
                "RUST_BACKTRACE": "0",  # printing one needs memory, and a panic for want of memory then never ends
            },
        )
        channel = grpc.aio.insecure_channel(f"unix:{self._socket}", options=wire.CHANNEL_OPTIONS)
        self._child = _Child(process, channel, trainer_pb2_grpc.TrainerStub(channel))
        assert process.stdout is not None  # noqa: S101  # it was opened as a pipe
        try:
            async with asyncio.timeout(_START_S):
                line = await process.stdout.readline()
        except TimeoutError:
            raise ChildFailed(f"the trainer did not start within {_START_S:g} s") from None
        if line.strip() != b"ready":
            raise ChildFailed("the trainer ended while it started; see the agent's log")
        return self._child

    async def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            child.process.kill()
        await child.process.wait()
        await child.channel.close()


class _Died(Exception):
    pass


@contextlib.asynccontextmanager
async def _dead_or(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """Raises `_Died` out of the block as soon as the process ends: a broken socket alone may go unnoticed for seconds."""
    owner = asyncio.current_task()
    died = False

    async def watch() -> None:
        nonlocal died
        await process.wait()
        died = True
        if owner is not None:
            owner.cancel()

    watcher = asyncio.create_task(watch(), name="trainer-watcher")
    try:
        yield
    except asyncio.CancelledError:
        if died and owner is not None and owner.uncancel() == 0:
            raise _Died from None
        raise
    finally:
        watcher.cancel()
