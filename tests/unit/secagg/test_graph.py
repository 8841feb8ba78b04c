"""The graph is no denser than its promises need, and keeps them: exactly where they can be counted, by trial where not."""

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.errors import Unsupported
from shared.secagg.graph import GRINDING_BITS, Degrees, Graph, Rates, derive, draw

SIZES = [2, 3, 4, 5, 20, 50, 100, 200, 500, 1000, 5000]
SHARES = [0.0, 0.05, 0.1, 0.2, 0.35, 0.45]
DERIVED = [
    pytest.param(clients, Rates(dropout, corrupt), id=f"{clients} clients, {dropout} drop, {corrupt} corrupt")
    for clients in SIZES
    for dropout in SHARES
    for corrupt in (0.0, 0.05, 0.1)
    if math.floor(dropout * clients) + (clients - 1 + math.floor(corrupt * clients)) // 2 + 1 <= clients - 1
]
SPARSE = [(50, Rates(0.1)), (300, Rates(0.05)), (500, Rates(0.1)), (500, Rates(0.3)), (1000, Rates(0.2, 0.0))]
SMALL = Degrees(neighbours=4, threshold=2, partners=2, witnesses=3, majority=2)


# ---- degrees


@pytest.mark.parametrize(("clients", "rates"), DERIVED)
def test_degrees_fit_together(clients: int, rates: Rates) -> None:
    degrees, corrupt, dropped = derive(clients, rates), rates.corrupted(clients), rates.dropped(clients)
    assert 1 <= degrees.partners <= degrees.neighbours <= clients - 1
    assert 2 * degrees.majority > degrees.witnesses, "no two sets have a majority each"
    assert degrees.majority <= degrees.witnesses <= clients
    if degrees.complete:
        assert (degrees.neighbours, degrees.witnesses) == (clients - 1, clients)
        assert 2 * degrees.threshold > clients - 1 + min(corrupt, clients - 1)
        assert 2 * degrees.majority > clients + corrupt
        assert degrees.threshold <= degrees.partners == max(1, clients - 1 - dropped), "those who are left can recover"
        assert degrees.majority <= max(2, clients - dropped)
    else:
        assert degrees.neighbours % 2 == 0
        assert degrees.threshold == degrees.partners, "who speaks for a silent client is counted, and a neighbour"


def distinct_tail(draws: int, marked: int, others: int, least: int) -> float:
    """log2 of the chance that `draws` draws with returns hit `least` distinct marked ones or more: inclusion and exclusion."""
    hit = sum(
        math.comb(marked, count) * (-1) ** left_out * math.comb(count, left_out) * (others + count - left_out) ** draws
        for count in range(least, marked + 1)
        for left_out in range(count + 1)
    )
    return math.log2(hit) - draws * math.log2(marked + others) if hit else -math.inf


def chosen_tail(population: int, marked: int, drawn: int, least: int) -> float:
    """log2 of the chance that of `drawn` distinct ones `least` are marked or more."""
    ways = sum(
        math.comb(marked, count) * math.comb(population - marked, drawn - count)
        for count in range(least, min(marked, drawn) + 1)
    )
    return math.log2(ways) - math.log2(math.comb(population, drawn)) if ways else -math.inf


@pytest.mark.parametrize(("clients", "rates"), SPARSE, ids=str)
def test_no_client_has_so_many_corrupt_neighbours_that_both_its_secrets_leak(clients: int, rates: Rates) -> None:
    degrees, corrupt = derive(clients, rates), rates.corrupted(clients)
    chance = distinct_tail(degrees.neighbours, corrupt, clients - 1 - corrupt, degrees.threshold)
    assert chance + math.log2(clients) <= -rates.security_bits - GRINDING_BITS


@pytest.mark.parametrize(("clients", "rates"), SPARSE, ids=str)
def test_so_many_witnesses_are_hardly_ever_corrupt_that_two_stories_have_a_majority(clients: int, rates: Rates) -> None:
    degrees = derive(clients, rates)
    most = 2 * degrees.majority - degrees.witnesses
    assert (
        chosen_tail(clients, rates.corrupted(clients), degrees.witnesses, most) <= -rates.security_bits - GRINDING_BITS
    )


@pytest.mark.parametrize(("clients", "rates"), SPARSE, ids=str)
def test_a_random_dropout_hardly_ever_takes_the_majority_of_witnesses(clients: int, rates: Rates) -> None:
    degrees = derive(clients, rates)
    missing = degrees.witnesses - degrees.majority + 1
    assert chosen_tail(clients, rates.dropped(clients), degrees.witnesses, missing) <= -rates.abort_bits


KNOWN = {
    (5, 0.2): Degrees(4, 3, 3, 5, 3, complete=True),
    (50, 0.1): Degrees(26, 8, 8, 26, 15),
    (100, 0.25): Degrees(44, 12, 12, 50, 28),
    (500, 0.1): Degrees(56, 31, 31, 64, 45),
    (1000, 0.1): Degrees(72, 43, 43, 82, 59),
}


