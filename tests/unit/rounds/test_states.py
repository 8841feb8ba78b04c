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

PLAIN = ["PLANNED", "SELECTED", "TRAINED", "AGGREGATED", "COMMITTED"]
SECURE = ["PLANNED", "SELECTED", "KEYS", "SHARES", "MASKED", "UNMASKED", "AGGREGATED", "COMMITTED"]


@pytest.mark.parametrize("path", [PLAIN, SECURE])
def test_a_round_runs_along_its_path_and_skips_nothing(path: list[str]) -> None:
    states = [RoundState(name) for name in path]
    for here, following in pairwise(states):
        assert advance(here, following) is following
    for place, here in enumerate(states):
        for later in states[place + 2 :]:
            with pytest.raises(Conflict):
                advance(here, later)


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
    assert mermaid().count("-->") == 1 + 9 + 8
    assert "UNMASKED --> AGGREGATED" in mermaid()
    assert "running --> stopping: stop" in job_mermaid()
