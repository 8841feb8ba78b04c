"""The fleet's stores in memory, for simulations and tests. They forget when the process ends."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from coordinator.fleet.device import Admin, AuditEntry, Device, TokenRecord
from coordinator.fleet.ports import Decide, DecideAdmin
from coordinator.fleet.states import DeviceState
from shared.errors import Conflict, Forbidden, NotFound, Unauthenticated
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

    def enrol(self, device: Device, token_id: str, spent_at: float, entry: AuditEntry) -> Device:
        with self._lock:
            token = self._tokens.get(token_id)
            if token is None:
                raise Unauthenticated("this join token is not known here; ask for a new one")
            if token.spent_by:
                return self._enrolled_before(token, device)
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
            self._tokens[token_id] = replace(token, spent_by=device.public_key_sha256, spent_at=spent_at)
            self._devices[device.id] = device
            self.append_audit(entry)
            return device

    def _enrolled_before(self, token: TokenRecord, device: Device) -> Device:
        if token.spent_by != device.public_key_sha256:
            raise Forbidden("this join token was used by another device; ask for a new one")
        for other in self._devices.values():
            if other.public_key_sha256 == token.spent_by:
                return replace(other, serving=())
        raise Forbidden("this join token was used and its device has renewed its key since")

    def _check_untaken(self, device: Device, others: Iterable[Device]) -> None:
        for other in others:
            if other.name == device.name or other.public_key_sha256 == device.public_key_sha256:
                raise Conflict(f"a device named {device.name} or one with this key is in the fleet already")

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
                raise _no_device(device)
            self._devices[device] = replace(self._devices[device], serving=tuple(serving), last_seen_at=at)

    def device(self, id_or_name: str) -> Device:
        with self._lock:
            if (known := self._devices.get(DeviceId(id_or_name))) is not None:
                return known
            for device in self._devices.values():
                if device.name == id_or_name:
                    return device
        raise _no_device(id_or_name)

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
                raise Conflict("that admin's key is in use already; make a fresh one")
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
            return len(old)


def _no_device(name: str) -> NotFound:
    return NotFound(f"no device {name[:64]!r}; `coordinator device list` shows them")
