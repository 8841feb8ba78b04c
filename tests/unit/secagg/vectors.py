"""Schemas and vectors for the tests of quantisation."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.secagg.packing import Words
from shared.secagg.quantize import Update, encode
from shared.secagg.schema import ArrayField, MetricField, Schema

LOSS = MetricField("loss", 0.0, 20.0)
ROTATION = "ab" * 32
Values = Mapping[str, NDArray[Any]]


def zeros_like(arrays: Values) -> Values:
    return {name: np.zeros_like(array) for name, array in arrays.items()}


def plain(schema: Schema, arrays: Values, weight: float = 1, metrics: Mapping[str, float] | None = None) -> Words:
    """Against a base of zeros, with nothing owed."""
    update = Update(weight, metrics or {}, arrays, zeros_like(arrays))
    return encode(schema, update, os.urandom, feedback=False)[0]


def schema_of(clients: int, bits: int, size: int, rotation: str = ROTATION, **more: Any) -> Schema:
    field = ArrayField("w", (size,), "float32", more.pop("scale", 1.0))
    fields = {"max_weight": 1000, "unit_weight": 10.0, "clip": 6.0, **more}
    return Schema(clients, bits, arrays=(field,), rotation=rotation, **fields)
