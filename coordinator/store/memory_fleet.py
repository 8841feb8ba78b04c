"""The fleet's stores in memory, for simulations and tests. They forget when the process ends."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from coordinator.fleet.device import (
    Admin,
    AuditEntry,
    Device,
    TokenRecord,
    key_taken,
    no_device,
    no_token,
    renewed_since,
    revoked_token,
    taken,
    unknown_token,
    used_token,
)
from coordinator.fleet.ports import Decide, DecideAdmin, DecideToken
from coordinator.fleet.states import DeviceState
from shared.ids import DeviceId
from shared.session import MetricBatch, Serving


class MemoryFleetStore:
    """Implements `coordinator.fleet.ports.FleetStore`."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tokens: dict[str, TokenRecord] = {}
        self._devices: dict[DeviceId, Device] = {}
        self._admins: dict[str, Admin] = {}
        self._audit: list[AuditEntry] = []
        self._appended = 0

    def add_tokens(self, tokens: Sequence[TokenRecord], entry: AuditEntry) -> None:
        with self._lock:
            self._tokens.update({token.id: token for token in tokens})
            self.append_audit(entry)

    def token(self, token_id: str) -> TokenRecord | None:
        return self._tokens.get(token_id)

    def tokens(self) -> list[TokenRecord]:
        with self._lock:
            return sorted(self._tokens.values(), key=lambda token: (token.created_at, token.id))

    def change_token(self, token_id: str, decide: DecideToken) -> TokenRecord:
        with self._lock:
            if (token := self._tokens.get(token_id)) is None:
                raise no_token(token_id)
            changed, entry = decide(token)
            self._tokens[token_id] = replace(token, revoked_at=changed.revoked_at)
            if entry is not None:
                self.append_audit(entry)
            return changed

    def forget_tokens(self, before: float) -> int:
        with self._lock:
            old = [
                token.id
                for token in self._tokens.values()
                if not token.spent_by and max(token.expires_at, token.revoked_at) < before
            ]
            for token_id in old:
                del self._tokens[token_id]
            return len(old)

    def enrol(self, device: Device, token_id: str, spent_at: float, entry: AuditEntry) -> Device:
        with self._lock:
            token = self._tokens.get(token_id)
            if token is None:
                raise unknown_token()
            if token.spent_by:
                return self._enrolled_before(token, device)
            if token.revoked_at:
                raise revoked_token()
            former = [
                other
                for other in self._devices.values()
                if other.name == device.name and other.state is DeviceState.REVOKED
            ]
            self._check_untaken(device, [other for other in self._devices.values() if other not in former])
            for other in former:
                self._check_untaken(replace(device, name=""), [other])
                self._devices[other.id] = replace(other, name=other.id)
                detail = {"former_name": other.name}
                self.append_audit(AuditEntry(entry.at, entry.actor, "device.rename", other.id, detail))
            spent = replace(token, spent_by=device.public_key_sha256, spent_at=spent_at, device=device.id)
            self._tokens[token_id] = spent
            self._devices[device.id] = device
            self.append_audit(entry)
            return device

    def _enrolled_before(self, token: TokenRecord, device: Device) -> Device:
        if token.spent_by != device.public_key_sha256:
            raise used_token()
        for other in self._devices.values():
            if other.public_key_sha256 == token.spent_by:
                return replace(other, serving=())
        raise renewed_since()

    def _check_untaken(self, device: Device, others: Iterable[Device]) -> None:
        for other in others:
            if other.name == device.name or other.public_key_sha256 == device.public_key_sha256:
                raise taken(device)

    def change(self, id_or_name: str, decide: Decide) -> Device:
        with self._lock:
            device = self.device(id_or_name)
            changed, entry = decide(device)
            self._check_untaken(changed, (other for other in self._devices.values() if other.id != device.id))
            self._devices[device.id] = replace(changed, serving=device.serving)
            if entry is not None:
                self.append_audit(entry)
            return changed

    def record_serving(self, device: DeviceId, serving: Sequence[Serving], at: float) -> None:
        with self._lock:
            if device not in self._devices:
                raise no_device(device)
            self._devices[device] = replace(self._devices[device], serving=tuple(serving), last_seen_at=at)

    def device(self, id_or_name: str) -> Device:
        with self._lock:
            if (known := self._devices.get(DeviceId(id_or_name))) is not None:
                return known
            for device in self._devices.values():
                if device.name == id_or_name:
                    return device
        raise no_device(id_or_name)

    def devices(self) -> list[Device]:
        with self._lock:
            return sorted(self._devices.values(), key=lambda device: device.name)

    def audit(self, limit: int) -> list[AuditEntry]:
        with self._lock:
            return self._audit[-limit:]

    def append_audit(self, entry: AuditEntry) -> None:
        with self._lock:
            self._appended += 1
            self._audit.append(replace(entry, id=self._appended))

    def forget_audit(self, before: float) -> int:
        with self._lock:
            kept = [entry for entry in self._audit if entry.at >= before]
            forgotten, self._audit = len(self._audit) - len(kept), kept
            return forgotten

    def change_admin(self, name: str, decide: DecideAdmin) -> Admin:
        with self._lock:
            changed, entry = decide(self._admins.get(name))
            others = [admin for admin in self._admins.values() if admin.name != name]
            if any(admin.public_key_sha256 == changed.public_key_sha256 for admin in others):
                raise key_taken()
            self._admins[name] = changed
            if entry is not None:
                self.append_audit(entry)
            return changed

    def admin(self, name: str) -> Admin | None:
        with self._lock:
            return self._admins.get(name)

    def admins(self) -> list[Admin]:
        with self._lock:
            return [self._admins[name] for name in sorted(self._admins)]


@dataclass
class _Spool:
    """`kept` holds batches by number, each with the time at which it came."""

    acknowledged: int = 0
    updated_at: float = 0.0
    kept: dict[int, tuple[float, MetricBatch]] = field(default_factory=dict)


class MemoryMetricStore:
    """Implements `coordinator.fleet.ports.MetricStore`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spools: dict[DeviceId, dict[str, _Spool]] = {}

    def add(self, device: DeviceId, batches: Sequence[MetricBatch], received_at: float) -> int:
        with self._lock:
            found = self._spools.setdefault(device, {}).setdefault(batches[0].spool, _Spool())
            for batch in batches:
                if batch.sequence > found.acknowledged:
                    found.kept.setdefault(batch.sequence, (received_at, batch))
            while found.acknowledged + 1 in found.kept:
                found.acknowledged += 1
            found.updated_at = received_at
            return found.acknowledged

    def latest(self) -> Mapping[DeviceId, MetricBatch]:
        with self._lock:
            newest = {
                device: max(spools.values(), key=lambda one: one.updated_at) for device, spools in self._spools.items()
            }
            return {device: one.kept[max(one.kept)][1] for device, one in newest.items() if one.kept}

    def forget(self, before: float) -> int:
        with self._lock:
            every = [one for spools in self._spools.values() for one in spools.values()]
            old = [(one, number) for one in every for number, (at, _) in one.kept.items() if at < before]
            for one, number in old:
                del one.kept[number]
            for device, spools in self._spools.items():
                newest = max(one.updated_at for one in spools.values())
                self._spools[device] = {
                    name: one for name, one in spools.items() if one.updated_at >= before or one.updated_at == newest
                }
            return len(old)
