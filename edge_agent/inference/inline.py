"""The inference service inside this process, for hosting many agents in one. It answers on a real port."""

from edge_agent.inference.engine import Engine
from edge_agent.inference.ports import Slots
from edge_agent.inference.server import HOST, OipListener
from shared.errors import Unavailable


class InlineInference:
    """Implements `ports.InferencePort`. It shares this process's event loop and its fate: no restart, no isolation."""

    def __init__(self, *, port: int = 0) -> None:
        self._port = port
        self._engine: Engine | None = None
        self._listener: OipListener | None = None

    @property
    def slots(self) -> Slots:
        if self._engine is None:
            raise Unavailable("the inference service is not started")
        return self._engine

    @property
    def address(self) -> str:
        if self._listener is None:
            raise Unavailable("the inference service is not started")
        return f"{HOST}:{self._listener.port}"

    async def start(self) -> None:
        engine = Engine()
        listener = OipListener(engine)
        await listener.start(self._port)
        self._engine, self._listener, self._port = engine, listener, listener.port

    async def stop(self, timeout_s: float = 5.0) -> None:
        listener, self._listener, self._engine = self._listener, None, None
        if listener is not None:
            await listener.stop(timeout_s)
