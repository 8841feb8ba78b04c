"""Tokens and devices for the stores' suites."""

from coordinator.fleet.device import AuditEntry, Device, TokenRecord
from coordinator.fleet.states import DeviceState
from shared.ids import DeviceId, NodeId, digest_of

ENTRY = AuditEntry(1.0, "admin", "test", "fleet", {"why": "test"})


def token(token_id: str) -> TokenRecord:
    return TokenRecord(token_id, digest_of(token_id.encode()), {"site": "lab"}, False, 1.0, 100.0)


def device(name: str, key: str = "") -> Device:
    number = int.from_bytes(name.encode(), "big") % (1 << 60)
    return Device(
        id=DeviceId(f"dev-{name}"),
        node_id=NodeId(number),
        name=name,
        state=DeviceState.ACTIVE,
        public_key_sha256=digest_of((key or name).encode()),
        csr_der=b"csr",
        enrolled_at=2.0,
        certificate_der=b"certificate",
        certificate_expires_at=50.0,
        labels={"site": "lab"},
    )
