"""What a lying server tries in the rounds of a group, and what devices say to it."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from shared.errors import ProtocolError, RoundAborted
from shared.secagg.client import Client
from shared.secagg.graph import Rates
from shared.secagg.keys import tag
from shared.secagg.messages import Inbox, RecoveryRequest, Reveal, Witness, confirmed
from shared.secagg.policy import Policy
from shared.secagg.quantize import decode
from shared.secagg.server import Round
from shared.secagg.states import ClientState
from shared.secagg.terms import RoundTerms
from tests.protocol.secagg.kit import Fleet, flip

EVERYBODY = frozenset(range(1, 6))


# ---- rounds

ROUNDS: dict[str, Callable[[RoundTerms], RoundTerms]] = {
    "of another group": lambda t: replace(t, binding=bytes(32)),
    "that there are no keys for": lambda t: replace(t, number=4),
    "before the first": lambda t: replace(t, number=0),
    "with a number below zero": lambda t: replace(t, number=-1),
    "that the device has no part in": lambda t: replace(t, present=t.present - {1}),
    "of fewer than may remain": lambda t: replace(t, present=frozenset({1, 2, 3})),
    "of this device alone": lambda t: replace(t, present=frozenset({1})),
    "of strangers to make up the number": lambda t: replace(t, present=frozenset({1, 2, 7, 8, 9})),
}


@pytest.mark.parametrize("damage", ROUNDS.values(), ids=ROUNDS)
def test_a_round(group: Fleet, damage: Callable[[RoundTerms], RoundTerms]) -> None:
    """… is refused, and the vector stays as it is."""
    terms, words = group.begin(), group.vectors[1].copy()
    with pytest.raises(ProtocolError):
        group.clients[1].mask(damage(terms), words)
    assert (words == group.vectors[1]).all()
    assert group.clients[1].state is ClientState.READY


def test_a_round_below_the_devices_own_minimum_is_refused() -> None:
    fleet = Fleet(6, Rates(0.34, 0.0), policy=Policy(min_clients=4)).make()
    terms = fleet.begin(present={1, 2, 3, 4})
    assert fleet.clients[1].mask(terms, fleet.vectors[1].copy()).state is ClientState.MASKED
    strict = replace(fleet.clients[1], policy=Policy(min_clients=5))
    with pytest.raises(ProtocolError, match="only 4 clients take part; this device wants 5"):
        strict.mask(terms, fleet.vectors[1].copy())


def test_a_round_whose_number_was_used_is_refused_whatever_became_of_it(group: Fleet) -> None:
    """Two vectors under one mask would tell their difference."""
    terms = group.begin(2)
    masked = group.clients[1].mask(terms, group.vectors[1].copy())
    other = replace(terms, round_id="again", inputs_digest="2" * 64)
    for number in (1, 2):
        with pytest.raises(ProtocolError, match="has used them"):
            masked.mask(replace(other, number=number), group.vectors[1].copy())
    restored = Client.from_fields(masked.to_fields(), masked.policy)
    with pytest.raises(ProtocolError, match="has used them"):
        restored.mask(other, group.vectors[1].copy())


def test_a_partner_that_dealt_this_device_no_shares_cannot_take_part(five: Fleet) -> None:
    """If it were called dropped, nobody could say that it was counted: its mask with this device could be taken out."""
    inboxes = five.shares(five.coins(five.keys()))
    five.receive({**inboxes, 1: Inbox({seat: inboxes[1].boxes[seat] for seat in (2, 3, 4)})})
    terms = five.begin()
    with pytest.raises(ProtocolError, match="client 5 dealt this client no shares"):
        five.clients[1].mask(terms, five.vectors[1].copy())
    assert five.clients[1].mask(replace(terms, present=frozenset({1, 2, 3, 4})), five.vectors[1].copy())


def test_in_a_sparse_graph_a_round_without_this_devices_neighbours_is_refused(large: Fleet) -> None:
    """The server leaves out just those, no more of 120 than could have dropped out."""
    near = large.group.graph.neighbours(1)
    everybody, spare = frozenset(range(1, 121)), len(near) - large.terms.degrees.partners
    terms = large.begin(present=everybody - set(near[:spare]))
    assert large.clients[1].mask(terms, large.vectors[1].copy()).state is ClientState.MASKED
    with pytest.raises(ProtocolError, match="neighbours take part"):
        large.clients[1].mask(replace(terms, present=everybody - set(near[: spare + 1])), large.vectors[1].copy())


TERMS: dict[str, Callable[[RoundTerms], RoundTerms]] = {
    "another round": lambda t: replace(t, round_id="another"),
    "other inputs: a model of its own, to tell its change from the others'": lambda t: replace(
        t, inputs_digest="2" * 64
    ),
    "another schema": lambda t: replace(t, schema_digest="d" * 64),
    "other devices": lambda t: replace(t, present=t.present - {5}),
    "another number": lambda t: replace(t, number=2),
}


@pytest.mark.parametrize("damage", TERMS.values(), ids=TERMS)
def test_a_device_that_is_told_of(group: Fleet, damage: Callable[[RoundTerms], RoundTerms]) -> None:
    """… masks with other keys: its confirmation counts for nobody, it reveals nothing, and without it there is no sum."""
    terms = group.begin()
    for i in range(2, 6):
        group.server.add_vector(i, group.mask(i))
    group.server.add_vector(1, group.mask(1, damage(terms)))
    counted = group.server.close_masked()
    shown = counted if damage(terms).present == counted else damage(terms).present
    witnesses = {i: Witness({}) for i in counted}
    for i in sorted(counted):
        for other, word in group.confirm(i, shown if i == 1 else counted).tags.items():
            witnesses[other] = Witness({**witnesses[other].tags, i: word})
    with pytest.raises(ProtocolError, match="1 witnesses confirm"):
        group.clients[1].reveal(witnesses[1])
    group.server.abort()


def test_a_sum_of_a_device_that_was_given_another_model_is_noise(group: Fleet) -> None:
    """Even were all secrets of the round revealed."""
    terms = group.begin()
    keys = {i: client.keys[1] for i, client in group.clients.items()}
    for i in range(1, 6):
        group.server.add_vector(i, group.mask(i, replace(terms, inputs_digest="2" * 64) if i == 1 else terms))
    group.server.close_masked()
    for i in range(1, 6):
        group.server.add_confirmation(group.confirm(i, EVERYBODY))
    group.server.close_confirmed()
    for i in range(1, 6):
        group.server.add_reveal(Reveal(i, keys[i].seed, {}))
    group.server.close_unmasked()
    total = group.finish()
    assert (total != group.expected()).mean() > 0.9
    with pytest.raises(RoundAborted):
        decode(group.schema, total, 5)


# ---- who is counted

COUNTED: dict[str, frozenset[int]] = {
    "this device called dropped": frozenset({2, 3, 4, 5}),
    "fewer than may remain": frozenset({1, 2, 3}),
    "this device alone": frozenset({1}),
    "a stranger": frozenset({1, 2, 3, 4, 9}),
    "seat zero": frozenset({0, 1, 2, 3, 4}),
    "nobody": frozenset(),
}


@pytest.mark.parametrize("counted", COUNTED.values(), ids=COUNTED)
def test_a_count_with(group: Fleet, counted: frozenset[int]) -> None:
    """… is not confirmed."""
    group.begin()
    group.masked()
    with pytest.raises(ProtocolError):
        group.clients[1].confirm(counted)
    assert group.clients[1].state is ClientState.MASKED


def test_one_that_took_no_part_cannot_be_counted(group: Fleet) -> None:
    group.begin(present={1, 2, 3, 4})
    group.masked()
    with pytest.raises(ProtocolError, match="did not take part"):
        group.clients[1].confirm(EVERYBODY)


@pytest.mark.parametrize("second", [EVERYBODY, EVERYBODY - {5}], ids=["the same", "another"])
def test_a_second_count_is_not_confirmed_though_the_device_started_anew(group: Fleet, second: frozenset[int]) -> None:
    group.begin()
    group.confirm(1, group.masked())
    for client in (group.clients[1], Client.from_fields(group.clients[1].to_fields(), group.policy)):
        with pytest.raises(ProtocolError, match="refuses to confirm"):
            client.confirm(second)


def confirmed_by_all(group: Fleet, counted: frozenset[int] = EVERYBODY) -> dict[int, Witness]:
    group.masked()
    return group.confirmed(counted)


WITNESSES: dict[str, Callable[[Witness], Witness]] = {
    "none": lambda w: Witness({}),
    "too few": lambda w: Witness({2: w.tags[2]}),
    "forged ones": lambda w: Witness({seat: os.urandom(16) for seat in w.tags}),
    "one forged of two": lambda w: Witness({2: w.tags[2], 3: flip(w.tags[3])}),
    "one word from all": lambda w: Witness(dict.fromkeys(w.tags, w.tags[2])),
    "words exchanged": lambda w: Witness({2: w.tags[3], 3: w.tags[4], 4: w.tags[5], 5: w.tags[2]}),
    "its own word, and strangers'": lambda w: Witness({1: w.tags[2], 2: w.tags[2], 9: w.tags[4], 0: w.tags[3]}),
    "empty words": lambda w: Witness(dict.fromkeys(w.tags, b"")),
}


@pytest.mark.parametrize("damage", WITNESSES.values(), ids=WITNESSES)
def test_confirmations(group: Fleet, damage: Callable[[Witness], Witness]) -> None:
    """… move no device to reveal anything."""
    group.begin()
    witness = confirmed_by_all(group)[1]
    with pytest.raises(ProtocolError, match="witnesses confirm"):
        group.clients[1].reveal(damage(witness))
    assert group.clients[1].state is ClientState.CONFIRMED
    assert group.clients[1].reveal(witness)[1].sender == 1


def test_the_word_of_a_witness_that_is_not_counted_does_not_count(group: Fleet) -> None:
    """It would not say so of itself, unless it works with the server."""
    terms = group.begin()
    counted = group.masked({1, 2, 3, 4})
    said = {seat: group.confirm(seat, counted).tags for seat in (1, 2)}
    accomplice = group.clients[5].neighbours
    assert accomplice is not None
    lie = tag(accomplice.to_them[1], confirmed(terms.digest, sorted(counted)))
    with pytest.raises(ProtocolError, match="2 witnesses confirm"):
        group.clients[1].reveal(Witness({2: said[2][1], 5: lie}))


def test_a_devices_own_words_sent_back_to_it_confirm_nothing(group: Fleet) -> None:
    """Each direction has a key of its own."""
    group.begin()
    counted = group.masked()
    said = group.confirm(1, counted)
    with pytest.raises(ProtocolError, match="1 witnesses confirm"):
        group.clients[1].reveal(Witness(dict(said.tags)))


def test_confirmations_of_another_round_or_another_set_are_worth_nothing(group: Fleet) -> None:
    group.begin(1)
    old = confirmed_by_all(group)
    group.begin(2)
    group.masked({1, 2, 3, 4})
    shown = {i: frozenset({1, 2, 3, 4}) if i == 1 else EVERYBODY for i in (1, 2, 3, 4)}
    new = {i: group.confirm(i, shown[i]).tags.get(1, b"") for i in shown}
    for tags in (dict(old[1].tags), {i: word for i, word in new.items() if i != 1}):
        with pytest.raises(ProtocolError, match="1 witnesses confirm"):
            group.clients[1].reveal(Witness(tags))


# ---- shares of the lost

REQUESTS: dict[str, RecoveryRequest] = {
    "the key of one that is counted": RecoveryRequest((), (2,)),
    "the seed of one that is not counted": RecoveryRequest((5,), ()),
    "its own seed share": RecoveryRequest((1,), ()),
    "a stranger": RecoveryRequest((2, 9), (5,)),
    "a stranger's key": RecoveryRequest((), (9,)),
    "seat zero": RecoveryRequest((0,), ()),
    "a peer named twice": RecoveryRequest((2, 2), (5,)),
    "a dropped peer named twice": RecoveryRequest((2,), (5, 5)),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_request_for(group: Fleet, request_: RecoveryRequest) -> None:
    """… is refused, and nothing is revealed: devices 1 to 4 are counted."""
    group.begin()
    witnesses = group.confirmed(group.masked({1, 2, 3, 4}))
    group.reveal(1, witnesses[1])
    with pytest.raises(ProtocolError):
        group.clients[1].recover(request_)
    assert group.clients[1].state is ClientState.REVEALED
    assert group.clients[1].recover(RecoveryRequest((2,), (5,)))[1].sender == 1


@pytest.mark.parametrize(
    "second", [RecoveryRequest((2,), (5,)), RecoveryRequest((3,), ()), RecoveryRequest((), ())], ids=str
)
def test_a_second_request_is_refused_the_same_or_another(group: Fleet, second: RecoveryRequest) -> None:
    group.begin()
    witnesses = group.confirmed(group.masked({1, 2, 3, 4}))
    group.reveal(1, witnesses[1])
    done, _ = group.clients[1].recover(RecoveryRequest((2,), (5,)))
    for client in (done, Client.from_fields(done.to_fields(), done.policy)):
        with pytest.raises(ProtocolError, match="refuses"):
            client.recover(second)


def test_shares_of_one_that_took_no_part_are_not_given(group: Fleet) -> None:
    """It masked nothing, so its key of this round need not be known to anybody."""
    group.begin(present={1, 2, 3, 4})
    witnesses = group.confirmed(group.masked())
    group.reveal(1, witnesses[1])
    for request in (RecoveryRequest((), (5,)), RecoveryRequest((5,), ())):
        with pytest.raises(ProtocolError, match="another kind"):
            group.clients[1].recover(request)


def test_a_round_that_is_over_is_answered_no_more(group: Fleet) -> None:
    """Its secrets are gone once the next one is masked for, even those that nobody asked for."""
    group.begin(1)
    witnesses = group.confirmed(group.masked())
    group.begin(2)
    group.mask(1)
    assert set(group.clients[1].keys) == {2, 3}
    for step in (
        lambda: group.clients[1].reveal(witnesses[1]),
        lambda: group.clients[1].recover(RecoveryRequest((2,), ())),
    ):
        with pytest.raises(ProtocolError, match="refuses"):
            step()


def test_a_seat_that_told_no_coin_cannot_make_up_the_number(sparse: Fleet) -> None:
    """Devices that are not there would make the crowd look larger than it is."""
    sparse.receive(sparse.shares(sparse.coins(sparse.keys(), set(range(1, 30)))))
    terms = sparse.begin()
    near = sparse.clients[1].neighbours
    assert near is not None
    assert near.members.which == set(range(1, 30))
    sparse.clients[1].mask(terms, sparse.vectors[1].copy())
    with pytest.raises(ProtocolError, match="not in this group"):
        sparse.clients[1].mask(replace(terms, present=terms.present | {30}), sparse.vectors[1].copy())


FOREIGN: dict[str, Callable[[RoundTerms], RoundTerms]] = {
    "of those who dealt nothing": lambda t: replace(t, present=t.present | {9}),
    "of another group": lambda t: replace(t, binding=bytes(32)),
    "that there are no keys for": lambda t: replace(t, number=4),
    "of another schema": lambda t: replace(t, schema_digest="d" * 64),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_server_begins_no_round(group: Fleet, change: Callable[[RoundTerms], RoundTerms]) -> None:
    terms = group.begin()
    with pytest.raises(ValueError):
        Round(group.group, change(terms), group.schema)
