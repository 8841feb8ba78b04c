"""How an exchange's values lie in a vector of whole numbers: a public `Schema`, the same at both ends (they compare its digest).

    [exact values, as digits] [one number a rotated float element that is kept …]

An element is rounded to b bits, q in ±(2^(b-1) - 1), and for n clients at most the modulus is 2^m, m = b + ceil(log2 n): the sum of
any n elements stays below 2^(m-1), so it cannot wrap, and not one bit more is sent. Weights enter before the rounding and so need
no bits of their own (with integer weights up to w_max after it, m would be b + ceil(log2(n w_max))).

An exact value is an unsigned number below 2^B, sent as ceil(B / b) digits of b bits, each in a place of its own, less 2^(b-1): the
sum of a digit cannot wrap either. Exact are, in this order:

- count: 1. The sum must equal the number of clients counted, or something else was masked;
- weight w: the number of examples;
- clipped: the share of elements that had to be clipped, and for each float array its root mean square against its scale:
  what the next exchange's scales follow;
- metric v in [low, high]: round(w / max_weight * (v - low) / (high - low) * (2^32 - 1));
- element x of an integer array, |x| <= C: round(w / max_weight * x / C * (2^31 - 1)) + 2^31.

Under differential privacy (`private`) the count alone is exact, there are no integer arrays, and m makes room for the noise:
2^m >= 2 (n levels + reach) + 1, where n devices' noise goes beyond `reach` with a chance of 2^-120 an element and side.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from shared.errors import Unsupported
from shared.ids import digest_of
from shared.privacy.clip import rounded_bound
from shared.privacy.noise import MAX_VARIANCE, MIN_VARIANCE, reach
from shared.secagg.packing import MOST_BITS, Layout

BITS = (4, 6, 8, 12, 16)  # what a job may ask for; a first exchange takes all that a word holds
EXACT_BITS = 32
MAX_CLIENTS = 1 << 20
_MOST_WHOLE = 0.1  # of the elements may lie in arrays of one dimension, and be sent whole where others are sampled
ROUNDED_TWICE = 2.0**-10  # at most: the chance that a private vector has to be rounded once more
DTYPES = frozenset({"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"})

Arrays = Mapping[str, NDArray[Any]]


def sum_bits(clients: int) -> int:
    """ceil(log2 clients): what a sum of so many elements needs on top."""
    return (clients - 1).bit_length()


@dataclass(frozen=True)
class MetricField:
    name: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise Unsupported(f"metric {self.name!r} needs finite bounds, the lower one first")


@dataclass(frozen=True)
class ArrayField:
    """`scale` is a float element's unit, and the largest change of an integer one; both in the array's own unit."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise Unsupported(
                f"array {self.name!r} is {self.dtype}: secure aggregation sums {', '.join(sorted(DTYPES))}"
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise Unsupported(f"array {self.name!r} needs a positive, finite range")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith("float")


