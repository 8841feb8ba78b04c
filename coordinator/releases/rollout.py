"""The rollout's brain: what to do next, as values. Reads no clock, sends nothing, stores nothing."""

from dataclasses import dataclass

from coordinator.releases.release import Release, Rollout, RolloutDevice
from coordinator.releases.states import UNWANTED, DeviceEvent, DeviceState, RolloutState
from shared.ids import DeviceId
from shared.shares import share_of
from shared.signing.receipts import Receipt


@dataclass(frozen=True)
class Begin:
    pass


@dataclass(frozen=True)
class Offer:
    device: DeviceId


@dataclass(frozen=True)
class Withdraw:
    device: DeviceId


@dataclass(frozen=True)
class Advance:
    stage: int


@dataclass(frozen=True)
class Complete:
    pass


@dataclass(frozen=True)
class Refuse:
    reason: str


@dataclass(frozen=True)
class Pause:
    reason: str


@dataclass(frozen=True)
class Undone:
    reason: str


@dataclass(frozen=True)
class Wait:
    """Nothing to do before `until`, unless a receipt comes."""

    until: float


Action = Begin | Offer | Withdraw | Advance | Complete | Refuse | Pause | Undone | Wait


def decide(rollout: Rollout, now: float) -> tuple[Action, ...]:
    """What this rollout asks for at `now`. Applying the actions and asking again ends with `Wait` or nothing."""
    match rollout.state:
        case RolloutState.PLANNED:
            return (Begin(),)
        case RolloutState.STAGING:
            return _decide_stage(rollout, now)
        case RolloutState.COMPLETED:  # late devices
            return tuple(Offer(row.device) for row in rollout.devices if row.state is DeviceState.PENDING)
        case state if state in UNWANTED:
            return _decide_withdrawal(rollout, now)
    return ()


def _decide_stage(rollout: Rollout, now: float) -> tuple[Action, ...]:
    plan = rollout.plan
    for stage in range(1, rollout.stage + 1):
        bad = [row for row in _members(rollout, stage) if row.state in (DeviceState.REFUSED, DeviceState.FAILED)]
        if len(bad) > plan.max_failures:
            return (Refuse(_why_refused(rollout, stage, bad)),)
    members = _members(rollout, rollout.stage)
    proven = [row for row in members if row.state is DeviceState.PROVEN]
    waiting = [row for row in members if row.state in (DeviceState.PENDING, DeviceState.OFFERED)]
    if members and not proven and not waiting:
        return (Refuse(f"no device of stage {rollout.stage} proved that it serves the release"),)
    offers = tuple(
        Offer(row.device) for row in rollout.devices if row.stage <= rollout.stage and row.state is DeviceState.PENDING
    )
    wanted = max(1, share_of(plan.min_proven, len(proven) + len(waiting))) if members else 0
    if len(proven) < wanted:
        return (*offers, _wait_for_proofs(rollout, len(proven), wanted, now))
    soaked_at = max((row.updated_at for row in proven), default=now - plan.soak_s) + plan.soak_s
    if now < soaked_at:
        return (*offers, Wait(soaked_at))
    if rollout.stage == len(plan.stages):
        return (*offers, Complete())
    return (*offers, Advance(rollout.stage + 1))


def _members(rollout: Rollout, stage: int) -> list[RolloutDevice]:
    return [row for row in rollout.devices if row.stage == stage and row.state is not DeviceState.SKIPPED]


def _wait_for_proofs(rollout: Rollout, proven: int, wanted: int, now: float) -> Wait | Pause:
    until = rollout.stage_started_at + rollout.plan.stage_timeout_s
    if now < until:
        return Wait(until)
    return Pause(
        f"stage {rollout.stage} has {proven} of {wanted} proofs after {rollout.plan.stage_timeout_s:.0f} s;"
        " resume to wait on, or undo"
    )


def _why_refused(rollout: Rollout, stage: int, bad: list[RolloutDevice]) -> str:
    total = sum(row.stage == stage for row in rollout.devices)
    return f"stage {stage}: {len(bad)} of {total} devices refused or failed; {bad[0].device}: {bad[0].reason}"


