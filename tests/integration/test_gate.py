"""The gate in front of every servicer: certificates, roles, and what a failure tells the caller."""

import asyncio
import ssl
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from coordinator.rpc.interceptors import calling_peer
from coordinator.rpc.listening import joined
from coordinator.rpc.prometheus import serve_metrics
from coordinator.rpc.server import admin_server, enrolment_server, fleet_server
from protos.fleet.v1 import admin_pb2, admin_pb2_grpc, blobs_pb2, blobs_pb2_grpc
from shared.errors import ConfigError, Forbidden, LocalError, NotFound, Unauthenticated
from shared.ids import digest_of
from shared.rpc_errors import error_from_rpc
from shared.signing.certificates import Role, generate_key, key_to_pem, make_csr, to_pem
from tests.integration.front import DAY_S, Front, running


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with running(tmp_path) as started:
        yield started


class Admin(admin_pb2_grpc.AdminServicer):
    """Answers, fails on purpose and fails by accident."""

    def __init__(self) -> None:
        self.closed = False

    async def ListAudit(self, request: Any, context: Any) -> admin_pb2.ListAuditResponse:  # noqa: N802
        return admin_pb2.ListAuditResponse(entries=[admin_pb2.AuditEntry(actor=calling_peer().name)])

    async def GetDevice(self, request: Any, context: Any) -> admin_pb2.Device:  # noqa: N802
        raise NotFound("no device 'dev9'; `coordinator device list` shows them", detail="row 17")

    async def ListDevices(self, request: Any, context: Any) -> admin_pb2.ListDevicesResponse:  # noqa: N802
        raise RuntimeError("password=hunter2")

    async def WatchJob(self, request: Any, context: Any) -> AsyncGenerator[admin_pb2.JobEvent, None]:  # noqa: N802
        try:
            yield admin_pb2.JobEvent(kind="SELECTED")
            raise RuntimeError("password=hunter2")
        finally:
            self.closed = True


@pytest.fixture
async def admin(front: Front, tmp_path: Path) -> AsyncIterator[tuple[Admin, Any]]:
    """A servicer behind the Unix socket, and a stub that calls it."""
    servicer, socket = Admin(), tmp_path / "run" / "admin.sock"
    server = admin_server(
        front.registry, socket, lambda server: admin_pb2_grpc.add_AdminServicer_to_server(servicer, server)
    )
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        yield servicer, admin_pb2_grpc.AdminStub(channel)
    await server.stop(None)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value


async def test_the_admin_socket_answers_whoever_may_open_it_and_that_is_its_owner(
    admin: tuple[Admin, Any], tmp_path: Path
) -> None:
    answer = await admin[1].ListAudit(admin_pb2.ListAuditRequest())

    assert answer.entries[0].actor == "local"
    assert stat.S_IMODE((tmp_path / "run" / "admin.sock").stat().st_mode) == 0o600


async def test_a_failure_on_purpose_tells_its_class_and_one_line(admin: tuple[Admin, Any]) -> None:
    error = await refusal(admin[1].GetDevice(admin_pb2.DeviceRequest()))

    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "no device 'dev9'; `coordinator device list` shows them"
    assert ("shoal-error", "NotFound") in tuple(error.trailing_metadata() or ())


async def test_a_failure_by_accident_tells_nothing_but_where_to_look(admin: tuple[Admin, Any]) -> None:
    with capture_logs() as logs:
        error = await refusal(admin[1].ListDevices(admin_pb2.ListDevicesRequest()))

    assert error.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in str(error)
    (entry,) = [entry for entry in logs if entry["event"] == "call failed"]
    assert entry["reference"] in (error.details() or "")


async def test_a_stream_that_fails_half_way_ends_with_the_failure_and_is_closed(admin: tuple[Admin, Any]) -> None:
    call = admin[1].WatchJob(admin_pb2.JobRequest())

    assert (await call.read()).kind == "SELECTED"
    error = await refusal(call.read())

    assert error.code() is grpc.StatusCode.INTERNAL
    assert admin[0].closed


class Watched(admin_pb2_grpc.AdminServicer):
    """Tells one thing at once and another when it is let go on."""

    def __init__(self) -> None:
        self.on = asyncio.Event()

    async def WatchJob(self, request: Any, context: Any) -> AsyncGenerator[admin_pb2.JobEvent, None]:  # noqa: N802
        yield admin_pb2.JobEvent(kind="SELECTED")
        await self.on.wait()
        yield admin_pb2.JobEvent(kind="COMMITTED")


async def test_an_admin_who_is_revoked_while_watching_sees_nothing_more(front: Front) -> None:
    servicer, key = Watched(), generate_key()
    _, certificate = front.registry.admins.issue("ann", make_csr(key, "ann"), DAY_S, "test")
    server, port = fleet_server(
        lambda: front.identity,
        front.registry,
        "127.0.0.1:0",
        lambda server: admin_pb2_grpc.add_AdminServicer_to_server(servicer, server),
    )
    await server.start()
    async with grpc.aio.secure_channel(f"localhost:{port}", front.credentials(key_to_pem(key), certificate)) as channel:
        call = admin_pb2_grpc.AdminStub(channel).WatchJob(admin_pb2.JobRequest())
        assert (await call.read()).kind == "SELECTED"
        front.registry.admins.revoke("ann", "test")
        servicer.on.set()
        error = await refusal(call.read())
    await server.stop(None)
    assert isinstance(error_from_rpc(error), Forbidden)