@pytest.mark.parametrize(("clients", "dropout"), KNOWN, ids=str)
def test_known_degrees(clients: int, dropout: float) -> None:
    """Both ends derive them for themselves. What they cost is in this table: whoever changes them changes it."""
    assert derive(clients, Rates(dropout)) == KNOWN[clients, dropout]


@pytest.mark.parametrize("clients", [100, 500, 1000])
@pytest.mark.parametrize("name", ["dropout", "corrupt", "security_bits"])
def test_more_to_fear_never_makes_a_sparser_graph(clients: int, name: str) -> None:
    steps: dict[str, list[float]] = {
        "dropout": [0.0, 0.05, 0.1, 0.2, 0.3],
        "corrupt": [0.0, 0.02, 0.05, 0.1],
        "security_bits": [20, 40, 60, 80],
    }
    dense = [derive(clients, replace(Rates(0.1, 0.02), **{name: step})) for step in steps[name]]  # type: ignore[arg-type]
    for sparser, denser in pairwise(dense):
        assert sparser.neighbours <= denser.neighbours
        assert sparser.witnesses <= denser.witnesses + denser.witnesses // 8, "found in steps of a sixteenth"


@pytest.mark.parametrize("clients", range(2, 20))
def test_small_groups_are_complete(clients: int) -> None:
    assert derive(clients, Rates(0.0 if clients == 2 else 0.1, 0.0)).complete


def test_large_groups_are_sparse() -> None:
    """The price of a group grows with its logarithm."""
    assert derive(1000, Rates(0.1)).neighbours < 100
    assert derive(10_000, Rates(0.1)).neighbours < derive(1000, Rates(0.1)).neighbours + 20
    assert derive(10_000, Rates(0.1)).witnesses < derive(1000, Rates(0.1)).witnesses + 20


@pytest.mark.parametrize(
    ("clients", "rates"),
    [
        (5, Rates(0.5)),
        (5, Rates(0.4, 0.2)),
        (100, Rates(0.5)),
        (100, Rates(0.45, 0.15)),
        (1000, Rates(0.9)),
        (3, Rates(0.0, 0.9)),
    ],
    ids=str,
)
def test_what_not_even_a_complete_graph_can_bear_is_unsupported(clients: int, rates: Rates) -> None:
    with pytest.raises(Unsupported, match=f"of {clients} clients"):
        derive(clients, rates)


@pytest.mark.parametrize(
    "rates",
    [
        {"dropout": -0.1},
        {"dropout": 1.0},
        {"corrupt": 1.0},
        {"dropout": math.nan},
        {"security_bits": 0},
        {"abort_bits": 257},
    ],
    ids=str,
)
def test_rates_that_are_none_are_unsupported(rates: dict[str, float]) -> None:
    with pytest.raises(Unsupported):
        Rates(**rates)  # type: ignore[arg-type]


# ---- graphs


def drawn(clients: int, rates: Rates, seed: int) -> Graph:
    return draw(clients, derive(clients, rates), seed.to_bytes(32, "little"))


def adjacency(graph: Graph) -> NDArray[np.bool_]:
    matrix = np.zeros((graph.clients, graph.clients), dtype=bool)
    for seat in range(1, graph.clients + 1):
        matrix[seat - 1, np.array(graph.neighbours(seat)) - 1] = True
    return matrix


def is_connected(matrix: NDArray[np.bool_]) -> bool:
    seen, new = np.zeros(len(matrix), dtype=bool), np.zeros(len(matrix), dtype=bool)
    new[0] = True
    while new.any():
        seen |= new
        new = matrix[new].any(axis=0) & ~seen
    return bool(seen.all())


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 60), st.integers(1, 3), st.integers(1, 8), st.binary(min_size=32, max_size=32))
def test_graphs_are_symmetric_and_regular_but_for_pairs_drawn_twice(
    clients: int, pairs: int, witnesses: int, seed: bytes
) -> None:
    graph = draw(clients, Degrees(2 * pairs, 1, 1, witnesses, 1), seed)
    matrix = adjacency(graph)
    assert (matrix == matrix.T).all()
    assert not matrix.diagonal().any()
    assert {len(graph.neighbours(seat)) for seat in range(1, clients + 1)} <= set(range(2, 2 * pairs + 1))
    assert all(list(graph.neighbours(seat)) == sorted(graph.neighbours(seat)) for seat in range(1, clients + 1))


def test_each_pair_of_draws_is_a_cycle_through_everybody() -> None:
    graph = draw(50, SMALL, b"s" * 32)
    assert graph.order.shape == (2, 50)
    drawn: Counter[int] = Counter()
    for cycle in graph.order.tolist():
        assert sorted(cycle) == list(range(1, 51))
        for here, there in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            assert there in graph.neighbours(here)
            drawn.update((here, there))
    assert set(drawn.values()) == {4}


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 60), st.integers(1, 8), st.binary(min_size=32, max_size=32))
def test_a_client_knows_its_neighbours_and_the_witnesses_and_a_witness_everybody(
    clients: int, witnesses: int, seed: bytes
) -> None:
    graph = draw(clients, Degrees(4, 1, 1, witnesses, 1), seed)
    everybody = set(range(1, clients + 1))
    assert len(graph.witnesses) == witnesses
    assert graph.witnesses <= everybody
    for seat in everybody:
        contacts = graph.contacts(seat)
        assert list(contacts) == sorted(set(contacts) - {seat})
        wanted = everybody if seat in graph.witnesses else graph.witnesses | set(graph.neighbours(seat))
        assert set(contacts) == wanted - {seat}
        assert all(seat in graph.contacts(other) for other in contacts), "it is mutual"


