"""The inference service inside this process: same engine, same server, no child. For hosting many agents in one."""

from edge_agent.inference.engine import Engine
from edge_agent.inference.ports import Slots
from edge_agent.inference.server import InferenceServer
from shared.errors import Unavailable


class InlineInference:
    """Implements `ports.InferencePort`. A runtime that crashes takes this process with it, so a device runs
    `process.InferenceProcess` instead."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._host = host
        self._port = port
        self._running: tuple[Engine, InferenceServer] | None = None

    @property
    def slots(self) -> Slots:
        return self._started()[0]

    @property
    def address(self) -> str:
        return self._started()[1].address

    async def start(self) -> None:
        engine = Engine()
        server = InferenceServer(engine, host=self._host, port=self._port)
        await server.start()
        self._running = (engine, server)

    async def stop(self, timeout_s: float = 5.0) -> None:
        if self._running is not None:
            engine, server = self._running
            self._running = None
            await engine.close(timeout_s)
            await server.stop(0.5)

    def _started(self) -> tuple[Engine, InferenceServer]:
        if self._running is None:
            raise Unavailable("the inference service is not running: start it first")
        return self._running
