"""What a lying server tries while a group is made, alone and with devices of its own, and what honest devices say to it."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from shared.errors import FalseShares, PeerError, ProtocolError, SignatureInvalid
from shared.secagg.client import Client
from shared.secagg.graph import Rates
from shared.secagg.messages import (
    Advert,
    Inbox,
    Neighbourhood,
    RecoveryRequest,
    Roster,
    Witness,
)
from shared.secagg.policy import Policy
from shared.secagg.states import ClientState
from shared.secagg.terms import GroupTerms, RoundTerms
from tests.protocol.secagg.kit import Authority, Fleet, flip, in_another_seat, of, put, stranger

EVERYBODY = frozenset(range(1, 6))


# ---- terms

WEAK_TERMS: dict[str, tuple[GroupTerms, Policy]] = {
    "fewer clients than the device's minimum": (GroupTerms("g", 2, 1, Rates(0.0)), Policy()),
    "a minimum of its own, higher": (GroupTerms("g", 5, 1, Rates()), Policy(min_clients=6)),
    "a minimum that fewer may remain of": (GroupTerms("g", 5, 1, Rates(0.2)), Policy(min_clients=5)),
    "more dropout than can be borne": (
        GroupTerms("g", 10, 1, Rates(0.6)),
        Policy(),
    ),
    "shrunken rates: no corruption, where the device fears some": (
        GroupTerms("g", 100, 1, Rates(0.1, 0.0)),
        Policy(rates=Rates(0.5, 0.1)),
    ),
    "shrunken security": (GroupTerms("g", 100, 1, Rates(0.1, 0.0, security_bits=39)), Policy()),
    "more dropout than the device lets a server claim": (
        GroupTerms("g", 100, 1, Rates(0.3, 0.0)),
        Policy(rates=Rates(0.2, 0.0)),
    ),
    "rates that no graph can bear": (GroupTerms("g", 20, 1, Rates(0.5, 0.5)), Policy()),
}


@pytest.mark.parametrize(("terms", "policy"), WEAK_TERMS.values(), ids=WEAK_TERMS)
def test_terms_that_do_not_protect_a_device_are_refused(terms: GroupTerms, policy: Policy) -> None:
    client = Client(terms, 1, policy)
    with pytest.raises(ProtocolError):
        client.advertise(Authority().enrol("dev-1"), os.urandom)
    assert client.state is ClientState.NEW


def test_a_policy_of_one_client_cannot_be_written() -> None:
    with pytest.raises(ValueError):
        Policy(min_clients=1)


# ---- keys, in a complete group


def change(near: Neighbourhood, seat: int, **fields: Any) -> Neighbourhood:
    adverts = (replace(item, **fields) if item.index == seat else item for item in near.roster.adverts)
    return replace(near, roster=Roster(tuple(adverts)))


def old_advert(fleet: Fleet, seat: int) -> Advert:
    other = replace(fleet.terms, group_id="yesterday")
    return Client(other, seat, Policy()).advertise(fleet.identities[seat], os.urandom)[1]


def under_another_name(fleet: Fleet, seat: int) -> Advert:
    liar = replace(fleet.identities[seat], device="dev-9")
    return Client(fleet.terms, seat, Policy()).advertise(liar, os.urandom)[1]


def swap(near: Neighbourhood, one: int, other: int) -> Neighbourhood:
    seats = {one: other, other: one}
    adverts = (replace(item, index=seats.get(item.index, item.index)) for item in near.roster.adverts)
    return of(near, *sorted(adverts, key=lambda item: item.index))


ROSTERS: dict[str, tuple[Callable[[Fleet, Neighbourhood], Neighbourhood], type[PeerError]]] = {
    "a device from another authority": (lambda g, r: put(r, 2, stranger(g, 2)), SignatureInvalid),
    "no signature": (lambda g, r: change(r, 2, signature=b""), SignatureInvalid),
    "keys signed for another group": (lambda g, r: put(r, 2, old_advert(g, 2)), SignatureInvalid),
    "keys signed for another seat": (lambda g, r: swap(r, 2, 3), SignatureInvalid),
    "another coin than the device signed": (lambda g, r: change(r, 2, coin_digest=bytes(32)), SignatureInvalid),
    "another device's name": (lambda g, r: change(r, 2, device="dev-9"), SignatureInvalid),
    "a device that signs under another's name": (lambda g, r: put(r, 2, under_another_name(g, 2)), ProtocolError),
    "one device in two seats": (lambda g, r: put(r, 2, in_another_seat(g, 2, 3)), ProtocolError),
    "the device's own name in another seat": (lambda g, r: put(r, 2, in_another_seat(g, 2, 1)), ProtocolError),
    "one key in two seats": (
        lambda g, r: change(r, 2, public=next(a.public for a in r.roster.adverts if a.index == 3)),
        ProtocolError,
    ),
    "a seat twice": (lambda g, r: of(r, *r.roster.adverts, r.roster.adverts[1]), ProtocolError),
    "its own seat once more": (lambda g, r: change(r, 2, index=1), ProtocolError),
    "a seat that was not invited": (lambda g, r: change(r, 5, index=6), ProtocolError),
    "seat zero, which would be handed the secrets": (lambda g, r: change(r, 2, index=0), ProtocolError),
    "too few": (lambda g, r: of(r, *r.roster.adverts[:2]), ProtocolError),
    "nobody": (lambda g, r: of(r), ProtocolError),
    "a key of small order": (lambda g, r: put(r, 2, signed_by(g, 2, bytes(32))), ProtocolError),
    "a key that is too short": (lambda g, r: change(r, 2, public=b"short"), ProtocolError),
    "coins, which nobody needs": (lambda g, r: replace(r, coins=dict.fromkeys(range(1, 6), bytes(32))), ProtocolError),
}


def signed_by(fleet: Fleet, seat: int, public: bytes) -> Advert:
    """Any key, with a good signature."""
    advert = replace(in_another_seat(fleet, seat, seat), public=public)
    return replace(advert, signature=fleet.identities[seat].sign(advert.statement(fleet.terms)))


@pytest.mark.parametrize(("damage", "error"), ROSTERS.values(), ids=ROSTERS)
def test_a_roster_with(
    five: Fleet, damage: Callable[[Fleet, Neighbourhood], Neighbourhood], error: type[PeerError]
) -> None:
    """… is refused, and the device deals nothing."""
    near = five.coins(five.keys())[1]
    before = five.clients[1]
    with pytest.raises(error):
        before.share(damage(five, near), five.verifier, os.urandom)
    assert five.clients[1] == before
    assert before.share(near, five.verifier, os.urandom)[1].sender == 1, "the true roster still works"


def test_a_roster_below_the_devices_own_minimum_is_refused_though_the_rates_are_met() -> None:
    fleet = Fleet(5, policy=Policy(min_clients=4))
    near = fleet.coins(fleet.keys())[1]
    with pytest.raises(ProtocolError, match="only 3 clients sent keys; this device wants 4"):
        fleet.clients[1].share(of(near, *near.roster.adverts[:2]), fleet.verifier, os.urandom)


# ---- shares

INBOXES: dict[str, Callable[[Inbox], Inbox]] = {
    "a box changed on the way": lambda i: Inbox({**i.boxes, 2: flip(i.boxes[2])}),
    "two boxes exchanged": lambda i: Inbox({**i.boxes, 2: i.boxes[3], 3: i.boxes[2]}),
    "a box that comes twice": lambda i: Inbox({**i.boxes, 2: i.boxes[3]}),
    "an empty box": lambda i: Inbox({**i.boxes, 2: b""}),
    "a letter from itself": lambda i: Inbox({**i.boxes, 1: i.boxes[2]}),
    "a letter from a stranger": lambda i: Inbox({**i.boxes, 9: i.boxes[2]}),
    "too few letters": lambda i: Inbox({2: i.boxes[2], 3: i.boxes[3]}),
    "no letters": lambda i: Inbox({}),
}


@pytest.mark.parametrize("damage", INBOXES.values(), ids=INBOXES)
def test_shares_with(five: Fleet, damage: Callable[[Inbox], Inbox]) -> None:
    """… are refused before anything is masked."""
    inbox = five.shares(five.coins(five.keys()))[1]
    before = five.clients[1]
    with pytest.raises(ProtocolError):
        before.receive(damage(inbox))
    assert before.receive(inbox).state is ClientState.READY


def test_a_letter_reflected_to_its_sender_does_not_open(five: Fleet) -> None:
    near = five.coins(five.keys())
    deal = five.deal(1, near[1])
    inbox = five.shares(near, {2, 3, 4, 5})[2]
    with pytest.raises(FalseShares):
        five.clients[1].receive(Inbox({**{seat: inbox.boxes[seat] for seat in (3, 4, 5)}, 2: deal.boxes[2]}))


def test_a_wrong_letter_names_its_sender(five: Fleet) -> None:
    inbox = five.shares(five.coins(five.keys()))[1]
    with pytest.raises(FalseShares, match="dev-2") as caught:
        five.clients[1].receive(INBOXES["a box changed on the way"](inbox))
    assert caught.value.dealers == (2,)


# ---- order


def test_no_step_can_be_skipped_or_taken_twice(five: Fleet) -> None:
    near = five.coins(five.keys())[1]
    client = five.clients[1]
    terms = RoundTerms(bytes(32), 1, "r", EVERYBODY, "", "")
    steps: list[Callable[[], Any]] = [
        lambda: client.advertise(five.identities[1], os.urandom),
        lambda: client.receive(Inbox({})),
        lambda: client.mask(terms, five.schema.layout.zeros()),
        lambda: client.confirm(EVERYBODY),
        lambda: client.reveal(Witness({})),
        lambda: client.recover(RecoveryRequest((), ())),
    ]
    for step in steps:
        with pytest.raises(ProtocolError, match="advertised"):
            step()
    dealt = client.share(near, five.verifier, os.urandom)[0]
    assert dealt.state is ClientState.SHARED
    with pytest.raises(ProtocolError, match="refuses to deal"):
        dealt.share(near, five.verifier, os.urandom)


def test_a_device_that_abandoned_a_group_does_nothing_more_in_it(group: Fleet) -> None:
    terms = group.begin()
    done = group.clients[1].abandon()
    for step in (lambda: done.mask(terms, group.vectors[1].copy()), lambda: done.confirm(EVERYBODY)):
        with pytest.raises(ProtocolError, match="refuses"):
            step()


def test_the_server_takes_nothing_out_of_turn(five: Fleet) -> None:
    near = five.coins(five.keys())
    with pytest.raises(ProtocolError):
        five.setup.add_advert(in_another_seat(five, 1, 1))
    with pytest.raises(ProtocolError):
        five.setup.close_keys()
    five.receive(five.shares(near))
    five.begin()
    for step in (five.server.close_confirmed, five.server.close_unmasked, five.server.finish):
        with pytest.raises(ProtocolError, match="refuses"):
            step()
    five.run()
    with pytest.raises(ProtocolError, match="refuses"):
        five.server.finish()
    with pytest.raises(ProtocolError, match="refuses"):
        five.server.add_vector(1, b"")
