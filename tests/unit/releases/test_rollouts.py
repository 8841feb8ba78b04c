"""Rollouts over a simulated fleet whose devices verify metadata and sign with real keys."""

from dataclasses import replace
from typing import Any

import pytest

from coordinator.releases.release import Rollout
from coordinator.releases.rollouts import CENSUS_S, RolloutService
from coordinator.releases.states import DeviceState, RolloutState
from shared.errors import ConfigError, Conflict, NotFound, Unavailable
from shared.ids import CommandId, DeviceId, RolloutId, digest_of
from shared.session import Acknowledged, Heartbeat, Install, Serving, Withdraw
from shared.signing.trust import Trust
from tests.unit.releases.factories import a_receipt
from tests.unit.releases.world import World

ALL_AT_ONCE = "stages = [1.0]"


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


def test_a_receipt_is_stored_with_its_signature_and_acknowledged(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    world.report(rollout, canary)
    row = world.row(rollout, canary)
    world.fleet.verifier.verify(canary.certificate, row.signature, b"shoal receipt v1\x00" + row.receipt.to_bytes())
    assert [command.order for command in canary.inbox[1:]] == [Acknowledged("evt-1")]


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


def test_hawkbit_3185_a_device_that_proves_another_bundle_never_counts(world: World) -> None:
    """https://github.com/eclipse-hawkbit/hawkbit/issues/3185"""
    rollout = world.start()
    (canary,) = world.offered(rollout)
    world.report(rollout, canary, bundle_digest=digest_of(b"still the old one"))
    assert world.row(rollout, canary).state is DeviceState.WITHDRAWING  # it claims to serve: it is told to go back
    assert world.state(rollout) is RolloutState.REFUSED
    assert "it serves bundle" in world.store.rollout(rollout).reason


def test_a_device_that_says_it_serves_without_a_receipt_does_not_count(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    digest = world.releases.release("digits", 1).digest
    world.rollouts.received(canary.id, "evt-1", Heartbeat((Serving("digits", 1, digest, proven=True),)))
    world.fleet.attach(canary.id, Serving("digits", 1, digest, proven=True))
    world.tick(60)
    assert world.row(rollout, canary).state is DeviceState.OFFERED
    assert world.store.rollout(rollout).stage == 1


def test_numbers_outside_the_gate_are_refused_although_the_device_says_proven(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    world.report(rollout, canary, accuracy_before=0.95, accuracy_after=0.5)
    assert world.state(rollout) is RolloutState.REFUSED
    assert len(canary.orders(Withdraw)) == 1


def test_a_receipt_signed_by_another_device_is_noted_acknowledged_and_never_counts(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    other = next(device for device in world.devices if device is not canary)
    world.rollouts.received(canary.id, "evt-7", other.report(a_receipt(world.releases.release("digits", 1)), rollout))
    assert world.row(rollout, canary).state is DeviceState.OFFERED
    assert world.rollouts.records(rollout)[-1].kind == "receipt.refused"
    assert canary.inbox[-1].order == Acknowledged("evt-7")


def test_a_changed_receipt_never_counts(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    report = canary.report(a_receipt(world.releases.release("digits", 1)), rollout)
    better = report.receipt_json.replace(b'"accuracy_after":0.96', b'"accuracy_after":0.99')
    world.rollouts.received(canary.id, "evt-1", replace(report, receipt_json=better))
    assert world.row(rollout, canary).state is DeviceState.OFFERED


def test_a_receipt_about_another_rollout_is_not_mistaken_for_this_one(world: World) -> None:
    first = world.start()
    world.prove_all(first)
    second = world.start(2)
    (canary,) = world.offered(second)
    old = canary.report(a_receipt(world.releases.release("digits", 1)), first)
    world.rollouts.received(canary.id, "evt-1", replace(old, command_id=CommandId("c"), rollout_id=second))
    assert world.row(second, canary).state is DeviceState.OFFERED
    assert "in a report about" in str(world.rollouts.records(second)[-1].detail["reason"])


def test_a_report_about_an_unknown_rollout_is_acknowledged_and_forgotten(world: World) -> None:
    device = world.devices[0]
    receipt = a_receipt(world.releases.release("digits", 1))
    world.rollouts.received(device.id, "evt-1", device.report(receipt, RolloutId("rol-unknown")))
    assert [command.order for command in device.inbox] == [Acknowledged("evt-1")]


def test_a_repeated_receipt_changes_nothing_and_is_acknowledged_again(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    world.report(rollout, canary)
    before, records = world.store.rollout(rollout), world.rollouts.records(rollout)
    world.report(rollout, canary)
    assert (world.store.rollout(rollout), world.rollouts.records(rollout)) == (before, records)
    assert [command.order for command in canary.inbox[1:]] == [Acknowledged("evt-1")] * 2


def test_a_receipt_that_could_not_be_committed_is_not_acknowledged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)

    def lost(*_: Any) -> Rollout:
        raise Unavailable("the database did not answer")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "change", lost)
        world.report(rollout, canary)
    assert canary.orders(Install) == [command.order for command in canary.inbox]
    world.report(rollout, canary)
    assert world.row(rollout, canary).state is DeviceState.PROVEN


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


def test_a_quarantined_device_that_proved_late_goes_back_with_the_others(world: World) -> None:
    rollout = world.start(plan=ALL_AT_ONCE)
    gone = world.devices[0]
    world.fleet.away.add(gone.id)
    world.tick(CENSUS_S)
    world.report(rollout, gone)
    assert world.row(rollout, gone).state is DeviceState.SKIPPED
    world.rollouts.undo(rollout, "ann")
    assert len(gone.orders(Withdraw)) == 1


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


def test_a_device_named_in_no_rollout_hears_nothing(world: World) -> None:
    stranger = DeviceId("dev-a")
    world.fleet.attach(stranger)
    assert world.fleet.devices[stranger].inbox == []
