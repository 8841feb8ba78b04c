"""What the coordinator's nouns need from its shells."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from coordinator.fleet.device import Admin, AuditEntry, Device, TokenRecord
from shared.ids import DeviceId
from shared.session import Event, Hello, MetricBatch, Order, Serving


class SessionListener(Protocol):
    """Told about live agents. Called from the session hub's thread: return quickly, raise nothing."""

    def attached(self, device: DeviceId, hello: Hello) -> None: ...

    def detached(self, device: DeviceId) -> None: ...

    def received(self, device: DeviceId, event_id: str, event: Event) -> None:
        """A durable event is acknowledged by its owner with `Sessions.send(device, Acknowledged(event_id))`, after its commit."""
        ...


class Sessions(Protocol):
    """The live session streams. Safe to call from any thread."""

    def connected(self) -> Mapping[DeviceId, Hello]:
        """Devices attached now that may work: active, not quarantined, not revoked."""
        ...

    def send(self, device: DeviceId, order: Order, *, command_id: str = "") -> None:
        """Queue a command. An empty `command_id` gets a fresh one. Raises `Unavailable` when the device is not attached."""
        ...

    def subscribe(self, listener: SessionListener) -> None: ...


# What a device, token or admin becomes, and the audit entry about it. Raises what forbids the change; then nothing is written.
Decide = Callable[[Device], tuple[Device, AuditEntry | None]]
DecideToken = Callable[[TokenRecord], tuple[TokenRecord, AuditEntry | None]]
DecideAdmin = Callable[[Admin | None], tuple[Admin, AuditEntry | None]]  # None: there is none of that name yet


class AdminStore(Protocol):
    """Who may command from afar. Every change and its audit entry are one transaction."""

    def change_admin(self, name: str, decide: DecideAdmin) -> Admin:
        """Read, decide and write in one transaction. `decide` may be called again.

        Raises `Conflict` when the key is another admin's, and what `decide` raises."""
        ...

    def admin(self, name: str) -> Admin | None: ...

    def admins(self) -> list[Admin]:
        """By name."""
        ...


class FleetStore(AdminStore, Protocol):
    """Devices, join tokens, admins and the audit log. Every change and its audit entry are one transaction."""

    def add_tokens(self, tokens: Sequence[TokenRecord], entry: AuditEntry) -> None: ...

    def token(self, token_id: str) -> TokenRecord | None: ...

    def tokens(self) -> list[TokenRecord]:
        """The oldest first."""
        ...

    def change_token(self, token_id: str, decide: DecideToken) -> TokenRecord:
        """Read, decide and write in one transaction; only whether it is revoked is written. `decide` may be called again.

        Raises `NotFound` and what `decide` raises."""
        ...

    def forget_tokens(self, before: float) -> int:
        """Drop the tokens that no device used and that expired, and were revoked if they were, before that time. Returns how
        many there were."""
        ...

    def enrol(self, device: Device, token_id: str, spent_at: float, entry: AuditEntry) -> Device:
        """Add a device and spend its token. If this token was spent by this very key, nothing changes and the device
        of then is returned. The name of a revoked device is free again; that one is then called by its id.

        Raises `Unauthenticated` for an unknown token, `Forbidden` when another key spent it or it was revoked, `Conflict` when
        the name or the key is taken."""
        ...

    def change(self, id_or_name: str, decide: Decide) -> Device:
        """Read, decide and write in one transaction, so that of two changes at once neither undoes the other.

        What the device serves is not written. `decide` may be called again. Raises `NotFound`, `Conflict` when the key is
        another device's, and what `decide` raises."""
        ...

    def record_serving(self, device: DeviceId, serving: Sequence[Serving], at: float) -> None:
        """Replace what the device says that it runs (a model once), and when it was last seen. Raises `NotFound`."""
        ...

    def device(self, id_or_name: str) -> Device:
        """An id goes before a name. Raises `NotFound`."""
        ...

    def devices(self) -> list[Device]:
        """By name."""
        ...

    def audit(self, limit: int) -> list[AuditEntry]:
        """The newest `limit`, oldest first."""
        ...

    def append_audit(self, entry: AuditEntry) -> None: ...

    def forget_audit(self, before: float) -> int:
        """Drop the entries from before that time. Returns how many there were."""
        ...


class MetricStore(Protocol):
    """Batches of device metrics, numbered within a spool. A device that lost its spool begins another, from 1 again."""

    def add(self, device: DeviceId, batches: Sequence[MetricBatch], received_at: float) -> int:
        """Store what is new of these batches, one or more of one spool; return the number up to which all of it were stored."""
        ...

    def latest(self) -> Mapping[DeviceId, MetricBatch]:
        """The newest batch of each device's newest spool."""
        ...

    def forget(self, before: float) -> int:
        """Drop the batches that came before that time; what was acknowledged stays so. Returns how many there were.

        Also forgets spools that were heard of last before that time, but never a device's newest: its numbers go on, however long
        it was away, and one that is not known would be asked for them from 1."""
        ...
