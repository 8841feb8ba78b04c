"""Who belongs to the fleet, who may speak, and who changed that."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from coordinator.fleet.cohorts import Cohort
from coordinator.fleet.device import AuditEntry, Device, TokenRecord
from coordinator.fleet.ports import FleetStore
from coordinator.fleet.states import DeviceEvent, DeviceState, after
from shared.clock import Clock
from shared.errors import Forbidden, InputError, NotFound, ProtocolError, Unauthenticated
from shared.ids import DeviceId, new_device_id, new_node_id, parse_name
from shared.session import Hello, Serving
from shared.signing.certificates import Authority, Subject, check_csr, verify_certificate
from shared.signing.tokens import JoinToken

MAX_LABELS = 64
MAX_TOKENS = 10_000


@dataclass(frozen=True)
class EnrolmentRequest:
    token: str
    csr_der: bytes
    name: str
    labels: Mapping[str, str]
    profile_json: str

    def __repr__(self) -> str:
        return f"EnrolmentRequest({self.name})"


class Registry:
    """Synchronous and safe to call from threads: the store's transactions order concurrent changes."""

    def __init__(self, store: FleetStore, authority: Authority, clock: Clock, *, certificate_valid_s: float) -> None:
        self._store = store
        self._authority = authority
        self._clock = clock
        self._certificate_valid_s = certificate_valid_s

    @property
    def authority_certificate(self) -> bytes:
        return self._authority.certificate_der

    # ---- joining

    def create_tokens(
        self, *, count: int, valid_for_s: float, labels: Mapping[str, str], require_approval: bool, actor: str
    ) -> tuple[list[JoinToken], float]:
        """Fresh join tokens and when they expire. Raises `InputError`."""
        if not 1 <= count <= MAX_TOKENS or valid_for_s <= 0:
            raise InputError(f"ask for 1 to {MAX_TOKENS} tokens that are valid for a positive time")
        _check_labels(labels)
        now = self._clock.now()
        tokens = [JoinToken.create(self._authority.fingerprint) for _ in range(count)]
        records = [
            TokenRecord(token.id, token.secret_sha256, dict(labels), require_approval, now, now + valid_for_s)
            for token in tokens
        ]
        detail = {"count": str(count), "valid_for_s": f"{valid_for_s:.0f}"}
        self._store.add_tokens(records, AuditEntry(now, actor, "token.create", "fleet", detail))
        return tokens, now + valid_for_s

    def enrol(self, request: EnrolmentRequest) -> Device:
        """Spend a token. The same token and key again give the same device, so a lost answer loses nothing.

        Raises `Malformed` for a broken token, name or request, `Unauthenticated` for an unknown or expired token,
        `Forbidden` for one that another device spent, `Conflict` for a name that is taken.
        """
        name = parse_name(request.name)
        _check_labels(request.labels)
        csr = check_csr(request.csr_der)
        record = self._check_token(JoinToken.parse(request.token), csr.public_key_sha256)
        now = self._clock.now()
        device = Device(
            id=new_device_id(),
            node_id=new_node_id(),
            name=name,
            state=DeviceState.PENDING if record.require_approval else DeviceState.ACTIVE,
            public_key_sha256=csr.public_key_sha256,
            csr_der=request.csr_der,
            enrolled_at=now,
            last_seen_at=now,
            profile_json=request.profile_json,
            labels={**request.labels, **record.labels},
        )
        if device.state is DeviceState.ACTIVE:
            device = self._certify(device, request.csr_der)
        entry = AuditEntry(now, f"token {record.id}", "device.enrol", device.id, {"name": name})
        return self._store.enrol(device, record.id, now, entry)

    def renew(self, device_id: DeviceId, csr_der: bytes) -> Device:
        """A fresh certificate, perhaps for a fresh key. Raises `NotFound`, `Forbidden`, and what `check_csr` raises."""
        device = self._store.device(device_id)
        _require_active(device)
        device = self._certify(replace(device, csr_der=csr_der), csr_der)
        self._store.update(device, AuditEntry(self._clock.now(), device.id, "device.renew", device.id))
        return device

    # ---- what admins do

    def approve(self, name: str, actor: str) -> Device:
        device = self._store.device(name)
        changed = replace(device, state=after(device.state, DeviceEvent.APPROVE))
        if device.state is DeviceState.PENDING:
            changed = self._certify(changed, device.csr_der)
        return self._change(device, changed, DeviceEvent.APPROVE, actor)

    def quarantine(self, name: str, actor: str, reason: str) -> Device:
        return self._put_through(name, DeviceEvent.QUARANTINE, actor, reason)

    def release(self, name: str, actor: str) -> Device:
        return self._put_through(name, DeviceEvent.RELEASE, actor, "")

    def revoke(self, name: str, actor: str, reason: str) -> Device:
        return self._put_through(name, DeviceEvent.REVOKE, actor, reason)

    # ---- who speaks

    def authenticate(self, certificate_der: bytes) -> Subject:
        """Whom a certificate speaks for now. Raises `SignatureInvalid`."""
        return verify_certificate(self._authority.certificate_der, certificate_der, self._clock.now())

    def admit(self, subject: Subject) -> Device:
        """The device behind a verified certificate, if it may speak now.

        Raises `Unauthenticated` for an unknown device or a certificate that a renewal replaced, `Forbidden` for one
        that waits for approval or was revoked. A quarantined device may speak: it goes on serving and reporting.
        """
        try:
            device = self._store.device(subject.id)
        except NotFound:
            raise Unauthenticated("no such device in this fleet; enrol again") from None
        if device.state is DeviceState.REVOKED:
            raise Forbidden(f"device {device.name} was revoked", detail=device.reason)
        if device.state is DeviceState.PENDING:
            raise Forbidden(f"device {device.name} waits for approval")
        if device.public_key_sha256 != subject.public_key_sha256:
            raise Unauthenticated(f"device {device.name} has renewed its key; use the new certificate")
        return device

    def hello(self, device_id: DeviceId, hello: Hello) -> Device:
        """Record what an attached agent says about itself."""
        device = replace(
            self._store.device(device_id),
            agent_version=hello.agent_version[:32],
            profile_json=hello.profile_json,
            last_seen_at=self._clock.now(),
        )
        self._store.update(device, None)
        self._store.record_serving(device_id, hello.serving, self._clock.now())
        return device

    def seen(self, device_id: DeviceId, serving: tuple[Serving, ...]) -> None:
        self._store.record_serving(device_id, serving, self._clock.now())

    # ---- look-ups

    def device(self, id_or_name: str) -> Device:
        return self._store.device(id_or_name)

    def devices(self, cohort: str = "") -> list[Device]:
        """Raises `ConfigError` for a cohort that cannot be read."""
        return Cohort.parse(cohort).members(self._store.devices())

    def audit(self, limit: int) -> list[AuditEntry]:
        return self._store.audit(limit)

    def note(self, actor: str, action: str, subject: str, detail: Mapping[str, str] | None = None) -> None:
        """An audit entry for something that another noun did."""
        self._store.append_audit(AuditEntry(self._clock.now(), actor, action, subject, detail or {}))

    # ---- inside

    def _check_token(self, token: JoinToken, key_sha256: str) -> TokenRecord:
        record = self._store.token(token.id)
        if record is None or record.secret_sha256 != token.secret_sha256:
            raise Unauthenticated("this join token is not known here; ask for a new one")
        repeated = record.spent_by == key_sha256
        if record.expires_at < self._clock.now() and not repeated:
            raise Unauthenticated("this join token has expired; ask for a new one")
        return record

    def _certify(self, device: Device, csr_der: bytes) -> Device:
        now = self._clock.now()
        return replace(
            device,
            certificate_der=self._authority.issue(
                csr_der, device.id, "device", now=now, valid_for_s=self._certificate_valid_s
            ),
            certificate_expires_at=now + self._certificate_valid_s,
            public_key_sha256=check_csr(csr_der).public_key_sha256,
        )

    def _put_through(self, name: str, event: DeviceEvent, actor: str, reason: str) -> Device:
        device = self._store.device(name)
        changed = replace(device, state=after(device.state, event), reason=reason)
        return self._change(device, changed, event, actor)

    def _change(self, device: Device, changed: Device, event: DeviceEvent, actor: str) -> Device:
        if changed.state is device.state:
            return device
        detail = {"reason": changed.reason} if changed.reason else {}
        self._store.update(changed, AuditEntry(self._clock.now(), actor, f"device.{event}", device.id, detail))
        return changed


def _require_active(device: Device) -> None:
    if device.state not in (DeviceState.ACTIVE, DeviceState.QUARANTINED):
        raise ProtocolError(f"device {device.name} is {device.state} and cannot renew")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:
        raise InputError(f"a device has at most {MAX_LABELS} labels")
    for key, value in labels.items():
        parse_name(key)
        if not 0 < len(value) <= 128 or "," in value or "|" in value or "=" in value:
            raise InputError(f"label {key}: a value has 1 to 128 characters and no comma, bar or equals sign")
