"""One secure exchange as data: how it is set up, and what became of every device in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from coordinator.rounds import grouping
from shared.errors import Unsupported
from shared.privacy.events import Event
from shared.secagg.graph import Rates
from shared.secagg.messages import Phase
from shared.secagg.private import Privacy
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

MAX_GROUPS = 1000
_BEFORE_SHARE, _AFTER_SHARE = 0.15, 0.1  # of the time left: what a phase may take, and what is kept for one
_AFTER = {Phase.CONFIRMED: 3, Phase.UNMASKED: 2, Phase.RECOVERED: 1}  # among how many phases what is left is shared
DEFAULT_GROUP_ROUNDS = 16
DEFAULT_MIN_GROUP = (
    5  # one of them fails and one works with the server: three are left to hide in, what a device insists on
)


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
    are made for `group_rounds` rounds. Elements take `bits` bits each, and the share `subsample` of them is sent; with `feedback`
    what that takes from an update is added to the device's next. Until a first exchange has shown how large changes are, they may
    be as large as `clip_range` (floats) and `integer_range` say; `ranges` overrides both by array name (shell patterns, the first
    match wins). With `delta_broadcast`, a device that has the model of the exchange before is sent what changed since, at some
    two bits an element. With `privacy` there are no metrics, no feedback, no ranges and one group, and nothing is measured on
    devices.

    The devices are split into as many as `groups` secret groups, each of `min_group` at least and summed apart, so that one device
    moves one group's mean. `rates` and `min_clients` then hold in each, and one device of it at least may be corrupt. Training
    needs `least_groups` that come to a sum: what the strategy that combines them needs (`linear.least_groups`). Raises
    `Unsupported` for impossible values.
    """

    min_clients: int = 3
    groups: int = 1
    min_group: int = DEFAULT_MIN_GROUP
    least_groups: int = 1
    rates: Rates = field(default_factory=Rates)
    group_rounds: int = DEFAULT_GROUP_ROUNDS
    bits: int = DEFAULT_BITS
    feedback: bool = True
    subsample: float = 1.0
    delta_broadcast: bool = False
    clip_range: float = DEFAULT_FLOAT_RANGE
    integer_range: float = DEFAULT_INTEGER_RANGE
    ranges: Mapping[str, float] = field(default_factory=dict)
    max_weight: int = DEFAULT_MAX_WEIGHT
    weight_key: str = "num-examples"
    train_metrics: Bounds = field(default_factory=dict)
    evaluate_metrics: Bounds = field(default_factory=dict)
    privacy: Privacy | None = None
    timeouts: Timeouts = Timeouts()

    def __post_init__(self) -> None:
        if self.min_clients < 2:
            raise Unsupported("secure aggregation needs min_clients of at least 2: a sum over one device hides nothing")
        if not 1 <= self.least_groups <= self.groups <= MAX_GROUPS:
            raise Unsupported(f"groups is from 1 to {MAX_GROUPS}, and least_groups from 1 to groups")
        if self.groups > 1 and self.min_group < self.min_clients:
            raise Unsupported(f"a group has min_clients devices at least: set min_group to {self.min_clients} or more")
        if self.privacy and self.groups > 1:
            raise Unsupported(
                "a private exchange sums all devices at once: noise that hides one among few drowns their mean"
            )
        if not 1 <= self.group_rounds <= MAX_ROUNDS:
            raise Unsupported(f"group_rounds is from 1 to {MAX_ROUNDS}")
        for category in ("train", "evaluate"):
            self.settings(category)

    def quorum(self, clients: int) -> int:
        """The least number of devices that a sum may be over, of a group of so many."""
        return max(clients - self.rates.dropped(clients), self.min_clients)

    def rates_in(self, clients: int) -> Rates:
        """What a group of so many is laid out for."""
        return self.rates if self.groups == 1 else grouping.bearing_one(self.rates, clients)

    def sizes(self, clients: int) -> tuple[int, ...]:
        """Of the groups that so many selected devices make, the larger ones first."""
        return grouping.sizes(clients, grouping.how_many(clients, self.groups, self.min_group))

    def fewest(self, clients: int) -> int:
        """The least number of devices, of so many selected, that a round of training may count."""
        return sum(self.quorum(size) for size in self.sizes(clients)[-self.least_groups :])

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
            subsample=self.subsample,
            privacy=self.privacy,
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

    `false_dealers` dealt shares that others cannot use: left in, they would end every exchange alike. `groups` has the number, from
    1, of each device's group; it is empty where there is one.
    """

    round_id: str
    category: str
    outcomes: Mapping[int, Outcome]
    total_weight: int = 0
    aborted: str = ""
    false_dealers: tuple[int, ...] = ()
    groups: Mapping[int, int] = field(default_factory=dict)


class ExchangeObserver(Protocol):
    """Told what happens, on the thread that runs the exchange. What it raises ends the exchange."""

    def spends(self, event: Event) -> None:
        """In a private exchange, before any noise is drawn: what it will cost those who are in it."""
        ...

    def phase(self, phase: Phase, outcomes: Mapping[int, Outcome]) -> None:
        """After each phase: where every invited device stands, by node id."""
        ...

    def closed(self, summary: Summary) -> None:
        """Once an exchange, whether it ended with a sum or not."""
        ...


class NullObserver:
    def spends(self, event: Event) -> None:
        pass

    def phase(self, phase: Phase, outcomes: Mapping[int, Outcome]) -> None:
        pass

    def closed(self, summary: Summary) -> None:
        pass
