"""Whether a candidate may serve, judged against a rollout's gate. Pure; the coordinator judges the same numbers again."""

import math
from dataclasses import dataclass

from shared.session import Gate


@dataclass(frozen=True)
class Evidence:
    """Accuracies are shares of the held-out examples, None where there was nothing to measure (no examples, no model before).

    `max_logit_difference` and `top1_agreement` compare the int8 graph with the fake-quantized network.
    """

    accuracy_before: float | None = None
    accuracy_after: float | None = None
    max_logit_difference: float | None = None
    top1_agreement: float | None = None
    held_out: int = 0  # examples that the accuracies are over
    candidate_errors: int = 0  # requests that the candidate failed, among held-out examples and shadowed requests


def judge(gate: Gate, evidence: Evidence) -> str:
    """Why the candidate is refused; empty when it may serve. What is not a finite number is never good enough."""
    if evidence.candidate_errors:
        return f"the candidate failed {evidence.candidate_errors} requests"
    measured = {
        "accuracy before": evidence.accuracy_before,
        "accuracy after": evidence.accuracy_after,
        "logit difference": evidence.max_logit_difference,
        "agreement": evidence.top1_agreement,
    }
    for name, value in measured.items():
        if value is not None and not math.isfinite(value):
            return f"the {name} is not a finite number"
    if evidence.held_out and evidence.accuracy_after is None:
        return "the candidate's accuracy could not be measured"
    return _numbers(gate, evidence)


def _numbers(gate: Gate, evidence: Evidence) -> str:
    before, after = evidence.accuracy_before, evidence.accuracy_after
    if before is not None and after is not None and after < before - gate.accuracy_budget - 1e-9:
        return (
            f"accuracy falls from {before:.3f} to {after:.3f} on {evidence.held_out} held-out examples;"
            f" {gate.accuracy_budget:.3f} is allowed"
        )
    difference, agreement = evidence.max_logit_difference, evidence.top1_agreement
    if difference is not None and difference > gate.max_logit_difference:
        return f"int8 and fake-quantized logits differ by {difference:.3f}; {gate.max_logit_difference:.3f} is allowed"
    if agreement is not None and agreement < gate.min_top1_agreement:
        return f"int8 and fake-quantized answers agree in {agreement:.3f}; {gate.min_top1_agreement:.3f} is required"
    return ""
