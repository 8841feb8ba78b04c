"""The coordinator's gRPC servers: enrolment (server TLS), fleet (mutual TLS), admin (Unix socket)."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from coordinator.fleet.registry import Registry
from coordinator.rpc.interceptors import Gate
from coordinator.rpc.listening import cannot_listen
from coordinator.rpc.roles import Caller
from shared.files import check_socket_path

# Agents ping every 20 s; servers that forbid that drop them with "too many pings".
_OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 100),  # of one connection
)


@dataclass(frozen=True)
class ServerIdentity:
    """What the server shows: PEM key and certificate chain, and the PEM authority that clients must come from."""

    key_pem: bytes
    chain_pem: bytes
    authority_pem: bytes

    def __repr__(self) -> str:
        return "ServerIdentity(…)"


Register = Callable[[grpc.aio.Server], None]
Identify = Callable[[], ServerIdentity]


def enrolment_server(
    identify: Identify, registry: Registry, address: str, register: Register
) -> tuple[grpc.aio.Server, int]:
    """Server TLS alone. Returns the server, not yet started, and its port. `identify` is asked at each handshake. Raises
    `LocalError`.
    """
    credentials = _credentials(identify, demand_certificate=False)
    server = _server(Gate(registry, Caller.ANYONE), register)
    return server, _listen(server, address, credentials, "--enrolment-port")


def fleet_server(
    identify: Identify, registry: Registry, address: str, register: Register
) -> tuple[grpc.aio.Server, int]:
    """Mutual TLS: no call without a certificate of the fleet's authority. Otherwise as `enrolment_server`."""
    credentials = _credentials(identify, demand_certificate=True)
    server = _server(Gate(registry, None), register)
    return server, _listen(server, address, credentials, "--fleet-port")


def admin_server(registry: Registry, socket: Path, register: Register) -> grpc.aio.Server:
    """The Unix socket, for whoever may open the file (mode 0600 in a folder of mode 0700). Raises `ConfigError`."""
    path = check_socket_path(socket)
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket.unlink(missing_ok=True)
    server = _server(Gate(registry, Caller.LOCAL), register)
    old = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(old)
    return server


def _credentials(identify: Identify, *, demand_certificate: bool) -> grpc.ServerCredentials:
    """Asked for at each handshake, so that the coordinator's certificate is renewed without a restart."""

    def configuration(identity: ServerIdentity) -> grpc.ServerCertificateConfiguration:
        roots = identity.authority_pem if demand_certificate else None
        return grpc.ssl_server_certificate_configuration([(identity.key_pem, identity.chain_pem)], roots)

    shown = identify()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """None: as before."""
        nonlocal shown
        if (identity := identify()) == shown:
            return None
        shown = identity
        return configuration(identity)

    return grpc.dynamic_ssl_server_credentials(configuration(shown), fetch, demand_certificate)  # type: ignore[arg-type]


def _server(gate: Gate, register: Register) -> grpc.aio.Server:
    server = grpc.aio.server(interceptors=(gate,), options=_OPTIONS)
    register(server)
    return server


def _listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials, flag: str) -> int:
    """The port. Raises `LocalError`."""
    try:
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise cannot_listen(address, f"--host or {flag}") from error
