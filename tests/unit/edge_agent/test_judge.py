"""What a candidate must show."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.judge import Evidence, judge
from shared.session import Gate

GATE = Gate(accuracy_budget=0.02, max_logit_difference=1.0, min_top1_agreement=0.97)
GOOD = Evidence(0.9, 0.89, 0.1, 0.99, held_out=100)


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (GOOD, ""),
        (replace(GOOD, accuracy_after=0.88), ""),
        (replace(GOOD, accuracy_after=0.87), "accuracy falls"),
        (replace(GOOD, accuracy_before=None, accuracy_after=0.1), ""),
        (replace(GOOD, accuracy_after=None), "could not be measured"),
        (Evidence(), ""),
        (replace(GOOD, max_logit_difference=1.01), "logits differ by 1.010"),
        (replace(GOOD, top1_agreement=0.96), "agree in 0.960"),
        (replace(GOOD, candidate_errors=1), "failed 1 requests"),
        (replace(GOOD, accuracy_after=float("nan")), "not a finite number"),
        (replace(GOOD, max_logit_difference=float("inf")), "not a finite number"),
    ],
    ids=[
        "within the budget",
        "exactly on the budget",
        "below the budget",
        "no model before",
        "examples but no accuracy",
        "nothing to measure",
        "logits apart",
        "answers disagree",
        "failed requests",
        "NaN accuracy",
        "infinite difference",
    ],
)
def test_the_gate_says(evidence: Evidence, reason: str) -> None:
    found = judge(GATE, evidence)
    assert bool(found) == bool(reason)
    assert reason in found


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_fall_beyond_the_budget_never_passes(before: float, after: float, budget: float) -> None:
    found = judge(replace(GATE, accuracy_budget=budget), Evidence(before, after, held_out=10))
    if before - after > budget + 1e-6:
        assert found
    if before - after < budget - 1e-6:
        assert not found
