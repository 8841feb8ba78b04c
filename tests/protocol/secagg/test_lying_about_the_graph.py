"""A server that wants a graph of its own choice: other members, other coins, one device in two seats."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from shared.errors import ProtocolError
from shared.secagg.client import Client
from shared.secagg.messages import (
    Members,
    Neighbourhood,
    Roster,
)
from shared.secagg.policy import Policy
from shared.secagg.states import ClientState
from tests.protocol.secagg.kit import Fleet, assert_alone, in_another_seat, of, put, told, tossed

EVERYBODY = frozenset(range(1, 6))


# ---- members and coins, in a sparse group

MEMBERS: dict[str, Callable[[Members], Members]] = {
    "without the device's own key": lambda m: without(m, 1),
    "with another key in its own seat": lambda m: replace(m, leaves={**m.leaves, 1: bytes(32)}),
    "with too few": lambda m: without(without(m, 2), 3),
    "with a seat that was not invited": lambda m: with_seat(without(m, 2), 31),
    "with seat zero": lambda m: with_seat(without(m, 2), 0),
    "with one device in two seats": lambda m: replace(m, devices={**m.devices, 2: m.devices[3]}),
    "with its own name in another seat": lambda m: replace(m, devices={**m.devices, 2: m.devices[1]}),
}


def without(members: Members, seat: int) -> Members:
    columns = (members.leaves, members.coin_digests, members.devices)
    return Members(*({other: value for other, value in column.items() if other != seat} for column in columns))


def with_seat(members: Members, seat: int) -> Members:
    return Members(
        {**members.leaves, seat: b"l" * 32},
        {**members.coin_digests, seat: b"c" * 32},
        {**members.devices, seat: b"d" * 16},
    )


@pytest.mark.parametrize("damage", MEMBERS.values(), ids=MEMBERS)
def test_a_group(sparse: Fleet, damage: Callable[[Members], Members]) -> None:
    """… gets no coin."""
    members = sparse.keys()
    assert members is not None
    with pytest.raises(ProtocolError):
        sparse.clients[1].toss(damage(members))
    assert sparse.clients[1].state is ClientState.ADVERTISED


def near_of(near: Neighbourhood) -> int:
    return near.roster.adverts[0].index


COINS: dict[str, Callable[[Neighbourhood], Neighbourhood]] = {
    "another coin than was promised": lambda n: replace(n, coins={**n.coins, 2: bytes(32)}),
    "another coin of its own": lambda n: replace(n, coins={**n.coins, 1: bytes(32)}),
    "its own coin left out": lambda n: replace(n, coins={s: c for s, c in n.coins.items() if s != 1}),
    "too few coins": lambda n: replace(n, coins={s: c for s, c in n.coins.items() if s not in (2, 3)}),
    "a coin of a stranger": lambda n: replace(n, coins={**n.coins, 31: bytes(32)}),
    "no coins": lambda n: replace(n, coins={}),
    "a neighbour kept back": lambda n: of(n, *n.roster.adverts[1:]),
    "a neighbour twice": lambda n: of(n, n.roster.adverts[0], *n.roster.adverts),
    "neighbours in another order": lambda n: of(n, *reversed(n.roster.adverts)),
    "another set of coins than its neighbours were drawn from": lambda n: replace(
        n, coins={s: c for s, c in n.coins.items() if s != 2}
    ),
}


@pytest.mark.parametrize("damage", COINS.values(), ids=COINS)
def test_a_graph_with(sparse: Fleet, damage: Callable[[Neighbourhood], Neighbourhood]) -> None:
    """… is refused, and the device deals nothing."""
    near = sparse.coins(sparse.keys())[1]
    with pytest.raises(ProtocolError):
        sparse.clients[1].share(damage(near), sparse.verifier, os.urandom)
    assert sparse.clients[1].share(near, sparse.verifier, os.urandom)[1].sender == 1


def test_a_graph_that_nobody_tossed_for_is_refused(sparse: Fleet) -> None:
    """The server would know the seed before it says who is a member, and could seat its own devices round a victim."""
    sparse.keys()
    advertised = sparse.clients[1]
    near = Neighbourhood({1: bytes(32)}, Roster(()))
    with pytest.raises(ProtocolError, match="nobody tossed"):
        advertised.share(near, sparse.verifier, os.urandom)


def test_a_key_changed_after_the_coins_were_told_is_refused(sparse: Fleet) -> None:
    """By a device that works with the server and signs whatever it likes."""
    near = sparse.coins(sparse.keys())[1]
    seat = near_of(near)
    with pytest.raises(ProtocolError, match="not the one that the group was told of"):
        sparse.clients[1].share(put(near, seat, in_another_seat(sparse, seat, seat)), sparse.verifier, os.urandom)


def test_a_coin_chosen_after_the_others_were_heard_is_refused(sparse: Fleet) -> None:
    """The last to tell cannot pick the graph: all promised their coins in what they signed."""
    members = sparse.keys()
    assert members is not None
    with pytest.raises(ProtocolError, match="another coin than it promised"):
        sparse.setup.add_coin(replace(sparse.clients[2].toss(members)[1], coin=os.urandom(32)))
    near = sparse.coins(members)[1]
    with pytest.raises(ProtocolError, match="client 2 told another coin"):
        sparse.clients[1].share(replace(near, coins={**near.coins, 2: os.urandom(32)}), sparse.verifier, os.urandom)


def test_a_device_in_two_seats_is_refused_and_under_a_false_tag_it_is_found_by_its_neighbours(sparse: Fleet) -> None:
    """Few devices could otherwise fill many seats of a large group, and be most of a victim's neighbours."""
    members = sparse.keys()
    assert members is not None
    twin = Client(sparse.terms, 2, Policy()).advertise(sparse.identities[3], os.urandom)[0].draft
    assert twin is not None
    leaves, coins = {**members.leaves, 2: twin.advert.leaf}, {**members.coin_digests, 2: twin.advert.coin_digest}
    lied = Members(leaves, coins, {**members.devices, 2: members.devices[3]})
    with pytest.raises(ProtocolError, match="same key or device"):
        sparse.clients[1].toss(lied)
    lied = Members(leaves, coins, members.devices)
    heard = tossed(sparse, {seat: lied for seat in sparse.clients if seat != 2})
    heard = {seat: heard.get(seat, twin.coin) for seat in sparse.clients}
    found = set()
    for seat in sparse.clients.keys() - {2, 3}:
        near = told(sparse, seat, lied, heard, twin.advert)
        if 2 in {item.index for item in near.roster.adverts}:
            with pytest.raises(ProtocolError, match="not the one that the group was told of"):
                sparse.clients[seat].share(near, sparse.verifier, os.urandom)
            found.add(seat)
    assert len(found) >= sparse.terms.degrees.partners


def test_a_graph_of_fewer_coins_than_clients_may_remain_is_refused_though_all_else_fits(sparse: Fleet) -> None:
    """Each coin that is left out is another graph for the server to choose from."""
    members = sparse.keys()
    assert members is not None
    coins = tossed(sparse, dict.fromkeys(sparse.clients, members))
    enough, few = ({seat: coin for seat, coin in coins.items() if seat <= last} for last in (29, 28))
    with pytest.raises(ProtocolError, match="only 28 clients told their coins"):
        sparse.clients[1].share(told(sparse, 1, members, few), sparse.verifier, os.urandom)
    assert sparse.clients[1].share(told(sparse, 1, members, enough), sparse.verifier, os.urandom)


def test_two_devices_told_of_different_members_cannot_read_each_others_shares(sparse: Fleet) -> None:
    """Of a member that then tells no coin, so that nobody asks for its key."""
    members = sparse.keys()
    assert members is not None
    views = {i: replace(members, leaves={**members.leaves, 30: b"x" * 32}) if i == 1 else members for i in range(1, 30)}
    coins = tossed(sparse, views)
    assert_alone(sparse, {i: told(sparse, i, view, coins) for i, view in views.items()})
