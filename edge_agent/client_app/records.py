"""How our apps read a message and write a reply: an ArrayRecord "arrays", ConfigRecords "config" and "model", and a
MetricRecord "metrics".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from shared.client_apps import C, read_settings
from shared.errors import ConfigError, Malformed, UpdateRejected
from shared.flower import record_to_numpy, reply_with

ARRAYS, CONFIG, MODEL, METRICS = "arrays", "config", "model", "metrics"
DATA_DIR, STATE_DIR = "data_dir", "state_dir"


def read_arrays(content: RecordDict) -> dict[str, NDArray[Any]]:
    """In the order they were sent. Raises `Malformed`."""
    record = content.get(ARRAYS)
    if not isinstance(record, ArrayRecord):
        raise Malformed(f"the message holds no ArrayRecord {ARRAYS!r}")
    return record_to_numpy(record)


def read_config(content: RecordDict, kind: type[C]) -> C:
    """The ConfigRecord as a `kind`, by `read_settings`. Raises `Malformed`."""
    record = content.get(CONFIG, ConfigRecord())
    if not isinstance(record, ConfigRecord):
        raise Malformed(f"the record {CONFIG!r} is not a ConfigRecord")
    try:
        return read_settings(kind, record, where=CONFIG)
    except ConfigError as error:
        raise Malformed(error.message) from error


def read_model_json(content: RecordDict) -> str:
    """Raises `Malformed`."""
    record = content.get(MODEL)
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str):
        raise Malformed(f"the message holds no ConfigRecord {MODEL!r} with model.json under 'json'")
    return text


def folder(context: Context, name: str) -> Path:
    """From the node's own configuration, never from the message. Raises `ConfigError`."""
    value = context.node_config.get(name)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"this node's configuration has no {name}")
    return Path(value)


def answer(request: Message, metrics: Mapping[str, float], arrays: Mapping[str, NDArray[Any]] | None = None) -> Message:
    """A reply; arrays keep the order, types and shapes that the request's had. Raises `UpdateRejected` for anything not finite."""
    for name, value in metrics.items():
        if not np.isfinite(value):
            raise UpdateRejected(f"the metric {name} came out as {value}")
    records = RecordDict()
    if arrays is not None:
        sent = request.content.array_records[ARRAYS]
        records[ARRAYS] = ArrayRecord(
            {name: Array(arrays[name].astype(array.dtype, copy=False)) for name, array in sent.items()}
        )
    records[METRICS] = MetricRecord(dict(metrics))
    return reply_with(request, records)