def test_a_known_answer() -> None:
    """Both ends draw the graph for themselves: it must never change."""
    graph = draw(10, SMALL, bytes(32))
    assert [graph.neighbours(seat) for seat in (1, 2, 10)] == [(2, 3, 4, 5), (1, 7, 9, 10), (2, 3, 6, 9)]
    assert graph.witnesses == {5, 8, 9}


def test_another_seed_gives_another_graph() -> None:
    graphs = [draw(20, SMALL, bytes([seed]) * 32) for seed in range(20)]
    assert len({graph.neighbours(1) for graph in graphs}) > 15
    assert len({graph.witnesses for graph in graphs}) > 15


def test_a_complete_graph_needs_no_seed() -> None:
    degrees = derive(5, Rates())
    for seed in (bytes(32), b"s" * 32):
        graph = draw(5, degrees, seed)
        assert graph.neighbours(3) == graph.contacts(3) == (1, 2, 4, 5)
        assert graph.witnesses == {1, 2, 3, 4, 5}


def test_neighbours_and_witnesses_are_drawn_evenly() -> None:
    """Over many seeds no seat is a neighbour of another, or a witness, more often than chance has it."""
    near, witnesses = np.zeros(30), np.zeros(30)
    for seed in range(600):
        graph = draw(30, SMALL, seed.to_bytes(32, "little"))
        near[np.array(graph.neighbours(1)) - 1] += 1
        witnesses[np.array(sorted(graph.witnesses)) - 1] += 1
    assert near[0] == 0
    for counts in (near[1:], witnesses):
        assert abs(counts - counts.mean()).max() < 5.5 * np.sqrt(counts.mean())


@pytest.mark.parametrize(("clients", "dropout"), [(200, 0.1), (200, 0.3), (500, 0.1), (500, 0.3)])
def test_random_dropout_at_the_stated_rate_leaves_shares_partners_and_witnesses_to_all(
    clients: int, dropout: float
) -> None:
    rates, rng = Rates(dropout), np.random.default_rng(clients)
    degrees = derive(clients, rates)
    for seed in range(4):
        graph = drawn(clients, rates, seed)
        near, witnesses = adjacency(graph), np.array(sorted(graph.witnesses)) - 1
        for _ in range(25):
            alive = np.ones(clients, dtype=bool)
            alive[rng.choice(clients, rates.dropped(clients), replace=False)] = False
            assert near[:, alive].sum(axis=1).min() >= max(degrees.threshold, degrees.partners)
            assert alive[witnesses].sum() >= degrees.majority
            assert is_connected(near[alive][:, alive]), "nobody is cut off"


@pytest.mark.parametrize(("clients", "dropout"), [(200, 0.25), (500, 0.1), (1000, 0.25)])
def test_a_server_that_calls_a_victims_neighbours_dropped_leaves_too_few_partners(clients: int, dropout: float) -> None:
    """It may call so many dropped as the rates allow, and picks all neighbours of the client with the fewest."""
    rates = Rates(dropout)
    degrees, near = derive(clients, rates), adjacency(drawn(clients, rates, 7))
    victim = int(near.sum(axis=1).argmin())
    gone = np.flatnonzero(near[victim])[: rates.dropped(clients)]
    assert near[victim].sum() - len(gone) < degrees.partners, "so the victim refuses, and nobody's shares of it suffice"
    others = np.ones(clients, dtype=bool)
    others[[victim, *gone]] = False
    assert is_connected(near[others][:, others])


def test_a_greedy_server_finds_no_small_group_that_keeps_to_itself() -> None:
    """From every tenth client it grows the set that has most neighbours inside. All up to the share that it may call dropped have
    a member with too few.
    """
    clients, rates = 200, Rates(0.2)
    degrees, near = derive(clients, rates), adjacency(drawn(clients, rates, 3)).astype(np.int64)
    for start in range(0, clients, 10):
        inside = np.zeros(clients, dtype=bool)
        inside[start] = True
        for _ in range(rates.dropped(clients)):
            pull = np.where(inside, -1, near[inside].sum(axis=0))
            inside[pull.argmax()] = True
            assert near[inside][:, inside].sum(axis=1).min() < degrees.partners


@pytest.mark.parametrize("clients", [5, 6, 7])
def test_two_stories_need_more_honest_witnesses_than_there_are(clients: int) -> None:
    """Every split of those honest, for each number of corrupt ones, who confirm both."""
    for corrupt in range(clients // 3 + 1):
        majority, honest = derive(clients, Rates(0.0, (corrupt + 0.5) / clients)).majority, clients - corrupt
        for size in range(honest + 1):
            for one in combinations(range(honest), size):
                assert not all(group + corrupt >= majority for group in (len(one), honest - len(one)))
