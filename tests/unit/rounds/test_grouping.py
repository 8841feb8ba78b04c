"""How devices are split into secret groups."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.rounds import grouping
from coordinator.rounds.exchange import DEFAULT_MIN_GROUP, MAX_GROUPS, SecureConfig
from coordinator.rounds.secure_grid import shuffled
from shared.errors import Unsupported
from shared.secagg.graph import Rates
from shared.secagg.policy import Policy
from shared.secagg.terms import GroupTerms

MANY = st.sets(st.integers(0, 1 << 62), min_size=1, max_size=300)


@given(MANY, st.integers(1, 40), st.integers(3, 30))
def test_each_device_is_in_one_group_and_no_group_is_below_the_minimum(
    nodes: set[int], wanted: int, least: int
) -> None:
    count = grouping.how_many(len(nodes), wanted, least)
    parts = grouping.split(sorted(nodes), count, shuffled)

    assert sorted(node for part in parts for node in part) == sorted(nodes)
    assert tuple(map(len, parts)) == grouping.sizes(len(nodes), count)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert 1 <= len(parts) <= wanted
    assert len(parts) == 1 or min(map(len, parts)) >= least
    assert len(parts) == wanted or len(nodes) < (len(parts) + 1) * least, "no fewer than there is room for"


def test_any_two_devices_are_together_as_often_as_any_others() -> None:
    """Of 8 in two groups of 4: 3 in 7. Eight standard deviations either way."""
    draws = 4000
    found: Counter[tuple[int, int]] = Counter()
    for _ in range(draws):
        for part in grouping.split(range(8), 2, shuffled):
            found.update(combinations(sorted(part), 2))
    deviation = (draws * 3 / 7 * 4 / 7) ** 0.5
    assert len(found) == 28
    assert all(abs(count - draws * 3 / 7) < 8 * deviation for count in found.values())


def test_who_is_with_whom_follows_from_nothing_but_the_order_that_chance_gave() -> None:
    parts = grouping.split([1, 2, 3, 4, 5, 6, 7], 3, lambda nodes: sorted(nodes, reverse=True))
    assert parts == (frozenset({7, 4, 1}), frozenset({6, 3}), frozenset({5, 2}))


# ---- in the settings of an exchange


@given(st.integers(3, 400), st.integers(1, 30), st.integers(3, 20), st.floats(0, 0.49), st.data())
def test_the_least_that_a_round_counts_is_a_quorum_in_each_group_that_it_needs(
    clients: int, groups: int, least: int, dropout: float, data: st.DataObject
) -> None:
    needed = data.draw(st.integers(1, groups))
    config = SecureConfig(groups=groups, min_group=least, least_groups=needed, rates=Rates(dropout, 0.0))
    sizes = config.sizes(clients)

    assert sum(sizes) == clients
    assert config.fewest(clients) <= sum(config.quorum(size) for size in sizes)
    if len(sizes) >= needed and min(sizes) >= 3:
        assert config.fewest(clients) >= 3 * needed
    if groups == 1:
        assert config.fewest(clients) == config.quorum(clients)


@pytest.mark.parametrize("clients", range(3, 200))
def test_every_group_bears_a_corrupt_device_and_more_where_the_share_is_more(clients: int) -> None:
    config = SecureConfig(groups=2, min_group=3)
    assert config.rates_in(clients).corrupted(clients) == max(1, config.rates.corrupted(clients))
    assert replace(config, groups=1).rates_in(clients) == config.rates


@pytest.mark.parametrize("clients", range(DEFAULT_MIN_GROUP, 100))
def test_no_group_of_the_least_size_or_more_is_too_small_for_the_default_rates(clients: int) -> None:
    rates = SecureConfig(groups=2).rates_in(clients)
    terms = GroupTerms("g", clients, 8, rates)
    Policy().check(terms)
    assert terms.degrees.threshold <= clients - 1 - rates.dropped(clients)
    assert terms.degrees.majority <= clients - rates.dropped(clients)


def test_in_the_smallest_group_by_default_three_are_left_to_hide_in_though_one_fails_and_one_is_corrupt() -> None:
    config = SecureConfig(groups=2)
    assert config.rates_in(DEFAULT_MIN_GROUP).corrupted(DEFAULT_MIN_GROUP) == 1
    assert config.quorum(DEFAULT_MIN_GROUP) - 1 == Policy().min_clients == 3
    assert config.quorum(DEFAULT_MIN_GROUP - 1) - 1 < Policy().min_clients, "and no smaller one would do"


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 0},
        {"groups": MAX_GROUPS + 1},
        {"groups": 2, "least_groups": 3},
        {"groups": 2, "least_groups": 0},
        {"groups": 2, "min_group": 2},
        {"groups": 2, "min_group": 5, "min_clients": 6},
    ],
    ids=str,
)
def test_impossible_groups_are_refused_when_they_are_made(options: dict[str, int]) -> None:
    with pytest.raises(Unsupported):
        SecureConfig(**options)  # type: ignore[arg-type]
