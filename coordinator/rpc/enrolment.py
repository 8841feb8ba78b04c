"""`fleet.v1.Enrolment`: how a device becomes a member."""

import asyncio
from collections.abc import Callable
from typing import Any

from coordinator.fleet.registry import EnrolmentRequest, Registry
from coordinator.fleet.states import DeviceState
from coordinator.rpc.interceptors import calling_device
from protos.fleet.v1 import enrolment_pb2, enrolment_pb2_grpc


class EnrolmentServicer(enrolment_pb2_grpc.EnrolmentServicer):
    """`fleet_address` and `root` are asked at each call: the port may be chosen late, the root may be rotated."""

    def __init__(self, registry: Registry, fleet_address: Callable[[], str], root: Callable[[], bytes]) -> None:
        self._registry = registry
        self._fleet_address = fleet_address
        self._root = root

    async def GetAuthority(self, request: Any, context: Any) -> enrolment_pb2.GetAuthorityResponse:
        return enrolment_pb2.GetAuthorityResponse(ca_certificate_der=self._registry.authority_certificate)

    async def Enrol(self, request: enrolment_pb2.EnrolRequest, context: Any) -> enrolment_pb2.EnrolResponse:
        wanted = EnrolmentRequest(
            token=request.token,
            csr_der=request.csr_der,
            name=request.name,
            labels=dict(request.labels),
            profile_json=request.profile_json or "{}",
        )
        device = await asyncio.to_thread(self._registry.enrol, wanted)
        if device.state is DeviceState.PENDING:
            return enrolment_pb2.EnrolResponse(state=enrolment_pb2.EnrolResponse.PENDING_APPROVAL, device_id=device.id)
        return enrolment_pb2.EnrolResponse(
            state=enrolment_pb2.EnrolResponse.ISSUED,
            device_id=device.id,
            certificate_der=device.certificate_der,
            fleet_address=self._fleet_address(),
            tuf_root_json=self._root(),
        )

    async def Renew(self, request: enrolment_pb2.RenewRequest, context: Any) -> enrolment_pb2.RenewResponse:
        device = await asyncio.to_thread(self._registry.renew, calling_device().id, request.csr_der)
        return enrolment_pb2.RenewResponse(certificate_der=device.certificate_der)
