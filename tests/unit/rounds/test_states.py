"""The tables of rounds and jobs."""

from itertools import pairwise

import pytest

from coordinator.rounds.states import (
    ENDED,
    JOB_ENDED,
    JOB_TRANSITIONS,
    JobEvent,
    JobState,
    RoundState,
    advance,
    after,
    job_mermaid,
    mermaid,
)
from shared.errors import Conflict

BEGIN, END = ["PLANNED", "SELECTED"], ["AGGREGATED", "COMMITTED"]
SUM = ["MASKED", "CONFIRMED", "UNMASKED"]
PATHS: dict[str, list[str]] = {
    "plain": [*BEGIN, "TRAINED", *END],
    "of a group that is there": [*BEGIN, *SUM, *END],
    "of a new group": [*BEGIN, "KEYS", "SHARES", *SUM, *END],
    "of a large new group": [*BEGIN, "KEYS", "COINS", "SHARES", *SUM, *END],
    "with devices that went away": [*BEGIN, *SUM, "RECOVERED", *END],
}
MAY_BE_LEFT_OUT = {"KEYS", "COINS", "SHARES", "RECOVERED", "TRAINED"}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_round_runs_along_its_path_and_skips_nothing_that_it_needs(path: list[str]) -> None:
    states = [RoundState(name) for name in path]
    for here, following in pairwise(states):
        assert advance(here, following) is following
    for place, here in enumerate(states):
        for end, later in enumerate(states[place + 2 :], start=place + 2):
            if not MAY_BE_LEFT_OUT.issuperset(path[place + 1 : end]):
                with pytest.raises(Conflict):
                    advance(here, later)


def test_every_path_there_is_is_one_of_these() -> None:
    """A group is made whole or not at all, and nothing follows a sum but its end."""

    def walks(here: RoundState) -> list[list[str]]:
        following = [state for state in RoundState if state is not RoundState.ABANDONED and _may(here, state)]
        return [[here.value, *rest] for state in following for rest in walks(state)] or [[here.value]]

    left_out = [[name for name in path if name != "RECOVERED"] for path in walks(RoundState.PLANNED)]
    known = [path for path in PATHS.values() if "RECOVERED" not in path]
    assert sorted(left_out) == sorted([*known, *(path for path in known if "TRAINED" not in path)])


def _may(here: RoundState, following: RoundState) -> bool:
    try:
        advance(here, following)
    except Conflict:
        return False
    return True


@pytest.mark.parametrize("state", RoundState)
def test_every_round_that_has_not_ended_may_be_abandoned(state: RoundState) -> None:
    if state in ENDED:
        with pytest.raises(Conflict):
            advance(state, RoundState.ABANDONED)
    else:
        assert advance(state, RoundState.ABANDONED) is RoundState.ABANDONED


@pytest.mark.parametrize("state", RoundState)
def test_no_round_goes_back_or_ends_twice(state: RoundState) -> None:
    for ended in ENDED:
        with pytest.raises(Conflict):
            advance(ended, state)
    with pytest.raises(Conflict):
        advance(state, RoundState.PLANNED)


def test_an_ended_job_stays_ended_and_a_stopping_one_never_runs_again() -> None:
    for state in JOB_ENDED:
        for event in JobEvent:
            if (state, event) != (JobState.STOPPED, JobEvent.STOP):
                with pytest.raises(Conflict):
                    after(state, event)
    with pytest.raises(Conflict):
        after(JobState.STOPPING, JobEvent.START)


def test_every_job_can_end_from_every_state() -> None:
    assert set(JOB_TRANSITIONS) == set(JobState)
    for state in set(JobState) - JOB_ENDED:
        assert after(state, JobEvent.FAIL) is JobState.FAILED
        assert after(after(state, JobEvent.STOP), JobEvent.STOPPED) is JobState.STOPPED


def test_the_diagrams_show_every_transition() -> None:
    assert mermaid().count("-->") == 1 + 15 + 11
    assert "UNMASKED --> AGGREGATED" in mermaid()
    assert "UNMASKED --> RECOVERED" in mermaid()
    assert "running --> stopping: stop" in job_mermaid()
