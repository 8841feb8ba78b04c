"""When to stop waiting for answers: a pure rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.shares import share_of


class Reason(StrEnum):
    ALL_IN = "everybody answered or failed"
    LATE = "enough answered, and the grace for the others is over"
    QUORUM_LOST = "too many failed"
    DEADLINE = "the time is up"


@dataclass(frozen=True)
class Close:
    reason: Reason


@dataclass(frozen=True)
class WaitUntil:
    """Nothing changes by itself before `at`; an answer or a failure may."""

    at: float


@dataclass(frozen=True)
class Policy:
    """Shares are of the asked. Once `quantile` have answered or failed and `quorum` have answered, the others get `grace_s`."""

    timeout_s: float
    quorum: float = 0.0
    quantile: float = 1.0
    grace_s: float = 10.0


def closing(
    policy: Policy, now: float, started: float, asked: int, *, answered: Sequence[float], failed: Sequence[float]
) -> Close | WaitUntil:
    """Whether to go on waiting. `answered` and `failed` hold when each of them came, in any order; all times on one clock."""
    needed = share_of(policy.quorum, asked)
    if len(answered) + len(failed) >= asked:
        return Close(Reason.ALL_IN)
    if asked - len(failed) < needed:
        return Close(Reason.QUORUM_LOST)
    until, reason = started + policy.timeout_s, Reason.DEADLINE
    enough = share_of(policy.quantile, asked)
    if len(answered) >= needed and len(answered) + len(failed) >= enough:
        reached = max(_moment([*answered, *failed], enough), _moment(answered, needed), started)
        if reached + policy.grace_s < until:
            until, reason = reached + policy.grace_s, Reason.LATE
    return Close(reason) if now >= until else WaitUntil(until)


def _moment(times: Sequence[float], count: int) -> float:
    """When the `count`-th of them came."""
    return sorted(times)[count - 1] if count else -math.inf
