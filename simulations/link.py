"""A TCP link on loopback that misbehaves on purpose: delay, throttle, cut and partition, seeded and switchable while
it runs.

A device dials the link instead of the coordinator. TLS passes through untouched, so what a scenario shows is what a
bad network does.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Self

import numpy as np

_CHUNK = 64 * 1024
_IN_FLIGHT = 64  # pieces that a direction of a connection holds while they are delayed


@dataclass(frozen=True)
class Weather:
    """How the link behaves. Delays are one way; `bytes_per_s` limits each direction of each connection, 0 for no limit.

    A partitioned link keeps connections open and passes nothing, which is what a lost radio looks like; new ones are
    accepted and starve too.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0
    partitioned: bool = False

    def __post_init__(self) -> None:
        if min(self.delay_s, self.jitter_s, self.bytes_per_s) < 0:
            raise ValueError("delay_s, jitter_s and bytes_per_s are not negative")


CALM = Weather()


class Link:
    """Listens on a port that the system chooses and passes bytes on to `target`. Closing it cuts everything."""

    def __init__(self, target: tuple[str, int], rng: np.random.Generator, weather: Weather = CALM) -> None:
        self._target = target
        self._rng = rng
        self._weather = weather
        self._calm = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self.change(self._weather)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        if self._connections:
            await asyncio.wait(self._connections)

    @property
    def address(self) -> str:
        """HOST:PORT to dial. Raises `RuntimeError` before it listens."""
        if self._server is None:
            raise RuntimeError("the link is not open")
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    @property
    def weather(self) -> Weather:
        return self._weather

    def change(self, weather: Weather) -> None:
        """From now on, also for open connections."""
        self._weather = weather
        if weather.partitioned:
            self._calm.clear()
        else:
            self._calm.set()

    def cut(self) -> None:
        """End every open connection now."""
        for connection in self._connections:
            connection.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._connections.add(task)
        try:
            with contextlib.suppress(
                OSError, asyncio.CancelledError
            ):  # whichever way it ends, it ends this connection only
                await self._carry(reader, writer)
        finally:
            self._connections.discard(task)
            await _close(writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        pumps = [
            asyncio.ensure_future(self._pump(reader, far_writer)),
            asyncio.ensure_future(self._pump(far_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            await _close(far_writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A delay line: what is read now is written later, and reading goes on meanwhile. An empty piece is the end."""
        loop = asyncio.get_running_loop()
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)
        filling = asyncio.ensure_future(self._fill(reader, line))
        try:
            while True:
                at, data = await line.get()
                await asyncio.sleep(max(0.0, at - loop.time()))
                await self._calm.wait()
                if not data:
                    break
                if self._weather.bytes_per_s:
                    await asyncio.sleep(len(data) / self._weather.bytes_per_s)
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        finally:
            filling.cancel()

    async def _fill(self, reader: asyncio.StreamReader, line: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop, last, data = asyncio.get_running_loop(), 0.0, b"first"
        while data:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""
            weather = self._weather
            wait = weather.delay_s + (weather.jitter_s * self._rng.random() if weather.jitter_s else 0.0)
            last = max(last, loop.time() + wait)  # TCP keeps the order, whatever the jitter
            await line.put((last, data))


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
