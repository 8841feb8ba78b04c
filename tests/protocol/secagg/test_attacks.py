"""What a lying server, a lying device and a broken network try, and what the other side says to it."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shared.errors import Malformed, PeerError, ProtocolError, RoundAborted, SignatureInvalid
from shared.secagg.client import Client, Policy
from shared.secagg.keys import KeyPair, Secret
from shared.secagg.messages import Advert, Deal, Inbox, Roster, UnmaskRequest
from shared.secagg.states import ClientState, ServerState
from shared.secagg.terms import Terms
from tests.protocol.secagg.kit import Authority, Round


@pytest.fixture
def group() -> Round:
    return Round(5, 3)


def unsent(group: Round, index: int) -> Client:
    """Device `index` with its keys made; what the others made is already at the server."""
    return group.clients[index]


# ---- a server that lies about the group


WEAK_TERMS = {
    "fewer clients than the device's minimum": (2, 2, 3),
    "a minimum of its own, higher": (5, 4, 6),
    "flower weakness: threshold 1": (5, 1, 3),
    "a threshold of half, which two halves could meet": (6, 3, 3),
    "a threshold below half": (5, 2, 3),
}


@pytest.mark.parametrize(("clients", "threshold", "minimum"), WEAK_TERMS.values(), ids=WEAK_TERMS)
def test_terms_that_do_not_protect_a_device_are_refused(clients: int, threshold: int, minimum: int) -> None:
    client = Client(Terms("r", clients, threshold, ""), 1, Policy(min_clients=minimum))
    with pytest.raises(ProtocolError):
        client.advertise(Authority().enrol("dev-1"), os.urandom)
    assert client.state is ClientState.NEW


def test_a_policy_of_one_client_cannot_be_written() -> None:
    with pytest.raises(ValueError):
        Policy(min_clients=1)


def change(roster: Roster, seat: int, **fields: Any) -> Roster:
    return Roster(tuple(replace(item, **fields) if item.index == seat else item for item in roster.adverts))


def stranger(group: Round, index: int) -> Advert:
    """Keys for a seat, by a device of another authority."""
    client = Client(group.terms, index, Policy())
    return client.advertise(Authority().enrol(f"dev-{index}"), os.urandom)[1]


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


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


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


# ---- devices that lie


def advert_of(group: Round, index: int, device: str = "") -> Advert:
    identity = group.authority.enrol(device) if device else group.identities[index]
    return Client(group.terms, index, Policy()).advertise(identity, os.urandom)[1]


def test_the_server_leaves_out_devices_with_false_keys_and_goes_on(group: Round) -> None:
    first = advert_of(group, 1)
    group.server.add_advert(first)
    refused = [
        first,
        replace(advert_of(group, 2), signature=b"false"),
        replace(advert_of(group, 2), index=6),
        advert_of(group, 2, "dev-1"),
        replace(advert_of(group, 2), mask_public=first.mask_public),
        replace(advert_of(group, 2), share_public=bytes(32)),
        stranger(group, 2),
    ]
    for advert in refused:
        with pytest.raises(PeerError):
            group.server.add_advert(advert)
    group.server.add_advert(advert_of(group, 2))
    group.server.add_advert(advert_of(group, 3))
    assert [advert.index for advert in group.server.close_keys().adverts] == [1, 2, 3]


DEALS: dict[str, Callable[[Deal], Deal]] = {
    "a letter missing": lambda d: replace(d, letters=d.letters[1:]),
    "a letter twice": lambda d: replace(d, letters=(*d.letters, d.letters[0])),
    "a letter to a stranger": lambda d: replace(d, letters=(*d.letters[1:], replace(d.letters[0], peer=9))),
    "another sender": lambda d: replace(d, sender=9),
}


@pytest.mark.parametrize("damage", DEALS.values(), ids=DEALS)
def test_a_deal_with(group: Round, damage: Callable[[Deal], Deal]) -> None:
    """… is left out."""
    deal = group.deal(1, group.keys())
    with pytest.raises(ProtocolError):
        group.server.add_deal(damage(deal))
    group.server.add_deal(deal)


@pytest.mark.parametrize(
    "words", [np.zeros(6, "<u4"), np.zeros(7, "<i8"), np.zeros((7, 1), "<u4")], ids=["short", "64 bits", "a matrix"]
)
def test_a_vector_of_another_shape_is_left_out_and_its_masks_are_recovered(group: Round, words: Any) -> None:
    inboxes = group.shares(group.keys())
    with pytest.raises(Malformed, match="dev-5"):
        group.server.add_vector(5, words)
    assert (group.unmasked(group.masked(inboxes, {1, 2, 3, 4})) == group.expected()).all()


def test_a_second_vector_from_one_device_is_not_counted_twice(group: Round) -> None:
    inboxes = group.shares(group.keys())
    words = group.mask(1, inboxes[1])
    group.server.add_vector(1, words)
    with pytest.raises(ProtocolError):
        group.server.add_vector(1, words)
    assert (group.unmasked(group.masked(inboxes, {2, 3, 4, 5})) == group.expected()).all()


@pytest.mark.parametrize("kind", ["seed_shares", "key_shares"])
def test_a_changed_share_is_found_its_device_named_and_the_sum_is_still_exact(group: Round, kind: str) -> None:
    requests = group.masked(group.shares(group.keys()), {1, 2, 3, 4})
    reveal = group.reveal(2, requests[2])
    shares = dict(getattr(reveal, kind))
    dealer = next(iter(shares))
    shares[dealer] = Secret(flip(shares[dealer].reveal()))
    with pytest.raises(ProtocolError, match="dev-2"):
        group.server.add_reveal(
            replace(reveal, seed_shares=shares) if kind == "seed_shares" else replace(reveal, key_shares=shares)
        )
    assert (group.unmasked(requests, {1, 3, 4}) == group.expected()).all()


def test_shares_that_were_not_asked_for_are_refused(group: Round) -> None:
    requests = group.masked(group.shares(group.keys()), {1, 2, 3, 4})
    reveal = group.reveal(2, requests[2])
    with pytest.raises(ProtocolError, match="dev-2"):
        group.server.add_reveal(replace(reveal, key_shares={}))
    with pytest.raises(ProtocolError):
        group.server.add_reveal(replace(reveal, sender=5))
    group.server.add_reveal(reveal)
    with pytest.raises(ProtocolError, match="already"):
        group.server.add_reveal(reveal)


@pytest.mark.parametrize("counted", [{1, 2, 3, 4, 5}, {2, 3, 4, 5}], ids=["its seed is needed", "its key is needed"])
def test_a_dealer_whose_shares_are_of_another_secret_is_named_and_the_round_aborts(
    group: Round, counted: set[int]
) -> None:
    roster = group.keys()
    honest = group.clients[1]
    assert honest.secrets is not None
    other = replace(honest.secrets, seed=Secret(os.urandom(32)), mask_key=KeyPair.generate(os.urandom))
    _, false = replace(honest, secrets=other).share(roster, group.verifier, os.urandom)
    group.clients[1], deal = honest.share(roster, group.verifier, os.urandom)
    group.server.add_deal(replace(false, seed_digest=deal.seed_digest))
    for i in range(2, 6):
        group.server.add_deal(group.deal(i, roster))
    requests = group.masked(group.server.close_shares(), counted)
    with pytest.raises(RoundAborted, match="dev-1"):
        group.unmasked(requests, {2, 3, 4, 5})
    assert group.server.state is ServerState.ABORTED


# ---- what stays behind


def everything_about(client: Client) -> str:
    return f"{client!r} {client} {client.terms!r} {client.roster!r} {client.held!r} {client.secrets!r}"


def test_no_secret_shows_in_the_repr_of_any_state(group: Round) -> None:
    roster = group.keys()
    secrets = group.clients[1].secrets
    assert secrets is not None
    hidden = [secrets.seed, secrets.share_key.private, secrets.mask_key.private]
    states = [group.clients[1]]
    inboxes = group.shares(roster)
    states.append(group.clients[1])
    requests = group.masked(inboxes)
    states.append(group.clients[1])
    hidden += [share for held in group.clients[1].held.values() for share in (held.key_share, held.seed_share)]
    reveal = group.reveal(1, requests[1])
    for secret in hidden:
        for text in (*map(everything_about, states), repr(reveal), *(repr(state.to_fields()) for state in states)):
            assert secret.reveal().hex() not in text
            assert repr(secret.reveal())[2:-1] not in text


def test_private_keys_and_seed_are_gone_once_a_vector_is_masked(group: Round) -> None:
    group.masked(group.shares(group.keys()))
    assert group.clients[1].secrets is None
    assert group.clients[1].to_fields()["secrets"] == []


@pytest.mark.parametrize("way", ["reveal", "abandon"])
def test_no_secret_is_left_when_a_round_is_done(group: Round, way: str) -> None:
    requests = group.masked(group.shares(group.keys()))
    client = group.clients[1]
    done = client.reveal(requests[1])[0] if way == "reveal" else client.abandon()
    assert done.state is ClientState.DONE
    assert (done.secrets, dict(done.held)) == (None, {})
    fields = done.to_fields()
    assert [fields[name] for name in ("secrets", "key_shares", "seed_shares")] == [[], [], []]


def test_a_round_abandoned_before_masking_leaves_nothing(group: Round) -> None:
    group.shares(group.keys())
    done = group.clients[1].abandon()
    assert (done.state, done.secrets, dict(done.held)) == (ClientState.DONE, None, {})


def test_the_server_keeps_no_share_after_the_sum(group: Round) -> None:
    group.unmasked(group.masked(group.shares(group.keys())))
    kept = {name: value for name, value in vars(group.server).items() if name in ("_letters", "_reveals")}
    assert kept == {"_letters": {}, "_reveals": {}}


def test_a_client_comes_back_from_storage_in_every_state(group: Round) -> None:
    def again(client: Client) -> Client:
        restored = Client.from_fields(client.to_fields(), client.policy)
        assert restored == client
        return restored

    roster = group.keys()
    group.clients = {i: again(client) for i, client in group.clients.items()}
    inboxes = group.shares(roster)
    group.clients = {i: again(client) for i, client in group.clients.items()}
    requests = group.masked(inboxes, {1, 2, 4, 5})
    group.clients = {i: again(client) for i, client in group.clients.items()}
    assert (group.unmasked(requests) == group.expected()).all()


@pytest.mark.parametrize(
    "change_", [{"state": "dancing"}, {"secrets": [b"x"]}, {"index": 9}, {"dealers": [1]}], ids=str
)
def test_damaged_stored_state_is_malformed(group: Round, change_: dict[str, Any]) -> None:
    group.keys()
    with pytest.raises(Malformed):
        Client.from_fields({**group.clients[1].to_fields(), **change_}, Policy())


def test_masked_vectors_of_equal_inputs_differ_in_every_round_and_look_uniform() -> None:
    sent = []
    for _ in range(2):
        group = Round(3, 3, length=1 << 16)
        group.vectors = {i: np.zeros(group.length, "<u4") for i in group.vectors}
        inboxes = group.shares(group.keys())
        sent += [group.mask(i, inboxes[i]) for i in (1, 2, 3)]
    for words in sent:
        assert abs(words.astype(np.float64).mean() / 2**32 - 0.5) < 5.5 / np.sqrt(12 * words.size)
    for place, one in enumerate(sent):
        assert all((one == other).mean() < 1e-3 for other in sent[place + 1 :])