async def test_a_home_folder_with_too_long_a_path_is_named(front: Front, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long for a Unix socket"):
        admin_server(front.registry, tmp_path / ("x" * 100) / "admin.sock", lambda _: None)


async def test_a_port_that_is_taken_is_named(front: Front) -> None:
    place = f"127.0.0.1:{front.fleet_port}"
    told = (
        rf"^cannot listen on {place}: Address already in use; free it, or choose another with --host or --fleet-port$"
    )
    with pytest.raises(LocalError, match=told):
        fleet_server(lambda: front.identity, front.registry, place, lambda _: None)


async def test_an_address_that_is_not_of_this_machine_is_named(front: Front) -> None:
    with pytest.raises(LocalError, match=r"^cannot listen on 203\.0\.113\.7:0: Cannot assign .* --enrolment-port$"):
        enrolment_server(lambda: front.identity, front.registry, "203.0.113.7:0", lambda _: None)


async def test_a_metrics_port_that_is_taken_is_named(front: Front) -> None:
    place = f"127.0.0.1:{front.fleet_port}"
    with pytest.raises(LocalError, match=f"^cannot listen on {place}: Address already in use; .* --metrics-port$"):
        serve_metrics(CollectorRegistry(), "127.0.0.1", front.fleet_port)


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert [joined("::1", 7450), joined("fleet.example", 7450)] == ["[::1]:7450", "fleet.example:7450"]


async def test_a_caller_without_a_certificate_does_not_get_a_connection(front: Front) -> None:
    credentials = grpc.ssl_channel_credentials(to_pem(front.authority.certificate_der))
    async with grpc.aio.secure_channel(f"localhost:{front.fleet_port}", credentials) as channel:
        stub = blobs_pb2_grpc.BlobsStub(channel)
        error = await refusal(stub.Stat(blobs_pb2.StatRequest(digest="0" * 64), timeout=10))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("role", "expected"), {"an admin": ("admin", Forbidden), "a coordinator": ("coordinator", Unauthenticated)}.values()
)
async def test_a_certificate_of_another_role_cannot_act_as_a_device(
    front: Front, role: Role, expected: type[Exception]
) -> None:
    key = generate_key()
    now = front.clock.now()
    if role == "admin":
        _, certificate = front.registry.admins.issue("x", make_csr(key, "x"), DAY_S, "test")
    else:
        certificate = front.authority.issue(make_csr(key, "x"), "x", role, now=now, valid_for_s=DAY_S)
    credentials = front.credentials(key_to_pem(key), certificate)
    async with grpc.aio.secure_channel(f"localhost:{front.fleet_port}", credentials) as channel:
        stub = blobs_pb2_grpc.BlobsStub(channel)
        error = await refusal(stub.Stat(blobs_pb2.StatRequest(digest="0" * 64), timeout=10))
    if error.code() is not grpc.StatusCode.UNAVAILABLE:  # a server's certificate is refused by TLS already
        assert isinstance(error_from_rpc(error), expected)
    assert error.code() is not grpc.StatusCode.OK


async def test_a_device_that_calls_with_the_key_of_another_is_taken_for_the_other(front: Front) -> None:
    one, two = front.member("dev1"), front.member("dev2")
    stolen = front.authority.issue(
        make_csr(generate_key(), "x"), one.device.id, "device", now=front.clock.now(), valid_for_s=DAY_S
    )
    assert front.registry.authenticate(stolen).id == one.device.id
    with pytest.raises(Unauthenticated):
        front.registry.admit(front.registry.authenticate(stolen))
    assert front.registry.admit(front.registry.authenticate(two.device.certificate_der)).id == two.device.id


async def test_the_coordinator_renews_its_certificate_without_a_restart(front: Front) -> None:
    member = front.member("dev1")
    digest = digest_of(b"x")

    async def shown() -> bytes:
        """The certificate that a new connection gets to see."""
        context = ssl.create_default_context(cadata=to_pem(front.authority.certificate_der).decode())
        context.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection(
            "127.0.0.1", front.enrolment_port, ssl=context, server_hostname="localhost"
        )
        der: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return der

    first = await shown()
    async with member.channel() as open_before:
        stub = blobs_pb2_grpc.BlobsStub(open_before)
        await stub.Stat(blobs_pb2.StatRequest(digest=digest))

        front.identity = front.server_identity()

        assert await shown() != first
        await stub.Stat(blobs_pb2.StatRequest(digest=digest))
    async with member.channel() as opened_after:
        await blobs_pb2_grpc.BlobsStub(opened_after).Stat(blobs_pb2.StatRequest(digest=digest))
