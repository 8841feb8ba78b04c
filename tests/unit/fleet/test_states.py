"""What may happen to a device, in every state."""

import pytest

from coordinator.fleet.states import TRANSITIONS, DeviceEvent, DeviceState, after
from shared.errors import Conflict

PAIRS = [(state, event) for state in DeviceState for event in DeviceEvent]


def test_the_table_has_a_row_a_state() -> None:
    assert set(TRANSITIONS) == set(DeviceState)


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_an_event_leads_where_the_table_says_or_is_refused(state: DeviceState, event: DeviceEvent) -> None:
    if event in TRANSITIONS[state]:
        assert after(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(Conflict, match=f"{state}.*{event}"):
            after(state, event)


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_repeating_an_event_changes_nothing(state: DeviceState, event: DeviceEvent) -> None:
    if event in TRANSITIONS[state]:
        once = after(state, event)
        assert after(once, event) is once


def test_nothing_leads_back_from_revoked() -> None:
    assert set(TRANSITIONS[DeviceState.REVOKED].values()) == {DeviceState.REVOKED}


@pytest.mark.parametrize("state", DeviceState)
def test_any_device_can_be_revoked(state: DeviceState) -> None:
    assert after(state, DeviceEvent.REVOKE) is DeviceState.REVOKED
