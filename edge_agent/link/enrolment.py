"""The first contact: the authority's certificate is believed only if it is the one that the join token names."""

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import grpc

from edge_agent.link.channel import server_channel
from protos.fleet.v1 import enrolment_pb2, enrolment_pb2_grpc
from shared.errors import InputError, Malformed, Unauthenticated, Unavailable
from shared.ids import digest_of
from shared.rpc_errors import error_from_rpc
from shared.signing.tokens import JoinToken

_TIMEOUT_S = 30.0
_CONNECT_S = 10.0


@dataclass(frozen=True)
class Application:
    """What a device says of itself when it asks to join."""

    token: JoinToken
    csr_der: bytes
    name: str
    labels: Mapping[str, str]
    profile_json: str


@dataclass(frozen=True)
class Issued:
    device: str
    certificate_der: bytes
    fleet_address: str
    tuf_root_json: bytes


@dataclass(frozen=True)
class Pending:
    """An admin has to approve first; ask again with the same token and key."""

    device: str


def fetch_authority(address: str, token: JoinToken) -> bytes:
    """The fleet's CA certificate, DER, over a connection that nothing vouches for.

    Raises `Unavailable`, `InputError` for the fleet port, and `Unauthenticated` when it is not the authority that the token names.
    """
    leaf = _shown_certificate(address)
    with server_channel(address, leaf) as channel:
        stub = enrolment_pb2_grpc.EnrolmentStub(channel)
        try:
            answer = stub.GetAuthority(enrolment_pb2.GetAuthorityRequest(), timeout=_TIMEOUT_S, wait_for_ready=False)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
    if digest_of(answer.ca_certificate_der) != token.fingerprint:
        raise Unauthenticated(
            f"the coordinator at {address} is not the one that issued this token; check the address, or ask for a new token"
        )
    return bytes(answer.ca_certificate_der)


def _shown_certificate(address: str) -> bytes:
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the token vouches for what comes over it
    context.set_alpn_protocols(["h2"])
    try:
        plain = socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S)
        with (
            plain,
            context.wrap_socket(plain, server_hostname=host.strip("[]"), suppress_ragged_eofs=False) as connection,
        ):
            shown, greeted = connection.getpeercert(binary_form=True), _is_greeted(connection)
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"no coordinator answers at {address}; is it the enrolment port, 7450 unless it was set otherwise?",
            detail=str(error),
        ) from error
    if shown is None or not greeted:
        raise InputError(
            f"{address} takes no device without a certificate, as a coordinator's fleet port does; give its enrolment port,"
            " 7450 unless it was set otherwise"
        )
    return shown


def _is_greeted(connection: ssl.SSLSocket) -> bool:
    """A gRPC server speaks first (its SETTINGS, RFC 9113, 3.4). In TLS 1.3 one that wants a certificate ends it only now: gRPC's
    without a close_notify, others with an alert.

    Raises `ConnectionError` where a peer that restarts, or a proxy with nobody behind it, hangs up in another way.
    """
    try:
        if not connection.recv(1):
            raise ConnectionAbortedError("it hung up after the handshake")
    except ssl.SSLError as error:
        if not error.reason:  # OpenSSL had none: a reset, which Python 3.11 tells as an end too
            raise ConnectionResetError("it was reset after the handshake") from error
        return False
    return True


def apply(address: str, ca_der: bytes, application: Application) -> Issued | Pending:
    """Spend the token. Repeating it with the same key changes nothing.

    Raises what the coordinator answers, `InputError` where it cannot read what a person gave, `Unavailable`.
    """
    request = enrolment_pb2.EnrolRequest(
        token=application.token.text,
        csr_der=application.csr_der,
        name=application.name,
        labels=dict(application.labels),
        profile_json=application.profile_json,
    )
    with server_channel(address, ca_der) as channel:
        stub = enrolment_pb2_grpc.EnrolmentStub(channel)
        try:
            answer = stub.Enrol(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            known = error_from_rpc(error)
            raise (InputError(known.message) if isinstance(known, Malformed) else known) from error
    if answer.state == enrolment_pb2.EnrolResponse.PENDING_APPROVAL:
        return Pending(answer.device_id)
    return Issued(answer.device_id, answer.certificate_der, answer.fleet_address, answer.tuf_root_json)
