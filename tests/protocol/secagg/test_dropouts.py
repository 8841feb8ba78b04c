"""Whoever drops, whenever: the sum is exact over those counted, or the round aborts. Never a wrong sum."""

import os
from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import ProtocolError, RoundAborted, Unsupported
from shared.secagg.client import Client
from shared.secagg.graph import Rates, derive
from shared.secagg.messages import Confirmation, Reveal
from shared.secagg.quantize import Update, decode, encode
from shared.secagg.schema import BITS
from shared.secagg.server import Round
from shared.secagg.states import ClientState, RoundState, SetupState
from tests.protocol.secagg.kit import EVERYBODY, Fleet, plain_sum

GROUP = range(1, 6)
FEWEST, THRESHOLD = 4, 3  # of five, of which one may drop out
PHASES = 4  # of a round
Chain = tuple[frozenset[int], frozenset[int], frozenset[int], frozenset[int]]  # who answers in each


def subsets(members: frozenset[int]) -> Iterator[frozenset[int]]:
    for size in range(len(members) + 1):
        yield from (frozenset(chosen) for chosen in combinations(sorted(members), size))


def exists(
    masked: frozenset[int], confirmed: frozenset[int], unmasked: frozenset[int], recovered: frozenset[int]
) -> bool:
    """Whether the sum of those masked can be known, by what the protocol says about five."""
    enough = len(masked) >= FEWEST and len(confirmed) >= FEWEST
    return enough and (unmasked == masked or len(recovered) >= THRESHOLD)


