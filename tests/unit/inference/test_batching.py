"""The batching rule: pure, so time is whatever the test says."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.inference.batching import (
    BatchPolicy,
    BatchState,
    Dispatch,
    QueueView,
    WaitUntil,
    decide,
    initial,
    observe,
)
from shared.errors import ConfigError

PATIENT = BatchPolicy(target_ms=50, max_batch=8, max_delay_ms=10)
EAGER = BatchPolicy(target_ms=50, max_batch=8)

DECISIONS = {
    "nothing waits: ask again when something comes": (QueueView(()), 0.0, PATIENT, WaitUntil(math.inf)),
    "an eager policy never waits": (QueueView((1,)), 0.0, EAGER, Dispatch(1)),
    "a patient one waits for company": (QueueView((1,), oldest=0.0), 0.004, PATIENT, WaitUntil(0.01)),
    "but not longer than it says": (QueueView((1, 1), oldest=0.0), 0.01, PATIENT, Dispatch(2)),
    "a full batch goes at once": (QueueView((4, 4), oldest=0.0), 0.0, PATIENT, Dispatch(2)),
    "what would not fit stays behind": (QueueView((5, 4, 1), oldest=0.0), 0.0, PATIENT, Dispatch(1)),
    "another kind of request behind ends the wait": (QueueView((1,), blocked=True), 0.0, PATIENT, Dispatch(1)),
    "a request larger than the limit goes alone": (QueueView((20, 1)), 0.0, PATIENT, Dispatch(1)),
    "a near deadline ends the wait": (QueueView((1,), oldest=0.0, deadline=0.054), 0.0045, PATIENT, Dispatch(1)),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_decide(case: str) -> None:
    view, now, policy, expected = DECISIONS[case]
    decision = decide(view, now, policy, BatchState(8))
    if isinstance(expected, WaitUntil):
        assert isinstance(decision, WaitUntil)
        assert decision.at == pytest.approx(expected.at)
    else:
        assert decision == expected


@pytest.mark.parametrize(("batch_ms", "limit"), [(60.1, 4), (60.0, 8), (50.0, 8), (40.0, 8), (39.9, 16)], ids=str)
def test_the_limit_halves_above_1_2_times_the_target_and_doubles_below_0_8(batch_ms: float, limit: int) -> None:
    policy = BatchPolicy(target_ms=50, min_batch=2, max_batch=64)
    assert observe(policy, BatchState(8), batch_ms).limit == limit


@given(st.integers(1, 64), st.integers(0, 64), st.lists(st.floats(0, 1e4, allow_nan=False), max_size=40))
def test_the_limit_never_leaves_the_policys_range(low: int, more: int, times: list[float]) -> None:
    policy = BatchPolicy(min_batch=low, max_batch=low + more)
    state = initial(policy)
    for batch_ms in times:
        state = observe(policy, state, batch_ms)
        assert policy.min_batch <= state.limit <= policy.max_batch


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 32), st.floats(0, 1), st.booleans())
def test_a_batch_is_within_the_limit_or_a_single_request_and_waiting_always_ends(
    rows: list[int], limit: int, now: float, blocked: bool
) -> None:
    policy = BatchPolicy(max_batch=32, max_delay_ms=10)
    view = QueueView(tuple(rows), oldest=0.0, blocked=blocked)
    decision = decide(view, now, policy, BatchState(limit))
    if isinstance(decision, WaitUntil):
        assert now < decision.at <= 0.01
        decision = decide(view, decision.at, policy, BatchState(limit))
    assert isinstance(decision, Dispatch)
    assert 1 <= decision.requests <= len(rows)
    assert decision.requests == 1 or sum(rows[: decision.requests]) <= limit


@pytest.mark.parametrize(
    "values",
    [
        {"target_ms": 0.0},
        {"target_ms": math.nan},
        {"min_batch": 0},
        {"min_batch": 9, "max_batch": 8},
        {"max_batch": 5000},
        {"max_delay_ms": -1.0},
        {"queue_limit": 0},
    ],
    ids=str,
)
def test_an_impossible_policy_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        BatchPolicy(**values)  # type: ignore[arg-type]
