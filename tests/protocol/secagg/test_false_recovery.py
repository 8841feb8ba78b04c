"""Holders that reveal false shares, and dealers that dealt them: the sum is exact or the round aborts; no honest one is blamed."""

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from shared.errors import RoundAborted
from shared.secagg.graph import Rates
from shared.secagg.keys import Secret, seal
from shared.secagg.messages import Shares
from shared.secagg.shamir import PRIME
from shared.secagg.states import RoundState
from tests.protocol.secagg.kit import Fleet

ELEVEN = Rates(0.2, 0.0)  # of 11: two may drop out, six shares are needed
EVERYBODY = frozenset(range(1, 6))


@pytest.fixture
def eleven() -> Fleet:
    """Eleven devices before they made a group: each secret has ten holders, of whom six are needed."""
    return Fleet(11, ELEVEN, rounds=1)


def lie(shares: Shares, by: int = 1) -> Shares:
    """All of them changed, within the field."""

    def changed(share: Secret) -> Secret:
        limbs = (np.frombuffer(share.reveal(), "<u4").astype("u8") + by) % PRIME
        return Secret(limbs.astype("<u4").tobytes())

    return replace(
        shares,
        seeds={dealer: changed(share) for dealer, share in shares.seeds.items()},
        keys={dealer: changed(share) for dealer, share in shares.keys.items()},
    )


def recover_with_liars(
    fleet: Fleet, liars: set[int], silent: int = 1, gone: int = 2, twist: Callable[[Shares], Shares] = lie
) -> None:
    """A round in which one falls silent, another dropped out before, and some of those asked for shares of the two lie."""
    everybody = set(fleet.clients)
    fleet.begin()
    witnesses = fleet.confirmed(fleet.masked(everybody - {gone}))
    requests = fleet.unmasked(witnesses, everybody - {silent, gone})
    for i in sorted(requests):
        shares = fleet.recover(i, requests[i])
        fleet.server.add_shares(twist(shares) if i in liars else shares)
    assert (fleet.finish() == fleet.expected()).all()


def test_false_shares_of_any_one_device_leave_the_sum_exact_and_blame_nobody(eleven: Fleet) -> None:
    eleven.make()
    before = dict(eleven.clients)
    for liar in range(3, 12):
        eleven.clients = dict(before)
        recover_with_liars(eleven, {liar})
        assert eleven.server.false_dealers == {}


TWISTS: dict[str, Callable[[Shares], Shares]] = {
    "outside the field": lambda s: replace(s, keys=dict.fromkeys(s.keys, Secret(b"\xff" * 36))),
    "as large as the prime": lambda s: replace(
        s, seeds=dict.fromkeys(s.seeds, Secret(PRIME.to_bytes(4, "little") * 9))
    ),
    "of another length": lambda s: replace(s, seeds=dict.fromkeys(s.seeds, Secret(b"short"))),
    "of the other kind": lambda s: replace(s, seeds=dict.fromkeys(s.seeds, next(iter(s.keys.values())))),
    "of zeros": lambda s: replace(s, seeds=dict.fromkeys(s.seeds, Secret(bytes(36)))),
}


@pytest.mark.parametrize("twist", TWISTS.values(), ids=TWISTS)
def test_shares(eleven: Fleet, twist: Callable[[Shares], Shares]) -> None:
    """… from one device are left out as any other false ones."""
    recover_with_liars(eleven.make(), {3}, twist=twist)


def test_colluding_devices_with_false_shares_cannot_end_a_round_nor_slander_the_dealer_while_enough_are_honest() -> (
    None
):
    """Of the twelve asked, two in any places lie, and tell the same false polynomial; seven are needed."""
    fleet = Fleet(14, Rates(0.2, 0.0), rounds=1).make()
    before = dict(fleet.clients)
    for liars in list(combinations(range(3, 15), 2))[::4]:
        fleet.clients = dict(before)
        recover_with_liars(fleet, set(liars))
        assert fleet.server.false_dealers == {}


