"""Whoever drops, whenever: the sum is exact over those counted, or the round aborts. Never a wrong sum."""

import os
from collections.abc import Iterator
from itertools import combinations, combinations_with_replacement
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import RoundAborted
from shared.secagg.client import Client, Policy
from shared.secagg.keys import InsecureWarning, UnsignedIdentity, UnsignedVerifier
from shared.secagg.masks import Words
from shared.secagg.messages import Advert, Deal, Inbox
from shared.secagg.server import Server
from shared.secagg.states import ServerState
from shared.secagg.terms import Terms
from tests.protocol.secagg.kit import Round, plain_sum

GROUP = range(1, 6)
PHASES = 5  # when a device drops: before keys, shares, masked, unmasked, or not at all


def subsets(members: frozenset[int]) -> Iterator[frozenset[int]]:
    for size in range(len(members) + 1):
        yield from (frozenset(chosen) for chosen in combinations(sorted(members), size))


class Enumeration:
    """Every chain K ⊇ S ⊇ M ⊇ R of who answers in each phase. Clients are values: a prefix is worked out once."""

    def __init__(self, threshold: int) -> None:
        self.terms = Terms("enumeration", len(GROUP), threshold, "0" * 64, "1" * 64)
        self.verifier = UnsignedVerifier()
        self.vectors: dict[int, Words] = Round(len(GROUP), threshold).vectors
        self.started: dict[int, tuple[Client, Advert]] = {
            i: Client(self.terms, i, Policy()).advertise(UnsignedIdentity(f"dev-{i}"), os.urandom) for i in GROUP
        }
        self.exact = self.aborted = 0

    def run(self) -> None:
        for keyed in subsets(frozenset(GROUP)):
            try:
                roster = self._server_with_keys(keyed).close_keys()
            except RoundAborted:
                self.aborted += sum(1 for _ in self._chains(keyed))
                continue
            dealt = {i: self.started[i][0].share(roster, self.verifier, os.urandom) for i in keyed}
            for shared in subsets(keyed):
                self._after_shares(keyed, shared, dealt)

    def _after_shares(
        self, keyed: frozenset[int], shared: frozenset[int], dealt: dict[int, tuple[Client, Deal]]
    ) -> None:
        try:
            inboxes = self._server_with_deals(keyed, shared, dealt)[1]
        except RoundAborted:
            self.aborted += sum(1 for masked in subsets(shared) for _ in subsets(masked))
            return
        sent = {i: self._mask(i, dealt[i][0], inboxes[i]) for i in shared}
        for masked in subsets(shared):
            for revealing in subsets(masked):
                server = self._server_with_deals(keyed, shared, dealt)[0]
                self._finish(server, sent, masked, revealing)

    def _finish(
        self,
        server: Server,
        sent: dict[int, tuple[Client, Words]],
        masked: frozenset[int],
        revealing: frozenset[int],
    ) -> None:
        try:
            for i in masked:
                server.add_vector(i, sent[i][1])
            requests = server.close_masked()
            for i in revealing:
                server.add_reveal(sent[i][0].reveal(requests[i])[1])
            total = server.finish()
        except RoundAborted:
            assert len(revealing) < self.terms.threshold
            assert server.state is ServerState.ABORTED
            self.aborted += 1
        else:
            assert len(revealing) >= self.terms.threshold
            assert (total == plain_sum([self.vectors[i] for i in masked])).all()
            self.exact += 1

    def _server_with_keys(self, keyed: frozenset[int]) -> Server:
        server = Server(self.terms, len(self.vectors[1]), self.verifier)
        for i in sorted(keyed):
            server.add_advert(self.started[i][1])
        return server

    def _server_with_deals(
        self, keyed: frozenset[int], shared: frozenset[int], dealt: dict[int, tuple[Client, Deal]]
    ) -> tuple[Server, dict[int, Inbox]]:
        server = self._server_with_keys(keyed)
        server.close_keys()
        for i in sorted(shared):
            server.add_deal(dealt[i][1])
        return server, server.close_shares()

    def _mask(self, index: int, client: Client, inbox: Inbox) -> tuple[Client, Words]:
        words = self.vectors[index].copy()
        return client.receive(inbox).mask(words), words

    @staticmethod
    def _chains(keyed: frozenset[int]) -> Iterator[None]:
        for shared in subsets(keyed):
            for masked in subsets(shared):
                for _ in subsets(masked):
                    yield None


@pytest.mark.filterwarnings("ignore::shared.secagg.keys.InsecureWarning")
@pytest.mark.parametrize("threshold", [3, 4, 5])
def test_every_dropout_pattern_of_five_devices_gives_the_exact_sum_or_aborts(threshold: int) -> None:
    every = Enumeration(threshold)
    every.run()
    assert every.exact + every.aborted == PHASES ** len(GROUP)
    finishing = range(threshold, len(GROUP) + 1)  # the sum exists if so many never drop; each other drops in one of 4
    assert every.exact == sum(comb(len(GROUP), n) * (PHASES - 1) ** (len(GROUP) - n) for n in finishing)


@pytest.mark.parametrize("pattern", list(combinations_with_replacement(range(PHASES), len(GROUP))), ids=str)
def test_each_kind_of_dropout_pattern_with_signed_keys(pattern: tuple[int, ...]) -> None:
    """`pattern[i]` is the phase in which device i + 1 goes silent; one pattern of each multiset."""
    group = Round(len(GROUP), 3)
    alive = [{i for i in GROUP if pattern[i - 1] > phase} for phase in range(4)]
    try:
        requests = group.masked(group.shares(group.keys(alive[0]), alive[1]), alive[2])
        total = group.unmasked(requests, alive[3])
    except RoundAborted:
        assert len(alive[3]) < 3
        assert group.server.state is ServerState.ABORTED
    else:
        assert len(alive[3]) >= 3
        assert (total == group.expected()).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 9), st.data())
def test_flower_weakness_an_even_number_of_shares_fails_here_any_size_and_threshold_works(
    size: int, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(size // 2 + 1, size))
    least = max(threshold, 3)
    counted = data.draw(st.sets(st.integers(1, size), min_size=least))
    group = Round(size, threshold)
    total = group.unmasked(group.masked(group.shares(group.keys()), counted))
    assert group.server.counted == counted
    assert (total == group.expected()).all()


def test_the_server_holds_one_sum_however_many_vectors_come() -> None:
    group = Round(6, 4, length=1000)
    inboxes = group.shares(group.keys())
    for i in range(1, 7):
        group.server.add_vector(i, group.mask(i, inboxes[i]))
        arrays = [value for value in vars(group.server).values() if getattr(value, "nbytes", 0)]
        assert sum(array.nbytes for array in arrays) == 4 * 1000


def test_a_quorum_above_the_threshold_is_kept() -> None:
    group = Round(5, 3)
    group.server = Server(group.terms, group.length, group.authority, quorum=4)
    inboxes = group.shares(group.keys())
    with pytest.raises(RoundAborted, match="4 are needed"):
        group.masked(inboxes, {1, 2, 3})


def test_the_unsigned_pair_is_loud() -> None:
    with pytest.warns(InsecureWarning):
        Enumeration(3)
