import pytest

from coordinator.releases.states import (
    DEVICE,
    ROLLOUT,
    UNFINISHED,
    DeviceEvent,
    DeviceState,
    RolloutEvent,
    RolloutState,
    after,
    device_after,
    device_mermaid,
    mermaid,
)
from shared.errors import Conflict


def test_every_state_has_a_row() -> None:
    assert set(ROLLOUT) == set(RolloutState)
    assert set(DEVICE) == set(DeviceState)


def test_a_rollout_goes_through_its_stages_and_completes() -> None:
    state = RolloutState.PLANNED
    for event in (
        RolloutEvent.BEGIN,
        RolloutEvent.ADVANCE,
        RolloutEvent.PAUSE,
        RolloutEvent.RESUME,
        RolloutEvent.COMPLETE,
    ):
        state = after(state, event)
    assert state is RolloutState.COMPLETED


@pytest.mark.parametrize("state", [RolloutState.REFUSED, RolloutState.UNDONE])
@pytest.mark.parametrize("event", list(RolloutEvent))
def test_what_has_ended_badly_does_not_move_again(state: RolloutState, event: RolloutEvent) -> None:
    with pytest.raises(Conflict, match=f"a rollout that is {state}"):
        after(state, event)


def test_every_unfinished_state_can_reach_an_end() -> None:
    for state in UNFINISHED:
        reached, frontier = {state}, [state]
        while frontier:
            for to in ROLLOUT[frontier.pop()].values():
                if to not in reached:
                    reached.add(to)
                    frontier.append(to)
        assert RolloutState.UNDONE in reached


def test_only_an_offered_device_can_prove() -> None:
    assert [state for state in DeviceState if device_after(state, DeviceEvent.PROVE)] == [DeviceState.OFFERED]
    assert device_after(DeviceState.OFFERED, DeviceEvent.PROVE) is DeviceState.PROVEN


def test_a_reverted_device_stays_so_whatever_comes_late() -> None:
    assert all(device_after(DeviceState.REVERTED, event) is None for event in DeviceEvent)


def test_diagrams_show_every_transition() -> None:
    assert "    STAGING --> REFUSED: refuse" in mermaid().splitlines()
    assert "    WITHDRAWING --> REVERTED: revert" in device_mermaid().splitlines()
    assert mermaid().count("-->") == 1 + sum(max(1, len(row)) for row in ROLLOUT.values())
    assert device_mermaid().count("-->") == 1 + sum(max(1, len(row)) for row in DEVICE.values())
