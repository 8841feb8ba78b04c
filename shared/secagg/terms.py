"""What a round agrees on first: its `Terms`, and the `Settings` from which both ends build the same schema."""

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from shared.errors import Malformed, Unsupported
from shared.secagg.fields import Fields, Reader
from shared.secagg.keys import digest
from shared.secagg.quantize import Arrays, MetricField, Schema, array_fields

DEFAULT_MAX_WEIGHT = 100_000
DEFAULT_FLOAT_RANGE = 8.0
DEFAULT_INTEGER_RANGE = 65_536.0
VERSION = 2


@dataclass(frozen=True)
class Terms:
    """Public, the same for every client, and bound into every key and signature by `digest`.

    `clients` is the number invited; it bounds the sum's word size and the threshold. `inputs_digest` is of everything that
    the answers may depend on. A client masks only what it computed from these very inputs, so a server that hands out different
    models, to tell one client's change from the others', gets no sum (Pasquini et al., CCS 2022).
    """

    round_id: str
    clients: int
    threshold: int
    schema_digest: str
    inputs_digest: str
    graph: str = "complete"

    def __post_init__(self) -> None:
        if not self.round_id or not 1 <= self.threshold <= self.clients:
            raise Malformed("a round needs an id, and a threshold from 1 to its number of clients")

    @cached_property
    def digest(self) -> bytes:
        numbers = (VERSION, self.round_id, self.clients, self.threshold)
        return digest("terms", *numbers, self.schema_digest, self.inputs_digest, self.graph)

    def to_fields(self) -> Fields:
        return {
            "version": VERSION,
            "round_id": self.round_id,
            "clients": self.clients,
            "threshold": self.threshold,
            "schema_digest": self.schema_digest,
            "inputs_digest": self.inputs_digest,
            "graph": self.graph,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Terms":
        read = Reader(fields, "the terms of a round")
        if read.integer("version") != VERSION:
            raise Malformed(f"the peer speaks another version of secure aggregation: this side speaks {VERSION}")
        return cls(
            read.text("round_id"),
            read.integer("clients"),
            read.integer("threshold"),
            read.text("schema_digest"),
            read.text("inputs_digest"),
            read.text("graph"),
        )


@dataclass(frozen=True)
class Settings:
    """How values become words.

    `ranges` maps array names (shell patterns, the first match wins) to the largest change of an element.

    Metrics that are not declared here stay on the device.
    """

    max_weight: int = DEFAULT_MAX_WEIGHT
    weight_key: str = "num-examples"
    float_range: float = DEFAULT_FLOAT_RANGE
    integer_range: float = DEFAULT_INTEGER_RANGE
    ranges: Mapping[str, float] = field(default_factory=dict)
    metrics: tuple[MetricField, ...] = ()

    def __post_init__(self) -> None:
        bounds = (self.float_range, self.integer_range, *self.ranges.values())
        if not all(math.isfinite(bound) and bound > 0 for bound in bounds) or self.max_weight < 1:
            raise Unsupported("ranges are positive and finite, and max_weight is at least 1")
        if any(metric.name == self.weight_key for metric in self.metrics):
            raise Unsupported(f"{self.weight_key!r} is the weight; it cannot also be a metric")

    def schema(self, clients: int, arrays: Arrays) -> Schema:
        """Raises `Unsupported` for arrays or numbers that cannot be summed."""
        bounds = [self._bound(name, array.dtype.kind) for name, array in arrays.items()]
        return Schema(clients, self.max_weight, self.metrics, array_fields(arrays, bounds))

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
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Settings":
        read = Reader(fields, "the settings of a round")
        ranges = read.columns(read.texts("range_patterns"), read.numbers("range_bounds"))
        metrics = read.columns(read.texts("metric_names"), read.numbers("metric_lows"), read.numbers("metric_highs"))
        return cls(
            max_weight=read.integer("max_weight"),
            weight_key=read.text("weight_key"),
            float_range=read.number("float_range"),
            integer_range=read.number("integer_range"),
            ranges=dict(ranges),
            metrics=tuple(MetricField(*row) for row in metrics),
        )
