"""One secure exchange as data: how it is set up, and what became of every device in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from shared.errors import Unsupported
from shared.secagg.graph import Rates
from shared.secagg.messages import Phase
from shared.secagg.schema import MetricField
from shared.secagg.terms import (
    DEFAULT_BITS,
    DEFAULT_FLOAT_RANGE,
    DEFAULT_INTEGER_RANGE,
    DEFAULT_MAX_WEIGHT,
    MAX_ROUNDS,
    Settings,
)

Bounds = Mapping[str, tuple[float, float]]

_BEFORE_SHARE, _AFTER_SHARE = 0.15, 0.1  # of the time left: what a phase may take, and what is kept for one
_AFTER = {Phase.CONFIRMED: 3, Phase.UNMASKED: 2, Phase.RECOVERED: 1}  # among how many phases what is left is shared
DEFAULT_GROUP_ROUNDS = 8


@dataclass(frozen=True)
class Timeouts:
    """Seconds a phase may take. An exchange with its own timeout also keeps to that."""

    masked_s: float = 3600.0
    before_s: float = 15.0  # each phase that makes a group
    after_s: float = 30.0  # each phase that unmasks

    def __post_init__(self) -> None:
        if not all(value > 0 for value in (self.masked_s, self.before_s, self.after_s)):
            raise Unsupported("phase timeouts are positive")

    def budget(self, phase: Phase, left_s: float) -> float:
        """What `phase` gets of the `left_s` seconds that the exchange still has: training gets nearly all of it."""
        if phase in (Phase.KEYS, Phase.COINS, Phase.SHARES):
            return min(self.before_s, _BEFORE_SHARE * left_s)
        if phase is Phase.MASKED:
            after = len(_AFTER)
            return min(self.masked_s, left_s - after * min(self.after_s, _AFTER_SHARE * left_s))
        return min(self.after_s, left_s / _AFTER[phase])


@dataclass(frozen=True)
class SecureConfig:
    """`train_metrics` and `evaluate_metrics` declare, with their range, the metrics to average; others stay on the devices.

    `rates` say how many devices may drop out or be corrupt: the graphs, the threshold and the least number counted follow. Keys
    are made for `group_rounds` rounds. Elements take `bits` bits each, and with `feedback` what rounding took is added to the
    device's next update. Until a first exchange has shown how large changes are, they may be as large as `clip_range` (floats)
    and `integer_range` say; `ranges` overrides both by array name (shell patterns, the first match wins). Raises `Unsupported`
    for impossible values.
    """

    min_clients: int = 3
    rates: Rates = field(default_factory=Rates)
    group_rounds: int = DEFAULT_GROUP_ROUNDS
    bits: int = DEFAULT_BITS
    feedback: bool = True
    clip_range: float = DEFAULT_FLOAT_RANGE
    integer_range: float = DEFAULT_INTEGER_RANGE
    ranges: Mapping[str, float] = field(default_factory=dict)
    max_weight: int = DEFAULT_MAX_WEIGHT
    weight_key: str = "num-examples"
    train_metrics: Bounds = field(default_factory=dict)
    evaluate_metrics: Bounds = field(default_factory=dict)
    timeouts: Timeouts = Timeouts()

    def __post_init__(self) -> None:
        if self.min_clients < 2:
            raise Unsupported("secure aggregation needs min_clients of at least 2: a sum over one device hides nothing")
        if not 1 <= self.group_rounds <= MAX_ROUNDS:
            raise Unsupported(f"group_rounds is from 1 to {MAX_ROUNDS}")
        for category in ("train", "evaluate"):
            self.settings(category)

    def quorum(self, clients: int) -> int:
        """The least number of devices that a sum may be over."""
        return max(clients - self.rates.dropped(clients), self.min_clients)

    def settings(self, category: str) -> Settings:
        metrics = self.train_metrics if category == "train" else self.evaluate_metrics
        return Settings(
            max_weight=self.max_weight,
            weight_key=self.weight_key,
            float_range=self.clip_range,
            integer_range=self.integer_range,
            ranges=dict(self.ranges),
            metrics=tuple(MetricField(name, float(low), float(high)) for name, (low, high) in metrics.items()),
            bits=self.bits,
            feedback=self.feedback,
        )


class Fate(StrEnum):
    """Where a device stands. A finished exchange leaves each device in one of the middle four."""

    PRESENT = "present"  # still taking part
    COUNTED = "counted"
    RECOVERED = "dropped-and-recovered"  # dropped after dealing shares; its masks were taken out of the sum
    DROPPED = "dropped-before-masking"
    REJECTED = "rejected"
    ABANDONED = "abandoned"  # the exchange was aborted through no fault of this device


@dataclass(frozen=True)
class Outcome:
    """`reason` is empty unless something went wrong. A counted device has one if it failed after its vector was taken.

    `code` is that of the error that the device answered, if any: Flower's, or one of ours.
    """

    fate: Fate
    reason: str = ""
    code: int = 0


@dataclass(frozen=True)
class Summary:
    """How an exchange ended. `aborted` is empty, or says why there is no sum; then `total_weight` is 0. Keys are node ids.

    `false_dealers` dealt shares that others cannot use: left in, they would end every exchange alike.
    """

    round_id: str
    category: str
    outcomes: Mapping[int, Outcome]
    total_weight: int = 0
    aborted: str = ""
    false_dealers: tuple[int, ...] = ()


class ExchangeObserver(Protocol):
    """Told what happens, on the thread that runs the exchange. What it raises ends the exchange."""

    def phase(self, phase: Phase, outcomes: Mapping[int, Outcome]) -> None:
        """After each phase: where every invited device stands, by node id."""
        ...

    def closed(self, summary: Summary) -> None:
        """Once an exchange, whether it ended with a sum or not."""
        ...


class NullObserver:
    def phase(self, phase: Phase, outcomes: Mapping[int, Outcome]) -> None:
        pass

    def closed(self, summary: Summary) -> None:
        pass
