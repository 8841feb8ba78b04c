"""Weights, changes and sizes that no sum may hold: they leave no device, or end the round."""

import math
from typing import Any

import numpy as np
import pytest

from edge_agent.residuals import LEFT
from shared.errors import RoundAborted
from shared.secagg.quantize import Total, decode
from shared.secagg.terms import Settings
from tests.protocol.secagg.appgrid import (
    START,
    Handler,
    changed,
    make_grid,
    metrics,
)
from tests.protocol.secagg.exchanges import (
    EVERYBODY,
    VICTIM,
    assert_mean_of,
    exchange,
    messages,
    secure,
)

WEIGHTS: dict[str, tuple[float, str]] = {
    "one above the maximum": (101, "max_weight 100"),
    "a multiple of the modulus": (1 << 32, "max_weight 100"),
    "huge": (2**62, "max_weight 100"),
    "infinite": (math.inf, "max_weight 100"),
    "negative": (-1, "whole number"),
    "minus infinity": (-math.inf, "whole number"),
    "a fraction": (1.5, "whole number"),
    "NaN": (math.nan, "whole number"),
}


def assert_left_out(trainer: Handler, reason: str) -> None:
    """By name and reason, and the mean over the others is exact."""
    inner, authority = make_grid(trainers={VICTIM: trainer})
    grid, seen = secure(inner, authority)
    assert_mean_of(exchange(grid), EVERYBODY - {VICTIM})
    assert seen.fates == {**dict.fromkeys(EVERYBODY, "counted"), VICTIM: "rejected"}
    assert reason in seen.reason(VICTIM)
    assert VICTIM not in {node for node, phase, _ in inner.sent if phase == "masked"}, "nothing left the device"
    assert not any(name.startswith(LEFT) for name in inner.nodes[VICTIM].context.state)


@pytest.mark.parametrize(("weight", "reason"), WEIGHTS.values(), ids=WEIGHTS)
def test_overflowing_weights(weight: float, reason: str) -> None:
    assert_left_out(metrics(num_examples=weight, loss=1.0), reason)


VALUES: dict[str, dict[str, np.ndarray[Any, Any]]] = {
    "NaN": {"w": np.full((3, 4), np.nan, np.float32)},
    "one NaN": {"w": np.where(np.arange(12).reshape(3, 4) == 11, np.nan, 0).astype(np.float32)},
    "infinity": {"b": np.array(np.inf)},
    "minus infinity": {"b": np.array(-np.inf)},
    "a number that overflows": {"b": np.array(1e308)},
}


@pytest.mark.parametrize("arrays", VALUES.values(), ids=VALUES)
def test_nan_and_infinity(arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    assert set(arrays) <= set(START)
    assert_left_out(lambda m, c: changed(m, c, **arrays), "holds a value that is not finite")


def test_nan_in_the_model_that_is_sent_out() -> None:
    """Nothing finite can be said of a change against it: every device refuses."""
    grid, seen = secure(*make_grid())
    batch = messages()
    for message in batch:
        record = message.content.array_records["arrays"]
        record["b"] = type(record["b"])(np.array(np.nan))
    with pytest.raises(RoundAborted):
        grid.send_and_receive(batch)
    assert seen.fates == dict.fromkeys(EVERYBODY, "rejected")


def test_a_device_that_lies_about_sizes_spoils_a_round_or_little() -> None:
    """Said to be larger than a device can be, they end the round; the largest that it can say moves a scale by one step."""
    schema = (
        Settings(bits=12)
        .after(Total(5, 500, {}, {}, sizes={"w": 1.0}))
        .schema(5, {"w": np.zeros(64, np.float32)}, bytes(32))
    )
    total = np.zeros(schema.length, dtype=np.int64)
    total[: schema.exact * schema.digits] = -5 << (schema.bits - 1)  # five digits of zero
    total[0] += 5  # the count's lowest digit
    total[schema.digits] += 5
    total[4 * schema.digits - 1] += 5 * 4095  # the highest digit of w's size
    with pytest.raises(RoundAborted, match="sizes"):
        decode(schema, schema.layout.join(total), 5)
