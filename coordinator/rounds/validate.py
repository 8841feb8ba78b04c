"""What an unmasked update must be before a strategy sees it. Flower's own averaging takes NaN and raises on wrong shapes."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from shared.client_apps import NO_KEYS, UNFIT
from shared.errors import UpdateRejected
from shared.flower import APP_NOT_LOADED, REFUSED, reply_error, to_numpy

WEIGHT_KEY = "num-examples"
MAX_WEIGHT = 1 << 31
_METRICS = "metrics"
LASTING = frozenset({UNFIT, APP_NOT_LOADED})  # error codes: the device would say so again
REJECTIONS = LASTING | {REFUSED, NO_KEYS}  # it, or we, said no; any other error is a loss


def checked(request: Message, content: RecordDict) -> RecordDict:
    """The usable part of a reply, with arrays in the order of the request's and under its record's name.

    Raises `UpdateRejected` unless it holds the arrays that were sent (names, shapes, dtypes), all finite, finite metrics, and a
    positive whole number of examples; `Malformed` for an array that is not what it says it is.
    """
    records = RecordDict()
    if request.metadata.message_type.partition(".")[0] == "train":
        name, arrays = _checked_arrays(request.content, content)
        records[name] = arrays
    records[_METRICS] = _checked_metrics(content)
    return records


def agreed(requests: Sequence[Message], replies: Sequence[Message]) -> list[Message]:
    """Replies, those refused whose metrics are named otherwise than most: Flower gives up a whole round over one of them."""
    shapes = [None if reply.has_error() else _shape(reply.content) for reply in replies]
    usual = Counter(shape for shape in shapes if shape is not None).most_common(1)
    return [
        reply
        if shape is None or shape == usual[0][0]
        else reply_error(request, REFUSED, "its metrics are not those that most devices report")
        for request, reply, shape in zip(requests, replies, shapes, strict=True)
    ]


def weight_of(content: RecordDict) -> int:
    """The number of examples behind a checked reply."""
    return int(content[_METRICS][WEIGHT_KEY])  # type: ignore[arg-type]


def _checked_arrays(sent: RecordDict, got: RecordDict) -> tuple[str, ArrayRecord]:
    ((name, wanted),) = sent.array_records.items()
    found = list(got.array_records.values())
    if len(found) != 1:
        raise UpdateRejected("an update holds one ArrayRecord")
    if set(wanted) != set(found[0]):
        raise UpdateRejected("the update's arrays have other names than the model's")
    for key in wanted:
        _check_array(key, wanted[key], found[0][key])
    return name, ArrayRecord({key: found[0][key] for key in wanted})


def _check_array(name: str, sent: Array, got: Array) -> None:
    value = to_numpy(got)
    if value.shape != tuple(sent.shape) or str(value.dtype) != sent.dtype:
        found, wanted = f"{value.dtype} {tuple(value.shape)}", f"{sent.dtype} {tuple(sent.shape)}"
        raise UpdateRejected(f"{name} is {found}, not {wanted}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise UpdateRejected(f"{name} holds NaN or infinite values")


def _checked_metrics(content: RecordDict) -> MetricRecord:
    records = list(content.metric_records.values())
    if len(records) != 1:
        raise UpdateRejected("an update holds one MetricRecord")
    for key, value in records[0].items():
        if not all(math.isfinite(number) for number in (value if isinstance(value, list) else [value])):
            raise UpdateRejected(f"metric {key} is not finite")
    weight = records[0].get(WEIGHT_KEY)
    if not isinstance(weight, int | float) or not 0 < weight <= MAX_WEIGHT or weight != int(weight):
        raise UpdateRejected(f"{WEIGHT_KEY} is not a positive whole number")
    return records[0]


def _shape(content: RecordDict) -> frozenset[tuple[str, int]]:
    """Names and lengths: numbers have length -1."""
    ((_, metrics),) = content.metric_records.items()
    return frozenset((key, len(value) if isinstance(value, list) else -1) for key, value in metrics.items())