def test_with_no_share_to_spare_a_single_liar_ends_the_round_but_slanders_nobody(group: Fleet) -> None:
    """Three are left, three are needed: it is one's word against another's."""
    with pytest.raises(RoundAborted, match="do not fit together"):
        recover_with_liars(group, {3})
    assert group.server.false_dealers == {}
    assert group.server.state is RoundState.ABORTED
    group.begin(2)
    assert (group.run() == group.expected()).all()


@pytest.mark.parametrize(
    ("kind", "silent", "gone"), [("seed", 1, 2), ("key", 2, 1)], ids=["its seed is needed", "its key is needed"]
)
def test_a_dealer_whose_shares_are_of_another_secret_is_named_and_the_round_aborts(
    eleven: Fleet, kind: str, silent: int, gone: int
) -> None:
    near = eleven.coins(eleven.keys())
    false, true = (eleven.clients[1].share(near[1], eleven.verifier, os.urandom) for _ in range(2))
    eleven.clients[1] = true[0]
    eleven.setup.add_deal(replace(true[1], boxes=false[1].boxes))
    eleven.receive(eleven.shares(near, set(range(2, 12))))
    with pytest.raises(RoundAborted, match=f"dev-1 dealt shares of another {kind} than it committed to"):
        recover_with_liars(eleven, set(), silent, gone)
    assert set(eleven.server.false_dealers) == {1}
    assert eleven.server.state is RoundState.ABORTED


def test_a_dealer_whose_shares_open_but_lie_on_no_polynomial_is_named(eleven: Fleet) -> None:
    near = eleven.coins(eleven.keys())
    deals = [eleven.clients[1].share(near[1], eleven.verifier, os.urandom) for _ in range(3)]
    eleven.clients[1] = deals[0][0]
    boxes = {seat: deals[seat % 3][1].boxes[seat] for seat in deals[0][1].boxes}
    eleven.setup.add_deal(replace(deals[0][1], boxes=boxes))
    eleven.receive(eleven.shares(near, set(range(2, 12))))
    with pytest.raises(RoundAborted, match="dev-1 dealt shares of another seed"):
        recover_with_liars(eleven, set())
    assert set(eleven.server.false_dealers) == {1}


def test_a_dealer_that_deals_falsely_to_few_is_not_even_noticed(eleven: Fleet) -> None:
    near = eleven.coins(eleven.keys())
    false, true = (eleven.clients[1].share(near[1], eleven.verifier, os.urandom) for _ in range(2))
    eleven.clients[1] = true[0]
    eleven.setup.add_deal(replace(true[1], boxes={**true[1].boxes, 5: false[1].boxes[5]}))
    eleven.receive(eleven.shares(near, set(range(2, 12))))
    recover_with_liars(eleven, set())


@pytest.mark.parametrize("make", ["noise", "sealed with another key", "sealed with the right key"])
def test_a_device_with_a_false_record_of_its_masks_is_named_and_the_round_aborts(eleven: Fleet, make: str) -> None:
    """It dropped out, and its neighbour 2 fell silent: their mask can be had from nobody else."""
    near = eleven.coins(eleven.keys())
    entropy = Remembered()
    eleven.clients[1], deal = eleven.clients[1].share(near[1], eleven.verifier, entropy)
    key = entropy.given[1]  # drawn after the seed
    false = Secret(os.urandom(10 * 32))
    record = {
        "noise": os.urandom(len(deal.records[0])),
        "sealed with another key": seal(Secret(os.urandom(32)), false),
        "sealed with the right key": seal(Secret(key), false),
    }[make]
    eleven.setup.add_deal(replace(deal, records=(record,)))
    eleven.receive(eleven.shares(near, set(range(2, 12))))
    with pytest.raises(RoundAborted, match="dev-1 dealt a record of other masks than it committed to"):
        recover_with_liars(eleven, set(), silent=2, gone=1)
    assert set(eleven.server.false_dealers) == {1}


class Remembered:
    """Randomness that is known afterwards: what a device knows of its own."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def __call__(self, size: int) -> bytes:
        self.given.append(os.urandom(size))
        return self.given[-1]
