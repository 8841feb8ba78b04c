"""Every way in which a rollout changes, as a pure function `(rollout, …, now) → Change`. Stores run them inside a transaction."""

from collections.abc import Collection
from dataclasses import replace

from coordinator.releases import rollout as brain
from coordinator.releases.release import Change, Release, Rollout, RolloutDevice, RolloutRecord
from coordinator.releases.rollout import decide, judge
from coordinator.releases.states import (
    UNWANTED,
    DeviceEvent,
    DeviceState,
    RolloutEvent,
    RolloutState,
    after,
    device_after,
)
from shared.errors import Conflict
from shared.ids import DeviceId, Digest
from shared.signing.receipts import Receipt
from shared.text import clean_text

NOTES = frozenset({"receipt.late", "receipt.refused"})  # lines of history about what changed no state
_ENDED = frozenset({RolloutState.COMPLETED, RolloutState.REFUSED, RolloutState.UNDONE})


def proceed(rollout: Rollout, connected: Collection[DeviceId], now: float) -> Change | None:
    """Do all that can be done now. Devices that are not connected wait for their offer; withdrawals are decided for all."""
    change: Change | None = None
    current = rollout
    while True:
        actions = decide(current, now)
        offered = {one.device for one in actions if isinstance(one, brain.Offer) and one.device in connected}
        withdrawn = {one.device for one in actions if isinstance(one, brain.Withdraw)}
        steps = [action for action in actions if not isinstance(action, brain.Offer | brain.Withdraw | brain.Wait)]
        if not (offered or withdrawn or steps):
            return change
        done = _rows(current, offered, DeviceEvent.OFFER, now)
        if withdrawn:
            done = _joined(done, _withdrawn(done.rollout, withdrawn, now))
        for action in steps:
            done = _joined(done, _apply(done.rollout, action, now))
        current, change = done.rollout, done if change is None else _joined(change, done)


def _apply(rollout: Rollout, action: brain.Action, now: float) -> Change:
    match action:
        case brain.Begin():
            return _moved(rollout, RolloutEvent.BEGIN, now, stage=1)
        case brain.Advance(stage):
            return _moved(rollout, RolloutEvent.ADVANCE, now, stage=stage)
        case brain.Complete():
            return _moved(rollout, RolloutEvent.COMPLETE, now)
        case brain.Pause(reason):
            return _moved(rollout, RolloutEvent.PAUSE, now, reason=reason)
        case brain.Refuse(reason):
            return _moved(rollout, RolloutEvent.REFUSE, now, reason=reason)
        case brain.Undone(reason):
            return _moved(rollout, RolloutEvent.UNDONE, now, reason=reason or rollout.reason)
    raise AssertionError(f"{action} is about devices")


def _withdrawn(rollout: Rollout, devices: Collection[DeviceId], now: float) -> Change:
    """A release that some device must leave is withdrawn for all; one that nobody took may be tried with another plan."""
    return replace(_rows(rollout, devices, DeviceEvent.WITHDRAW, now), withdraws=True)


# ---- what admins do


def pause(rollout: Rollout, actor: str, reason: str, now: float) -> Change:
    """Raises `Conflict`."""
    return _moved(rollout, RolloutEvent.PAUSE, now, actor=actor, reason=reason or f"paused by {actor}")


def resume(rollout: Rollout, actor: str, now: float) -> Change:
    """The stage's time starts anew. Raises `Conflict`."""
    return _moved(rollout, RolloutEvent.RESUME, now, actor=actor, reason="", restart=True)


def undo(rollout: Rollout, actor: str, reason: str, now: float) -> Change:
    """Devices whose turn has not come are left alone. Raises `Conflict`."""
    if rollout.state is RolloutState.REFUSED:
        raise Conflict(f"rollout {rollout.id} was refused by the fleet: its devices go back without being told again")
    change = _moved(rollout, RolloutEvent.UNDO, now, actor=actor, reason=reason or f"undone by {actor}", restart=True)
    pending = {row.device for row in rollout.devices if row.state is DeviceState.PENDING}
    skipped = _rows(change.rollout, pending, DeviceEvent.SKIP, now, "undone before its turn")
    return replace(_joined(change, skipped), withdraws=True)


# ---- what devices do