@dataclass(frozen=True)
class Schema:
    """Raises `Unsupported` for what cannot be summed.

    A rotated element of a device with `unit_weight` examples is clipped at `clip` times its scale. `rotation` is 64 hex digits, or
    empty where elements are not rotated; of rotated ones the share `subsample` is sent, and all of the arrays of one dimension
    (biases, statistics of norms), if they are a tenth of all at most: noise in them ruins a model. `norm` is what a private vector
    is clipped to, Euclidean, in scales, 0 where there is no privacy; `noise` is the variance, in squared levels, of what each
    device adds to each element; `settings` is the digest of all that it is made by.
    """

    clients: int
    bits: int
    max_weight: int
    metrics: tuple[MetricField, ...] = ()
    arrays: tuple[ArrayField, ...] = ()
    unit_weight: float = 1.0
    clip: float = 1.0
    rotation: str = ""
    subsample: float = 1.0
    norm: float = 0.0
    noise: float = 0.0
    settings: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.clients <= MAX_CLIENTS:
            raise Unsupported(f"secure aggregation sums 1 to {MAX_CLIENTS:,} clients")
        self._check_noise()
        if not self.bits >= 2 or self.modulus_bits > MOST_BITS:
            most = MOST_BITS - sum_bits(self.clients)
            too_much = (
                f"noise for {self.clients} clients does not fit into a word: state fewer bits, or a larger epsilon"
            )
            fewer = f"{self.clients} clients can send 2 to {most} bits an element, not {self.bits}"
            raise Unsupported(too_much if self.noise else fewer)
        if not 1 <= self.max_weight < 1 << 31:
            raise Unsupported("max_weight must be from 1 to 2147483647")
        if not (0 < self.unit_weight < math.inf and 0 < self.clip < math.inf):
            raise Unsupported("unit_weight and clip must be positive and finite")
        if not 0 < self.subsample <= 1 or (self.subsample < 1 and not self.rotation):
            raise Unsupported("a share above 0, of elements that are rotated, is sent")
        for fields in (self.metrics, self.arrays):
            if len({item.name for item in fields}) != len(fields):
                raise Unsupported("two fields of a schema have the same name")

    def _check_noise(self) -> None:
        if not 0 <= self.norm < math.inf or (self.norm and (not self.elements or self.subsample < 1)):
            raise Unsupported("a private vector has a finite norm, and elements, all of which are sent")
        if self.norm and (self.integers or self.metrics):
            what = (
                f"array {self.integers[0].name!r} is {self.integers[0].dtype}" if self.integers else "metrics are exact"
            )
            raise Unsupported(f"{what}: under differential privacy only changes of float arrays leave a device")
        if self.noise and not (self.norm and MIN_VARIANCE <= self.noise <= MAX_VARIANCE):  # also for NaN
            raise Unsupported("noise has a variance that can be drawn, and is for private vectors")

    @cached_property
    def modulus_bits(self) -> int:
        plain = self.bits + sum_bits(self.clients)
        return max(plain, (2 * self.peak(self.clients)).bit_length()) if self.noise else plain

    def peak(self, count: int) -> int:
        """The largest sum of an element over `count` devices."""
        return count * self.levels + (reach(count * self.noise) if self.noise else 0)

    @property
    def private(self) -> bool:
        return self.norm > 0

    @cached_property
    def squared_norm(self) -> int:
        """What one private vector keeps within, in squared levels: its whole effect on a sum."""
        return rounded_bound(self.norm * self.levels / self.clip, self.elements, ROUNDED_TWICE)

    @property
    def levels(self) -> int:
        """The largest rounded element."""
        return (1 << (self.bits - 1)) - 1

    @cached_property
    def floats(self) -> tuple[ArrayField, ...]:
        """Those that are always sent whole come first."""
        found = [item for item in self.arrays if item.is_float]
        return tuple(sorted(found, key=lambda item: len(item.shape) > 1)) if self.whole else tuple(found)

    @cached_property
    def whole(self) -> int:
        """Elements that come first and are always sent."""
        found = sum(item.size for item in self.arrays if item.is_float and len(item.shape) <= 1)
        return found if self.subsample < 1 and found <= _MOST_WHOLE * self.elements else 0

    @cached_property
    def integers(self) -> tuple[ArrayField, ...]:
        return tuple(item for item in self.arrays if not item.is_float)

    @property
    def digits(self) -> int:
        """Places of one exact value."""
        return -(-EXACT_BITS // self.bits)

    @property
    def exact(self) -> int:
        """How many exact values there are."""
        if self.private:
            return 1
        return 3 + len(self.floats) + len(self.metrics) + sum(item.size for item in self.integers)

    @property
    def elements(self) -> int:
        return sum(item.size for item in self.arrays if item.is_float)

    @property
    def kept(self) -> int:
        """Of `elements`, how many are sent."""
        return self.whole + math.ceil(self.subsample * (self.elements - self.whole))

    @property
    def length(self) -> int:
        """Of a vector."""
        return self.exact * self.digits + self.kept

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.length, self.modulus_bits)

    @property
    def bytes_on_the_wire(self) -> int:
        return self.layout.size

    @cached_property
    def digest(self) -> str:
        return digest_of(json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode())


def array_fields(arrays: Arrays, scales: Sequence[float]) -> tuple[ArrayField, ...]:
    """Fields for `arrays`, one scale each, in order."""
    return tuple(
        ArrayField(name, tuple(array.shape), str(array.dtype), scale)
        for (name, array), scale in zip(arrays.items(), scales, strict=True)
    )
