"""The tables of a job file that say what nobody may see: `[secure]` and `[privacy]`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.rounds.exchange import DEFAULT_GROUP_ROUNDS, DEFAULT_MIN_GROUP, MAX_GROUPS
from shared.errors import Unsupported
from shared.secagg.graph import Rates
from shared.secagg.private import Mechanism, Privacy
from shared.secagg.schema import BITS
from shared.secagg.terms import LEAST_SUBSAMPLE, MAX_ROUNDS

MIN_CLIENTS = 3  # of a secret sum


@dataclass(frozen=True)
class Secure:
    """Secure aggregation. On unless the job says otherwise.

    `dropout` and `corrupt` are the shares of a round's devices that may fail, and that may work with the coordinator: who masks
    with whom, how many shares unmask, and how many must be counted follow. An element of an update takes `bits` bits, and a round
    sends the share `subsample` of them; the first round, which shows how large elements are, takes all that a word holds, for
    changes up to `clip_range` (in the unit of the weights).

    With `groups`, the devices are split at random into so many, each of `min_group` devices at least and summed apart, so that a
    robust strategy can compare them; `dropout` and `corrupt` then hold in each, of which one device at least may be corrupt. A
    round of fewer devices makes fewer groups.
    """

    enabled: bool = True
    dropout: float = 0.25
    corrupt: float = 0.05
    bits: int = 8
    subsample: float = 1.0
    delta_broadcast: bool = False  # devices that have the last model are sent what changed since, rounded
    error_feedback: bool = True  # what rounding and subsampling take from an update is added to the device's next
    key_rounds: int = (
        DEFAULT_GROUP_ROUNDS  # for so many rounds, of training or evaluation, keys and shares are made at once
    )
    clip_range: float = 8.0
    max_weight: int = 100_000
    groups: int = 1
    min_group: int = DEFAULT_MIN_GROUP  # the fewer, the less there are to hide among
    metrics: dict[str, float] = field(
        default_factory=dict
    )  # to average: name → largest value; none: what the app is known for

    def __post_init__(self) -> None:
        if not (0 <= self.dropout < 0.5 and 0 <= self.corrupt < 0.5):
            raise ValueError("dropout and corrupt are shares from 0 to below 0.5")
        if self.bits not in BITS or not 1 <= self.key_rounds <= MAX_ROUNDS:
            raise ValueError(f"bits is one of {', '.join(map(str, BITS))}, key_rounds from 1 to {MAX_ROUNDS}")
        if not LEAST_SUBSAMPLE <= self.subsample <= 1 or (self.subsample < 1 and not self.error_feedback):
            raise ValueError(f"subsample is a share from {LEAST_SUBSAMPLE} to 1, and below 1 needs error_feedback")
        if not 0 < self.clip_range < math.inf or not 1 <= self.max_weight < 1 << 31:
            raise ValueError("clip_range and max_weight must be positive, max_weight below 2^31")
        if not 1 <= self.groups <= MAX_GROUPS or self.min_group < MIN_CLIENTS:
            raise ValueError(f"groups is from 1 to {MAX_GROUPS}, min_group at least {MIN_CLIENTS}")
        check_metrics(self.metrics)

    @property
    def rates(self) -> Rates:
        return Rates(self.dropout, self.corrupt)


@dataclass(frozen=True)
class PrivacyChoice:
    """Differential privacy of each device towards whoever sees a round's sum, and so the model.

    `distributed`: devices add noise before they mask, so nobody ever holds the sum without it. `central` is weaker: the coordinator
    sees the exact sum and adds the noise. `epsilon` at `delta` is for all rounds together, with `spare_rounds` that fail after
    vectors were sent and are run again. A device's change counts once, however many examples it has, and is clipped to `clip_norm`
    in Euclidean norm over all arrays. The guarantee holds although a share `missing` of a round's devices adds no noise, or tells
    the coordinator what it added, besides those that `secure.dropout` allows for.
    """

    mechanism: str = "off"
    epsilon: float = 8.0
    delta: float = 1e-6
    clip_norm: float = 1.0
    missing: float = 0.1
    spare_rounds: int = 2

    def __post_init__(self) -> None:
        if self.mechanism not in ("off", *Mechanism):
            raise ValueError(f"mechanism is one of off, {', '.join(Mechanism)}")
        if self.spare_rounds < 0:
            raise ValueError("spare_rounds must not be negative")
        try:
            self._terms(Mechanism.DISTRIBUTED, 1)
        except Unsupported as error:
            raise ValueError(error.message) from error

    @property
    def enabled(self) -> bool:
        return self.mechanism != "off"

    def terms(self, rounds: int) -> Privacy | None:
        """As both ends agree on it, for a job of so many rounds; None if it is off."""
        return self._terms(Mechanism(self.mechanism), rounds + self.spare_rounds) if self.enabled else None

    def _terms(self, mechanism: Mechanism, rounds: int) -> Privacy:
        return Privacy(mechanism, self.epsilon, self.delta, self.clip_norm, rounds, self.missing)


def check_metrics(metrics: Mapping[str, float]) -> None:
    if not all(0 < highest < math.inf for highest in metrics.values()):
        raise ValueError("each metric has a positive largest value")
