"""Who belongs to the fleet, who may speak, and who changed that."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from coordinator.fleet.admins import Admins
from coordinator.fleet.cohorts import Cohort
from coordinator.fleet.device import AuditEntry, Device, TokenRecord, unknown_token
from coordinator.fleet.ports import Decide, FleetStore
from coordinator.fleet.states import DeviceEvent, DeviceState, TokenState, after
from shared.clock import Clock
from shared.errors import Conflict, Forbidden, InputError, Malformed, NotFound, ProtocolError, Unauthenticated
from shared.ids import DeviceId, new_device_id, new_node_id, parse_name
from shared.session import Hello, Serving
from shared.signing.certificates import Authority, Subject, check_csr, key_sha256, public_key_of, verify_certificate
from shared.signing.tokens import JoinToken

MAX_LABELS = 64
MAX_TOKENS = 10_000
MAX_TOKEN_S = 10 * 366 * 86_400.0
MAX_REMEMBERED = 100_000
MAX_PROFILE_BYTES = 64 << 10
SEEN_EVERY_S = 15.0  # a heartbeat that says nothing new is written at most this often
_RESERVED_LABELS = frozenset({"id", "name", "profile", "share"})  # they mean something else in a cohort
_LOOKS_LIKE_AN_ID = re.compile(r"dev-[0-9a-f]{16}\Z")


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
    """Synchronous and safe to call from threads: the store's transactions order concurrent changes.

    One registry a database: it remembers who was admitted, and forgets a device whenever it changes it.
    """

    def __init__(self, store: FleetStore, authority: Authority, clock: Clock, *, certificate_valid_s: float) -> None:
        self._store = store
        self._authority = authority
        self._clock = clock
        self._certificate_valid_s = certificate_valid_s
        self.admins = Admins(store, authority, clock)
        self._subjects: dict[bytes, Subject] = {}  # of verified certificates; their dates are checked each time
        # By device: who spoke and what the store said, while the epoch is still the device's. Each change begins another.
        self._admitted: dict[str, tuple[object, Subject, Device]] = {}
        self._epochs: dict[str, object] = {}
        self._recorded: dict[DeviceId, tuple[frozenset[Serving], float]] = {}  # what was written last, and when

    @property
    def authority_certificate(self) -> bytes:
        return self._authority.certificate_der

    # ---- joining

    def create_tokens(
        self, *, count: int, valid_for_s: float, labels: Mapping[str, str], require_approval: bool, actor: str
    ) -> tuple[list[JoinToken], float]:
        """Fresh join tokens and when they expire. Raises `InputError`."""
        if not 1 <= count <= MAX_TOKENS or not 0 < valid_for_s <= MAX_TOKEN_S:  # NaN included
            raise InputError(f"ask for 1 to {MAX_TOKENS} tokens that are valid for up to ten years")
        _check_labels(labels)
        now = self._clock.now()
        tokens = [JoinToken.create(self._authority.fingerprint) for _ in range(count)]
        records = [
            TokenRecord(token.id, token.secret_sha256, dict(labels), require_approval, now, now + valid_for_s, actor)
            for token in tokens
        ]
        detail = {"count": str(count), "valid_for_s": f"{valid_for_s:.0f}"}
        self._store.add_tokens(records, AuditEntry(now, actor, "token.create", "fleet", detail))
        return tokens, now + valid_for_s

    def tokens(self) -> list[TokenRecord]:
        """The oldest first, used, expired and revoked ones too."""
        return self._store.tokens()

    def state_of(self, token: TokenRecord) -> TokenState:
        return token.state(self._clock.now())

    def revoke_token(self, token_id: str, actor: str) -> TokenRecord:
        """No device joins with it any more. Doing it again changes nothing.

        Raises `NotFound`, and `Conflict` for one that was used: its device is a member, whatever becomes of the token.
        """
        now = self._clock.now()

        def decide(found: TokenRecord) -> tuple[TokenRecord, AuditEntry | None]:
            if found.spent_by:
                who = found.device or "DEVICE"
                raise Conflict(
                    f"a device joined with this token already; to refuse it: `coordinator device revoke {who}`"
                )
            if found.revoked_at:
                return found, None
            return replace(found, revoked_at=now), AuditEntry(now, actor, "token.revoke", found.id)

        return self._store.change_token(token_id, decide)

    def enrol(self, request: EnrolmentRequest) -> Device:
        """Spend a token. The same token and key again give the same device, so a lost answer loses nothing.

        Raises `Malformed` for a broken token, name, profile or request, `Unauthenticated` for an unknown or expired
        token, `Forbidden` for one that another device spent, that was revoked or whose device was, `Conflict` for a taken name.
        """
        name = _check_name(request.name)
        _check_labels(request.labels)
        _check_profile(request.profile_json)
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
        enrolled = self._store.enrol(device, record.id, now, entry)
        if enrolled.state is DeviceState.REVOKED:
            raise Forbidden(f"device {enrolled.name} was revoked", detail=enrolled.reason)
        return enrolled

    def renew(self, device_id: DeviceId, csr_der: bytes) -> Device:
        """A fresh certificate, perhaps for a fresh key.

        The present key counts until the new certificate is first used, so a lost answer locks nobody out.
        Raises `NotFound`, `ProtocolError`, and what `check_csr` raises.
        """
        check_csr(csr_der)

        def decide(device: Device) -> tuple[Device, AuditEntry]:
            _require_active(device)
            certified = replace(self._certify(device, csr_der), public_key_sha256=device.public_key_sha256)
            return certified, AuditEntry(self._clock.now(), device.id, "device.renew", device.id)

        return self._change(device_id, decide)

    # ---- what admins do: by id or name; each raises `NotFound`, and `Conflict` where the device's state forbids it

    def approve(self, name: str, actor: str) -> Device:
        return self._put_through(name, DeviceEvent.APPROVE, actor, "")

    def quarantine(self, name: str, actor: str, reason: str) -> Device:
        return self._put_through(name, DeviceEvent.QUARANTINE, actor, reason)

    def release(self, name: str, actor: str) -> Device:
        return self._put_through(name, DeviceEvent.RELEASE, actor, "")

    def revoke(self, name: str, actor: str, reason: str) -> Device:
        return self._put_through(name, DeviceEvent.REVOKE, actor, reason)

    # ---- who speaks

    def authenticate(self, certificate_der: bytes) -> Subject:
        """Whom a certificate speaks for now. Raises `Malformed`, `SignatureInvalid`."""
        now = self._clock.now()
        known = self._subjects.get(certificate_der)
        if known is not None and known.issued_at <= now <= known.expires_at:
            return known
        subject = verify_certificate(self._authority.certificate_der, certificate_der, now)
        if len(self._subjects) >= MAX_REMEMBERED:
            self._subjects = {}
        self._subjects[certificate_der] = subject
        return subject

    def admitted(self, subject: Subject) -> Device | None:
        """`admit` from memory, without the store: None if it must be asked."""
        epoch, known, device = self._admitted.get(subject.id, (None, None, None))
        return device if known == subject and epoch is self._epochs.get(subject.id) else None

    def admit(self, subject: Subject) -> Device:
        """The device behind a verified certificate, if it may speak now.

        Raises `Unauthenticated` for an unknown device or a certificate that a renewal replaced, `Forbidden` for one
        that waits for approval or was revoked. A quarantined device may speak: it goes on serving and reporting.
        """
        if (remembered := self.admitted(subject)) is not None:
            return remembered
        epoch = self._epochs.setdefault(subject.id, object())
        try:
            device = self._store.device(subject.id)
        except NotFound:
            self._epochs.pop(subject.id, None)
            raise Unauthenticated("no such device in this fleet; enrol again") from None
        if device.state is DeviceState.REVOKED:
            raise Forbidden(f"device {device.name} was revoked", detail=device.reason)
        if device.state is DeviceState.PENDING:
            raise Forbidden(f"device {device.name} waits for approval")
        if device.public_key_sha256 != subject.public_key_sha256:
            return self._adopt_key(device, subject)
        self._admitted[subject.id] = (epoch, subject, device)
        return device

    def hello(self, device_id: DeviceId, hello: Hello) -> Device:
        """Record what an attached agent says about itself. Raises `NotFound`, `Malformed`."""
        _check_profile(hello.profile_json)
        _check_serving(hello.serving)
        version = "".join(filter(str.isprintable, hello.agent_version))[:32]

        def decide(device: Device) -> tuple[Device, None]:
            return replace(device, agent_version=version, profile_json=hello.profile_json or "{}"), None

        device = self._change(device_id, decide)
        now = self._clock.now()
        self._record(device_id, hello.serving, now)
        return replace(device, serving=hello.serving, last_seen_at=now)

    def seen(self, device_id: DeviceId, serving: tuple[Serving, ...]) -> None:
        """A heartbeat. Raises `NotFound`, `Malformed`."""
        _check_serving(serving)
        now = self._clock.now()
        recorded, at = self._recorded.get(device_id, (None, 0.0))
        if recorded != frozenset(serving) or now - at >= SEEN_EVERY_S:
            self._record(device_id, serving, now)

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

    def _change(self, id_or_name: str, decide: Decide) -> Device:
        device = self._store.change(id_or_name, decide)
        self._epochs[device.id] = object()
        return device

    def _record(self, device_id: DeviceId, serving: tuple[Serving, ...], now: float) -> None:
        self._store.record_serving(device_id, serving, now)
        self._recorded[device_id] = (frozenset(serving), now)

    def _check_token(self, token: JoinToken, key_sha256: str) -> TokenRecord:
        record = self._store.token(token.id)
        if record is None or record.secret_sha256 != token.secret_sha256:
            raise unknown_token()
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
        """Repeating what was done already changes nothing and is not written down again."""

        def decide(device: Device) -> tuple[Device, AuditEntry | None]:
            state = after(device.state, event)
            if state is device.state:
                return device, None
            changed = replace(device, state=state, reason=reason)
            if device.state is DeviceState.PENDING and state is DeviceState.ACTIVE:
                changed = self._certify(changed, device.csr_der)
            detail = {"reason": reason} if reason else {}
            return changed, AuditEntry(self._clock.now(), actor, f"device.{event}", device.id, detail)

        return self._change(name, decide)

    def _adopt_key(self, device: Device, subject: Subject) -> Device:
        """The first use of a renewed certificate: from now on its key counts and the former one does not."""

        def decide(found: Device) -> tuple[Device, AuditEntry]:
            if (
                not found.certificate_der
                or key_sha256(public_key_of(found.certificate_der)) != subject.public_key_sha256
            ):
                raise Unauthenticated(f"device {found.name} has renewed its key; use the new certificate")
            entry = AuditEntry(self._clock.now(), found.id, "device.key", found.id)
            return replace(found, public_key_sha256=subject.public_key_sha256), entry

        return self._change(device.id, decide)


def _require_active(device: Device) -> None:
    if device.state not in (DeviceState.ACTIVE, DeviceState.QUARANTINED):
        raise ProtocolError(f"device {device.name} is {device.state} and cannot renew")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:
        raise InputError(f"a device has at most {MAX_LABELS} labels")
    for key, value in labels.items():
        if parse_name(key) in _RESERVED_LABELS:
            raise InputError(f"label {key}: this word has a meaning of its own in cohorts; choose another")
        if not 0 < len(value) <= 128 or not value.isprintable() or any(sign in value for sign in ",|="):
            raise InputError(f"label {key}: a value has 1 to 128 printable characters and no comma, bar or equals sign")


def _check_name(text: str) -> str:
    if _LOOKS_LIKE_AN_ID.match(name := parse_name(text)):
        raise Malformed(f"{name} looks like a device id; choose another name")
    return name


def _check_profile(profile_json: str) -> None:
    try:
        profile = json.loads(profile_json or "{}") if len(profile_json) <= MAX_PROFILE_BYTES else None
    except (ValueError, RecursionError):
        profile = None
    if not isinstance(profile, dict):
        raise Malformed(f"a device's profile is a JSON object of at most {MAX_PROFILE_BYTES} bytes")


def _check_serving(serving: Sequence[Serving]) -> None:
    if len({item.model for item in serving}) != len(serving):
        raise Malformed("a device names each model once in what it serves")
