"""Rollouts over a simulated fleet whose devices verify metadata and sign with real keys: stages, pauses, kills, commands."""

import pytest

from coordinator.releases.rollouts import RolloutService
from coordinator.releases.states import DeviceState, RolloutState
from shared.errors import ConfigError, Conflict, NotFound
from shared.ids import RolloutId
from shared.session import Install, Withdraw
from shared.signing.trust import Trust
from tests.unit.releases.world import World


def test_a_release_goes_out_in_stages_and_each_device_can_verify_its_command(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    assert [len(device.inbox) for device in world.devices].count(1) == 1
    (order,) = canary.orders(Install)
    assert (order.rollout_id, order.model, order.release) == (rollout, "digits", 1)
    target = (
        Trust(world.folder / "trust", world.releases.first_root).update(order.metadata).check_install("digits", 1, 0)
    )
    assert target.digest == world.releases.release("digits", 1).digest
    world.prove_all(rollout)
    assert world.state(rollout) is RolloutState.COMPLETED
    assert world.states(rollout) == {DeviceState.PROVEN}
    kinds = [record.kind for record in world.rollouts.records(rollout)]
    assert (kinds[:3], kinds.count("advance"), kinds[-1]) == (["plan", "begin", "device.offer"], 2, "complete")


def test_a_refusing_canary_ends_it_and_the_others_never_hear_of_the_release(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    world.report(rollout, canary, state="refused", reason="accuracy fell from 95.0% to 11.0%")
    found = world.store.rollout(rollout)
    assert found.state is RolloutState.REFUSED
    assert "accuracy fell from 95.0% to 11.0%" in found.reason
    assert [device.orders(Install) for device in world.devices if device is not canary] == [[], [], []]
    assert [device.orders(Withdraw) for device in world.devices] == [[], [], [], []]
    assert not world.releases.release("digits", 1).withdrawn  # nobody took it: another plan may try it


def test_devices_that_proved_earlier_go_back_when_a_later_stage_refuses(world: World) -> None:
    rollout = world.start(plan="stages = [2, 1.0]")
    first = world.offered(rollout)
    for device in first:
        world.report(rollout, device)
    second = world.offered(rollout)
    world.report(rollout, second[0], state="failed", reason="out of memory")
    assert world.state(rollout) is RolloutState.REFUSED
    assert world.releases.release("digits", 1).withdrawn
    told = [*first, second[1]]  # the last one may be installing right now
    assert [len(device.orders(Withdraw)) for device in told] == [1, 1, 1]
    assert second[0].orders(Withdraw) == []
    catalogue = Trust(world.folder / "trust", world.releases.first_root).update(first[0].orders(Withdraw)[0].metadata)
    assert catalogue.find("digits", 1).withdrawn
    for device in told:
        world.report(rollout, device, state="reverted")
    assert {row.state for row in world.store.rollout(rollout).devices} == {DeviceState.REVERTED, DeviceState.FAILED}


def test_a_tick_survives_a_full_disk_and_does_its_work_at_the_next(world: World) -> None:
    rollout = world.start(plan="stage_timeout_s = 60")
    world.full = True
    world.tick(0.6 * 86_400)  # the stage is out of time, and the timestamp is due
    assert world.state(rollout) is RolloutState.PAUSED
    before = world.releases.metadata()
    world.full = False
    world.tick(1)
    assert world.releases.metadata()["timestamp.json"] != before["timestamp.json"]


def test_silence_pauses_and_resuming_gives_the_stage_its_time_again(world: World) -> None:
    rollout = world.start(plan="stage_timeout_s = 60")
    world.tick(59)
    assert world.state(rollout) is RolloutState.STAGING
    world.tick(1)
    assert world.state(rollout) is RolloutState.PAUSED
    assert "0 of 1 proofs" in world.store.rollout(rollout).reason
    world.rollouts.resume(rollout, "ann")
    world.tick(59)
    assert world.state(rollout) is RolloutState.STAGING
    world.prove_all(rollout)
    assert world.state(rollout) is RolloutState.COMPLETED


def test_a_paused_rollout_takes_receipts_and_offers_nothing(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    assert world.rollouts.pause(rollout, "ann", "looking").reason == "looking"
    world.report(rollout, canary)
    world.tick(5)
    assert world.row(rollout, canary).state is DeviceState.PROVEN
    assert [len(device.orders(Install)) for device in world.devices].count(1) == 1
    world.rollouts.resume(rollout, "ann")
    world.prove_all(rollout)
    assert world.state(rollout) is RolloutState.COMPLETED


def test_killed_at_any_time_the_rollout_goes_on_from_what_was_committed(world: World) -> None:
    rollout = world.start()
    steps = 0
    while world.state(rollout) is not RolloutState.COMPLETED:
        world.restart()
        for device in world.devices:
            world.fleet.attach(device.id)
        world.report(rollout, world.offered(rollout)[0])
        steps += 1
    assert steps == 4
    assert world.states(rollout) == {DeviceState.PROVEN}


def test_killed_between_plan_and_first_offer_the_first_tick_begins(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RolloutService, "_proceed", lambda *_: None)
    rollout = world.start()
    assert world.state(rollout) is RolloutState.PLANNED
    monkeypatch.undo()
    world.restart()
    world.tick()
    assert len(world.offered(rollout)) == 1


@pytest.mark.parametrize(
    ("setup", "arguments", "error", "why"),
    {
        "an unknown model": ("", ("signs", 0, ""), NotFound, "model list"),
        "an unknown release": ("", ("digits", 9, ""), NotFound, "release 9"),
        "a plan with an unknown key": ("", ("digits", 1, "stagse = [1.0]"), ConfigError, "unknown key"),
        "a withdrawn release": ("withdrawn", ("digits", 1, ""), Conflict, "was withdrawn"),
        "another rollout has not ended": ("running", ("digits", 2, ""), Conflict, "has not ended"),
        "devices run a newer one": ("newer", ("digits", 1, ""), Conflict, "devices run digits:2"),
        "an empty fleet": ("empty", ("digits", 1, ""), Conflict, "no active device"),
    }.values(),
)
def test_what_cannot_be_started_says_why_and_changes_nothing(
    world: World, setup: str, arguments: tuple[str, int, str], error: type[Exception], why: str
) -> None:
    match setup:
        case "withdrawn":
            world.store.withdraw("digits", 1)
        case "running":
            world.start(1)
        case "newer":
            world.prove_all(world.start(2))
        case "empty":
            world.fleet.away.update(world.fleet.devices)
    before = world.rollouts.rollouts()
    with pytest.raises(error, match=why):
        world.rollouts.start(*arguments, "", "ann")
    assert world.rollouts.rollouts() == before


def test_no_number_means_the_newest_that_stands(world: World) -> None:
    world.store.withdraw("digits", 2)
    assert world.rollouts.start("digits", 0, "", "", "ann").release == 1


@pytest.mark.parametrize("what", ["pause", "resume", "undo"])
def test_commands_that_do_not_fit_are_conflicts(world: World, what: str) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    world.report(rollout, canary, state="refused")
    before = world.store.rollout(rollout)
    with pytest.raises(Conflict):
        getattr(world.rollouts, what)(rollout, "ann")
    with pytest.raises(NotFound, match="rollout list"):
        getattr(world.rollouts, what)("rol-unknown", "ann")
    assert world.store.rollout(rollout) == before


def test_watchers_hear_of_each_change_until_they_stop(world: World) -> None:
    heard: list[RolloutId] = []
    stop = world.rollouts.subscribe(heard.append)
    rollout = world.start()
    assert set(heard) == {rollout}
    number = len(heard)
    world.tick(1)
    assert len(heard) == number  # nothing changed
    stop()
    world.report(rollout, world.offered(rollout)[0])
    assert len(heard) == number
