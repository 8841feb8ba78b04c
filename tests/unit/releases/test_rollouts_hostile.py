"""Rollouts under devices that lie, repeat themselves or renew their keys, and under trouble of our own."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from coordinator.releases import changes
from coordinator.releases.release import Rollout
from coordinator.releases.standing import Standing
from coordinator.releases.states import DeviceState, RolloutState
from shared.ids import RolloutId
from shared.session import Install, Serving
from shared.signing.certificates import Authority
from tests.unit.releases.factories import Device, a_bundle, a_receipt
from tests.unit.releases.world import ALL_AT_ONCE, World


def serving(world: World, number: int) -> Serving:
    return Serving("digits", number, world.releases.release("digits", number).digest, True)


# ---- a receipt that leaves out what it should be compared with


def test_a_device_that_leaves_out_the_accuracy_of_what_it_served_proves_nothing(world: World) -> None:
    """Else one failed measuring request would pass a ruined release."""
    world.prove_all(world.start(1))
    second = world.start(2)
    (canary,) = world.offered(second)
    world.report(second, canary, accuracy_before=None, accuracy_after=0.1)
    assert "was not measured" in world.store.rollout(second).reason
    assert world.state(second) is RolloutState.REFUSED


@pytest.mark.parametrize("says", ["the old model", "the new model already", "nothing"])
def test_a_restarted_coordinator_still_knows_that_a_device_has_something_to_compare(world: World, says: str) -> None:
    world.prove_all(world.start(1))
    second = world.start(2)
    (canary,) = world.offered(second)
    world.restart()
    said = {"the old model": (serving(world, 1),), "the new model already": (serving(world, 2),), "nothing": ()}[says]
    if said:
        world.fleet.attach(canary.id, *said)
    else:
        world.fleet.online.discard(canary.id)
    world.report(second, canary, accuracy_before=None)
    assert world.row(second, canary).state is not DeviceState.PROVEN


def test_a_device_that_starts_with_nothing_has_nothing_to_compare_with(world: World) -> None:
    """It said when it attached that it serves no model; that it proved one once is long ago."""
    world.prove_all(world.start(1))
    second = world.start(2)
    (canary,) = world.offered(second)
    world.fleet.attach(canary.id)
    world.report(second, canary, accuracy_before=None)
    assert world.row(second, canary).state is DeviceState.PROVEN


# ---- floods


def test_a_device_that_sends_bad_receipts_for_ever_fills_no_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    before, written = len(world.rollouts.records(rollout)), []
    commit = world.store.change

    def counted(name: RolloutId, decide: Any) -> Rollout:
        def noting(found: Rollout) -> Any:
            change = decide(found)
            written.append(change) if change is not None else None
            return change

        return commit(name, noting)

    monkeypatch.setattr(world.store, "change", counted)
    for number in range(50):
        good = canary.report(a_receipt(world.releases.release("digits", 1), answers=64 + number), rollout)
        world.rollouts.received(canary.id, f"evt-{number}", replace(good, signature=b"nonsense"))
    assert [one.kind for one in world.rollouts.records(rollout)[before:]] == ["receipt.refused"]
    assert len(written) == 1


def test_a_device_that_changes_its_mind_for_ever_fills_no_disk(world: World) -> None:
    rollout = world.start(plan="stages = [1.0]\nmax_failures = 4")
    first = world.devices[0]
    world.report(rollout, first, state="refused", reason="no")
    before = len(world.rollouts.records(rollout))
    for number in range(50):
        state = ("failed", "refused", "proven")[number % 3]
        world.report(rollout, first, state=state, reason=f"reason {number}")
    lines = world.rollouts.records(rollout)[before:]
    assert len(lines) == len({one.summary for one in lines}) <= 3
    assert world.row(rollout, first).state is DeviceState.REFUSED


def test_a_restart_does_not_write_down_again_what_a_device_says_again(world: World) -> None:
    rollout = world.start(plan="stages = [1.0]\nmax_failures = 4")
    first = world.devices[0]
    world.report(rollout, first, state="refused", reason="no")
    before = world.rollouts.records(rollout)
    for number in range(3):
        world.restart()
        world.report(rollout, first, state="refused", reason=f"reason {number}")
    assert world.rollouts.records(rollout) == before


# ---- renewed keys


def test_a_receipt_signed_before_a_renewal_still_counts(world: World) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    waiting = canary.report(a_receipt(world.releases.release("digits", 1)), rollout)
    canary.renew(world.fleet.authority)
    world.rollouts.received(canary.id, "evt-1", waiting)
    assert world.row(rollout, canary).state is DeviceState.PROVEN


@pytest.mark.parametrize("shown", ["of another fleet", "of another device", "none", "an admin's"])
def test_a_receipt_with_a_certificate_that_is_not_the_devices_never_counts(world: World, shown: str) -> None:
    rollout = world.start()
    (canary,) = world.offered(rollout)
    if shown == "an admin's":
        canary.renew(world.fleet.authority, "admin")
    elif shown != "none":
        stranger = Device(Authority.create("other", world.clock.now()), canary.ref.name)
        other = next(device for device in world.devices if device is not canary)
        canary.identity = stranger.identity if shown == "of another fleet" else other.identity
    report = canary.report(a_receipt(world.releases.release("digits", 1)), rollout)
    if shown == "none":
        report = replace(report, certificate=b"")
    world.rollouts.received(canary.id, "evt-1", report)
    assert world.row(rollout, canary).state is DeviceState.OFFERED
    assert world.rollouts.records(rollout)[-1].kind == "receipt.refused"


# ---- trouble of our own


def test_one_rollout_that_breaks_holds_up_no_other_and_ends_no_process(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.releases.publish(a_bundle(world.folder / "signs", "signs"), "signs")
    broken = world.start()
    whole = world.rollouts.start("signs", 1, "stage_timeout_s = 60", "", "ann").id
    proceed = changes.proceed

    def fragile(rollout: Rollout, *arguments: Any) -> Any:
        if rollout.id == broken:
            raise RuntimeError("a mistake in our own code")
        return proceed(rollout, *arguments)

    monkeypatch.setattr(changes, "proceed", fragile)
    world.tick(60)
    assert world.state(whole) is RolloutState.PAUSED


@pytest.mark.parametrize("breaks", ["refresh", "metadata"])
def test_a_tick_survives_any_failure_to_sign_and_does_its_work_later(
    world: World, breaks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(world.releases, breaks, partial(_fails, RuntimeError("a mistake in our own code")))
        rollout = world.start()
        world.tick(60)
        assert world.state(rollout) is RolloutState.STAGING
    world.tick(1)
    (canary,) = world.offered(rollout)
    assert len(canary.orders(Install)) == 1
    world.prove_all(rollout)
    assert world.state(rollout) is RolloutState.COMPLETED


def _fails(error: Exception) -> None:
    raise error


# ---- memory


def test_rollouts_that_have_ended_do_not_stay_in_memory(world: World) -> None:
    for number in range(3, 8):
        world.releases.publish(a_bundle(world.folder / f"bundle-{number}", str(number)), "digits")
    rollouts = [world.start(number, ALL_AT_ONCE) for number in range(1, 2)]
    world.prove_all(rollouts[0])
    for number in range(2, 8):
        rollouts.append(world.start(number, ALL_AT_ONCE))
        world.prove_all(rollouts[-1])
    kept = Standing(world.store)
    assert [one.id for one in kept] == rollouts[-1:]
    assert len(world.rollouts._standing) == 1  # what a tick scans


def test_the_release_before_is_current_again_after_an_undo_although_it_was_let_go(world: World) -> None:
    first, second = world.start(1, ALL_AT_ONCE), None
    world.prove_all(first)
    second = world.start(2, ALL_AT_ONCE)
    world.prove_all(second)
    world.rollouts.undo(second, "ann")
    for device in world.devices:
        world.report(second, device, state="reverted")
    late = world.devices[0]
    world.fleet.attach(late.id, Serving("digits", 9, "0" * 64, True))  # type: ignore[arg-type]  # any digest
    assert world.row(first, late).state is DeviceState.OFFERED
