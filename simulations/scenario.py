"""A scenario file: a fleet, its data, a job, what goes wrong, and what must hold all the same.

name = "a-device-dies-while-masks-are-out"
devices = 4
seed = 7
hosts = 0                 # a process an agent; else all agents in so many processes, for large fleets
requests_per_s = 4.0      # live, to each device, where the job trains a network

[data]
set = "mnist-5k"
alpha = 0.5               # Dirichlet over labels; or natural = true, whole people or sensors to devices
public_share = 0.1        # what the coordinator may see: the first model, pruning, calibration

[job]                     # as in a job file, without `model`, `start`, `public` and `publish`: the scenario fills them in
name = "digits"           # of the model too. The apps softmax and echo need none: no release goes out then, and no live load
client_app = "image-classifier"
rounds = 3

[[fault]]
kind = "kill"             # kill | cut | delay | throttle | partition
device = 2                # counted from 1
round = 2                 # with `phase`: when the round reaches it; or `after_s` alone, from the job's start
phase = "SELECTED"        # or MASKED …; KEYS and SHARES where a round makes a new group
for_s = 5.0               # how long a delay, throttle or partition lasts

[expect]
rounds_committed = 3
recovered_at_least = 1    # devices dropped, their masks taken out
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import eq, ge, le
from pathlib import Path
from typing import Literal

from coordinator.rounds.plan import Evaluate, JobSpec, Prune, Selection, StrategyChoice
from coordinator.rounds.secrecy import Secure
from coordinator.rounds.states import RoundState
from shared.settings import Scalar
from simulations.commands import Event, Round
from simulations.dealing import DataChoice
from simulations.jobfile import to_toml
from simulations.link import Weather
from simulations.outcome import Check

FaultKind = Literal["kill", "cut", "delay", "throttle", "partition"]
_ACCURACIES = ("eval_acc_before", "evaluate_eval_acc")  # of the model that a round began with; of the one that it made
_LASTING = frozenset({"delay", "throttle", "partition"})
_BOUNDS: Mapping[str, Callable[[float, float], bool]] = {"exactly": eq, "at least": ge, "at most": le}


@dataclass(frozen=True)
class Fault:
    """Units: seconds, bytes a second. `device` counts from 1."""

    kind: FaultKind
    device: int
    round: int = 0
    phase: str = ""
    after_s: float = 0.0
    for_s: float = 5.0
    delay_s: float = 0.2
    jitter_s: float = 0.0
    bytes_per_s: float = 50_000.0

    def __post_init__(self) -> None:
        if bool(self.round) != bool(self.phase):
            raise ValueError("a fault comes at a round and a phase, or after_s from the job's start")
        if self.phase and self.phase not in RoundState.__members__:
            raise ValueError(f"a round has no phase {self.phase}; there are {', '.join(RoundState)}")
        if self.device < 1 or min(self.after_s, self.for_s, self.delay_s, self.jitter_s, self.bytes_per_s) < 0:
            raise ValueError("device counts from 1; times and rates are not negative")

    @property
    def lasts(self) -> bool:
        return self.kind in _LASTING

    def due(self, event: Event) -> bool:
        """True for the event that a fault with a round and a phase waits for."""
        return bool(self.phase) and event.round == self.round and event.kind == self.phase

    def weather(self) -> Weather:
        """What the device's link is like while a lasting fault lasts."""
        match self.kind:
            case "delay":
                return Weather(delay_s=self.delay_s, jitter_s=self.jitter_s)
            case "throttle":
                return Weather(bytes_per_s=self.bytes_per_s)
            case _:
                return Weather(partitioned=self.kind == "partition")


@dataclass(frozen=True)
class Expect:
    """What must hold. Negative numbers: not asked."""

    job_state: Literal["completed", "failed", "stopped"] = "completed"
    rounds_committed: int = -1
    attempts_at_most: int = -1  # over all rounds
    counted_at_least: int = -1  # in every committed round
    recovered_at_least: int = -1  # over all rounds: dropped out, with their masks taken out of the sum
    rejected_at_least: int = -1
    failed_requests_at_most: int = 0
    accuracy_at_least: float = -1.0  # of the last round that measured it, on held-out examples, a share


