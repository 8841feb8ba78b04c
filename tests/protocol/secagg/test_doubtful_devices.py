"""Devices that may have lost their keys: when the others go on without new ones, and when all make keys anew."""

from collections.abc import Iterable

import pytest

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.secure_grid import SecureGrid
from coordinator.rounds.secure_group import LARGE
from edge_agent.secure_mod import ModPolicy
from shared.flower import REFUSED, reply_error
from shared.secagg.graph import Rates
from shared.secagg.policy import Policy
from tests.protocol.secagg.appgrid import AppGrid, Recorder, losing_the_reply, make_grid, silent
from tests.protocol.secagg.exchanges import GROUP, RECOVERY, ROUND, exchange, secure

SIZE = 40
RATES = Rates(dropout=0.25, corrupt=0.05)
BEARABLE = RATES.dropped(SIZE)
EVERYBODY = frozenset(range(1, SIZE + 1))


@pytest.fixture
def large() -> tuple[AppGrid, SecureGrid, Recorder]:
    """A large group that has made its keys."""
    inner, authority = make_grid(SIZE, policy=ModPolicy(client=Policy(min_clients=20)))
    grid, seen = secure(inner, authority, SecureConfig(max_weight=1000, rates=RATES))
    exchange(grid, SIZE)
    assert SIZE >= LARGE
    return inner, grid, seen


def vanishing(inner: AppGrid, nodes: Iterable[int]) -> None:
    for node in nodes:
        inner.faults[node, "masked"] = silent


def counted(seen: Recorder) -> frozenset[int]:
    return frozenset(node for node, fate in seen.fates.items() if fate == "counted")


def makes_keys(seen: Recorder) -> bool:
    return seen.passed[-1][0] == "keys"


def test_a_device_that_stays_away_costs_a_small_group_no_new_keys_until_it_is_back() -> None:
    inner, authority = make_grid()
    grid, seen = secure(inner, authority)
    vanishing(inner, {2})
    exchange(grid)
    exchange(grid, nodes={1, 3, 4, 5})
    inner.faults.clear()
    inner.restart(2)
    exchange(grid)
    assert seen.passed == [[*GROUP, *ROUND], ROUND, [*GROUP, *ROUND]]
    assert counted(seen) == {1, 2, 3, 4, 5}


def test_a_few_that_vanish_from_a_large_group_and_come_back_with_their_keys_cost_no_new_ones(
    large: tuple[AppGrid, SecureGrid, Recorder],
) -> None:
    inner, grid, seen = large
    gone = set(range(2, 2 + BEARABLE))
    for node in gone:
        inner.faults[node, "masked"] = losing_the_reply(inner) if node % 2 else silent
    exchange(grid, SIZE)
    assert counted(seen) == EVERYBODY - gone
    inner.faults.clear()
    exchange(grid, SIZE)
    assert counted(seen) == EVERYBODY
    assert not makes_keys(seen)


def test_a_device_that_vanishes_after_masking_is_asked_for_the_next_round_too(
    large: tuple[AppGrid, SecureGrid, Recorder],
) -> None:
    inner, grid, seen = large
    inner.faults[3, "unmasked"] = losing_the_reply(inner)
    exchange(grid, SIZE)
    assert seen.passed[-1] == RECOVERY
    inner.faults.clear()
    exchange(grid, SIZE)
    assert seen.passed[-1] == ROUND
    assert counted(seen) == EVERYBODY


def test_those_that_vanish_round_after_round_add_up_until_the_others_are_too_few(
    large: tuple[AppGrid, SecureGrid, Recorder],
) -> None:
    inner, grid, seen = large
    first, second = range(2, 2 + BEARABLE), range(20, 21)
    vanishing(inner, first)
    exchange(grid, SIZE)
    inner.faults.clear()
    vanishing(inner, [*first[1:], *second])
    exchange(grid, SIZE)
    assert not makes_keys(seen)
    assert counted(seen) == EVERYBODY - {*first[1:], *second}
    inner.faults.clear()
    exchange(grid, SIZE)
    assert not makes_keys(seen), "the first of them was counted since"
    assert counted(seen) == EVERYBODY


def test_keys_are_made_anew_where_those_who_surely_have_theirs_are_too_few(
    large: tuple[AppGrid, SecureGrid, Recorder],
) -> None:
    """Five that vanished, and then others that stay away: asked for the round, they would train for nothing."""
    inner, grid, seen = large
    doubtful = set(range(2, 7))
    vanishing(inner, doubtful)
    exchange(grid, SIZE)
    inner.faults.clear()
    for node in doubtful:
        inner.restart(node)
    here = EVERYBODY - set(range(30, 39))
    exchange(grid, nodes=here)
    assert makes_keys(seen)
    assert counted(seen) == here


def test_a_device_that_refuses_for_another_reason_costs_nobody_new_keys(
    large: tuple[AppGrid, SecureGrid, Recorder],
) -> None:
    inner, grid, seen = large
    inner.faults[4, "masked"] = lambda message: reply_error(message, REFUSED, "its budget is used up")
    for _ in range(3):
        exchange(grid, SIZE)
        assert (makes_keys(seen), counted(seen)) == (False, EVERYBODY - {4})


def test_a_device_that_was_restarted_says_so_and_then_all_make_keys_anew(
    large: tuple[AppGrid, SecureGrid, Recorder],
) -> None:
    inner, grid, seen = large
    inner.restart(7)
    exchange(grid, SIZE)
    assert (makes_keys(seen), counted(seen)) == (False, EVERYBODY - {7})
    assert "no keys for this group" in seen.reason(7)
    exchange(grid, SIZE)
    assert (makes_keys(seen), counted(seen)) == (True, EVERYBODY)


def test_one_that_is_doubtful_is_enough_where_more_must_be_counted_or_an_attempt_is_paid_for(
    large: tuple[AppGrid, SecureGrid, Recorder],
) -> None:
    inner, grid, _ = large
    vanishing(inner, {2})
    exchange(grid, SIZE)
    made = grid.carried.drawn.made[0] if grid.carried.drawn else None
    assert made is not None
    everybody, sure = sorted(EVERYBODY), sorted(EVERYBODY - {2})
    assert made.fits(everybody, 39, cautious=False)
    assert not made.fits(everybody, 40, cautious=False), "half of one is none"
    assert not made.fits(everybody, 30, cautious=True)
    assert made.fits(sure, 39, cautious=True)
