import numpy as np
import pytest

from shared.learning.measure import PROBE_SIZE, Probe, agreement, choose_probe, judge, probe_candidates
from shared.learning.spec import InputSchema

SCHEMA = InputSchema((1, 12, 13), ("a", "b", "c"))


def test_judging_agrees_with_the_formula() -> None:
    logits = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]], np.float32)
    found = judge(logits, np.array([0, 1]))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found.accuracy == 0.5
    assert found.loss == pytest.approx(-np.log([shares[0, 0], shares[1, 1]]).mean(), rel=1e-6)
    assert found.confidence == pytest.approx(shares.max(axis=1), rel=1e-6)


def test_judging_survives_enormous_logits() -> None:
    found = judge(np.array([[1e30, -1e30]], np.float32), np.array([1]))
    assert np.isfinite(found.loss)


def test_answers_that_are_not_numbers_agree_with_nothing() -> None:
    reference = np.zeros((2, 2), np.float32)
    found = agreement(reference, np.full((2, 2), np.nan, np.float32))
    assert (found.max_logit_difference, found.top1_agreement) == (float("inf"), 0.0)


def test_the_probe_is_the_same_every_time_and_fits_the_schema() -> None:
    one, other = probe_candidates(SCHEMA), probe_candidates(SCHEMA)
    assert one.shape == (64, 1, 12, 13)
    assert np.array_equal(one, other)
    assert 0 <= one.min() < one.max() <= 1


def test_the_probe_of_a_network_leaves_near_ties_out() -> None:
    reference = np.zeros((64, 3), np.float32)
    reference[40:60, 1] = 5
    probe = choose_probe(reference)
    assert len(probe.indices) == PROBE_SIZE
    assert set(probe.indices) <= set(range(40, 60))


@pytest.mark.parametrize(
    "values",
    [((1,), ()), ((64,), ((1.0,),)), ((0, 1), ((1.0,), (1.0, 2.0))), ((0,), ((float("inf"),),))],
)
def test_an_impossible_probe_is_refused(values: tuple[tuple[int, ...], tuple[tuple[float, ...], ...]]) -> None:
    with pytest.raises(ValueError):
        Probe(*values)
