"""Devices of a rollout that come late, go away, fall back or are in quarantine."""

from coordinator.releases.rollouts import CENSUS_S
from coordinator.releases.states import DeviceState, RolloutState
from shared.ids import DeviceId, digest_of
from shared.session import Install, Serving
from tests.unit.releases.world import ALL_AT_ONCE, World


def test_a_device_that_was_away_is_offered_the_release_when_it_attaches(world: World) -> None:
    away = world.devices[0]
    world.fleet.online.discard(away.id)
    rollout = world.start(plan=ALL_AT_ONCE)
    assert world.row(rollout, away).state is DeviceState.PENDING
    world.fleet.attach(away.id)
    assert len(away.orders(Install)) == 1
    world.prove_all(rollout)
    assert world.state(rollout) is RolloutState.COMPLETED


def test_an_unanswered_offer_is_repeated_on_attach_under_the_same_id(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    world.fleet.online.discard(canary.id)
    world.fleet.attach(canary.id)
    assert [type(command.order) for command in canary.inbox] == [Install, Install]
    assert len({command.command_id for command in canary.inbox}) == 1


def test_a_device_that_joins_later_gets_the_release_too(world: World) -> None:
    rollout = world.start()
    world.prove_all(rollout)
    late = world.fleet.enrol("late")
    world.fleet.attach(late.id)
    assert len(late.orders(Install)) == 1
    world.report(rollout, late)
    assert world.row(rollout, late).state is DeviceState.PROVEN
    assert world.state(rollout) is RolloutState.COMPLETED


def test_hawkbit_446_a_device_that_fell_back_by_itself_is_offered_the_release_again(world: World) -> None:
    """https://github.com/eclipse-hawkbit/hawkbit/issues/446: the device says what it really runs."""
    rollout = world.start(plan=ALL_AT_ONCE)
    world.prove_all(rollout)
    device = world.devices[0]
    world.clock.advance(1)
    world.fleet.attach(device.id, Serving("digits", 0, digest_of(b"factory image"), proven=True))
    assert world.row(rollout, device).state is DeviceState.OFFERED
    installs = [command.command_id for command in device.inbox if isinstance(command.order, Install)]
    assert len(set(installs)) == len(installs) == 2


def test_a_device_that_serves_what_it_proved_is_left_alone(world: World) -> None:
    rollout = world.start(plan=ALL_AT_ONCE)
    world.prove_all(rollout)
    device, heard = world.devices[0], len(world.devices[0].inbox)
    world.fleet.attach(device.id, Serving("digits", 1, world.releases.release("digits", 1).digest, proven=True))
    assert len(device.inbox) == heard


def test_a_quarantined_device_holds_up_no_stage_and_takes_part_again_when_released(world: World) -> None:
    rollout = world.start(plan=ALL_AT_ONCE)
    gone = world.devices[0]
    world.fleet.away.add(gone.id)
    world.tick(CENSUS_S)
    assert world.row(rollout, gone).state is DeviceState.SKIPPED
    world.fleet.away.clear()
    world.tick(CENSUS_S)
    assert world.row(rollout, gone).state is DeviceState.OFFERED
    world.prove_all(rollout)
    assert world.state(rollout) is RolloutState.COMPLETED


def test_an_offer_of_the_release_before_counts_again_when_the_newer_one_is_refused(world: World) -> None:
    away = world.devices[0]
    first = world.start(plan="stages = [1.0]\nmin_proven = 0.5")
    for device in world.devices[1:]:
        world.report(first, device)
    assert world.state(first) is RolloutState.COMPLETED
    assert world.row(first, away).state is DeviceState.OFFERED
    second = world.start(2, "stages = [1.0]")
    for device in world.devices:
        world.report(second, device, state="refused", reason="worse")
    assert world.state(second) is RolloutState.REFUSED
    heard = len(away.orders(Install))
    world.tick()
    assert [order.release for order in away.orders(Install)[heard:]] == [1]


def test_a_device_named_in_no_rollout_hears_nothing(world: World) -> None:
    stranger = DeviceId("dev-a")
    world.fleet.attach(stranger)
    assert world.fleet.devices[stranger].inbox == []
