"""What an agent's session and its installs may do next, as tables; which task comes next. Pure: no I/O, no clock.

    VERIFIED → FETCHED → SPECIALISED → LOADED → JUDGED → SWAPPED → PROVEN → REPORTED
        └──────────┴──────────┴──────────┴─────────┴────────┴→ REFUSED | FAILED | REVERTED → REPORTED

REFUSED: the release does not pass this device's checks. FAILED: this device could not find out. REVERTED: an earlier
release serves again. A restart sends an unfinished install back to VERIFIED: every step may be repeated.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from shared import tables
from shared.errors import ProtocolError
from shared.ids import JobId, TaskId


class InstallState(StrEnum):
    VERIFIED = "verified"
    FETCHED = "fetched"
    SPECIALISED = "specialised"
    LOADED = "loaded"
    JUDGED = "judged"
    SWAPPED = "swapped"
    PROVEN = "proven"
    REFUSED = "refused"
    FAILED = "failed"
    REVERTED = "reverted"
    REPORTED = "reported"


class InstallEvent(StrEnum):
    FETCH = "fetched"
    SPECIALISE = "specialised"
    LOAD = "loaded"
    JUDGE = "judged well"
    SWAP = "swapped in"
    PROVE = "proven"
    REFUSE = "refused"
    FAIL = "given up"
    REVERT = "reverted"
    RESTART = "restarted"
    ACKNOWLEDGE = "acknowledged"


def _unfinished(event: InstallEvent, following: InstallState) -> dict[InstallEvent, InstallState]:
    return {
        event: following,
        InstallEvent.REFUSE: InstallState.REFUSED,
        InstallEvent.FAIL: InstallState.FAILED,
        InstallEvent.REVERT: InstallState.REVERTED,
        InstallEvent.RESTART: InstallState.VERIFIED,
    }


_ANSWERED = {InstallEvent.ACKNOWLEDGE: InstallState.REPORTED}
INSTALL: Mapping[InstallState, Mapping[InstallEvent, InstallState]] = {
    InstallState.VERIFIED: _unfinished(InstallEvent.FETCH, InstallState.FETCHED),
    InstallState.FETCHED: _unfinished(InstallEvent.SPECIALISE, InstallState.SPECIALISED),
    InstallState.SPECIALISED: _unfinished(InstallEvent.LOAD, InstallState.LOADED),
    InstallState.LOADED: _unfinished(InstallEvent.JUDGE, InstallState.JUDGED),
    InstallState.JUDGED: _unfinished(InstallEvent.SWAP, InstallState.SWAPPED),
    InstallState.SWAPPED: _unfinished(InstallEvent.PROVE, InstallState.PROVEN),
    InstallState.PROVEN: _ANSWERED,
    InstallState.REFUSED: _ANSWERED,
    InstallState.FAILED: _ANSWERED,
    InstallState.REVERTED: _ANSWERED,
    InstallState.REPORTED: {},
}
OPEN = tuple(state for state, events in INSTALL.items() if InstallEvent.RESTART in events)


class SessionState(StrEnum):
    OFFLINE = "offline"  # not started, or stopped for good
    CONNECTING = "connecting"
    ATTACHED = "attached"  # the coordinator said welcome
    WAITING = "waiting"  # the link broke: back-off
    BARRED = "barred"  # the coordinator refuses this device: long back-off, the model goes on serving


class SessionEvent(StrEnum):
    START = "started"
    WELCOME = "welcomed"
    BREAK = "cut off"
    REFUSE = "refused"
    RETRY = "retried"
    STOP = "stopped"


_STOP = {SessionEvent.STOP: SessionState.OFFLINE}
_LOST = {SessionEvent.BREAK: SessionState.WAITING, SessionEvent.REFUSE: SessionState.BARRED}
SESSION: Mapping[SessionState, Mapping[SessionEvent, SessionState]] = {
    SessionState.OFFLINE: {SessionEvent.START: SessionState.CONNECTING},
    SessionState.CONNECTING: {SessionEvent.WELCOME: SessionState.ATTACHED, **_LOST, **_STOP},
    SessionState.ATTACHED: {**_LOST, **_STOP},
    SessionState.WAITING: {SessionEvent.RETRY: SessionState.CONNECTING, **_STOP},
    SessionState.BARRED: {SessionEvent.RETRY: SessionState.CONNECTING, **_STOP},
}

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


def advance(table: Mapping[S, Mapping[E, S]], state: S, event: E) -> S:
    """Raises `ProtocolError` for an event that `state` does not allow."""
    return tables.advance(table, state, event, ProtocolError, "what is {state} cannot be {event}")


@dataclass(frozen=True)
class Waiting:
    """A task in the agent's queue."""

    task: TaskId
    job: JobId
    round: int


def choose(queue: Iterable[Waiting], begun: Mapping[JobId, int]) -> Waiting | None:
    """The next task of a queue, oldest first; but a round that this device has begun goes first.

    A secure round is four short tasks and one long one, and its peers wait for each: were it to stand behind the training of
    another job, both rounds would miss their deadlines. A round has few tasks, so the others wait no longer than for one round.
    """
    tasks = tuple(queue)
    continuing = (task for task in tasks if begun.get(task.job) == task.round)
    return next(continuing, tasks[0] if tasks else None)
