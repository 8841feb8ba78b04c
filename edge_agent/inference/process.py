"""The inference service as a child process: started, watched, started again on the same port when it dies, and ended."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

import structlog

from edge_agent.inference.ports import Slots
from edge_agent.inference.server import HOST
from edge_agent.inference.slots_client import RemoteSlots
from shared.clock import Clock, SystemClock
from shared.errors import ChildFailed, ShoalError, Unavailable
from shared.files import check_socket_path, storage_errors

_START_S = 30.0
_LAST_WORDS_S = 2.0  # beyond the drain, before it is killed
_STEADY_S = 10.0  # a service that lived this long is started again at once
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_LOG_TAIL = 4000
_LOG_LIMIT = 1 << 20
_log = structlog.get_logger()


class InferenceProcess:
    """Implements `ports.InferencePort`. `run_dir` gets the control socket, the ready file and the child's log.

    `on_restart` is awaited after each restart, when the service answers but holds no model: load the last proven one
    there. The child dies with the thread that called `start`, even when that is killed (see `shared.child.die_with`).
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        port: int = 0,
        on_restart: Callable[[], Awaitable[None]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.restarts = 0
        self._run_dir = run_dir.resolve()
        self._port = port
        self._on_restart = on_restart
        self._clock = clock or SystemClock()
        self._process: asyncio.subprocess.Process | None = None
        self._slots: RemoteSlots | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def slots(self) -> Slots:
        """Of the child that runs now; ask again after a restart."""
        if self._slots is None:
            raise Unavailable("the inference service is not started")
        return self._slots

    @property
    def address(self) -> str:
        if self._slots is None:
            raise Unavailable("the inference service is not started")
        return f"{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise Unavailable("the inference service is not started")
        return self._process.pid

    @property
    def log(self) -> Path:
        return self._run_dir / "inference.log"

    async def start(self) -> None:
        """Returns once requests are answered. Raises `ConfigError` (socket path), `ChildFailed`, `StorageFull`."""
        if self._watcher is not None:
            raise ChildFailed("the inference service is started already")
        check_socket_path(self._socket)
        with storage_errors("the inference service"):
            self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        process = await self._spawn()
        self._watcher = asyncio.create_task(self._watch(process), name="inference-watcher")

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Safe to repeat."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait([watcher])
        slots, self._slots = self._slots, None
        process, self._process = self._process, None
        if slots is not None:
            with contextlib.suppress(ShoalError):  # it may be dead or stuck: then it is killed below
                await slots.shut_down(timeout_s)
            await slots.close()
        if process is not None:
            await _end(process, timeout_s + _LAST_WORDS_S)

    @property
    def _socket(self) -> Path:
        return self._run_dir / "inference.sock"

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Restarts for ever, ever more slowly while it keeps dying young."""
        pause_s, born = 0.0, self._clock.monotonic()
        while True:
            code = await process.wait()
            lived_s = self._clock.monotonic() - born
            pause_s = 0.0 if lived_s > _STEADY_S else min(_LONGEST_PAUSE_S, pause_s * 2) or _FIRST_PAUSE_S
            _log.warning("inference service died", exit_code=code, lived_s=round(lived_s, 1), reason=self._last_line())
            await asyncio.sleep(pause_s)
            born = self._clock.monotonic()
            try:
                process = await self._spawn()
                self.restarts += 1
                if self._on_restart is not None:
                    await self._on_restart()
            except ShoalError as error:  # if the service died of it, the next turn starts it again
                _log.warning("inference service restart failed", reason=str(error))
            except Exception as error:  # noqa: BLE001  # whatever it was: a device that serves nothing must not stay so
                _log.error("inference service restart failed", exc_info=error)

    async def _spawn(self) -> asyncio.subprocess.Process:
        with self._open_log() as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "edge_agent.inference"),
                *("--control", str(self._socket), "--port", str(self._port)),
                *("--ready", str(self._run_dir / "inference.json"), "--parent", str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C at a terminal is for the supervisor, which then drains the service
            )
        try:
            self._port = await self._ready_port(process)
        except BaseException:
            await _end(process, 0.0)
            raise
        previous, self._slots, self._process = self._slots, RemoteSlots(self._socket), process
        if previous is not None:
            await previous.close()
        return process

    async def _ready_port(self, process: asyncio.subprocess.Process) -> int:
        if process.stdout is None:
            raise ChildFailed("the inference service has no standard output")
        try:
            async with asyncio.timeout(_START_S):
                line = await process.stdout.readline()
        except TimeoutError:
            raise ChildFailed(f"the inference service did not start within {_START_S:.0f} s: see {self.log}") from None
        if not line:
            raise ChildFailed("the inference service ended while it started", detail=self._last_line())
        try:
            return int(json.loads(line)["port"])
        except (ValueError, KeyError, TypeError) as error:
            raise ChildFailed("the inference service did not say where it listens", detail=repr(line[:80])) from error

    def _open_log(self) -> BinaryIO:
        """Appends, until it is large: what a crash said yesterday still helps, a year of it does not."""
        large = self.log.exists() and self.log.stat().st_size > _LOG_LIMIT
        with storage_errors(self.log.name):
            return self.log.open("wb" if large else "ab")

    def _last_line(self) -> str:
        """Of the child's log: most often why it ended."""
        try:
            lines = self.log.read_bytes()[-_LOG_TAIL:].decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1].strip().removeprefix("error: ")[:300] if lines else ""


async def _end(process: asyncio.subprocess.Process, timeout_s: float) -> None:
    """Waits for the process to end by itself, then kills it."""
    try:
        async with asyncio.timeout(timeout_s):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
