"""Only a device's own signed receipt, of this rollout and inside its gate, counts."""

from dataclasses import replace
from typing import Any

import pytest

from coordinator.releases.release import Rollout
from coordinator.releases.states import DeviceState, RolloutState
from shared.errors import Unavailable
from shared.ids import CommandId, RolloutId, digest_of
from shared.session import Acknowledged, Heartbeat, Install, Serving, Withdraw
from tests.unit.releases.factories import a_receipt
from tests.unit.releases.world import World


def test_a_receipt_is_stored_with_its_signature_and_acknowledged(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    world.report(rollout, canary)
    row = world.row(rollout, canary)
    world.fleet.verifier.verify(canary.certificate, row.signature, b"shoal receipt v1\x00" + row.receipt.to_bytes())
    assert [command.order for command in canary.inbox[1:]] == [Acknowledged("evt-1")]


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
