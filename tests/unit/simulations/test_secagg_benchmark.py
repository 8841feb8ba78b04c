"""The benchmark of secure aggregation plays whole rounds with all clients in a process of their own, charges who worked, and
extrapolates what it could not measure.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.secagg.graph import Rates
from simulations.benchmarks import flower_secagg, secagg, secagg_extrapolate, secagg_ours
from simulations.benchmarks.harness import Figure
from simulations.benchmarks.secagg import Case, Ours, Peer, figures_of
from simulations.benchmarks.secagg_ours import Round, keystream_s, vector_of
from simulations.benchmarks.secagg_plot import plot
from simulations.benchmarks.two_processes import Memory

pytestmark = pytest.mark.filterwarnings("ignore::shared.secagg.keys.InsecureWarning")
CASE = Case(8, 2_000, 0.25)
GONE = frozenset({2, 5})


@pytest.fixture(params=[{}, {"strangers": True}, {"signed": False}], ids=["signed", "strangers", "unsigned"])
def fleet(request: pytest.FixtureRequest) -> Iterator[secagg_ours.Fleet]:
    found = secagg_ours.Fleet(CASE.clients, Rates(), **request.param)
    yield found
    found.grid.close()


def test_rounds_of_ours_give_the_mean_of_who_is_left_and_say_what_they_cost(fleet: secagg_ours.Fleet) -> None:
    costs = []
    for gone in (GONE, frozenset[int](), frozenset[int]()):
        cost, mean = fleet.round(CASE.nodes, CASE.elements, gone)
        CASE.check(mean, gone)
        assert cost.bytes_up > CASE.elements * (8 + 3) / 8
        assert min(cost.client_s, cost.server_s) > 0
        costs.append(cost)
    assert [cost.makes_keys for cost in costs] == [True, True, False], "a small group makes keys when a device is back"
    assert costs[0].masks == 6 + 6 * 2, "a self-mask each, and masks with both that are gone: all are partners"
    assert costs[2].masks == 8
    assert costs[2].bytes_up < costs[1].bytes_up


def test_clients_that_vanish_after_they_sent_their_vectors_are_in_the_mean(fleet: secagg_ours.Fleet) -> None:
    cost, mean = fleet.round(CASE.nodes, CASE.elements, GONE, after_masking=True)
    replace(CASE, after_masking=True).check(mean, GONE)
    assert cost.masks == 8


def test_a_mean_of_others_is_no_figure(fleet: secagg_ours.Fleet) -> None:
    _, mean = fleet.round(CASE.nodes, CASE.elements, GONE)
    with pytest.raises(ArithmeticError):
        CASE.check(mean, frozenset())


def test_flowers_round_costs_time_and_eight_bytes_an_element_or_is_given_up() -> None:
    fleet = flower_secagg.Fleet()
    cost, mean = fleet.round(CASE.nodes, CASE.elements, frozenset())
    assert mean is not None
    CASE.check(mean, frozenset())
    assert cost.bytes_up > 8 * CASE.elements
    assert min(cost.client_s, cost.server_s) > 0
    _, none = fleet.round(CASE.nodes, CASE.elements, frozenset({1, 2, 3, 4, 5}))
    assert none is None
    fleet.grid.close()


def test_the_peak_of_memory_begins_anew() -> None:
    """Arrays of a size that the allocator hands back at once."""
    first = np.ones(96 << 20, np.uint8)
    del first
    memory = Memory()
    assert memory.peak() < 32 << 20
    second = np.ones(64 << 20, np.uint8)
    assert second.size - (4 << 20) < memory.peak() < second.size + (32 << 20)


def ours(*makes_keys: bool) -> Ours:
    """Rounds that cost 8 with and 1 without keys to make."""
    rounds = [Round(8.0, 80.0, 800.0, 9, True) if makes else Round(1.0, 10.0, 100.0, 9, False) for makes in makes_keys]
    return Ours(tuple(rounds), 1.0, 1.0, 0.1, 1 << 20)


def test_a_figure_is_the_mean_of_the_rounds_of_a_group() -> None:
    def client(one: Round) -> float:
        return one.client_s

    assert ours(True).mean(client) == 8
    assert ours(True, False).mean(client) == (8 + 15 * 1) / 16, "the second stands for all but the first"
    assert ours(True, True).mean(client) == 8
    assert ours(True, *[False] * 15).mean(client) == (8 + 15) / 16
    assert ours(True, False, False, True, *[False] * 12).mean(client) == (2 * 8 + 14) / 16
    assert (ours(True, False).made(client), ours(True, False).at_hand(client)) == (8, 1)
    assert ours(True, True).at_hand(client) is None


def test_clients_drop_out_by_chance_and_no_more_than_stated() -> None:
    case = Case(1000, 10, 0.1)
    counts = {len(case.gone(number)) for number in range(20)}
    assert len(counts) > 5
    assert 70 < min(counts) <= max(counts) < 130
    assert case.gone(3) == case.gone(3) != case.gone(4)
    assert max(len(Case(8, 10, 0.3).gone(number)) for number in range(50)) == 3


@pytest.mark.parametrize("clients", [8, 1000])
def test_the_check_sees_a_mean_over_too_many(clients: int) -> None:
    case = Case(clients, 2_000, 0.1)
    vectors = np.array([vector_of(node, case.elements) for node in case.nodes])
    gone = frozenset({3}) if clients == 8 else case.gone(1)
    left = np.array([node not in gone for node in case.nodes])
    case.check(vectors[left].mean(axis=0), gone)
    with pytest.raises(ArithmeticError):
        case.check(vectors.mean(axis=0), gone)


def found(**more: float) -> dict[str, float]:
    return {"client": 10.0, "server": 100.0, "bytes": 1000.0, "memory": 10.0, **more}


def test_what_flower_was_not_known_to_cost_is_compared_with_nothing() -> None:
    figures = {one.name: one for one in figures_of(CASE, ours(True, False), ("Flower", found(client=0.0)))}
    assert figures[f"client CPU, {CASE.name}"].peer is None
    assert figures[f"server CPU, {CASE.name}"].ratio == 100 / ((80 + 150) / 16)


def test_the_picture_has_a_row_a_case_also_where_flower_gave_up(tmp_path: Path) -> None:
    figures: list[Figure] = []
    for case, label in ((CASE, "Flower"), (replace(CASE, dropout=0.3), "Flower, which gave up, extrapolated")):
        figures += figures_of(case, ours(True, case.dropout > 0.25), (label, found()))
    plot("secagg", figures, tmp_path / "two.png")
    unknown = ("Flower, which gave up", found(client=0.0, server=0.0))
    plot("secagg", [*figures, *figures_of(replace(CASE, clients=9), ours(True), unknown)], tmp_path / "three.png")
    heights = [int.from_bytes((tmp_path / name).read_bytes()[20:24], "big") for name in ("two.png", "three.png")]
    assert heights[1] - heights[0] == pytest.approx(0.28 * 120, abs=1), "a row more, though Flower's is unknown in part"


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


def test_a_round_that_would_take_more_than_a_minute_is_extrapolated_and_marked_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def played(*_: Any) -> None:
        raise AssertionError("it was played")

    monkeypatch.setattr(secagg, "alone", played)
    peer = Peer()
    for n in (20, 40, 80, 160):
        for d in (1_000, 100_000):
            value = 1e-5 * n * secagg_extrapolate.TERMS["client"](n, d, 0.0)[1]
            peer.learn(Case(n, d, 0.0), {"client": 0.01, "server": value, "bytes": 8.0 * d, "memory": 8.0 * n * d})
    label, cost = peer.cost(Case(100_000, 100_000, 0.0))
    assert label == "Flower SecAgg+, extrapolated"
    assert cost["bytes"] == pytest.approx(800_000, rel=0.01)


def test_a_mask_takes_time_and_vectors_are_the_same_each_time() -> None:
    assert keystream_s(10_000, 13) > 0
    assert np.array_equal(vector_of(3, 100), vector_of(3, 100))
