"""A run of the loop that never took place, for what is made from one."""

from dataclasses import replace

import numpy as np

from simulations.answers import Answer, Answers, Outage, collect
from simulations.outcome import Check, DeviceLine, Mark, Outcome, RoundLine, Side

START = 1_700_000_000.0
NAMES = tuple(f"device-{index}" for index in range(1, 9))


def some_answers(seconds: float = 180.0, rate_hz: float = 6.0) -> Answers:
    """Two releases; device-3 is killed at 80 s and back at 84 s."""
    rng = np.random.default_rng(0)
    answers = []
    for place, name in enumerate(NAMES):
        for due in START + 20 + np.cumsum(rng.exponential(1 / rate_hz, int((seconds - 20) * rate_hz))):
            if name == "device-3" and START + 80 < due < START + 84:
                continue
            after = due > START + 130 + 3 * place
            took = float(rng.lognormal(np.log(0.004 if after else 0.006), 0.5))
            right = bool(rng.random() < (0.97 if after else 0.86))
            version, digest = ("2", "b" * 64) if after else ("1", "a" * 64)
            answers.append(Answer(name, due, due, due + took, version=version, digest=digest, correct=right))
    answers.append(Answer("device-3", START + 79.999, START + 79.999, START + 80.01, "UNAVAILABLE"))
    return collect(answers, [Outage("device-3", START + 80, START + 84)], held_back=23)


def some_outcome() -> Outcome:
    rng = np.random.default_rng(1)
    devices = tuple(
        DeviceLine(
            name=name,
            examples=int(rng.integers(200, 700)),
            before=Side(1, "openvino", 0.86 + 0.04 * rng.standard_normal(), 98_000, 5.8, 14.0),
            after=Side(2, "onnxruntime", 0.965 + 0.01 * rng.standard_normal(), 31_000, 3.9, 9.7),
            answered=960,
            failed=0,
            cut=int(name == "device-3"),
        )
        for name in NAMES
    )
    first = RoundLine(1, 1, "COMMITTED", 7.5, 0.88, 21_800, 8, 0, 0, 0, 61_000, 90_000, 87_200)
    rounds = [replace(first, round=number, accuracy=0.975 - 0.09 * 0.6**number) for number in range(1, 9)]
    rounds[3] = replace(rounds[3], counted=7, recovered=1)
    rounds[4:] = [replace(one, parameters=9_400, bytes_up=27_000, bytes_down=39_000) for one in rounds[4:]]
    marks = [
        Mark(START, "phase", "8 devices enrolled"),
        Mark(START + 80, "kill", "its agent is killed with SIGKILL", "device-3"),
        Mark(START + 95, "prune", "channels pruned across the fleet"),
        *(Mark(START + 130 + 3 * place, "swap", "serves release 2", name) for place, name in enumerate(NAMES)),
        Mark(START + 160, "refused", "release 3 refused by the canary's gate", "device-1"),
    ]
    checks = (
        Check("no request failed", True, "0 of 7,681"),
        Check("the round with the killed agent was committed", True, "7 counted, 1 dropped"),
        Check("the bad release was refused", True, "0 devices serve it"),
    )
    return Outcome(
        title="The closed loop, once through",
        command="simulate demo",
        started_at=START,
        ended_at=START + 180,
        devices=devices,
        rounds=tuple(rounds),
        marks=tuple(marks),
        checks=checks,
        held_back=23,
    )
