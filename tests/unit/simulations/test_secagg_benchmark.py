"""The benchmark of secure aggregation plays whole rounds, charges who worked, and extrapolates what it could not measure."""

import numpy as np
import pytest

from coordinator.rounds.unmasking import apply_masks_on_all_cores
from shared.secagg.graph import Rates
from shared.secagg.schema import sum_bits
from simulations.benchmarks import flower_secagg, secagg_extrapolate
from simulations.benchmarks.secagg import Case, Peer
from simulations.benchmarks.secagg_ours import BITS, Cost, Fleet, bytes_of, keystream_s

pytestmark = pytest.mark.filterwarnings("ignore::shared.secagg.keys.InsecureWarning")
CASE = Case(8, 2_000, 0.25)


def test_a_round_of_ours_sums_what_is_left_and_says_what_it_cost() -> None:
    fleet = Fleet(CASE.clients, CASE.rates, 2)
    for number, apply in ((1, None), (2, apply_masks_on_all_cores)):
        gone = CASE.gone()[number]
        assert len(gone) == 2
        cost = fleet.round(number, CASE.vectors(), gone, *([apply] if apply else []))
        assert cost.masks == 6 + 6 * 2, "a self-mask each, and masks with both that are gone: all are partners"
        assert cost.bytes_up > CASE.elements * (BITS + sum_bits(CASE.clients)) / 8
        assert min(cost.client_s, cost.server_s, cost.finish_s) > 0
    assert fleet.setup.bytes_up > 0


def test_a_wrong_sum_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(4, Rates(), 1)
    with pytest.raises(ArithmeticError):
        fleet.round(1, CASE.vectors(), frozenset(), lambda residues, masks: None)


def test_flowers_round_costs_time_and_eight_bytes_an_element_or_is_given_up() -> None:
    whole = flower_secagg.one_round(8, 2_000, CASE.vectors(), frozenset())
    assert not whole.aborted
    assert whole.bytes_up > 8 * CASE.elements
    assert min(whole.client_s, whole.server_s) > 0


def test_what_was_not_measured_follows_the_terms_that_the_cost_is_made_of() -> None:
    def server(case: secagg_extrapolate.Key) -> float:
        shares, masks, elements, vectors = secagg_extrapolate.TERMS["server"](*case)
        return 2e-5 * shares + 1e-4 * masks + 3e-9 * elements + 1e-9 * vectors

    cases = [(n, d, drop) for n in (20, 50, 100) for d in (10_000, 100_000) for drop in (0.0, 0.1)]
    known = {case: {"server": server(case)} for case in cases}
    far = (1000, 1_000_000, 0.3)
    assert secagg_extrapolate.guess(known, far, "server") == pytest.approx(server(far), rel=1e-3)
    few = dict(list(known.items())[:2])
    assert secagg_extrapolate.guess(few, far, "server") == 0.0


def test_a_round_that_would_take_more_than_a_minute_is_extrapolated_and_marked_so() -> None:
    peer = Peer()
    for n in (20, 40, 80, 160):
        for d in (1_000, 100_000):
            value = 1e-5 * n * secagg_extrapolate.TERMS["client"](n, d, 0.0)[1]
            peer.learn(Case(n, d, 0.0), {"client": 0.01, "server": value, "bytes": 8.0 * d, "memory": 8.0 * n * d})
    label, cost = peer.cost(Case(100_000, 100_000, 0.0))
    assert label == "Flower SecAgg+, extrapolated"
    assert cost["bytes"] == pytest.approx(800_000, rel=0.01)


def test_a_mask_takes_time_and_sizes_are_those_of_the_content() -> None:
    assert keystream_s(10_000, 13) > 0
    assert bytes_of({"a": b"12345", "b": [1, 2], "c": "xy", "d": 0.5}) == 5 + 16 + 2 + 8
    assert Cost(1, 2, 3).masks == 0
    assert np.array_equal(CASE.vectors()(3), CASE.vectors()(3))
