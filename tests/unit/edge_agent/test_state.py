"""The agent's tables, and which task comes next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.state import (
    INSTALL,
    OPEN,
    SESSION,
    InstallEvent,
    InstallState,
    SessionEvent,
    SessionState,
    Waiting,
    advance,
    choose,
)
from shared.errors import ProtocolError
from shared.ids import JobId, TaskId

GOOD_PATH = ["FETCH", "SPECIALISE", "LOAD", "JUDGE", "SWAP", "PROVE", "ACKNOWLEDGE"]


def test_the_good_path_ends_reported() -> None:
    state = InstallState.VERIFIED
    for name in GOOD_PATH:
        state = advance(INSTALL, state, InstallEvent[name])
    assert state is InstallState.REPORTED


@given(st.lists(st.sampled_from(list(InstallEvent)), max_size=12))
def test_nothing_is_proven_without_having_been_swapped_and_judged(events: list[InstallEvent]) -> None:
    state, seen = InstallState.VERIFIED, [InstallState.VERIFIED]
    for event in events:
        try:
            state = advance(INSTALL, state, event)
        except ProtocolError:
            continue
        seen.append(state)
    if InstallState.PROVEN in seen:
        before = seen[: seen.index(InstallState.PROVEN)]
        assert before[-1] is InstallState.SWAPPED
        assert before[-2] is InstallState.JUDGED


@pytest.mark.parametrize("state", [s for s in InstallState if s not in OPEN])
def test_an_ended_install_only_waits_to_be_acknowledged(state: InstallState) -> None:
    assert set(INSTALL[state]) <= {InstallEvent.ACKNOWLEDGE}


@pytest.mark.parametrize("state", OPEN)
def test_every_open_install_may_begin_again_be_refused_given_up_or_reverted(state: InstallState) -> None:
    assert advance(INSTALL, state, InstallEvent.RESTART) is InstallState.VERIFIED
    assert advance(INSTALL, state, InstallEvent.REFUSE) is InstallState.REFUSED
    assert advance(INSTALL, state, InstallEvent.FAIL) is InstallState.FAILED
    assert advance(INSTALL, state, InstallEvent.REVERT) is InstallState.REVERTED


def test_an_illegal_event_names_both_sides() -> None:
    with pytest.raises(ProtocolError, match="what is verified cannot be proven"):
        advance(INSTALL, InstallState.VERIFIED, InstallEvent.PROVE)


def test_every_session_state_leads_back_to_connecting() -> None:
    for state in (SessionState.WAITING, SessionState.BARRED):
        assert advance(SESSION, state, SessionEvent.RETRY) is SessionState.CONNECTING
    assert set(SESSION) == set(SessionState)
    assert set(INSTALL) == set(InstallState)


def waiting(job: str, round_number: int, name: str) -> Waiting:
    return Waiting(TaskId(name), JobId(job), round_number)


A1, A2, B1 = waiting("a", 1, "a1"), waiting("a", 2, "a2"), waiting("b", 1, "b1")


@pytest.mark.parametrize(
    ("queue", "begun", "chosen"),
    [
        ([], {}, None),
        ([B1, A1], {}, B1),
        ([B1, A1], {JobId("a"): 1}, A1),
        ([B1, A2], {JobId("a"): 1}, B1),
        ([A1, B1], {JobId("a"): 1, JobId("b"): 1}, A1),
    ],
    ids=[
        "nothing waits",
        "the oldest first",
        "a round that was begun first",
        "a new round waits its turn",
        "oldest of those",
    ],
)
def test_the_next_task_is(queue: list[Waiting], begun: dict[JobId, int], chosen: Waiting | None) -> None:
    assert choose(queue, begun) == chosen