class Enumeration:
    """Every chain M ⊇ C ⊇ U ⊇ R of who answers in each phase. Clients are values: a prefix is worked out once."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.exact, self.aborted = fleet, 0, 0
        fleet.begin()
        self.packed = {i: fleet.mask(i) for i in GROUP}
        self.started = dict(fleet.clients)

    def run(self) -> None:
        for masked in subsets(frozenset(GROUP)):
            server = self._masked(masked)
            try:
                server.close_masked()
            except RoundAborted:
                assert server.state is RoundState.ABORTED
                self._all_abort(masked, 3)
                continue
            said = {i: self.started[i].confirm(masked) for i in masked}
            for confirmed in subsets(masked):
                self._after_confirmations(masked, confirmed, said)

    def _after_confirmations(
        self, masked: frozenset[int], confirmed: frozenset[int], said: dict[int, tuple[Client, Confirmation]]
    ) -> None:
        server = self._confirmed(masked, confirmed, said)
        try:
            witnesses = server.close_confirmed()
        except RoundAborted:
            assert len(confirmed) < FEWEST
            self._all_abort(confirmed, 2)
            return
        told = {i: said[i][0].reveal(witnesses[i]) for i in confirmed}
        for unmasked in subsets(confirmed):
            for recovered in subsets(unmasked):
                server = self._confirmed(masked, confirmed, said)
                server.close_confirmed()
                self._finish(server, told, (masked, confirmed, unmasked, recovered))

    def _finish(self, server: Round, told: dict[int, tuple[Client, Reveal]], chain: Chain) -> None:
        masked, _, unmasked, recovered = chain
        try:
            for i in unmasked:
                server.add_reveal(told[i][1])
            requests = server.close_unmasked()
            for i in recovered & set(requests):
                server.add_shares(told[i][0].recover(requests[i])[1])
            total = server.finish()
        except RoundAborted:
            assert not exists(*chain)
            assert server.state is RoundState.ABORTED
            self.aborted += 1
        else:
            assert exists(*chain)
            assert server.counted == masked
            assert (self.fleet.low(total) == self.fleet.low(plain_sum([self.fleet.vectors[i] for i in masked]))).all()
            self.exact += 1

    def _masked(self, masked: frozenset[int]) -> Round:
        server = Round(self.fleet.group, self.fleet.server.terms, self.fleet.schema)
        for i in sorted(masked):
            server.add_vector(i, self.packed[i])
        return server

    def _confirmed(
        self, masked: frozenset[int], confirmed: frozenset[int], said: dict[int, tuple[Client, Confirmation]]
    ) -> Round:
        server = self._masked(masked)
        server.close_masked()
        for i in sorted(confirmed):
            server.add_confirmation(said[i][1])
        return server

    def _all_abort(self, members: frozenset[int], phases: int) -> None:
        self.aborted += (phases + 1) ** len(members)


def test_every_dropout_pattern_of_five_devices_gives_the_exact_sum_or_aborts(group: Fleet) -> None:
    every = Enumeration(group)
    every.run()
    assert every.exact + every.aborted == (PHASES + 1) ** len(GROUP)
    assert every.exact == sum(1 for chain in chains() if exists(*chain)), "and no pattern aborts without need"


def chains() -> Iterator[Chain]:
    for last in product(range(PHASES + 1), repeat=len(GROUP)):
        masked, confirmed, unmasked, recovered = (
            frozenset(seat for seat, phase in zip(GROUP, last, strict=True) if phase > step) for step in range(PHASES)
        )
        yield masked, confirmed, unmasked, recovered


@pytest.mark.parametrize("sparse_graph", [False, True], ids=["complete", "with coins"])
def test_every_dropout_while_a_group_is_made_leaves_a_group_of_the_others_or_aborts(sparse_graph: bool) -> None:
    """One device or two, at each step. Those who are left run a round."""
    size, rates = (30, Rates(0.05, 0.05)) if sparse_graph else (5, Rates(0.2, 0.0))
    for steps in [(), *[(step,) for step in range(3)], *product(range(3), repeat=2)]:
        fleet, everybody = Fleet(size, rates, rounds=1), set(range(1, size + 1))
        alive = [everybody - {place + 2 for place, step in enumerate(steps) if step <= now} for now in range(3)]
        try:
            fleet.receive(fleet.shares(fleet.coins(fleet.keys(alive[0]), alive[1]), alive[2]))
        except RoundAborted:
            assert len(steps) == 2
            assert fleet.setup.state is SetupState.ABORTED
            continue
        left = alive[2] if sparse_graph else alive[0] & alive[2]  # nobody is asked for coins, so nobody is missed then
        assert set(fleet.group.dealt) == left
        fleet.begin()
        assert (fleet.run() == fleet.expected()).all()


STEPS = [(seat, phase) for seat in (1, 3, 5) for phase in range(PHASES)] + [(0, 0)]  # seat 0: nobody


@pytest.mark.parametrize("first", STEPS, ids=lambda step: f"{step[0]} in {step[1]}")
def test_two_rounds_of_one_group_with_different_dropouts_are_both_exact(group: Fleet, first: tuple[int, int]) -> None:
    """Whoever dropped out of a round takes part in the next one."""
    group.begin(1)
    assert (group.run(*alive_after(first)) == group.expected()).all()
    before = dict(group.clients)
    for second in STEPS:
        group.clients = dict(before)
        group.begin(2)
        assert (group.run(*alive_after(second)) == group.expected()).all()
        assert len(group.server.counted) == (4 if second[0] and second[1] == 0 else 5)


def alive_after(step: tuple[int, int]) -> list[set[int]]:
    return [set(GROUP) - ({step[0]} if phase >= step[1] else set()) for phase in range(PHASES)]


def test_a_round_may_be_skipped_by_some_and_by_all(group: Fleet) -> None:
    group.begin(1, present={1, 2, 3, 4})
    assert (group.run() == group.expected()).all()
    group.begin(3)
    assert (group.run(masked={2, 3, 4, 5}) == group.expected()).all()


def test_after_an_aborted_round_the_next_one_of_the_group_is_exact(group: Fleet) -> None:
    for number, alive in ((1, [{1, 2, 3}] * 4), (2, [EVERYBODY, EVERYBODY, {1, 2}, EVERYBODY])):
        group.begin(number)
        with pytest.raises(RoundAborted):
            group.run(*alive)
        assert group.server.state is RoundState.ABORTED
    group.begin(3)
    assert (group.run(masked={1, 2, 3, 5}) == group.expected()).all()


def test_a_large_sparse_group_loses_devices_in_every_phase_and_the_sum_is_exact(large: Fleet) -> None:
    gone = np.random.default_rng(0).permutation(np.arange(1, 121))[:30].tolist()
    alive = [set(range(1, 121)) - set(gone[:last]) for last in (8, 15, 23, 30)]
    large.begin()
    assert (large.run(*alive) == large.expected()).all()
    assert len(large.server.counted) == 112


# ---- any group


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, Rates, int, list[set[int]], int]:
    size = draw(st.integers(3, 30))
    rates = Rates(draw(st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.34])), draw(st.sampled_from([0.0, 0.05, 0.1])))
    bits = draw(st.sampled_from([*BITS, 24]))
    at_most = rates.dropped(size) + draw(st.sampled_from([0, 0, 0, 1]))
    leaving = draw(st.lists(st.tuples(st.integers(1, size), st.integers(0, 2 + PHASES)), max_size=at_most))
    alive = [set(range(1, size + 1)) - {seat for seat, phase in leaving if phase <= now} for now in range(3 + PHASES)]
    return size, rates, bits, alive, draw(st.integers(0, 2**32 - 1))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_any_group_rates_bits_weights_and_dropouts_at_every_stage_give_the_exact_sum_or_abort(
    plan: tuple[int, Rates, int, list[set[int]], int],
) -> None:
    size, rates, bits, alive, seed = plan
    try:
        derive(size, rates)
    except Unsupported:
        return
    fleet = Fleet(size, rates, rounds=1, bits=bits)
    enough = len(alive[-1]) >= size - rates.dropped(size)
    try:
        fleet.receive(fleet.shares(fleet.coins(fleet.keys(alive[0]), alive[1]), alive[2]))
    except RoundAborted:
        assert not enough
        return
    fleet.begin()
    rng = np.random.default_rng(seed)
    for seat in fleet.vectors:
        update = Update(
            int(rng.integers(1, 10)),
            {},
            {"w": rng.standard_normal(fleet.length).astype("f4")},
            {"w": np.zeros(fleet.length, "f4")},
        )
        fleet.vectors[seat] = encode(fleet.schema, update, os.urandom, feedback=False)[0]
    try:
        total = fleet.run(*alive[3:])
    except RoundAborted:
        assert not enough, "within the stated rate no round is lost"
        return
    assert (total == fleet.expected()).all()
    count = len(fleet.server.counted)
    one, other = (decode(fleet.schema, vector, count) for vector in (total, fleet.expected()))
    assert one.weight == other.weight
    assert np.array_equal(one.changes["w"], other.changes["w"])


# ---- what the server holds


def test_the_server_holds_one_sum_however_many_vectors_come() -> None:
    fleet = Fleet(6, rounds=1, length=1000).make()
    fleet.begin()
    for i in range(1, 7):
        fleet.server.add_vector(i, fleet.mask(i))
        arrays = [value for value in vars(fleet.server).values() if getattr(value, "nbytes", 0)]
        assert sum(array.nbytes for array in arrays) == fleet.schema.layout.zeros().nbytes


def test_a_quorum_above_the_least_is_kept_and_one_below_it_is_not(group: Fleet) -> None:
    group.begin()
    group.server = Round(group.group, group.server.terms, group.schema, quorum=5)
    with pytest.raises(RoundAborted, match="only 4 devices sent vectors"):
        group.masked({1, 2, 3, 4})
    group.begin(2)
    group.server = Round(group.group, group.server.terms, group.schema, quorum=1)
    with pytest.raises(RoundAborted, match="only 3 devices sent vectors"):
        group.masked({1, 2, 3})


def test_a_late_vector_is_not_added_after_the_sum_is_closed(group: Fleet) -> None:
    group.begin()
    late = group.mask(5)
    counted = group.masked({1, 2, 3, 4})
    before = group.server._sum.copy()
    with pytest.raises(ProtocolError, match="refuses"):
        group.server.add_vector(5, late)
    assert (group.server._sum == before).all()
    witnesses = group.confirmed(counted)
    assert (group.recovered(group.unmasked(witnesses)) == group.expected()).all()
    assert group.server.counted == {1, 2, 3, 4}


def test_nothing_more_is_asked_for_when_all_who_are_counted_reveal(group: Fleet) -> None:
    """One exchange is saved, though a device dropped out before it sent its vector."""
    group.begin()
    assert group.unmasked(group.confirmed(group.masked({1, 2, 3, 4}))) == {}
    assert (group.finish() == group.expected()).all()
    assert {group.clients[i].state for i in (1, 2, 3, 4)} == {ClientState.REVEALED}


def test_nobody_is_asked_for_shares_where_too_few_are_left(group: Fleet) -> None:
    """They would be revealed in vain."""
    group.begin()
    witnesses = group.confirmed(group.masked())
    with pytest.raises(RoundAborted, match="2 devices are left that hold shares of dev-3"):
        group.unmasked(witnesses, {1, 2})
    assert group.server.state is RoundState.ABORTED


def test_a_packed_vector_is_as_long_as_the_schema_says(group: Fleet) -> None:
    group.begin()
    assert len(group.mask(1)) == group.schema.bytes_on_the_wire == len(group.schema.layout.pack(group.vectors[2]))
