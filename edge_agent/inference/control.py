"""`edge.v1.Slots`, both ends: the servicer in the inference process and the client in the supervisor."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc.aio

from edge_agent.inference import messages
from edge_agent.inference.ports import Loaded, ModelSpec, ServiceStatus, ShadowReport, SlotStatus, Slots
from edge_agent.inference.rpc import error_of, status_of
from protos.edge.v1 import slots_pb2 as pb
from protos.edge.v1 import slots_pb2_grpc as pb_grpc
from shared.errors import ShoalError

_Context = grpc.aio.ServicerContext[Any, Any]
_T = TypeVar("_T")
CALL_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 300.0


class SlotsServicer(pb_grpc.SlotsServicer):
    """Method names are the proto's. `shut_down` begins the end of the process and returns at once."""

    def __init__(self, slots: Slots, shut_down: Callable[[float], None]) -> None:
        self._slots = slots
        self._shut_down = shut_down

    async def Load(self, request: pb.LoadRequest, context: _Context) -> pb.LoadResponse:  # noqa: N802
        async def load() -> Loaded:
            return await self._slots.load(messages.spec_from_proto(request))

        return messages.loaded_to_proto(await _answered(load(), context))

    async def Swap(self, request: pb.SwapRequest, context: _Context) -> pb.SlotStatus:  # noqa: N802
        return messages.slot_to_proto(await _answered(self._slots.swap(request.model, request.version), context))

    async def Revert(self, request: pb.RevertRequest, context: _Context) -> pb.SlotStatus:  # noqa: N802
        return messages.slot_to_proto(await _answered(self._slots.revert(request.model), context))

    async def Release(self, request: pb.ReleaseRequest, context: _Context) -> pb.ReleaseResponse:  # noqa: N802
        await _answered(self._slots.release(request.model, request.version), context)
        return pb.ReleaseResponse()

    async def Remove(self, request: pb.RemoveRequest, context: _Context) -> pb.RemoveResponse:  # noqa: N802
        await _answered(self._slots.remove(request.model), context)
        return pb.RemoveResponse()

    async def Shadow(self, request: pb.ShadowRequest, context: _Context) -> pb.ShadowResponse:  # noqa: N802
        shadow = self._slots.shadow(
            request.model, request.version, requests=request.requests, timeout_s=request.timeout_s
        )
        return messages.shadow_to_proto(await _answered(shadow, context))

    async def Status(self, request: pb.StatusRequest, context: _Context) -> pb.StatusResponse:  # noqa: N802
        return messages.status_to_proto(await _answered(self._slots.status(), context))

    async def Shutdown(self, request: pb.ShutdownRequest, context: _Context) -> pb.ShutdownResponse:  # noqa: N802
        self._shut_down(request.timeout_s)
        return pb.ShutdownResponse()


async def _answered(call: Awaitable[_T], context: _Context) -> _T:
    try:
        return await call
    except ShoalError as error:
        await context.abort(status_of(error), str(error))


class SlotsClient:
    """Implements `ports.Slots` over a channel. Raises the classes the engine raises, `Unavailable` when it is gone."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = pb_grpc.SlotsStub(channel)  # type: ignore[no-untyped-call]  # generated

    async def load(self, spec: ModelSpec) -> Loaded:
        request = messages.spec_to_proto(spec)
        return messages.loaded_from_proto(await _asked(self._stub.Load(request, timeout=LOAD_TIMEOUT_S)))

    async def swap(self, model: str, version: int) -> SlotStatus:
        request = pb.SwapRequest(model=model, version=version)
        return messages.slot_from_proto(await _asked(self._stub.Swap(request, timeout=CALL_TIMEOUT_S)))

    async def revert(self, model: str) -> SlotStatus:
        request = pb.RevertRequest(model=model)
        return messages.slot_from_proto(await _asked(self._stub.Revert(request, timeout=CALL_TIMEOUT_S)))

    async def release(self, model: str, version: int) -> None:
        await _asked(self._stub.Release(pb.ReleaseRequest(model=model, version=version), timeout=CALL_TIMEOUT_S))

    async def remove(self, model: str) -> None:
        await _asked(self._stub.Remove(pb.RemoveRequest(model=model), timeout=CALL_TIMEOUT_S))

    async def shadow(self, model: str, version: int, *, requests: int, timeout_s: float) -> ShadowReport:
        request = pb.ShadowRequest(model=model, version=version, requests=requests, timeout_s=timeout_s)
        answer = await _asked(self._stub.Shadow(request, timeout=timeout_s + CALL_TIMEOUT_S))
        return messages.shadow_from_proto(version, answer)

    async def status(self) -> ServiceStatus:
        answer = await _asked(self._stub.Status(pb.StatusRequest(), timeout=CALL_TIMEOUT_S))
        return messages.status_from_proto(answer)

    async def shut_down(self, timeout_s: float) -> None:
        """Asks the process to answer what is queued, for up to `timeout_s`, and end."""
        await _asked(self._stub.Shutdown(pb.ShutdownRequest(timeout_s=timeout_s), timeout=CALL_TIMEOUT_S))


async def _asked(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error
