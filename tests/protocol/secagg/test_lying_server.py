"""What a lying server tries, and what devices say to it."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from shared.errors import PeerError, ProtocolError, SignatureInvalid
from shared.secagg.client import Client, Policy
from shared.secagg.keys import KeyPair
from shared.secagg.messages import Advert, Inbox, Roster, UnmaskRequest
from shared.secagg.states import ClientState
from shared.secagg.terms import Terms
from tests.protocol.secagg.kit import Authority, Round, flip, stranger

WEAK_TERMS = {
    "fewer clients than the device's minimum": (2, 2, 3),
    "a minimum of its own, higher": (5, 4, 6),
    "flower weakness: threshold 1": (5, 1, 3),
    "a threshold of half, which two halves could meet": (6, 3, 3),
    "a threshold below half": (5, 2, 3),
}


@pytest.mark.parametrize(("clients", "threshold", "minimum"), WEAK_TERMS.values(), ids=WEAK_TERMS)
def test_terms_that_do_not_protect_a_device_are_refused(clients: int, threshold: int, minimum: int) -> None:
    client = Client(Terms("r", clients, threshold, "", ""), 1, Policy(min_clients=minimum))
    with pytest.raises(ProtocolError):
        client.advertise(Authority().enrol("dev-1"), os.urandom)
    assert client.state is ClientState.NEW


def test_a_policy_of_one_client_cannot_be_written() -> None:
    with pytest.raises(ValueError):
        Policy(min_clients=1)


def change(roster: Roster, seat: int, **fields: Any) -> Roster:
    return Roster(tuple(replace(item, **fields) if item.index == seat else item for item in roster.adverts))


ROSTERS: dict[str, tuple[Callable[[Round, Roster], Roster], type[PeerError]]] = {
    "flower weakness: a key of the server's own": (
        lambda g, r: change(r, 2, mask_public=KeyPair.generate(os.urandom).public),
        SignatureInvalid,
    ),
    "a device from another authority": (
        lambda g, r: Roster(tuple(stranger(g, 2) if a.index == 2 else a for a in r.adverts)),
        SignatureInvalid,
    ),
    "no signature": (lambda g, r: change(r, 2, signature=b""), SignatureInvalid),
    "keys signed in another round": (
        lambda g, r: Roster(tuple(old_advert(g, 2) if a.index == 2 else a for a in r.adverts)),
        SignatureInvalid,
    ),
    "keys signed for another seat": (lambda g, r: swap(r, 2, 3), SignatureInvalid),
    "another device's name": (lambda g, r: change(r, 2, device="dev-9"), SignatureInvalid),
    "a device that signs under another's name": (
        lambda g, r: Roster(tuple(under_another_name(g, 2) if a.index == 2 else a for a in r.adverts)),
        ProtocolError,
    ),
    "one device in two seats": (lambda g, r: change(r, 2, device="dev-3"), ProtocolError),
    "one key in two seats": (
        lambda g, r: change(r, 2, mask_public=next(a.mask_public for a in r.adverts if a.index == 3)),
        ProtocolError,
    ),
    "a seat twice": (lambda g, r: Roster((*r.adverts, r.adverts[1])), ProtocolError),
    "a seat that was not invited": (lambda g, r: change(r, 2, index=6), ProtocolError),
    "seat zero, which would be handed the secrets": (lambda g, r: change(r, 2, index=0), ProtocolError),
    "own keys missing": (lambda g, r: Roster(r.adverts[1:]), ProtocolError),
    "own keys changed": (lambda g, r: change(r, 1, share_public=bytes(range(32))), ProtocolError),
    "below the threshold": (lambda g, r: Roster(r.adverts[:2]), ProtocolError),
    "a key of small order": (lambda g, r: change(r, 2, mask_public=bytes(32)), ProtocolError),
    "a key that is too short": (lambda g, r: change(r, 2, share_public=b"short"), ProtocolError),
}


def old_advert(group: Round, index: int) -> Advert:
    other = replace(group.terms, round_id="yesterday")
    return Client(other, index, Policy()).advertise(group.identities[index], os.urandom)[1]


def under_another_name(group: Round, index: int) -> Advert:
    liar = replace(group.identities[index], device="dev-9")
    return Client(group.terms, index, Policy()).advertise(liar, os.urandom)[1]


def swap(roster: Roster, one: int, other: int) -> Roster:
    seats = {one: other, other: one}
    adverts = (replace(item, index=seats.get(item.index, item.index)) for item in roster.adverts)
    return Roster(tuple(sorted(adverts, key=lambda item: item.index)))


@pytest.mark.parametrize(("damage", "error"), ROSTERS.values(), ids=ROSTERS)
def test_a_roster_with(group: Round, damage: Callable[[Round, Roster], Roster], error: type[PeerError]) -> None:
    """… is refused, and the device deals nothing."""
    roster = group.keys()
    before = group.clients[1]
    with pytest.raises(error):
        before.share(damage(group, roster), group.verifier, os.urandom)
    assert group.clients[1] == before
    assert before.share(roster, group.verifier, os.urandom)[1].sender == 1, "the true roster still works"


def test_a_roster_below_the_devices_own_minimum_is_refused_though_the_threshold_is_met() -> None:
    group = Round(5, 3, policy=Policy(min_clients=5))
    roster = group.keys()
    with pytest.raises(ProtocolError, match="only 4 clients sent keys; this device wants 5"):
        group.clients[1].share(Roster(roster.adverts[:4]), group.verifier, os.urandom)


def test_terms_told_differently_to_two_devices_leave_them_with_keys_that_do_not_verify(group: Round) -> None:
    """A server that tells device 1 a lower threshold gets no shares from it: the others signed other terms."""
    roster = group.keys()
    lied = replace(group.terms, schema_digest="1" * 64)
    client, advert = Client(lied, 1, Policy()).advertise(group.identities[1], os.urandom)
    mixed = Roster((advert, *roster.adverts[1:]))
    with pytest.raises(SignatureInvalid):
        client.share(mixed, group.verifier, os.urandom)


INBOXES: dict[str, Callable[[Inbox], Inbox]] = {
    "a box changed on the way": lambda i: replace_letter(i, 0, box=flip(i.letters[0].box)),
    "two boxes exchanged": lambda i: replace_letter(i, 0, box=i.letters[1].box),
    "an empty box": lambda i: replace_letter(i, 0, box=b""),
    "a letter twice": lambda i: Inbox((*i.letters, i.letters[0])),
    "a letter from itself": lambda i: replace_letter(i, 0, peer=1),
    "a letter from a stranger": lambda i: replace_letter(i, 0, peer=9),
    "too few letters": lambda i: Inbox(i.letters[:1]),
    "a commitment to other shares": lambda i: replace_letter(i, 0, key_commitment=bytes(32)),
}


def replace_letter(inbox: Inbox, place: int, **fields: Any) -> Inbox:
    letters = list(inbox.letters)
    letters[place] = replace(letters[place], **fields)
    return Inbox(tuple(letters))


@pytest.mark.parametrize("damage", INBOXES.values(), ids=INBOXES)
def test_shares_with(group: Round, damage: Callable[[Inbox], Inbox]) -> None:
    """… are refused before anything is masked."""
    inboxes = group.shares(group.keys())
    before = group.clients[1]
    with pytest.raises(ProtocolError):
        before.receive(damage(inboxes[1]))
    assert before.receive(inboxes[1]).state is ClientState.READY


def test_a_wrong_letter_names_its_sender(group: Round) -> None:
    inboxes = group.shares(group.keys())
    with pytest.raises(ProtocolError, match="dev-2"):
        group.clients[1].receive(INBOXES["a box changed on the way"](inboxes[1]))


REQUESTS = {
    "flower weakness: both share kinds of one peer": UnmaskRequest((1, 2, 3, 4, 5), (5,)),
    "both share kinds of itself": UnmaskRequest((1, 2, 3, 4, 5), (1,)),
    "this device called dropped": UnmaskRequest((2, 3, 4, 5), (1,)),
    "fewer counted than the minimum": UnmaskRequest((1, 2), (3, 4, 5)),
    "a peer left out": UnmaskRequest((1, 2, 3, 4), ()),
    "a stranger": UnmaskRequest((1, 2, 3, 4, 9), (5,)),
    "a peer named twice": UnmaskRequest((1, 2, 3, 4, 4), (5,)),
    "nobody": UnmaskRequest((), ()),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_an_unmask_request_for(group: Round, request_: UnmaskRequest) -> None:
    """… is refused, and nothing is revealed."""
    group.masked(group.shares(group.keys()))
    before = group.clients[1]
    with pytest.raises(ProtocolError):
        before.reveal(request_)
    assert before.state is ClientState.MASKED


@pytest.mark.parametrize("second", [UnmaskRequest((1, 2, 3, 4), (5,)), UnmaskRequest((1, 2, 3, 4, 5), ())], ids=str)
def test_a_second_unmask_request_is_refused_the_same_or_another(group: Round, second: UnmaskRequest) -> None:
    requests = group.masked(group.shares(group.keys()))
    done, _ = group.clients[1].reveal(requests[1])
    with pytest.raises(ProtocolError):
        done.reveal(second)


def test_flower_weakness_no_consistency_round_two_stories_about_a_dropout_do_not_unmask_it(group: Round) -> None:
    """The server tells some devices that 5 was counted, others that it dropped: it never gets enough of both kinds."""
    group.masked(group.shares(group.keys()))
    counted, dropped = UnmaskRequest((1, 2, 3, 4, 5), ()), UnmaskRequest((1, 2, 3, 4), (5,))
    for told_dropped in range(5):
        seeds = keys = 0
        for i in range(1, 6):
            story = dropped if i <= told_dropped else counted
            reveal = group.clients[i].reveal(story)[1]
            seeds += 5 in reveal.seed_shares
            keys += 5 in reveal.key_shares
        assert min(seeds, keys) < group.threshold


# ---- order


def test_no_step_can_be_skipped_or_taken_twice(group: Round) -> None:
    roster = group.keys()
    client = group.clients[1]
    for step in (
        lambda: client.advertise(group.identities[1], os.urandom),
        lambda: client.receive(Inbox(())),
        lambda: client.mask(group.vectors[1]),
        lambda: client.reveal(UnmaskRequest((1, 2, 3), ())),
    ):
        with pytest.raises(ProtocolError, match="advertised"):
            step()
    assert client.share(roster, group.verifier, os.urandom)[0].state is ClientState.SHARED


def test_a_refused_mask_leaves_the_vector_alone(group: Round) -> None:
    group.keys()
    words = group.vectors[1].copy()
    with pytest.raises(ProtocolError):
        group.clients[1].mask(words)
    assert (words == group.vectors[1]).all()


def test_the_server_takes_nothing_out_of_turn(group: Round) -> None:
    roster = group.keys()
    advert = roster.adverts[0]
    deal = group.deal(1, roster)
    with pytest.raises(ProtocolError):
        group.server.add_advert(advert)
    with pytest.raises(ProtocolError):
        group.server.add_vector(1, group.vectors[1])
    with pytest.raises(ProtocolError):
        group.server.finish()
    group.server.add_deal(deal)
    with pytest.raises(ProtocolError, match="already"):
        group.server.add_deal(deal)


def test_a_late_vector_is_not_added_after_the_sum_is_closed(group: Round) -> None:
    inboxes = group.shares(group.keys())
    late = group.mask(5, inboxes[5])
    requests = group.masked(inboxes, {1, 2, 3, 4})
    with pytest.raises(ProtocolError):
        group.server.add_vector(5, late)
    assert (group.unmasked(requests) == group.expected()).all()
    assert group.server.counted == {1, 2, 3, 4}
