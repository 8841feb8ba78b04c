"""Where a device stands, and what may happen to it there; where a join token stands."""

from collections.abc import Mapping
from enum import StrEnum

from shared.errors import Conflict
from shared.tables import advance


class DeviceState(StrEnum):
    PENDING = "pending"  # enrolled, waits for approval; has no certificate
    ACTIVE = "active"
    QUARANTINED = "quarantined"  # goes on serving; takes no part in rounds or rollouts
    REVOKED = "revoked"  # for good


class TokenState(StrEnum):
    UNUSED = "unused"  # lets one device join
    USED = "used"
    EXPIRED = "expired"
    REVOKED = "revoked"


class DeviceEvent(StrEnum):
    APPROVE = "approve"
    QUARANTINE = "quarantine"
    RELEASE = "release"
    REVOKE = "revoke"


TRANSITIONS: Mapping[DeviceState, Mapping[DeviceEvent, DeviceState]] = {
    DeviceState.PENDING: {
        DeviceEvent.APPROVE: DeviceState.ACTIVE,
        DeviceEvent.REVOKE: DeviceState.REVOKED,
    },
    DeviceState.ACTIVE: {
        DeviceEvent.APPROVE: DeviceState.ACTIVE,
        DeviceEvent.QUARANTINE: DeviceState.QUARANTINED,
        DeviceEvent.RELEASE: DeviceState.ACTIVE,
        DeviceEvent.REVOKE: DeviceState.REVOKED,
    },
    DeviceState.QUARANTINED: {
        DeviceEvent.QUARANTINE: DeviceState.QUARANTINED,
        DeviceEvent.RELEASE: DeviceState.ACTIVE,
        DeviceEvent.REVOKE: DeviceState.REVOKED,
    },
    DeviceState.REVOKED: {
        DeviceEvent.REVOKE: DeviceState.REVOKED,
    },
}


def after(state: DeviceState, event: DeviceEvent) -> DeviceState:
    """The next state. Repeating an event changes nothing. Raises `Conflict`."""
    return advance(TRANSITIONS, state, event, Conflict, "a device that is {state} cannot be put through '{event}'")
