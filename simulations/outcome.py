"""What a run of the loop came to: frozen values that the closing table, the page and the JSON file are all made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

NAN = float("nan")
MarkKind = Literal["phase", "round", "kill", "prune", "swap", "refused"]


@dataclass(frozen=True)
class Check:
    """Something that had to hold, and whether it did; `found` is the number or word that decided it."""

    text: str
    held: bool
    found: str


@dataclass(frozen=True)
class Side:
    """A device's model before or after. Accuracy is a share, from live answers to digits the device never trained on."""

    release: int
    runtime: str
    accuracy: float
    bytes: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class DeviceLine:
    name: str
    examples: int
    before: Side
    after: Side
    answered: int
    failed: int
    cut: int


@dataclass(frozen=True)
class RoundLine:
    """One attempt at a round. Bytes are means over the devices that were counted; `fp32_bytes` is what FedAvg would send in
    each direction: four bytes for each parameter of the network before pruning.
    """

    round: int
    attempt: int
    state: str
    seconds: float
    accuracy: float
    parameters: int
    counted: int
    recovered: int
    dropped: int
    rejected: int
    bytes_up: float
    bytes_down: float
    fp32_bytes: int


@dataclass(frozen=True)
class Mark:
    """Something that happened, for the time line."""

    at: float
    kind: MarkKind
    text: str
    device: str = ""


@dataclass(frozen=True)
class Outcome:
    """A whole run. Times are seconds since the epoch."""

    title: str
    command: str
    started_at: float
    ended_at: float
    devices: tuple[DeviceLine, ...]
    rounds: tuple[RoundLine, ...]
    marks: tuple[Mark, ...]
    checks: tuple[Check, ...]
    held_back: int

    @property
    def held(self) -> bool:
        return all(check.held for check in self.checks)

    @property
    def committed(self) -> tuple[RoundLine, ...]:
        return tuple(one for one in self.rounds if one.state == "COMMITTED")


def mean(values: Sequence[float]) -> float:
    """NaN for none."""
    return sum(values) / len(values) if values else NAN


@dataclass(frozen=True)
class Total:
    """The fleet in one line a side: means over devices, sums of requests."""

    before: Side
    after: Side
    answered: int
    failed: int
    cut: int
    bytes_up: float
    bytes_down: float
    fp32_bytes: float
    counted: float
    rounds: int


def total(outcome: Outcome) -> Total:
    """Means over devices, and over committed rounds."""

    def side(sides: Sequence[Side]) -> Side:
        return Side(
            release=max((one.release for one in sides), default=0),
            runtime=", ".join(sorted({one.runtime for one in sides})),
            accuracy=mean([one.accuracy for one in sides]),
            bytes=round(mean([one.bytes for one in sides])) if sides else 0,
            p50_ms=mean([one.p50_ms for one in sides]),
            p99_ms=mean([one.p99_ms for one in sides]),
        )

    devices, rounds = outcome.devices, outcome.committed
    return Total(
        before=side([one.before for one in devices]),
        after=side([one.after for one in devices]),
        answered=sum(one.answered for one in devices),
        failed=sum(one.failed for one in devices),
        cut=sum(one.cut for one in devices),
        bytes_up=mean([one.bytes_up for one in rounds]),
        bytes_down=mean([one.bytes_down for one in rounds]),
        fp32_bytes=mean([one.fp32_bytes for one in rounds]),
        counted=mean([one.counted for one in rounds]),
        rounds=len(rounds),
    )
