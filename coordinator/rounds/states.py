"""The tables of a round and of a job. A transition is a row in `round_events` before its effect is visible."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from shared import tables
from shared.errors import Conflict


class RoundState(StrEnum):
    PLANNED = "PLANNED"
    SELECTED = "SELECTED"
    KEYS = "KEYS"  # secure rounds that make a group: public keys advertised …
    COINS = "COINS"  # … the graph drawn …
    SHARES = "SHARES"  # … shares dealt
    MASKED = "MASKED"  # secure rounds: masked updates in …
    CONFIRMED = "CONFIRMED"  # … the devices agree who is counted …
    UNMASKED = "UNMASKED"  # … masks of the dropped and self-masks of the survivors given out …
    RECOVERED = "RECOVERED"  # … and those of survivors that have gone, from shares
    TRAINED = "TRAINED"  # plain rounds: updates in
    AGGREGATED = "AGGREGATED"
    COMMITTED = "COMMITTED"
    ABANDONED = "ABANDONED"


_NEXT: Mapping[RoundState, tuple[RoundState, ...]] = {
    RoundState.PLANNED: (RoundState.SELECTED,),
    RoundState.SELECTED: (RoundState.KEYS, RoundState.MASKED, RoundState.TRAINED),
    RoundState.KEYS: (RoundState.COINS, RoundState.SHARES),
    RoundState.COINS: (RoundState.SHARES,),
    RoundState.SHARES: (RoundState.MASKED,),
    RoundState.MASKED: (RoundState.CONFIRMED,),
    RoundState.CONFIRMED: (RoundState.UNMASKED,),
    RoundState.UNMASKED: (RoundState.RECOVERED, RoundState.AGGREGATED),
    RoundState.RECOVERED: (RoundState.AGGREGATED,),
    RoundState.TRAINED: (RoundState.AGGREGATED,),
    RoundState.AGGREGATED: (RoundState.COMMITTED,),
    RoundState.COMMITTED: (),
    RoundState.ABANDONED: (),
}
ENDED = frozenset({RoundState.COMMITTED, RoundState.ABANDONED})


def advance(state: RoundState, to: RoundState) -> RoundState:
    """`to`, if the table allows it. Every round that has not ended may be abandoned. Raises `Conflict`."""
    if to in _NEXT[state] or (to is RoundState.ABANDONED and state not in ENDED):
        return to
    raise Conflict(f"a round that is {state} does not become {to}")


def walk(state: RoundState, kinds: Iterable[str]) -> RoundState:
    """`advance` from one event's kind to the next. Raises `Conflict`, also for a kind that is no state."""
    for kind in kinds:
        if kind not in RoundState.__members__:
            raise Conflict(f"{kind} is no state of a round")
        state = advance(state, RoundState(kind))
    return state


class JobState(StrEnum):
    SUBMITTED = "submitted"
    RUNNING = "running"
    STOPPING = "stopping"  # the present round is being abandoned
    STOPPED = "stopped"
    COMPLETED = "completed"
    FAILED = "failed"


class JobEvent(StrEnum):
    START = "start"
    STOP = "stop"
    STOPPED = "stopped"
    COMPLETE = "complete"
    FAIL = "fail"


JOB_TRANSITIONS: Mapping[JobState, Mapping[JobEvent, JobState]] = {
    JobState.SUBMITTED: {
        JobEvent.START: JobState.RUNNING,
        JobEvent.STOP: JobState.STOPPING,
        JobEvent.FAIL: JobState.FAILED,
    },
    JobState.RUNNING: {
        JobEvent.START: JobState.RUNNING,  # again, after a restart
        JobEvent.STOP: JobState.STOPPING,
        JobEvent.COMPLETE: JobState.COMPLETED,
        JobEvent.FAIL: JobState.FAILED,
    },
    JobState.STOPPING: {
        JobEvent.STOP: JobState.STOPPING,
        JobEvent.STOPPED: JobState.STOPPED,
        JobEvent.COMPLETE: JobState.COMPLETED,
        JobEvent.FAIL: JobState.FAILED,
    },
    JobState.STOPPED: {JobEvent.STOP: JobState.STOPPED},
    JobState.COMPLETED: {},
    JobState.FAILED: {},
}
JOB_ENDED = frozenset({JobState.STOPPED, JobState.COMPLETED, JobState.FAILED})


def after(state: JobState, event: JobEvent) -> JobState:
    """The next state. Raises `Conflict`."""
    return tables.advance(
        JOB_TRANSITIONS, state, event, Conflict, "a job that is {state} cannot be put through '{event}'"
    )


def mermaid() -> str:
    """The round's table as a diagram, for READMEs."""
    lines = ["stateDiagram-v2", "    [*] --> PLANNED"]
    for state, followers in _NEXT.items():
        lines += [f"    {state} --> {follower}" for follower in followers]
        if state not in ENDED:
            lines.append(f"    {state} --> ABANDONED")
    return "\n".join(lines)


def job_mermaid() -> str:
    """The job's table as a diagram, for READMEs."""
    lines = ["stateDiagram-v2", "    [*] --> submitted"]
    for state, row in JOB_TRANSITIONS.items():
        lines += [f"    {state} --> {target}: {event}" for event, target in row.items() if target is not state]
    return "\n".join(lines)
