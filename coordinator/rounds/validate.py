"""What an unmasked update must be before a strategy sees it. Flower's own averaging takes NaN and raises on wrong shapes."""

import math
from collections.abc import Callable

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from shared.errors import UpdateRejected
from shared.flower import to_numpy

Check = Callable[[Message, RecordDict], None]


def check_update(weight_key: str) -> Check:
    """A check that raises `UpdateRejected`: the arrays that were sent, all finite, and a positive number of examples."""

    def check(request: Message, content: RecordDict) -> None:
        if request.metadata.message_type.partition(".")[0] == "train":
            _check_records(request.content, content)
        _check_metrics(content, weight_key)

    return check


def _check_records(sent: RecordDict, got: RecordDict) -> None:
    wanted, found = list(sent.array_records.values()), list(got.array_records.values())
    if len(found) != 1 or len(wanted) != 1:
        raise UpdateRejected("an update holds one ArrayRecord")
    if list(wanted[0]) != list(found[0]):
        raise UpdateRejected("the update's arrays have other names than the model's")
    for name in wanted[0]:
        _check_array(name, wanted[0], found[0])


def _check_array(name: str, sent: ArrayRecord, got: ArrayRecord) -> None:
    value, reference = to_numpy(got[name]), sent[name]
    if tuple(value.shape) != tuple(reference.shape) or str(value.dtype) != reference.dtype:
        found, wanted = f"{value.dtype} {tuple(value.shape)}", f"{reference.dtype} {tuple(reference.shape)}"
        raise UpdateRejected(f"{name} is {found}, not {wanted}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise UpdateRejected(f"{name} holds NaN or infinite values")


def _check_metrics(content: RecordDict, weight_key: str) -> None:
    for record in content.metric_records.values():
        for key, value in record.items():
            if not np.all(np.isfinite(value)):
                raise UpdateRejected(f"metric {key} is not finite")
    weight = weight_of(content, weight_key)
    if not 0 < weight < math.inf:
        raise UpdateRejected(f"an update has one positive {weight_key}")


def weight_of(content: RecordDict, weight_key: str) -> float:
    """The number of examples behind a reply; 0 when it names none, or names it twice."""
    weights = [record[weight_key] for record in content.metric_records.values() if weight_key in record]
    return float(weights[0]) if len(weights) == 1 and isinstance(weights[0], int | float) else 0.0
