"""All models of one inference service: the `Slots` port without any transport. Event-loop only."""

import asyncio
import os
from collections.abc import Iterator

from edge_agent.inference.generation import Opened, open_generation
from edge_agent.inference.model import Model
from edge_agent.inference.ports import Loaded, ModelSpec, ServiceStatus, ShadowReport, SlotStatus
from shared.clock import Clock, SystemClock
from shared.errors import ChildFailed, InputError, NotFound, ShoalError, Unavailable

MAX_MODEL_BYTES = 1 << 30
_ABANDON_S = 1.0  # a run that takes longer than this after the drain is left behind


class Engine:
    """Implements `ports.Slots`. `max_model_bytes`: a larger file is refused unread."""

    def __init__(self, clock: Clock | None = None, *, max_model_bytes: int = MAX_MODEL_BYTES) -> None:
        self._clock = clock or SystemClock()
        self._max_model_bytes = max_model_bytes
        self._models: dict[str, Model] = {}
        self._loads: dict[ModelSpec, asyncio.Task[Loaded]] = {}
        self._started = self._clock.now()
        self._closing = False

    @property
    def ready(self) -> bool:
        return not self._closing

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def model(self, name: str) -> Model:
        """Raises `NotFound`; `Unavailable` while shutting down."""
        if self._closing:
            raise Unavailable("the inference service is shutting down")
        try:
            return self._models[name]
        except KeyError:
            raise NotFound(f"no model {name[:80]!r} is loaded") from None

    async def load(self, spec: ModelSpec) -> Loaded:
        """A load of the same spec that is under way is joined."""
        if self._closing:
            raise Unavailable("the inference service is shutting down")
        task = self._loads.get(spec)
        if task is None:
            model = self._models.get(spec.model) or Model(spec.model, self._clock)
            held = model.open(spec)
            if held is not None:
                return Loaded(held, 0.0, 0.0)
            self._models[spec.model] = model
            task = self._loads[spec] = asyncio.create_task(self._load(model, spec), name=f"load-{spec.model}")
            task.add_done_callback(lambda done: self._ended(spec, done))
        # Shielded: a caller that gives up must not leave a slot LOADING for ever.
        return await asyncio.shield(task)

    def _ended(self, spec: ModelSpec, task: "asyncio.Task[Loaded]") -> None:
        del self._loads[spec]
        if not task.cancelled():
            task.exception()  # its callers may all have given up; the slot keeps the reason

    async def _load(self, model: Model, spec: ModelSpec) -> Loaded:
        opened: Opened | None = None
        try:
            opened = await asyncio.to_thread(open_generation, spec, self._max_model_bytes)
            if self._closing:
                raise Unavailable("the inference service is shutting down")
            return Loaded(model.adopt(opened), opened.load_s, opened.warm_up_ms)
        except Exception as error:
            refusal = error if isinstance(error, ShoalError) else ChildFailed("loading failed", detail=repr(error))
            if opened is not None:
                opened.generation.session.close()
            if not self._closing:
                model.refuse(spec.version, refusal)
            raise refusal from error

    async def swap(self, model: str, version: int) -> SlotStatus:
        return self.model(model).swap(version)

    async def revert(self, model: str) -> SlotStatus:
        return self.model(model).revert()

    async def release(self, model: str, version: int) -> None:
        await self.model(model).release(version)

    async def remove(self, model: str) -> None:
        leaving = self.model(model)
        await leaving.remove()
        self._models.pop(model, None)

    async def shadow(self, model: str, version: int, *, requests: int, timeout_s: float) -> ShadowReport:
        if requests < 1 or not 0 < timeout_s <= 3600:
            raise InputError("shadowing needs at least one request and a timeout of up to an hour")
        return (await self.model(model).shadow(version, requests, timeout_s)).report()

    async def status(self) -> ServiceStatus:
        models = tuple(model.status() for model in self._models.values())
        return ServiceStatus(models, os.getpid(), self._started)

    async def close(self, timeout_s: float) -> None:
        """Takes no more requests, answers those that wait (for up to `timeout_s`), then frees every model."""
        self._closing = True
        try:
            async with asyncio.timeout(timeout_s):
                for model in self._models.values():
                    await model.idle()
        except TimeoutError:
            pass  # what still waits is failed below
        leaving = [asyncio.ensure_future(model.abandon()) for model in self._models.values()]
        if leaving:
            await asyncio.wait(leaving, timeout=_ABANDON_S)
        self._models.clear()
