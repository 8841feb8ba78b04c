"""The tables of a rollout and of a device in it. Only `PROVEN` is success; nothing else leads to it than a checked receipt."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from shared.errors import Conflict
from shared.tables import advance

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


class RolloutState(StrEnum):
    PLANNED = "PLANNED"
    STAGING = "STAGING"
    PAUSED = "PAUSED"  # by an admin, or because a stage ran out of time: nobody else is offered the release
    COMPLETED = "COMPLETED"
    REFUSED = "REFUSED"  # the fleet's evidence is against the release; devices that took it go back
    UNDOING = "UNDOING"  # an admin changed their mind; devices that took it go back
    UNDONE = "UNDONE"


class RolloutEvent(StrEnum):
    BEGIN = "begin"
    ADVANCE = "advance"
    PAUSE = "pause"
    RESUME = "resume"
    COMPLETE = "complete"
    REFUSE = "refuse"
    UNDO = "undo"
    UNDONE = "undone"


class DeviceState(StrEnum):
    PENDING = "PENDING"  # its turn has not come, or it is not connected
    OFFERED = "OFFERED"
    PROVEN = "PROVEN"  # its signed receipt shows that the release's digest answers, within the gate
    REFUSED = "REFUSED"  # measured, and not good enough; it keeps its old model
    FAILED = "FAILED"  # could not be installed, or its receipt does not hold
    SKIPPED = "SKIPPED"  # quarantined, revoked, or the rollout ended before its turn
    WITHDRAWING = "WITHDRAWING"  # told to go back
    REVERTED = "REVERTED"


class DeviceEvent(StrEnum):
    OFFER = "offer"
    PROVE = "prove"
    REFUSE = "refuse"
    FAIL = "fail"
    LOSE = "lose"  # it says that it serves something else than it proved
    SKIP = "skip"
    RETURN = "return"  # out of quarantine
    WITHDRAW = "withdraw"
    REVERT = "revert"


ROLLOUT: Mapping[RolloutState, Mapping[RolloutEvent, RolloutState]] = {
    RolloutState.PLANNED: {
        RolloutEvent.BEGIN: RolloutState.STAGING,
        RolloutEvent.UNDO: RolloutState.UNDOING,
    },
    RolloutState.STAGING: {
        RolloutEvent.ADVANCE: RolloutState.STAGING,
        RolloutEvent.PAUSE: RolloutState.PAUSED,
        RolloutEvent.COMPLETE: RolloutState.COMPLETED,
        RolloutEvent.REFUSE: RolloutState.REFUSED,
        RolloutEvent.UNDO: RolloutState.UNDOING,
    },
    RolloutState.PAUSED: {
        RolloutEvent.RESUME: RolloutState.STAGING,
        RolloutEvent.UNDO: RolloutState.UNDOING,
    },
    RolloutState.COMPLETED: {RolloutEvent.UNDO: RolloutState.UNDOING},
    RolloutState.REFUSED: {},
    RolloutState.UNDOING: {RolloutEvent.UNDONE: RolloutState.UNDONE},
    RolloutState.UNDONE: {},
}

DEVICE: Mapping[DeviceState, Mapping[DeviceEvent, DeviceState]] = {
    DeviceState.PENDING: {
        DeviceEvent.OFFER: DeviceState.OFFERED,
        DeviceEvent.SKIP: DeviceState.SKIPPED,
    },
    DeviceState.OFFERED: {
        DeviceEvent.PROVE: DeviceState.PROVEN,
        DeviceEvent.REFUSE: DeviceState.REFUSED,
        DeviceEvent.FAIL: DeviceState.FAILED,
        DeviceEvent.REVERT: DeviceState.FAILED,
        DeviceEvent.SKIP: DeviceState.SKIPPED,
        DeviceEvent.WITHDRAW: DeviceState.WITHDRAWING,
    },
    DeviceState.PROVEN: {
        DeviceEvent.REFUSE: DeviceState.FAILED,
        DeviceEvent.FAIL: DeviceState.FAILED,
        DeviceEvent.REVERT: DeviceState.FAILED,
        DeviceEvent.LOSE: DeviceState.PENDING,
        DeviceEvent.WITHDRAW: DeviceState.WITHDRAWING,
    },
    DeviceState.REFUSED: {DeviceEvent.WITHDRAW: DeviceState.WITHDRAWING},
    DeviceState.FAILED: {DeviceEvent.WITHDRAW: DeviceState.WITHDRAWING},
    DeviceState.SKIPPED: {
        DeviceEvent.RETURN: DeviceState.PENDING,
        DeviceEvent.WITHDRAW: DeviceState.WITHDRAWING,
    },
    DeviceState.WITHDRAWING: {
        DeviceEvent.REFUSE: DeviceState.REVERTED,  # it never swapped
        DeviceEvent.REVERT: DeviceState.REVERTED,
    },
    DeviceState.REVERTED: {},
}

UNFINISHED = frozenset({RolloutState.PLANNED, RolloutState.STAGING, RolloutState.PAUSED, RolloutState.UNDOING})
UNWANTED = frozenset({RolloutState.REFUSED, RolloutState.UNDOING, RolloutState.UNDONE})  # devices go back


def after(state: RolloutState, event: RolloutEvent) -> RolloutState:
    """The next state. Raises `Conflict`."""
    return advance(ROLLOUT, state, event, Conflict, "a rollout that is {state} cannot be put through '{event}'")


def device_after(state: DeviceState, event: DeviceEvent) -> DeviceState | None:
    """The next state, or None where this event means nothing (a repeated or late receipt)."""
    return DEVICE[state].get(event)


def mermaid() -> str:
    """The rollout's table as a diagram, for READMEs."""
    return _diagram(ROLLOUT, RolloutState.PLANNED)


def device_mermaid() -> str:
    """The table of a device in a rollout as a diagram."""
    return _diagram(DEVICE, DeviceState.PENDING)


def _diagram(table: Mapping[S, Mapping[E, S]], start: S) -> str:
    lines = ["stateDiagram-v2", f"    [*] --> {start}"]
    for state, row in table.items():
        lines += [f"    {state} --> {to}: {event}" for event, to in row.items()]
        if not row:
            lines.append(f"    {state} --> [*]")
    return "\n".join(lines)
