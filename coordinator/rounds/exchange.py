"""One secure exchange as data: how it is set up, and what became of every device in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from shared.errors import Unsupported
from shared.secagg.messages import Phase
from shared.secagg.quantize import MetricField
from shared.secagg.terms import DEFAULT_FLOAT_RANGE, DEFAULT_INTEGER_RANGE, DEFAULT_MAX_WEIGHT, Settings
from shared.shares import share_of

Bounds = Mapping[str, tuple[float, float]]

_SHORT_PHASE_SHARE = 0.2  # of the time left, for a phase that only exchanges keys or shares


@dataclass(frozen=True)
class Timeouts:
    """Seconds a phase may take. An exchange with its own timeout also keeps to that."""

    keys_s: float = 15.0
    shares_s: float = 15.0
    masked_s: float = 3600.0
    unmasked_s: float = 30.0

    def __post_init__(self) -> None:
        if not all(value > 0 for value in (self.keys_s, self.shares_s, self.masked_s, self.unmasked_s)):
            raise Unsupported("phase timeouts are positive")

    def budget(self, phase: Phase, left_s: float) -> float:
        """What `phase` gets of the `left_s` seconds that the exchange still has: training gets nearly all of it."""
        own = {
            Phase.KEYS: self.keys_s,
            Phase.SHARES: self.shares_s,
            Phase.MASKED: self.masked_s,
            Phase.UNMASKED: self.unmasked_s,
        }[phase]
        if phase is Phase.UNMASKED:
            return min(own, left_s)
        if phase is Phase.MASKED:
            return min(own, left_s - min(self.unmasked_s, _SHORT_PHASE_SHARE * left_s))
        return min(own, _SHORT_PHASE_SHARE * left_s)


@dataclass(frozen=True)
class SecureConfig:
    """`train_metrics` and `evaluate_metrics` declare, with their range, the metrics to average; others stay on the devices.

    `clip_range` is the largest change of a float element that a device may send, `integer_range` that of an integer one, and
    `ranges` overrides both by array name (shell patterns, the first match wins). Raises `Unsupported` for impossible values.
    """

    min_clients: int = 3
    threshold_share: float = 2 / 3
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
        if not 0.5 <= self.threshold_share <= 1:
            raise Unsupported(
                "threshold_share is from 0.5 to 1: with less, two halves of a round could be told two stories"
            )
        for category in ("train", "evaluate"):
            self.settings(category)

    def threshold(self, clients: int) -> int:
        """How many shares unmask a sum: the share of `clients` rounded up, more than half, and at least 2."""
        return max(share_of(self.threshold_share, clients), clients // 2 + 1, 2)

    def quorum(self, clients: int) -> int:
        """The least number of devices that a sum may be over."""
        return max(self.threshold(clients), self.min_clients)

    def settings(self, category: str) -> Settings:
        metrics = self.train_metrics if category == "train" else self.evaluate_metrics
        return Settings(
            max_weight=self.max_weight,
            weight_key=self.weight_key,
            float_range=self.clip_range,
            integer_range=self.integer_range,
            ranges=dict(self.ranges),
            metrics=tuple(MetricField(name, *bounds) for name, bounds in metrics.items()),
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