def receive(
    rollout: Rollout, release: Release, receipt: Receipt, signature: bytes, now: float, *, served_before: bool = False
) -> Change | None:
    """A receipt that verified. None when it tells nothing new: the history has one line for what a device says again."""
    row = rollout.find(DeviceId(receipt.device))
    if row is None or row.receipt == receipt:
        return None
    event, reason = judge(receipt, rollout, release, served_before=served_before)
    state = device_after(row.state, event)
    if state is None:
        if row.receipt is not None and row.receipt.state == receipt.state:
            return None
        # It changes no state, but a claim to serve is kept: such a device goes back too when the release is unwanted.
        detail = {"device": row.device, "receipt": receipt.state, "while": row.state.value}
        kept = replace(row, receipt=receipt, signature=signature)
        return Change(_with_row(rollout, kept), (RolloutRecord(now, "receipt.late", detail),))
    change = _rows(rollout, {row.device}, event, now, reason)
    kept = replace(change.rollout.find(row.device) or row, receipt=receipt, signature=signature)
    return replace(change, rollout=_with_row(change.rollout, kept))


def receipt_refused(rollout: Rollout, device: DeviceId, reason: str, now: float) -> Change:
    """A receipt that does not verify changes nothing but the history: the device stays unproven."""
    return Change(rollout, (RolloutRecord(now, "receipt.refused", {"device": device, "reason": clean_text(reason)}),))


def join(rollout: Rollout, device: DeviceId, now: float) -> Change | None:
    """A device that joined the cohort after the start comes last."""
    if rollout.state in UNWANTED or rollout.find(device) is not None:
        return None
    row = RolloutDevice(device, stage=len(rollout.plan.stages), updated_at=now)
    record = RolloutRecord(now, "device.join", {"device": device, "stage": row.stage})
    return Change(replace(rollout, devices=(*rollout.devices, row)), (record,))


def serves(rollout: Rollout, device: DeviceId, digest: Digest, now: float) -> Change | None:
    """What a device says that it really runs. One that proved this release and runs another is offered it again."""
    row = rollout.find(device)
    if row is None or row.state is not DeviceState.PROVEN or digest == rollout.digest:
        return None
    return _rows(rollout, {device}, DeviceEvent.LOSE, now, f"it came back serving bundle {digest[:12]}…")


def census(rollout: Rollout, members: Collection[DeviceId], now: float) -> Change | None:
    """Devices that left the cohort (quarantined, revoked) hold up no stage; those that came back take part again."""
    gone = {row.device for row in rollout.devices if row.device not in members and _may(row, DeviceEvent.SKIP)}
    back = {row.device for row in rollout.devices if row.device in members and _may(row, DeviceEvent.RETURN)}
    if not gone and not back:
        return None
    change = _rows(rollout, gone, DeviceEvent.SKIP, now, "left the cohort")
    return _joined(change, _rows(change.rollout, back, DeviceEvent.RETURN, now))


# ---- pieces


def _moved(
    rollout: Rollout,
    event: RolloutEvent,
    now: float,
    *,
    stage: int = 0,
    actor: str = "",
    reason: str | None = None,
    restart: bool = False,
) -> Change:
    state = after(rollout.state, event)
    changed = replace(
        rollout,
        state=state,
        stage=stage or rollout.stage,
        stage_started_at=now if stage or restart else rollout.stage_started_at,
        ended_at=now if state in _ENDED else 0.0,
        reason=rollout.reason if reason is None else reason,
    )
    detail: dict[str, str | int | float] = {"state": state.value, "stage": changed.stage}
    detail |= {key: value for key, value in (("actor", actor), ("reason", reason)) if value}
    return Change(changed, (RolloutRecord(now, event.value, detail),))


def _may(row: RolloutDevice, event: DeviceEvent) -> bool:
    return device_after(row.state, event) is not None


def _rows(rollout: Rollout, devices: Collection[DeviceId], event: DeviceEvent, now: float, reason: str = "") -> Change:
    """Put devices through an event, in one pass. Raises `Conflict`."""
    rows, records = [], []
    for row in rollout.devices:
        if row.device not in devices:
            rows.append(row)
            continue
        state = device_after(row.state, event)
        if state is None:
            raise Conflict(f"device {row.device} is {row.state} and cannot be put through '{event}'")
        rows.append(replace(row, state=state, reason=reason[:500], updated_at=now))
        detail: dict[str, str | int | float] = {"device": row.device, "state": state.value}
        if reason:
            detail["reason"] = reason[:500]
        records.append(RolloutRecord(now, f"device.{event.value}", detail))
    return Change(replace(rollout, devices=tuple(rows)), tuple(records))


def _with_row(rollout: Rollout, changed: RolloutDevice) -> Rollout:
    rows = tuple(changed if row.device == changed.device else row for row in rollout.devices)
    return replace(rollout, devices=rows)


def _joined(first: Change, second: Change) -> Change:
    return Change(second.rollout, first.records + second.records, first.withdraws or second.withdraws)
