"""Rollouts that are undone: every device that may have the release goes back."""

import pytest

from coordinator.releases.rollouts import CENSUS_S
from coordinator.releases.states import DeviceState, RolloutState
from shared.errors import Conflict
from shared.session import Withdraw
from shared.signing.trust import Trust
from tests.unit.releases.world import ALL_AT_ONCE, World


def test_undo_withdraws_the_release_and_brings_every_device_back(world: World) -> None:
    rollout = world.start(plan=ALL_AT_ONCE)
    world.prove_all(rollout)
    world.rollouts.undo(rollout, "ann", "wrong labels")
    assert world.state(rollout) is RolloutState.UNDOING
    assert world.releases.release("digits", 1).withdrawn
    assert [len(device.orders(Withdraw)) for device in world.devices] == [1, 1, 1, 1]
    for device in world.devices:
        world.report(rollout, device, state="reverted")
    found = world.store.rollout(rollout)
    assert (found.state, found.reason) == (RolloutState.UNDONE, "wrong labels")


def test_undo_does_not_wait_for_ever_and_a_late_device_still_goes_back(world: World) -> None:
    rollout = world.start(plan=ALL_AT_ONCE)
    world.prove_all(rollout)
    late = world.devices[0]
    world.fleet.online.discard(late.id)
    world.rollouts.undo(rollout, "ann")
    for device in world.devices[1:]:
        world.report(rollout, device, state="reverted")
    world.tick(299)
    assert world.state(rollout) is RolloutState.UNDOING
    world.tick(1)
    assert world.state(rollout) is RolloutState.UNDONE
    assert late.orders(Withdraw) == []
    world.fleet.attach(late.id)
    assert len(late.orders(Withdraw)) == 1
    world.report(rollout, late, state="reverted")
    assert world.states(rollout) == {DeviceState.REVERTED}


def test_undo_in_the_middle_leaves_devices_alone_whose_turn_had_not_come(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    world.rollouts.undo(rollout, "ann")
    assert len(world.rows(rollout, DeviceState.SKIPPED)) == 3
    assert [len(device.inbox) for device in world.devices if device is not canary] == [0, 0, 0]


def test_a_proof_that_crosses_the_withdrawal_does_not_undo_it(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    world.rollouts.undo(rollout, "ann")
    world.report(rollout, canary)
    assert world.row(rollout, canary).state is DeviceState.WITHDRAWING
    world.report(rollout, canary, state="reverted")
    assert world.state(rollout) is RolloutState.UNDONE


def test_withdrawals_wait_for_the_signature_that_devices_ask_for(world: World) -> None:
    rollout = world.start(plan=ALL_AT_ONCE)
    world.prove_all(rollout)
    world.full = True
    world.rollouts.undo(rollout, "ann")
    assert [device.orders(Withdraw) for device in world.devices] == [[], [], [], []]
    world.full = False
    world.tick(1)
    assert [len(device.orders(Withdraw)) for device in world.devices] == [1, 1, 1, 1]


def test_an_older_rollout_is_not_undone_under_a_newer_one(world: World) -> None:
    first = world.start()
    world.prove_all(first)
    second = world.start(2)
    with pytest.raises(Conflict, match=f"{second} of digits came after it"):
        world.rollouts.undo(first, "ann")
    world.rollouts.undo(second, "ann")
    for device in world.devices:
        world.report(second, device, state="reverted")
    world.rollouts.undo(first, "ann")


def test_a_quarantined_device_that_proved_late_goes_back_with_the_others(world: World) -> None:
    rollout = world.start(plan=ALL_AT_ONCE)
    gone = world.devices[0]
    world.fleet.away.add(gone.id)
    world.tick(CENSUS_S)
    world.report(rollout, gone)
    assert world.row(rollout, gone).state is DeviceState.SKIPPED
    world.rollouts.undo(rollout, "ann")
    assert len(gone.orders(Withdraw)) == 1


def test_killed_in_the_middle_of_an_undo_devices_are_told_when_they_attach(world: World) -> None:
    rollout = world.start(plan=ALL_AT_ONCE)
    world.prove_all(rollout)
    world.full = True  # the withdrawal is committed, not signed, not sent
    world.rollouts.undo(rollout, "ann")
    world.full = False
    world.restart()
    for device in world.devices:
        world.fleet.attach(device.id)
    catalogue = Trust(world.folder / "trust", world.releases.first_root).update(
        world.devices[0].orders(Withdraw)[0].metadata
    )
    assert catalogue.find("digits", 1).withdrawn
