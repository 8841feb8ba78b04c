"""From what the demo saw to the closing table: receipts, rounds, answers, and what had to hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulations.answers import Answers
from simulations.answers import Outcome as Ending
from simulations.commands import Device, Job, Release, Rollout, Round
from simulations.outcome import NAN, Check, DeviceLine, Mark, Outcome, RoundLine, Side, mean

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Facts:
    """Everything that the fleet told, before it is judged."""

    what: str
    command: str
    prune_after: int
    started_at: float
    ended_at: float
    examples: Mapping[str, int]
    job: Job
    rounds: Sequence[Round]
    before: Rollout
    after: Rollout
    bad: Rollout
    releases: Mapping[int, Release]
    devices: Sequence[Device]
    restarts: Mapping[str, int]


def summarise(facts: Facts, answers: Answers, marks: Sequence[Mark]) -> Outcome:
    devices = tuple(_device(facts, answers, name) for name in facts.examples)
    return Outcome(
        title=f"Shoal demo: {facts.what}",
        command=facts.command,
        started_at=facts.started_at,
        ended_at=facts.ended_at,
        devices=devices,
        rounds=tuple(_round(facts, one) for one in facts.rounds),
        marks=tuple(sorted(marks, key=lambda mark: mark.at)),
        checks=_checks(facts, answers, devices, marks),
        held_back=answers.held_back,
    )


def _device(facts: Facts, answers: Answers, name: str) -> DeviceLine:
    mine = answers.where(device=name)
    return DeviceLine(
        name=name,
        examples=facts.examples[name],
        before=_side(facts.before, answers, name),
        after=_side(facts.after, answers, name),
        answered=answers.count(Ending.ANSWERED, mine),
        failed=answers.count(Ending.FAILED, mine),
        cut=answers.count(Ending.CUT, mine),
    )


def _side(rollout: Rollout, answers: Answers, name: str) -> Side:
    """What a device's receipt says, and how live requests to that very graph fared."""
    receipt = next(device.receipt for device in rollout.devices if device.name == name)
    rows = answers.where(device=name, digest=str(receipt["variant_digest"]))
    latency = answers.latency(rows)
    return Side(
        release=rollout.release,
        runtime=str(receipt["runtime"]),
        accuracy=answers.accuracy(rows),
        bytes=int(receipt["size_bytes"]),
        p50_ms=latency.p50,
        p99_ms=latency.p99,
    )


def _round(facts: Facts, one: Round) -> RoundLine:
    counted = one.with_outcome("counted")
    first, final = (
        int(facts.releases[number].report["parameters"]) for number in (facts.before.release, facts.job.release)
    )
    return RoundLine(
        round=one.round,
        attempt=one.attempt,
        state=one.state,
        seconds=one.ended_at - one.started_at,
        accuracy=one.metrics.get("evaluate_eval_acc", NAN),
        parameters=first if one.round <= facts.prune_after else final,
        counted=len(counted),
        recovered=len(one.with_outcome("recovered")),
        dropped=len(one.with_outcome("dropped")),
        rejected=len(one.with_outcome("rejected")),
        bytes_up=mean([device.bytes_up for device in counted]),
        bytes_down=mean([device.bytes_down for device in counted]),
        fp32_bytes=first * FLOAT_BYTES,
    )


def _checks(facts: Facts, answers: Answers, devices: Sequence[DeviceLine], marks: Sequence[Mark]) -> tuple[Check, ...]:
    failed, sent = answers.count(Ending.FAILED), len(answers)
    wrong = ", ".join(f"{count} {reason}" for reason, count in sorted(answers.reasons().items()))
    committed = [one for one in facts.rounds if one.state == "COMMITTED"]
    recovered = {device.name for one in committed for device in one.with_outcome("recovered")}
    killed = {mark.device for mark in marks if mark.kind == "kill"}
    proven = sum(device.state == "PROVEN" for device in facts.after.devices)
    took_bad = sum(device.state == "PROVEN" for device in facts.bad.devices)
    serving = [device.serves(facts.job.model) for device in facts.devices]
    on_good = sum(one is not None and one.release == facts.job.release and one.proven for one in serving)
    before, after = mean([one.before.accuracy for one in devices]), mean([one.after.accuracy for one in devices])
    return (
        Check("no live request failed", failed == 0, f"{failed} of {sent:,}{': ' + wrong if wrong else ''}"),
        Check("every round was committed", facts.job.rounds_committed == facts.job.rounds_total,
              f"{facts.job.rounds_committed} of {facts.job.rounds_total}"),
        Check("the killed device's masks were taken out of the sum", bool(killed) and killed <= recovered,
              ", ".join(sorted(recovered)) or "none"),
        Check("the killed agent came back by itself", sum(facts.restarts.values()) == 1, f"{sum(facts.restarts.values())} restart"),
        Check("every device proves the new release", proven == len(devices), f"{proven} of {len(devices)}"),
        Check("the ruined release was refused at the canary", facts.bad.state == "REFUSED" and took_bad == 0,
              f"{facts.bad.state.lower()}, {took_bad} devices took it"),
        Check("the fleet stays on the good release", on_good == len(devices), f"{on_good} of {len(devices)}"),
        Check("the fleet is better on live digits than before", after > before,
              f"{100 * before:.1f} % → {100 * after:.1f} %"),
    )  # fmt: skip
