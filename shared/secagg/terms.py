"""What both ends agree on first: a group's `GroupTerms`, each of its rounds' `RoundTerms`, and the `Settings` of a vector."""

import fnmatch
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress
from statistics import median

import numpy as np

from shared.errors import Malformed, Unsupported
from shared.ids import digest_of
from shared.secagg.fields import Fields, Reader
from shared.secagg.graph import Degrees, Rates, derive
from shared.secagg.keys import digest
from shared.secagg.packing import MOST_BITS
from shared.secagg.private import Mechanism, Privacy
from shared.secagg.quantize import Total
from shared.secagg.schema import BITS, Arrays, MetricField, Schema, array_fields, sum_bits

VERSION = 4
MAX_ROUNDS = 64
MAX_CLIENTS = 10_000  # above it, laying out a graph would keep a device busy for seconds
DEFAULT_MAX_WEIGHT = 100_000
DEFAULT_FLOAT_RANGE = 8.0
DEFAULT_INTEGER_RANGE = 65_536.0
DEFAULT_BITS = 8
CLIPS: Mapping[int, float] = {
    4: 2.5,
    6: 4.0,
    8: 6.0,
    12: 12.0,
    16: 24.0,
}  # where rotated elements are clipped, in scales
LEAST_SUBSAMPLE = 1 / 64
_LEAST_SCALE = 2.0**-40
_MOST_SHRINK = 64.0  # a scale falls by at most so much from one exchange to the next
_MOST_GROWTH = 8.0  # and grows by at most so much: what is clipped until then is owed
_MOST_CLIPPED = (
    0.25  # of all elements: beyond it scales are of no use, and what is clipped of one array is noise in all others
)


@dataclass(frozen=True)
class GroupTerms:
    """Public, the same for every client. `clients` is the number of seats; keys are made for so many `rounds`."""

    group_id: str
    clients: int
    rounds: int
    rates: Rates

    def __post_init__(self) -> None:
        if not self.group_id or not 2 <= self.clients <= MAX_CLIENTS or not 1 <= self.rounds <= MAX_ROUNDS:
            raise Malformed(f"a group needs an id, 2 to {MAX_CLIENTS} clients, and keys for 1 to {MAX_ROUNDS} rounds")

    @property
    def degrees(self) -> Degrees:
        """Raises `Unsupported` for rates that no graph can bear."""
        return derive(self.clients, self.rates)

    @property
    def fewest(self) -> int:
        """Of the seats, how many must be there at each step."""
        return self.clients - self.rates.dropped(self.clients)

    @cached_property
    def digest(self) -> bytes:
        rates = self.rates
        numbers = (VERSION, self.clients, self.rounds, rates.security_bits, rates.abort_bits)
        return digest("group", self.group_id, *numbers, float(rates.dropout).hex(), float(rates.corrupt).hex())

    def to_fields(self) -> Fields:
        return {
            "version": VERSION,
            "group_id": self.group_id,
            "clients": self.clients,
            "rounds": self.rounds,
            "dropout": float(self.rates.dropout),
            "corrupt": float(self.rates.corrupt),
            "security_bits": self.rates.security_bits,
            "abort_bits": self.rates.abort_bits,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "GroupTerms":
        """Raises `Malformed`."""
        read = Reader(fields, "the terms of a group")
        if read.integer("version") != VERSION:
            raise Malformed(f"the peer speaks another version of secure aggregation: this side speaks {VERSION}")
        rates = (
            read.number("dropout"),
            read.number("corrupt"),
            read.integer("security_bits"),
            read.integer("abort_bits"),
        )
        try:
            return cls(read.text("group_id"), read.integer("clients"), read.integer("rounds"), Rates(*rates))
        except Unsupported as error:
            raise Malformed(error.message) from error


@dataclass(frozen=True)
class RoundTerms:
    """Bound into every mask by `digest`: masks of clients that do not agree on all of it do not cancel.

    `number` counts a group's rounds from 1; `binding` is the group's. `present` are the seats that take part. `inputs_digest`
    is of everything that the answers may depend on: a server that hands out different models, to tell one client's change from
    the others', gets no sum (Pasquini et al., CCS 2022).
    """

    binding: bytes
    number: int
    round_id: str
    present: frozenset[int]
    schema_digest: str
    inputs_digest: str

    @cached_property
    def digest(self) -> bytes:
        seats = row_of(self.present)
        return digest("round", self.binding, self.number, self.round_id, seats, self.schema_digest, self.inputs_digest)


def rotation_of(round_id: str) -> bytes:
    """The seed of a round's rotation: public, the same for all, another in each round."""
    return digest("rotation", round_id)


def row_of(seats: Iterable[int]) -> bytes:
    """Seats in ascending order, four bytes each: to be signed or hashed, one value in one way."""
    return np.array(sorted(seats), dtype="<u4").tobytes()


def to_bitmap(seats: Iterable[int], clients: int) -> bytes:
    """Seats 1 to `clients`, one bit each."""
    flags = np.zeros(clients, dtype=np.uint8)
    flags[np.fromiter(seats, dtype=np.int64) - 1] = 1
    return np.packbits(flags).tobytes()


def from_bitmap(bitmap: bytes, clients: int) -> frozenset[int]:
    """Raises `Malformed`."""
    return frozenset(seats_in(bitmap, clients))


def seats_in(bitmap: bytes, clients: int) -> list[int]:
    """As `from_bitmap`, in ascending order."""
    check_bitmap(bitmap, clients)
    flags = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), count=clients)
    return list(compress(range(1, clients + 1), flags.tobytes()))


