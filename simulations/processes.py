"""Real child processes: each with a silenced environment and a log of its own, and none left behind."""

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shared.clock import Clock, SystemClock
from shared.errors import ChildFailed, DeadlineExceeded
from simulations import guard

SILENCED = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
    "GRPC_VERBOSITY": "ERROR",
}
_POLL_S = 0.02
_LOG_TAIL = 4000
_LONGEST_LINE = 8 << 20  # that `read_line` takes, in bytes


def program(name: str) -> str:
    """A command that is installed beside this Python, so that a simulation runs the code it belongs to."""
    return str(Path(sys.executable).with_name(name))


def last_line(log: Path) -> str:
    """The last line of a log that says something: most often why its process ended."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else "its log is empty"


class Child:
    """One run of one program."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number when a signal ended it."""
        return self._process.returncode

    def signal(self, number: signal.Signals) -> None:
        """No error when it has already ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def write_line(self, line: str) -> None:
        """To its standard input; it must have been started with `talk=True`."""
        if self._process.stdin is not None and self.exit_code is None:
            self._process.stdin.write(f"{line}\n".encode())

    async def read_line(self) -> str:
        """From its standard output (`talk=True`); empty at its end."""
        if self._process.stdout is None:
            return ""
        return (await self._process.stdout.readline()).decode("utf-8", "replace")

    async def wait(self) -> int:
        return await self._process.wait()

    def failure(self) -> ChildFailed:
        """What to raise when it should not have ended."""
        return ChildFailed(f"{self.name} ended with {self.exit_code}: {last_line(self.log)}", detail=f"log: {self.log}")


class Processes:
    """All processes of a simulation. Leaving the context ends every one, also when the simulator itself is killed
    (see `guard`).
    """

    def __init__(self, logs: Path, *, clock: Clock | None = None) -> None:
        self.logs = logs
        self.mark = secrets.token_hex(8)
        self._clock = clock or SystemClock()
        self._environment = {**os.environ, **SILENCED, guard.MARK_VARIABLE: self.mark}
        self._children: list[Child] = []
        self._guard: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        unmarked = {key: value for key, value in self._environment.items() if key != guard.MARK_VARIABLE}
        argv = [sys.executable, "-m", guard.__name__, self.mark]
        self._guard = subprocess.Popen(argv, stdin=subprocess.PIPE, env=unmarked, start_new_session=True)  # noqa: ASYNC220 (returns at once)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(*self._children)
        await asyncio.to_thread(guard.kill_marked, self.mark)
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            await asyncio.to_thread(self._guard.wait)

    async def spawn(
        self, name: str, argv: Sequence[str], *, talk: bool = False, environment: Mapping[str, str] | None = None
    ) -> Child:
        """Start a program in a session of its own; its output goes to `logs/NAME.log`, appended across restarts.

        `talk=True` keeps its standard input and output for `write_line` and `read_line`, and only its errors in the
        log. Raises `ChildFailed` when the program cannot be started.
        """
        log = self.logs / f"{name}.log"
        pipe = asyncio.subprocess.PIPE
        with log.open("ab") as file:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=pipe if talk else asyncio.subprocess.DEVNULL,
                    stdout=pipe if talk else file,
                    stderr=file,
                    env={**self._environment, **(environment or {})},
                    start_new_session=True,
                    limit=_LONGEST_LINE,
                )
            except OSError as error:
                raise ChildFailed(f"{name} cannot be started: {error}") from error
        child = Child(name, process, log)
        self._children.append(child)
        return child

    async def call(self, argv: Sequence[str], *, timeout_s: float = 60.0) -> str:
        """Run a command to its end and return what it printed. Raises `ChildFailed` with the last line it complained
        with.
        """
        pipe = asyncio.subprocess.PIPE
        name = " ".join([Path(argv[0]).name, *itertools.takewhile(lambda word: not word.startswith("-"), argv[1:])])
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            env=self._environment,
            start_new_session=True,
        )
        try:
            printed, complaints = await asyncio.wait_for(process.communicate(), timeout_s)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise DeadlineExceeded(f"{name} did not end within {timeout_s:g} s") from None
        if process.returncode != 0:
            lines = complaints.decode("utf-8", "replace").strip().splitlines() or ["it gave no reason"]
            raise ChildFailed(f"{name} ended with {process.returncode}: {lines[-1]}")
        return printed.decode("utf-8", "replace")

    async def stop(self, *children: Child, grace_s: float = 5.0) -> None:
        """SIGTERM, then SIGKILL for those that have not ended after `grace_s`."""
        running = [child for child in children if child.exit_code is None]
        for child in running:
            child.signal(signal.SIGTERM)
        waits = [asyncio.ensure_future(child.wait()) for child in running]
        if waits:
            await asyncio.wait(waits, timeout=grace_s)
            for child in running:
                child.signal(signal.SIGKILL)
            await asyncio.gather(*waits)

    async def ready(self, child: Child, path: Path, *, timeout_s: float) -> dict[str, Any]:
        """Wait for the ready file that this very process writes (its `pid` tells). Raises `ChildFailed`,
        `DeadlineExceeded`.
        """
        deadline = self._clock.monotonic() + timeout_s
        while self._clock.monotonic() < deadline:
            content = read_ready(path)
            if content.get("pid") == child.pid:
                return content
            if child.exit_code is not None:
                raise child.failure()
            await asyncio.sleep(_POLL_S)
        raise DeadlineExceeded(f"{child.name} was not ready within {timeout_s:g} s", detail=f"log: {child.log}")


def read_ready(path: Path) -> dict[str, Any]:
    """A ready file's content; empty while there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
