"""The edge.v1.Slots servicer: what the supervisor talks to, over a Unix socket."""

import math
from collections.abc import Callable

from edge_agent.inference.ports import Slots
from edge_agent.inference.rpc import Context, abort
from edge_agent.inference.slots_wire import (
    loaded_to_proto,
    shadow_to_proto,
    slot_to_proto,
    spec_from_proto,
    status_to_proto,
)
from protos.edge.v1 import slots_pb2 as pb
from protos.edge.v1 import slots_pb2_grpc as pb_grpc
from shared.errors import InputError, ShoalError

_MAX_DRAIN_S = 600.0


class SlotsServicer(pb_grpc.SlotsServicer):
    """`shut_down` is told how many seconds the queue may take to empty."""

    def __init__(self, slots: Slots, shut_down: Callable[[float], None]) -> None:
        self._slots = slots
        self._shut_down = shut_down

    async def Load(self, request: pb.LoadRequest, context: Context) -> pb.LoadResponse:
        try:
            return loaded_to_proto(await self._slots.load(spec_from_proto(request)))
        except ShoalError as error:
            await abort(context, error)

    async def Swap(self, request: pb.SwapRequest, context: Context) -> pb.SlotStatus:
        try:
            return slot_to_proto(await self._slots.swap(request.model, request.version))
        except ShoalError as error:
            await abort(context, error)

    async def Revert(self, request: pb.RevertRequest, context: Context) -> pb.SlotStatus:
        try:
            return slot_to_proto(await self._slots.revert(request.model))
        except ShoalError as error:
            await abort(context, error)

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseResponse:
        try:
            await self._slots.release(request.model, request.version)
        except ShoalError as error:
            await abort(context, error)
        return pb.ReleaseResponse()

    async def Remove(self, request: pb.RemoveRequest, context: Context) -> pb.RemoveResponse:
        try:
            await self._slots.remove(request.model)
        except ShoalError as error:
            await abort(context, error)
        return pb.RemoveResponse()

    async def Shadow(self, request: pb.ShadowRequest, context: Context) -> pb.ShadowResponse:
        try:
            report = await self._slots.shadow(
                request.model, request.version, requests=request.requests, timeout_s=request.timeout_s
            )
        except ShoalError as error:
            await abort(context, error)
        return shadow_to_proto(report)

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        return status_to_proto(await self._slots.status())

    async def Shutdown(self, request: pb.ShutdownRequest, context: Context) -> pb.ShutdownResponse:
        if not (math.isfinite(request.timeout_s) and 0 <= request.timeout_s <= _MAX_DRAIN_S):
            await abort(context, InputError(f"a shutdown takes between 0 and {_MAX_DRAIN_S:.0f} seconds"))
        self._shut_down(request.timeout_s)
        return pb.ShutdownResponse()
