"""The supervisor's side of the inference service: starts the child, restarts it when it dies, speaks to it.

A restarted child gets its old port and, before anything else, the live models it had, so applications on the device
see a gap of about its start-up time and nothing has to be decided again.
"""

import asyncio
import contextlib
import json
import logging
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from edge_agent.inference.control import SlotsClient
from edge_agent.inference.ports import Loaded, ModelSpec, ServiceStatus, ShadowReport, SlotStatus, Slots
from edge_agent.inference.rpc import MESSAGE_OPTIONS
from edge_agent.inference.server import check_socket_path
from shared.errors import ChildFailed, ShoalError, Unavailable

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferenceConfig:
    """`control`: path of the Unix socket; its folder exists. `port` 0: the system chooses once, restarts keep it."""

    control: Path
    host: str = "127.0.0.1"
    port: int = 0
    socket: Path | None = None
    ready_timeout_s: float = 30.0
    first_backoff_s: float = 0.1
    last_backoff_s: float = 10.0


@dataclass(frozen=True)
class Restart:
    """The child died and is back. `restored`: models that are live again; `lost`: those that are not, with why."""

    exit_code: int
    restarts: int
    restored: tuple[str, ...]
    lost: tuple[tuple[str, str], ...]


class RememberingSlots:
    """`ports.Slots` over the current child, remembering what is loaded and live so that it can be brought back."""

    def __init__(self) -> None:
        self._client: SlotsClient | None = None
        self._specs: dict[tuple[str, int], ModelSpec] = {}
        self._live: dict[str, int] = {}

    def connect(self, client: SlotsClient | None) -> None:
        self._client = client

    async def load(self, spec: ModelSpec) -> Loaded:
        loaded = await self._now().load(spec)
        self._specs[spec.model, spec.version] = spec
        return loaded

    async def swap(self, model: str, version: int) -> SlotStatus:
        status = await self._now().swap(model, version)
        self._live[model] = status.version
        return status

    async def revert(self, model: str) -> SlotStatus:
        status = await self._now().revert(model)
        self._live[model] = status.version
        return status

    async def release(self, model: str, version: int) -> None:
        await self._now().release(model, version)
        self._specs.pop((model, version), None)

    async def remove(self, model: str) -> None:
        await self._now().remove(model)
        self._live.pop(model, None)
        self._specs = {key: spec for key, spec in self._specs.items() if key[0] != model}

    async def shadow(self, model: str, version: int, *, requests: int, timeout_s: float) -> ShadowReport:
        return await self._now().shadow(model, version, requests=requests, timeout_s=timeout_s)

    async def status(self) -> ServiceStatus:
        return await self._now().status()

    async def restore(self) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
        """Loads the live versions again and makes them live. Candidates and standbys are not brought back."""
        specs = [self._specs[model, version] for model, version in self._live.items()]
        self._specs = {(spec.model, spec.version): spec for spec in specs}
        restored, lost = [], []
        for spec in specs:
            try:
                await self.load(spec)
                await self.swap(spec.model, spec.version)
                restored.append(spec.model)
            except ShoalError as error:
                self._live.pop(spec.model, None)
                lost.append((spec.model, str(error)))
        return tuple(restored), tuple(lost)

    def _now(self) -> SlotsClient:
        if self._client is None:
            raise Unavailable("the inference service is not running: try again in a moment")
        return self._client


class InferenceProcess:
    """Implements `ports.InferencePort` with a child process. `on_restart` is awaited after each restart."""

    def __init__(
        self, config: InferenceConfig, *, on_restart: Callable[[Restart], Awaitable[None]] | None = None
    ) -> None:
        check_socket_path(config.control)
        self._config = config
        self._on_restart = on_restart
        self._slots = RememberingSlots()
        self._child: Process | None = None
        self._channel: grpc.aio.Channel | None = None
        self._client: SlotsClient | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._port = config.port
        self._stopping = False

    @property
    def slots(self) -> Slots:
        return self._slots

    @property
    def address(self) -> str:
        if not self._port:
            raise Unavailable("the inference service is not running: start it first")
        return f"{self._config.host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """Of the running child."""
        return self._child.pid if self._child and self._child.returncode is None else None

    async def start(self) -> None:
        """Returns when the child answers. Raises `ChildFailed`."""
        self._stopping = False
        await self._launch()
        self._watcher = asyncio.create_task(self._watch(), name="inference-watch")

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Drain, then kill at the timeout."""
        self._stopping = True
        if self._client is not None:
            with contextlib.suppress(ShoalError):  # gone already, or about to be killed
                await self._client.shut_down(timeout_s)
        if self._child is not None:
            await _ended(self._child, timeout_s)
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        if self._child is not None:  # a restart that was under way
            await _ended(self._child, 0)
            self._child = None
        await self._disconnect()

    # ---- the child

    async def _launch(self) -> None:
        config = self._config
        optional = ["--socket", str(config.socket)] if config.socket else []
        self._child = child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edge_agent.inference", "--with-parent", "--control", str(config.control)),
            *("--host", config.host, "--port", str(self._port), *optional),
            stdin=PIPE,  # never written: its closing tells the child that we are gone
            stdout=PIPE,
            start_new_session=True,  # a Ctrl-C or a kill of the trainer's group must not reach it
        )
        try:
            self._port = await asyncio.wait_for(_ready(child), config.ready_timeout_s)
        except (TimeoutError, ChildFailed, asyncio.CancelledError) as error:
            await _ended(child, 0)
            if isinstance(error, TimeoutError):
                raise ChildFailed(f"the inference service was not ready within {config.ready_timeout_s:g} s") from error
            raise
        self._channel = grpc.aio.insecure_channel(f"unix:{config.control}", options=MESSAGE_OPTIONS)
        self._client = SlotsClient(self._channel)
        self._slots.connect(self._client)

    async def _watch(self) -> None:
        """Waits for the child to die and brings it back, until `stop`."""
        restarts = 0
        while True:
            child = self._child
            if child is None:
                return
            exit_code = await child.wait()
            await self._disconnect()
            if self._stopping:
                return
            _log.warning("the inference service ended with code %s: starting it again", exit_code)
            await self._relaunch()
            restarts += 1
            restored, lost = await self._slots.restore()
            if self._on_restart is not None:
                await self._on_restart(Restart(exit_code, restarts, restored, lost))

    async def _relaunch(self) -> None:
        delay_s = self._config.first_backoff_s
        while True:
            try:
                await self._launch()
            except ChildFailed as error:
                _log.warning("%s: next try in %.1f s", error, delay_s)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, self._config.last_backoff_s)
            else:
                return

    async def _disconnect(self) -> None:
        self._slots.connect(None)
        self._client = None
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()


async def _ready(child: Process) -> int:
    """The port from the child's ready line. Raises `ChildFailed` if it ends or says something else first."""
    if child.stdout is None:
        raise ChildFailed("the inference service has no standard output")
    line = await child.stdout.readline()
    try:
        port = json.loads(line)["port"]
    except (ValueError, KeyError, TypeError) as error:
        raise ChildFailed("the inference service ended before it was ready: its last words are in the log") from error
    return int(port)


async def _ended(child: Process, timeout_s: float) -> None:
    """Waits for `child` to end, for `timeout_s`, then kills it."""
    if child.returncode is not None:
        return
    try:
        await asyncio.wait_for(child.wait(), timeout_s)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
