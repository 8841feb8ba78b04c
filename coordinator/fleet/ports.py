"""What the coordinator's nouns need from its shells."""

from collections.abc import Mapping
from typing import Protocol

from shared.ids import DeviceId
from shared.session import Event, Hello, Order


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
