"""Devices, tokens and admins as the coordinator knows them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.fleet.states import DeviceState, TokenState
from shared.errors import Conflict, Forbidden, NotFound, Unauthenticated
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
    """A join token as stored: its secret only hashed. `spent_by` is the hash of the public key that spent it, `device` whose it
    was then. Of tokens that older versions made, `created_by` and `device` may be unknown: empty.
    """

    id: str
    secret_sha256: str = field(repr=False)
    labels: Mapping[str, str]
    require_approval: bool
    created_at: float
    expires_at: float
    created_by: str = ""
    spent_by: str = ""
    spent_at: float = 0.0
    device: str = ""
    revoked_at: float = 0.0

    def state(self, now: float) -> TokenState:
        """What became of it comes before what time did to it."""
        if self.spent_by:
            return TokenState.USED
        if self.revoked_at:
            return TokenState.REVOKED
        return TokenState.EXPIRED if self.expires_at < now else TokenState.UNUSED


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


# ---- what every store refuses in the same words


def no_device(name: str) -> NotFound:
    return NotFound(f"no device {name[:64]!r}; `coordinator device list` shows them")


def no_token(token_id: str) -> NotFound:
    return NotFound(f"no join token {token_id[:64]!r}; `coordinator token list` shows them")


def taken(device: Device) -> Conflict:
    return Conflict(f"a device named {device.name} or one with this key is in the fleet already")


def key_taken() -> Conflict:
    return Conflict("that admin's key is in use already; make a fresh one")


def unknown_token() -> Unauthenticated:
    return Unauthenticated("this join token is not known here; ask for a new one")


def revoked_token() -> Forbidden:
    return Forbidden("this join token was revoked; ask for a new one")


def used_token() -> Forbidden:
    return Forbidden("this join token was used by another device; ask for a new one")


def renewed_since() -> Forbidden:
    return Forbidden("this join token was used and its device has renewed its key since")
