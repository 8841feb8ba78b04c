"""Devices, tokens and admins as the coordinator knows them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.fleet.states import DeviceState
from shared.ids import DeviceId, NodeId
from shared.session import Serving


@dataclass(frozen=True)
class Device:
    """`serving` is what it last said that it really runs. Times are seconds since the epoch; 0 means never."""

    id: DeviceId
    node_id: NodeId
    name: str
    state: DeviceState
    public_key_sha256: str
    csr_der: bytes = field(repr=False)
    enrolled_at: float
    certificate_der: bytes = field(default=b"", repr=False)
    certificate_expires_at: float = 0.0
    last_seen_at: float = 0.0
    agent_version: str = ""
    profile_json: str = "{}"
    labels: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    serving: tuple[Serving, ...] = ()


@dataclass(frozen=True)
class TokenRecord:
    """A join token as stored: its secret only hashed. `spent_by` is the hash of the public key that spent it."""

    id: str
    secret_sha256: str
    labels: Mapping[str, str]
    require_approval: bool
    created_at: float
    expires_at: float
    spent_by: str = ""
    spent_at: float = 0.0


@dataclass(frozen=True)
class Admin:
    """Somebody with a certificate of the admin role. `revoked_at` 0: not revoked."""

    name: str
    public_key_sha256: str
    issued_at: float
    expires_at: float
    revoked_at: float = 0.0


@dataclass(frozen=True)
class AuditEntry:
    at: float
    actor: str
    action: str
    subject: str
    detail: Mapping[str, str] = field(default_factory=dict)
    id: int = 0