def _decide_withdrawal(rollout: Rollout, now: float) -> tuple[Action, ...]:
    """Devices that may serve an unwanted release go back; a device that never answers does not hold up the end for ever."""
    orders = tuple(
        Withdraw(row.device) for row in rollout.devices if row.may_serve and row.state is not DeviceState.WITHDRAWING
    )
    if orders or rollout.state is not RolloutState.UNDOING:
        return orders
    missing = [row for row in rollout.devices if row.state is DeviceState.WITHDRAWING]
    until = rollout.stage_started_at + rollout.plan.undo_timeout_s
    if missing and now < until:
        return (Wait(until),)
    return (
        Undone(f"{len(missing)} devices have not confirmed; they will be told when they connect" if missing else ""),
    )


# ---- receipts


def judge(
    receipt: Receipt, rollout: Rollout, release: Release, *, served_before: bool = False
) -> tuple[DeviceEvent, str]:
    """What a verified receipt means. Its numbers are checked here again; its verdict alone is not believed.

    A device that `served_before` has something to compare with: a receipt that lacks it proves nothing. A receipt for any
    other bundle than the release's never counts as success: installed is not serving (hawkBit issue 3185).
    """
    match receipt.state:
        case "refused":
            return DeviceEvent.REFUSE, receipt.reason or "the device's gate refused it"
        case "failed":
            return DeviceEvent.FAIL, receipt.reason or "it could not be installed"
        case "reverted":
            return DeviceEvent.REVERT, receipt.reason
    if receipt.bundle_digest != release.digest:
        return DeviceEvent.FAIL, (
            f"it serves bundle {receipt.bundle_digest[:12]}…, not the release's {release.digest[:12]}…"
        )
    if not receipt.variant_digest or not receipt.runtime:
        return DeviceEvent.FAIL, "the receipt does not say which graph serves, and on what"
    if served_before and receipt.accuracy_before is None and receipt.accuracy_after is not None:
        return DeviceEvent.FAIL, "the model that it served before was not measured"
    problem = _gate_problem(receipt, rollout, release)
    return (DeviceEvent.REFUSE, problem) if problem else (DeviceEvent.PROVE, receipt.reason)


def _gate_problem(receipt: Receipt, rollout: Rollout, release: Release) -> str:
    gate, before, after = rollout.plan.gate, receipt.accuracy_before, receipt.accuracy_after
    if receipt.answers < gate.min_answers:
        return f"only {receipt.answers} of {gate.min_answers} answers were given"
    if receipt.errors:
        return f"{receipt.errors} requests failed"
    if after is None and (before is not None or rollout.plan.require_accuracy):
        return "accuracy was not measured"
    if not all(value is None or 0 <= value <= 1 for value in (before, after, receipt.top1_agreement)):
        return "a measured share is not between 0 and 1"
    # Both sides come from decimal shares: a drop equal to the budget passes in spite of binary rounding.
    if before is not None and after is not None and before - after > gate.accuracy_budget + 1e-9:
        return f"accuracy fell from {before:.1%} to {after:.1%}, more than {gate.accuracy_budget:.1%}"
    return _requantization_problem(receipt, rollout, release)


def _requantization_problem(receipt: Receipt, rollout: Rollout, release: Release) -> str:
    """A device that serves the release's own graph has nothing to compare; any other graph was made there and was compared."""
    gate, difference, agreement = rollout.plan.gate, receipt.max_logit_difference, receipt.top1_agreement
    own = receipt.variant_digest == release.manifest.files["model.onnx"].digest
    if not own and (difference is None or agreement is None):
        return "the device's graph was not compared with the release's"
    if difference is not None and not 0 <= difference <= gate.max_logit_difference:
        return f"logits differ by {difference:.3g}, more than {gate.max_logit_difference:.3g}"
    if agreement is not None and agreement < gate.min_top1_agreement:
        return f"the device's graph agrees on {agreement:.1%} of examples, less than {gate.min_top1_agreement:.1%}"
    return ""