def check_bitmap(bitmap: bytes, clients: int) -> None:
    """Raises `Malformed` for one of another length, or with seats beyond the last."""
    if len(bitmap) != (clients + 7) // 8 or (bitmap and bitmap[-1] & ((1 << -clients % 8) - 1)):
        raise Malformed("a set of seats is not as long as the group")


@dataclass(frozen=True)
class Settings:
    """How values become whole numbers.

    `ranges` maps array names (shell patterns, the first match wins) to the largest change of an element. It bounds integer arrays
    always, and float ones in a job's first exchange, when nothing is known about their size: that one takes all the bits that a
    word holds. What it shows is in `scales` (by array: the usual weighted change over `unit_weight`) and later ones take `bits`
    an element, of the share `subsample` of all. With `feedback`, what rounding, clipping and subsampling take from an update is
    added to the device's next; without it what is not sent would be lost, so all is sent.

    Metrics that are not declared here stay on the device.

    With `privacy` none of that holds but `bits`: every exchange has one public scale, the size that an element of a vector of
    `clip_norm` has on average, and each device adds `noise` (a variance, in squared levels) to each element.
    """

    max_weight: int = DEFAULT_MAX_WEIGHT
    weight_key: str = "num-examples"
    float_range: float = DEFAULT_FLOAT_RANGE
    integer_range: float = DEFAULT_INTEGER_RANGE
    ranges: Mapping[str, float] = field(default_factory=dict)
    metrics: tuple[MetricField, ...] = ()
    bits: int = DEFAULT_BITS
    feedback: bool = True
    subsample: float = 1.0
    unit_weight: float = 0.0
    scales: Mapping[str, float] = field(default_factory=dict)
    privacy: Privacy | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        bounds = (self.float_range, self.integer_range, *self.ranges.values(), *self.scales.values())
        if not all(math.isfinite(bound) and bound > 0 for bound in bounds) or self.max_weight < 1:
            raise Unsupported("ranges are positive and finite, and max_weight is at least 1")
        if not 0 <= self.unit_weight < math.inf:
            raise Unsupported("unit_weight is finite, and not negative")
        if any(metric.name == self.weight_key for metric in self.metrics):
            raise Unsupported(f"{self.weight_key!r} is the weight; it cannot also be a metric")
        if self.bits not in BITS:
            raise Unsupported(f"elements have {', '.join(map(str, BITS))} bits, not {self.bits}")
        if not LEAST_SUBSAMPLE <= self.subsample <= 1 or (self.subsample < 1 and not self.feedback):
            raise Unsupported(f"subsample is a share from {LEAST_SUBSAMPLE} to 1, and below 1 needs error feedback")
        if self.privacy and (self.metrics or self.feedback):
            raise Unsupported("under differential privacy nothing is exact: no metrics, and no error feedback")

    @cached_property
    def digest(self) -> str:
        """Part of every schema made by these settings: a device that is told others than the rest, such as another metric for its
        weight, masks nothing that fits into their sum.
        """
        return digest_of(json.dumps(self.to_fields(), sort_keys=True, separators=(",", ":")).encode())

    def schema(self, clients: int, arrays: Arrays, rotation: bytes) -> Schema:
        """`rotation` is 32 bytes that this exchange alone has. Raises `Unsupported` for arrays or numbers that cannot be summed."""
        if self.privacy:
            return self._private(self.privacy.clip_norm, clients, arrays, rotation)
        floats = [name for name, array in arrays.items() if array.dtype.kind == "f"]
        if not floats or not self.unit_weight or not set(floats) <= set(self.scales):
            scales = [self._bound(name, array.dtype.kind) for name, array in arrays.items()]
            bits = MOST_BITS - sum_bits(clients)
            fields = array_fields(arrays, scales)
            unit = float(self.max_weight)
            return Schema(clients, bits, self.max_weight, self.metrics, fields, unit_weight=unit, settings=self.digest)
        scales = [self.scales.get(name) or self._bound(name, array.dtype.kind) for name, array in arrays.items()]
        return Schema(
            clients,
            self.bits,
            self.max_weight,
            self.metrics,
            array_fields(arrays, scales),
            unit_weight=self.unit_weight,
            clip=CLIPS[self.bits],
            rotation=rotation.hex(),
            subsample=self.subsample,
            settings=self.digest,
        )

    def _private(self, clip_norm: float, clients: int, arrays: Arrays, rotation: bytes) -> Schema:
        elements = sum(array.size for array in arrays.values() if array.dtype.kind == "f")
        scale = clip_norm / math.sqrt(max(1, elements))
        return Schema(
            clients,
            self.bits,
            1,
            self.metrics,
            array_fields(arrays, [scale] * len(arrays)),
            clip=CLIPS[self.bits],
            rotation=rotation.hex(),
            norm=clip_norm / scale,
            noise=self.noise,
            settings=self.digest,
        )

    def with_noise(self, clients: int, dropped: int, arrays: Arrays) -> "Settings":
        """For a group of `clients` of which `dropped` may go uncounted: with the noise that each device then adds, if any.

        Raises `Unsupported` where no noise is enough.
        """
        if not self.privacy or self.privacy.mechanism is not Mechanism.DISTRIBUTED:
            return self
        silent = replace(self, noise=0.0)
        event = self.privacy.calibrated(silent.schema(clients, arrays, bytes(32)), dropped)
        return replace(self, noise=event.variance)

    def after(self, *totals: Total) -> "Settings":
        """What the next exchange goes by, once this one's sums are known: one, or a group's each; under privacy, the same.

        Of groups it takes the median, so that a poisoned one does not set the scales of the others. Where far too much was clipped
        it is like a first one: an array changes that never had, or all change far more than they did.
        """
        if self.privacy:
            return self
        if self.unit_weight and median(total.clipped for total in totals) > _MOST_CLIPPED:
            return replace(self, unit_weight=0.0, scales={})
        unit = median(total.weight / total.count for total in totals)
        sizes = {name: median(total.sizes[name] for total in totals) / unit for name in totals[0].sizes}
        scales = {name: self._scale(name, size) for name, size in sizes.items()}
        return replace(self, unit_weight=unit, scales={**self.scales, **scales}) if scales else self

    def _scale(self, name: str, size: float) -> float:
        """`size`, but not far from the scale before: one device can make it what it likes."""
        before = self.scales.get(name) if self.unit_weight else None
        most = self._bound(name, "f") if before is None else min(before * _MOST_GROWTH, self._bound(name, "f"))
        return max(min(size, most), (before or 0.0) / _MOST_SHRINK, _LEAST_SCALE)

    def _bound(self, name: str, kind: str) -> float:
        for pattern, bound in self.ranges.items():
            if fnmatch.fnmatchcase(name, pattern):
                return bound
        return self.float_range if kind == "f" else self.integer_range

    def to_fields(self) -> Fields:
        return {
            "max_weight": self.max_weight,
            "weight_key": self.weight_key,
            "float_range": self.float_range,
            "integer_range": self.integer_range,
            "range_patterns": list(self.ranges),
            "range_bounds": [float(bound) for bound in self.ranges.values()],
            "metric_names": [metric.name for metric in self.metrics],
            "metric_lows": [float(metric.low) for metric in self.metrics],
            "metric_highs": [float(metric.high) for metric in self.metrics],
            "bits": self.bits,
            "feedback": int(self.feedback),
            "subsample": float(self.subsample),
            "unit_weight": float(self.unit_weight),
            "scale_names": list(self.scales),
            "scale_values": [float(scale) for scale in self.scales.values()],
            "noise": float(self.noise),
            **(_privacy_to_fields(self.privacy) if self.privacy else {}),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Settings":
        """Raises `Malformed`."""
        try:
            return cls._read(fields)
        except Unsupported as error:
            raise Malformed(error.message) from error

    @classmethod
    def _read(cls, fields: Fields) -> "Settings":
        read = Reader(fields, "the settings of a round")
        feedback = read.integer("feedback")
        if feedback not in (0, 1):
            raise Malformed("feedback is 0 or 1")
        metrics = read.columns(read.texts("metric_names"), read.numbers("metric_lows"), read.numbers("metric_highs"))
        return cls(
            max_weight=read.integer("max_weight"),
            weight_key=read.text("weight_key"),
            float_range=read.number("float_range"),
            integer_range=read.number("integer_range"),
            ranges=read.table(read.texts("range_patterns"), read.numbers("range_bounds")),
            metrics=tuple(MetricField(*row) for row in metrics),
            bits=read.integer("bits"),
            feedback=bool(feedback),
            subsample=read.number("subsample"),
            unit_weight=read.number("unit_weight"),
            scales=read.table(read.texts("scale_names"), read.numbers("scale_values")),
            privacy=_privacy_from(read, fields),
            noise=read.number("noise"),
        )


def _privacy_to_fields(privacy: Privacy) -> Fields:
    return {
        "mechanism": str(privacy.mechanism),
        "epsilon": float(privacy.epsilon),
        "delta": float(privacy.delta),
        "clip_norm": float(privacy.clip_norm),
        "private_rounds": privacy.rounds,
        "missing": float(privacy.missing),
    }


def _privacy_from(read: Reader, fields: Fields) -> Privacy | None:
    """None where none of it is stated. Raises `Malformed` or `Unsupported`."""
    if "mechanism" not in fields:
        return None
    name = read.text("mechanism")
    if name not in set(Mechanism):
        raise Malformed("an unknown mechanism of differential privacy")
    return Privacy(
        Mechanism(name),
        read.number("epsilon"),
        read.number("delta"),
        read.number("clip_norm"),
        read.integer("private_rounds"),
        read.number("missing"),
    )