@dataclass(frozen=True)
class ScenarioJob:
    """A job file's tables; what depends on the scenario's data and model is filled in by `job_toml`."""

    name: str
    client_app: str
    rounds: int
    strategy: StrategyChoice = field(default_factory=StrategyChoice)
    selection: Selection = field(default_factory=Selection)
    secure: Secure = field(default_factory=Secure)
    train: dict[str, Scalar] = field(default_factory=dict)
    evaluate: Evaluate = field(default_factory=Evaluate)
    prune: tuple[Prune, ...] = ()

    def job_toml(self, *, model: str = "", public: Path | None = None, arrays: Path | None = None) -> str:
        """The job file: for a `model` and the `public` samples, or from `arrays` without one.

        Raises `ConfigError` for one that the coordinator would refuse.
        """
        filled: dict[str, object] = {"model": model} if model else {}
        if public is not None:
            filled["public"] = {"data": str(public)}
        if arrays is not None:
            filled["start"] = {"arrays_file": str(arrays)}
        values = asdict(self)
        if not self.selection.min_devices:
            del values["selection"]["min_devices"]  # it was not said
        text = to_toml({**values, **filled})
        JobSpec.parse(text)
        return text


@dataclass(frozen=True)
class Scenario:
    name: str
    devices: int
    job: ScenarioJob
    seed: int = 0
    hosts: int = 0  # so many processes for all agents; 0: one for each
    data: DataChoice = field(default_factory=DataChoice)
    fault: tuple[Fault, ...] = ()
    expect: Expect = field(default_factory=Expect)
    requests_per_s: float = 4.0  # to each device; 0: no live load

    def __post_init__(self) -> None:
        if not 1 <= self.devices <= 1000:
            raise ValueError("devices is from 1 to 1000")
        if any(fault.device > self.devices for fault in self.fault):
            raise ValueError(f"a fault names a device beyond the {self.devices} there are")
        if any(fault.round > self.job.rounds for fault in self.fault):
            raise ValueError(f"a fault waits for a round beyond the {self.job.rounds} of the job")
        if self.requests_per_s < 0:
            raise ValueError("requests_per_s is not negative")
        if not 0 <= self.hosts <= self.devices:
            raise ValueError("hosts is 0, or at most as many as there are devices")
        if self.hosts and any(fault.kind == "kill" for fault in self.fault):
            raise ValueError("an agent that shares its host's process cannot be killed alone: set hosts = 0")


def judge(expect: Expect, *, state: str, rounds: Sequence[Round], failed: int | None) -> tuple[Check, ...]:
    """Every expectation that was asked, with what was found. `failed` requests are None where there was no load."""
    committed = [one for one in rounds if one.state == "COMMITTED"]
    counted = min((len(one.with_outcome("counted")) for one in committed), default=0)
    accuracies = [one.metrics[name] for one in committed for name in _ACCURACIES if name in one.metrics]

    def total(outcome: str) -> int:
        return sum(len(one.with_outcome(outcome)) for one in rounds)

    asked: list[tuple[str, str, float, float]] = [
        ("rounds committed", "exactly", expect.rounds_committed, len(committed)),
        ("attempts at rounds", "at most", expect.attempts_at_most, len(rounds)),
        ("devices counted in each committed round", "at least", expect.counted_at_least, counted),
        ("devices dropped, their masks taken out", "at least", expect.recovered_at_least, total("recovered")),
        ("updates rejected", "at least", expect.rejected_at_least, total("rejected")),
        ("requests failed", "at most", -1 if failed is None else expect.failed_requests_at_most, failed or 0),
        ("last accuracy measured", "at least", expect.accuracy_at_least, accuracies[-1] if accuracies else 0.0),
    ]
    checks = [Check(f"the job ends {expect.job_state}", state == expect.job_state, state)]
    checks += [
        Check(f"{what}: {bound} {wanted:g}", _BOUNDS[bound](found, wanted), str(round(found, 4)))
        for what, bound, wanted, found in asked
        if wanted >= 0
    ]
    return tuple(checks)
