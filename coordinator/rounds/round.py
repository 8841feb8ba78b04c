"""Jobs and rounds as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from coordinator.rounds.states import JOB_ENDED, JobState, RoundState, walk
from shared.errors import Conflict, NotFound
from shared.ids import DeviceId, Digest, JobId, NodeId


@dataclass(frozen=True)
class Job:
    """`round` is the last committed one; the digests and `model_json` are the global state after it."""

    id: JobId
    name: str
    state: JobState
    toml: str
    run_id: int
    created_at: float
    key: str = ""
    ended_at: float = 0.0
    reason: str = ""
    round: int = 0
    arrays_digest: Digest | None = None
    model_json: str = ""
    strategy_digest: Digest | None = None
    release: int = 0


class Outcome(StrEnum):
    """What became of a device in a round: exactly one of these."""

    COUNTED = "counted"
    RECOVERED = "recovered"  # dropped after dealing its shares; its masks were taken out. Not the phase: that is about the counted
    DROPPED = "dropped"
    REJECTED = "rejected"


@dataclass(frozen=True)
class DeviceRow:
    """`weight` is 0 where the sum is secret; `group`, from 1, is the secret group that it was in, 0 where there was one sum. Bytes
    are seen from the device.
    """

    device: DeviceId
    outcome: Outcome
    reason: str = ""
    weight: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    group: int = 0


@dataclass(frozen=True)
class RoundRow:
    job: JobId
    round: int
    attempt: int
    state: RoundState
    started_at: float
    ended_at: float = 0.0
    total_weight: int = 0
    arrays_digest: Digest | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    reason: str = ""
    devices: tuple[DeviceRow, ...] = ()


@dataclass(frozen=True)
class Event:
    """One line of a job's history. `round` is 0 for what concerns the whole job."""

    job: JobId
    round: int
    attempt: int
    at: float
    kind: str
    detail: Mapping[str, str | int | float] = field(default_factory=dict)
    id: int = 0


@dataclass(frozen=True)
class DeviceRef:
    """A device of the fleet, as far as rounds care. `client_apps` are those that it has; None: it did not say."""

    id: DeviceId
    node_id: NodeId
    name: str
    client_apps: frozenset[str] | None = None


def check_commit(stored: Job, job: Job, row: RoundRow) -> None:
    """What must hold before a round may count. Raises `Conflict`."""
    if stored.state in JOB_ENDED or stored.state is JobState.SUBMITTED:
        raise Conflict(f"job {job.id} is {stored.state}: nothing more is committed to it")
    if not stored.round + 1 == job.round == row.round or job.id != row.job:
        raise Conflict(
            f"round {row.round} of job {job.id} does not follow round {stored.round}, the last committed one"
        )


def first_state(events: Sequence[Event]) -> RoundState:
    """The state of an attempt that begins with these events. Raises `Conflict`."""
    if not events or events[0].kind != RoundState.PLANNED:
        raise Conflict(f"an attempt begins {RoundState.PLANNED}")
    return walk(RoundState.PLANNED, (event.kind for event in events[1:]))


def committed_state(stored: RoundState, events: Sequence[Event]) -> RoundState:
    """The state after the events of a commit. Raises `Conflict` unless they lead there."""
    state = walk(stored, (event.kind for event in events))
    if state is not RoundState.COMMITTED:
        raise Conflict(f"a commit ends {RoundState.COMMITTED}, not {state}")
    return state


def ended_job(job: Job, at: float, reason: str, release: int) -> Job:
    """`job` with what its new state brings."""
    ended_at = at if job.state in JOB_ENDED else job.ended_at
    return replace(job, ended_at=ended_at, reason=reason or job.reason, release=release or job.release)


def no_job(name: str) -> NotFound:
    return NotFound(f"no job {name[:64]!r}; `coordinator job list` shows them")
