"""What the demo's checks make of a fleet of three, and of everything that can be wrong with it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from simulations.answers import Answer, Answers, collect
from simulations.commands import Device, Job, Release, Rollout, RolloutDevice, Round, RoundDevice, Serving
from simulations.demo_outcome import Facts, summarise
from simulations.outcome import Mark

NAMES = ("device-1", "device-2", "device-3")
DIGESTS = {1: "a" * 64, 2: "b" * 64}


def _rollout(number: int, state: str = "COMPLETED", devices: str = "PROVEN") -> Rollout:
    receipt = {"variant_digest": DIGESTS.get(number, ""), "runtime": "onnxruntime", "size_bytes": 1000 // number}
    rows = tuple(RolloutDevice(name, 1, devices, "", receipt) for name in NAMES)
    return Rollout(f"rol-{number}", "digits", number, state, 1, 1, "", rows, ())


def _round(number: int, last: str) -> Round:
    outcomes = zip(NAMES, ("counted", "counted", last), strict=True)
    devices = tuple(RoundDevice(name, outcome, "", 1, 200, 100, 0.5) for name, outcome in outcomes)
    metrics = {"evaluate_eval_acc": 0.9}
    return Round(number, 1, "COMMITTED", 10.0 * number, 10.0 * number + 5, 3, metrics, devices, 600, 300, "")


def _facts() -> Facts:
    return Facts(
        what="3 devices, 2 rounds",
        command="simulate demo --devices 3",
        prune_after=1,
        started_at=0.0,
        ended_at=60.0,
        examples=dict.fromkeys(NAMES, 100),
        job=Job("job-1", "completed", 2, 2, "digits", 2, ""),
        rounds=(_round(1, "recovered"), _round(2, "counted")),
        before=_rollout(1),
        after=_rollout(2),
        bad=_rollout(3, state="REFUSED", devices="REFUSED"),
        releases={
            number: Release("digits", number, DIGESTS[number], {}, {}, {"parameters": 100 // number})
            for number in (1, 2)
        },
        devices=[Device(name, name, "active", True, (Serving("digits", 2, DIGESTS[2], True),)) for name in NAMES],
        restarts={"device-1": 0, "device-2": 0, "device-3": 1},
    )


KILLED = [Mark(12.0, "kill", "its agent is killed with SIGKILL", "device-3")]


def _answers(*, right_after: bool = True, failed: int = 0) -> Answers:
    """Each device answers half of its requests right before, and all of them after, or as said."""
    told = [
        Answer(name, at, at, at + 0.002, version=str(release), digest=DIGESTS[release], correct=correct)
        for name in NAMES
        for at, release, correct in ((1.0, 1, True), (2.0, 1, False), (3.0, 2, True), (4.0, 2, right_after))
    ]
    lost = [Answer(NAMES[0], 5.0, 5.0, 5.1, "INTERNAL")] * failed
    return collect([*told, *lost], held_back=4)


def test_a_demo_in_which_everything_held_is_told_device_by_device_and_round_by_round() -> None:
    outcome = summarise(_facts(), _answers(), KILLED)
    assert outcome.held, [check for check in outcome.checks if not check.held]
    assert [(one.before.accuracy, one.after.accuracy, one.answered) for one in outcome.devices] == [(0.5, 1.0, 4)] * 3
    assert [(one.before.bytes, one.after.bytes) for one in outcome.devices] == [(1000, 500)] * 3
    assert [(one.counted, one.recovered, one.parameters, one.fp32_bytes) for one in outcome.rounds] == [
        (2, 1, 100, 400),
        (3, 0, 50, 400),
    ]
    assert outcome.held_back == 4


WRONG: dict[str, tuple[Callable[[Facts], Any], dict[str, Any]]] = {
    "no live request failed": (lambda facts: facts, {"failed": 1}),
    "every round was committed": (lambda facts: replace(facts, job=replace(facts.job, rounds_committed=1)), {}),
    "the killed device's masks were taken out of the sum": (
        lambda facts: replace(facts, rounds=(_round(1, "dropped"), _round(2, "counted"))),
        {},
    ),
    "the killed agent came back by itself": (lambda facts: replace(facts, restarts={}), {}),
    "every device proves the new release": (lambda facts: replace(facts, after=_rollout(2, devices="FAILED")), {}),
    "the ruined release was refused at the canary": (lambda facts: replace(facts, bad=_rollout(3)), {}),
    "the fleet stays on the good release": (
        lambda facts: replace(facts, devices=[replace(facts.devices[0], models=()), *facts.devices[1:]]),
        {},
    ),
    "the fleet is better on live digits than before": (lambda facts: facts, {"right_after": False}),
}


@pytest.mark.parametrize("text", WRONG)
def test_each_thing_that_had_to_hold_is_found_out_alone_when_it_did_not(text: str) -> None:
    wrong, answers = WRONG[text]
    outcome = summarise(wrong(_facts()), _answers(**answers), KILLED)
    assert [check.text for check in outcome.checks if not check.held] == [text]
    assert len(outcome.checks) == len(WRONG)
