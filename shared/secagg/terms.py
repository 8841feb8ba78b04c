"""What both ends agree on first: a group's `GroupTerms`, each of its rounds' `RoundTerms`, and the `Settings` of a vector."""

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from shared.errors import Malformed, Unsupported
from shared.secagg.fields import Fields, Reader
from shared.secagg.graph import Degrees, Rates, derive
from shared.secagg.keys import digest
from shared.secagg.packing import WORD_BITS
from shared.secagg.quantize import Total
from shared.secagg.schema import BITS, Arrays, MetricField, Schema, array_fields, sum_bits

VERSION = 3
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
_LEAST_SCALE = 2.0**-40
_MOST_SHRINK = 64.0  # a scale falls by at most so much from one exchange to the next
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
        seats = digest("present", *sorted(self.present))
        return digest("round", self.binding, self.number, self.round_id, seats, self.schema_digest, self.inputs_digest)


def rotation_of(round_id: str) -> bytes:
    """The seed of a round's rotation: public, the same for all, another in each round."""
    return digest("rotation", round_id)


def to_bitmap(seats: Iterable[int], clients: int) -> bytes:
    """Seats 1 to `clients`, one bit each."""
    flags = np.zeros(clients, dtype=np.uint8)
    flags[np.array(sorted(seats), dtype=np.int64) - 1] = 1
    return np.packbits(flags).tobytes()


def from_bitmap(bitmap: bytes, clients: int) -> frozenset[int]:
    """Raises `Malformed`."""
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8))
    if len(bitmap) != (clients + 7) // 8 or bits[clients:].any():
        raise Malformed("a set of seats is not as long as the group")
    return frozenset((np.flatnonzero(bits) + 1).tolist())


@dataclass(frozen=True)
class Settings:
    """How values become residues.

    `ranges` maps array names (shell patterns, the first match wins) to the largest change of an element. It bounds integer arrays
    always, and float ones in a job's first exchange, when nothing is known about their size: that one takes all the bits that a
    word holds. What it shows is in `scales` (by array: the usual weighted change over `unit_weight`) and later ones take `bits`
    an element. With `feedback`, what rounding and clipping take from an update is added to the device's next.

    Metrics that are not declared here stay on the device.
    """

    max_weight: int = DEFAULT_MAX_WEIGHT
    weight_key: str = "num-examples"
    float_range: float = DEFAULT_FLOAT_RANGE
    integer_range: float = DEFAULT_INTEGER_RANGE
    ranges: Mapping[str, float] = field(default_factory=dict)
    metrics: tuple[MetricField, ...] = ()
    bits: int = DEFAULT_BITS
    feedback: bool = True
    unit_weight: float = 0.0
    scales: Mapping[str, float] = field(default_factory=dict)

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

    def schema(self, clients: int, arrays: Arrays, rotation: bytes) -> Schema:
        """`rotation` is 32 bytes that this exchange alone has. Raises `Unsupported` for arrays or numbers that cannot be summed."""
        floats = [name for name, array in arrays.items() if array.dtype.kind == "f"]
        if not floats or not self.unit_weight or not set(floats) <= set(self.scales):
            scales = [self._bound(name, array.dtype.kind) for name, array in arrays.items()]
            bits = WORD_BITS - sum_bits(clients)
            fields = array_fields(arrays, scales)
            return Schema(clients, bits, self.max_weight, self.metrics, fields, unit_weight=float(self.max_weight))
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
        )

    def after(self, total: Total) -> "Settings":
        """What the next exchange goes by, once this one's sum is known. Where far too much was clipped it is like a first one: an
        array changes that never had, or all change far more than they did.
        """
        if self.unit_weight and total.clipped > _MOST_CLIPPED:
            return replace(self, unit_weight=0.0, scales={})
        unit = total.weight / total.count
        scales = {
            name: max(size / unit, self.scales.get(name, 0.0) / _MOST_SHRINK, _LEAST_SCALE)
            for name, size in total.sizes.items()
        }
        return replace(self, unit_weight=unit, scales={**self.scales, **scales}) if scales else self

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
            "unit_weight": float(self.unit_weight),
            "scale_names": list(self.scales),
            "scale_values": [float(scale) for scale in self.scales.values()],
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
        ranges = read.columns(read.texts("range_patterns"), read.numbers("range_bounds"))
        scales = read.columns(read.texts("scale_names"), read.numbers("scale_values"))
        metrics = read.columns(read.texts("metric_names"), read.numbers("metric_lows"), read.numbers("metric_highs"))
        return cls(
            max_weight=read.integer("max_weight"),
            weight_key=read.text("weight_key"),
            float_range=read.number("float_range"),
            integer_range=read.number("integer_range"),
            ranges=dict(ranges),
            metrics=tuple(MetricField(*row) for row in metrics),
            bits=read.integer("bits"),
            feedback=bool(read.integer("feedback")),
            unit_weight=read.number("unit_weight"),
            scales=dict(scales),
        )
