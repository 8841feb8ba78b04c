"""Channels to the coordinator."""

import grpc
import grpc.aio

from shared.errors import Corrupt, Malformed
from shared.signing.certificates import to_pem
from shared.signing.identity import DeviceIdentity

_OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection, with the present certificate
    ("grpc.enable_http_proxy", 0),
)


def fleet_channel(address: str, identity: DeviceIdentity, ca_der: bytes) -> grpc.aio.Channel:
    """Mutual TLS as this device."""
    credentials = grpc.ssl_channel_credentials(_pem(ca_der), identity.key_pem, identity.certificate_pem)
    return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)


def server_channel(address: str, root_der: bytes, *, server_name: str = "") -> grpc.Channel:
    """Server TLS alone, for a device without a certificate. `server_name`: the name to expect, if not the address's own."""
    named = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(_pem(root_der)), options=(*_OPTIONS, *named))


def _pem(certificate_der: bytes) -> bytes:
    try:
        return to_pem(certificate_der)
    except Malformed as error:
        raise Corrupt("the fleet's certificate is unreadable; enrol again") from error
