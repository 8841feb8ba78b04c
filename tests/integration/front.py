"""The coordinator's front on real sockets and real TLS, with the nouns' stores in memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from coordinator.fleet.device import Device
from coordinator.fleet.registry import EnrolmentRequest, Registry
from coordinator.rpc.blobs import BlobsServicer
from coordinator.rpc.enrolment import EnrolmentServicer
from coordinator.rpc.metrics import MetricsServicer
from coordinator.rpc.server import ServerIdentity, enrolment_server, fleet_server
from coordinator.rpc.session import SessionHub
from coordinator.rpc.traffic import TrafficMeter
from coordinator.store.memory_fleet import MemoryFleetStore, MemoryMetricStore
from protos.fleet.v1 import blobs_pb2_grpc, enrolment_pb2_grpc, metrics_pb2_grpc, session_pb2_grpc
from shared.blobs import FolderBlobs
from shared.clock import SystemClock
from shared.ids import DeviceId
from shared.session import Event, Hello
from shared.signing.certificates import Authority, generate_key, key_to_pem, make_csr, to_pem

DAY_S = 86_400.0


@dataclass
class Recorder:
    """A listener that keeps what it is told. `before` may hold it up or make it fail; `heard` is what it was told at all."""

    events: list[tuple[str, DeviceId, object]] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    before: Callable[[str], object] = field(default=lambda _: None)

    def attached(self, device: DeviceId, hello: Hello) -> None:
        self._keep("attached", device, hello)

    def detached(self, device: DeviceId) -> None:
        self._keep("detached", device, None)

    def received(self, device: DeviceId, event_id: str, event: Event) -> None:
        self._keep(event_id, device, event)

    def _keep(self, kind: str, device: DeviceId, what: object) -> None:
        self.heard.append(kind)
        self.before(kind)
        self.events.append((kind, device, what))


@dataclass
class Member:
    """An enrolled device: its channel speaks mutual TLS as that device."""

    device: Device
    credentials: grpc.ChannelCredentials
    address: str

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(self.address, self.credentials)


class Front:
    """Start with `running`. `member(name)` enrols a device and gives its credentials."""

    def __init__(self, folder: Path, heartbeat_s: float) -> None:
        clock = SystemClock()
        self.clock = clock
        self.authority = Authority.create("test", clock.now())
        self.store = MemoryFleetStore()
        self.registry = Registry(self.store, self.authority, clock, certificate_valid_s=DAY_S)
        self.traffic = TrafficMeter()
        self.hub = SessionHub(self.registry, self.traffic, heartbeat_s=heartbeat_s)
        self.lasting = FolderBlobs(folder / "blobs")
        self.inbox = FolderBlobs(folder / "inbox", durable=False)
        self.metrics = MemoryMetricStore()
        self.recorder = Recorder()
        self.hub.subscribe(self.recorder)
        self.enrolment_port = 0
        self.fleet_port = 0
        self.seconds = 0.0  # by which the inbox's clock is ahead

    async def start(self) -> list[grpc.aio.Server]:
        self.identity = self.server_identity()
        enrolment = EnrolmentServicer(self.registry, lambda: f"localhost:{self.fleet_port}", lambda: b"root")

        def register(server: grpc.aio.Server) -> None:
            enrolment_pb2_grpc.add_EnrolmentServicer_to_server(enrolment, server)
            session_pb2_grpc.add_SessionServicer_to_server(self.hub, server)
            blobs = BlobsServicer(
                self.lasting,
                self.inbox,
                self.traffic,
                max_bytes=1 << 24,
                monotonic=lambda: time.monotonic() + self.seconds,
            )
            blobs_pb2_grpc.add_BlobsServicer_to_server(blobs, server)
            metrics_pb2_grpc.add_MetricsServicer_to_server(MetricsServicer(self.metrics, self.clock), server)

        one, self.enrolment_port = enrolment_server(
            lambda: self.identity,
            self.registry,
            "127.0.0.1:0",
            lambda server: enrolment_pb2_grpc.add_EnrolmentServicer_to_server(enrolment, server),
        )
        two, self.fleet_port = fleet_server(lambda: self.identity, self.registry, "127.0.0.1:0", register)
        servers = [one, two]
        for server in servers:
            await server.start()
        return servers

    def server_identity(self) -> ServerIdentity:
        """A fresh key and certificate for the coordinator."""
        key = generate_key()
        certificate = self.authority.issue(
            make_csr(key, "c"), "c", "coordinator", now=self.clock.now(), valid_for_s=DAY_S, hosts=("localhost",)
        )
        return ServerIdentity(key_to_pem(key), to_pem(certificate), to_pem(self.authority.certificate_der))

    def token(self) -> str:
        tokens, _ = self.registry.create_tokens(
            count=1, valid_for_s=60.0, labels={}, require_approval=False, actor="test"
        )
        return tokens[0].text

    def member(self, name: str) -> Member:
        key = generate_key()
        wanted = EnrolmentRequest(self.token(), make_csr(key, name), name, {}, "{}")
        device = self.registry.enrol(wanted)
        return Member(device, self.credentials(key_to_pem(key), device.certificate_der), f"localhost:{self.fleet_port}")

    def credentials(self, key_pem: bytes, certificate_der: bytes) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(to_pem(self.authority.certificate_der), key_pem, to_pem(certificate_der))


@asynccontextmanager
async def running(folder: Path, *, heartbeat_s: float = 30.0) -> AsyncIterator[Front]:
    front = Front(folder, heartbeat_s)
    servers = await front.start()
    try:
        yield front
    finally:
        async with asyncio.timeout(10):
            await front.hub.close()
        for server in servers:
            await server.stop(None)
