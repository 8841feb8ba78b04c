"""The slots' transition table, and the promise that a refused change changes nothing."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_agent.inference.slot import CAPACITY, TABLE, Event, ModelSlots, State, advance
from shared.errors import Conflict, NotFound


def _serving(*versions: int) -> ModelSlots:
    """Each version loaded and made live in turn; the one before the last two is released."""
    slots = ModelSlots("digits")
    for version in versions:
        if slots.standby is not None:
            slots = slots.released(slots.standby.version, 0.0)
        slots = slots.opened(version, "ab" * 32, 0.0).loaded(version, 0.0).swapped(version, 0.0)
    return slots


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_event_moves_as_the_table_says_or_is_refused(state: State, event: Event) -> None:
    if event in TABLE[state]:
        assert advance(state, event) is TABLE[state][event]
    else:
        with pytest.raises(Conflict, match=state.value):
            advance(state, event)


def test_every_state_has_a_row_and_only_closed_is_final() -> None:
    assert TABLE.keys() == set(State)
    assert [state for state in State if not TABLE[state]] == [State.CLOSED]


def test_a_swap_leaves_the_old_version_standing_by_and_a_revert_brings_it_back() -> None:
    slots = _serving(1, 2)
    assert (slots.live, slots.standby) == (slots.get(2), slots.get(1))
    back = slots.reverted(5.0)
    assert back.live == back.get(1)
    assert back.get(2).state is State.WARM
    with pytest.raises(Conflict, match="no earlier version"):
        back.reverted(6.0)


def test_swapping_to_the_live_version_changes_nothing() -> None:
    slots = _serving(1)
    assert slots.swapped(1, 9.0) is slots


def test_the_live_version_cannot_be_released() -> None:
    with pytest.raises(Conflict):
        _serving(1).released(1, 0.0)


def test_a_third_version_waits_until_one_is_released() -> None:
    slots = _serving(1, 2)
    with pytest.raises(Conflict, match="release one first"):
        slots.opened(3, "cd" * 32, 0.0)
    assert slots.released(1, 0.0).opened(3, "cd" * 32, 0.0).get(3).state is State.LOADING


def test_a_failed_version_makes_room_for_the_next_and_may_be_tried_again() -> None:
    slots = _serving(1).opened(2, "cd" * 32, 0.0).refused(2, "not a graph", 0.0)
    assert slots.get(2).reason == "not a graph"
    again = slots.opened(2, "ef" * 32, 0.0)
    assert again.get(2).state is State.LOADING
    assert again.get(2).reason == ""


def test_an_unknown_version_is_not_found() -> None:
    with pytest.raises(NotFound):
        _serving(1).swapped(7, 0.0)


class AnyOrder(RuleBasedStateMachine):
    """Whatever is asked in whatever order: one live version at most, two that hold memory at most."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = ModelSlots("digits")
        self.had_live = False

    @rule(version=st.integers(1, 4), change=st.sampled_from(["opened", "loaded", "refused", "swapped", "released"]))
    def ask(self, version: int, change: str) -> None:
        extra = {"opened": ("ab" * 32,), "refused": ("bad",)}.get(change, ())
        before = self.slots
        try:
            self.slots = getattr(self.slots, change)(version, *extra, 1.0)
        except (Conflict, NotFound):
            assert self.slots is before

    @rule()
    def go_back(self) -> None:
        standby = self.slots.standby
        try:
            self.slots = self.slots.reverted(1.0)
        except Conflict:
            assert standby is None
        else:
            assert standby is not None
            assert self.slots.live is not None
            assert self.slots.live.version == standby.version

    @invariant()
    def at_most_one_is_live_and_two_are_held(self) -> None:
        states = [slot.state for slot in self.slots.slots]
        assert states.count(State.LIVE) <= 1
        assert sum(state is not State.FAILED for state in states) <= CAPACITY
        assert State.CLOSED not in states

    @invariant()
    def once_live_always_live(self) -> None:
        self.had_live = self.had_live or self.slots.live is not None
        assert self.had_live == (self.slots.live is not None)


TestAnyOrder = AnyOrder.TestCase
