"""The supervisor's side of edge.v1.Slots: the `Slots` port over a Unix socket. No protobuf message leaves this module."""

from pathlib import Path

import grpc.aio

from edge_agent.inference.ports import Loaded, ModelSpec, ServiceStatus, ShadowReport, SlotStatus
from edge_agent.inference.rpc import CLIENT_OPTIONS
from edge_agent.inference.slots_wire import (
    loaded_from_proto,
    shadow_from_proto,
    slot_from_proto,
    spec_to_proto,
    status_from_proto,
)
from protos.edge.v1 import slots_pb2 as pb
from protos.edge.v1.slots_pb2_grpc import SlotsStub
from shared.rpc_errors import typed_errors

_QUICK_S = 10.0
_LAST_WORD_S = 1.0  # it answers before it drains; one that does not is stuck
_LOAD_S = 120.0  # reading, compiling and warming a large model
_MARGIN_S = 5.0


class RemoteSlots:
    """Implements `ports.Slots`. Every method also raises `Unavailable` when the service is not there and
    `DeadlineExceeded` when it does not answer. The channel must be opened in a running event loop."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=CLIENT_OPTIONS)
        self._stub = SlotsStub(self._channel)

    async def load(self, spec: ModelSpec) -> Loaded:
        with typed_errors():
            return loaded_from_proto(await self._stub.Load(spec_to_proto(spec), timeout=_LOAD_S))

    async def swap(self, model: str, version: int) -> SlotStatus:
        with typed_errors():
            return slot_from_proto(
                await self._stub.Swap(pb.SwapRequest(model=model, version=version), timeout=_QUICK_S)
            )

    async def revert(self, model: str) -> SlotStatus:
        with typed_errors():
            return slot_from_proto(await self._stub.Revert(pb.RevertRequest(model=model), timeout=_QUICK_S))

    async def release(self, model: str, version: int) -> None:
        with typed_errors():
            await self._stub.Release(pb.ReleaseRequest(model=model, version=version), timeout=_QUICK_S)

    async def remove(self, model: str) -> None:
        with typed_errors():
            await self._stub.Remove(pb.RemoveRequest(model=model), timeout=_QUICK_S)

    async def shadow(self, model: str, version: int, *, requests: int, timeout_s: float) -> ShadowReport:
        request = pb.ShadowRequest(model=model, version=version, requests=requests, timeout_s=timeout_s)
        with typed_errors():
            return shadow_from_proto(await self._stub.Shadow(request, timeout=timeout_s + _MARGIN_S), version)

    async def status(self) -> ServiceStatus:
        with typed_errors():
            return status_from_proto(await self._stub.Status(pb.StatusRequest(), timeout=_QUICK_S))

    async def shut_down(self, timeout_s: float) -> None:
        """Asks the service to answer what is queued, for up to `timeout_s`, and end."""
        with typed_errors():
            await self._stub.Shutdown(pb.ShutdownRequest(timeout_s=timeout_s), timeout=_LAST_WORD_S)

    async def close(self) -> None:
        await self._channel.close()
