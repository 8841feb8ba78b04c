"""What lying devices and a broken network try, and what the server says to them."""

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from shared.errors import Malformed, PeerError, ProtocolError, RoundAborted
from shared.secagg.client import Client
from shared.secagg.graph import Rates
from shared.secagg.keys import TAG_BYTES, Secret
from shared.secagg.messages import Advert, Confirmation, Deal, Reveal, Shares
from shared.secagg.policy import Policy
from shared.secagg.quantize import Update, decode, encode
from tests.protocol.secagg.kit import Fleet, flip, stranger

EVERYBODY = frozenset(range(1, 6))


# ---- keys and coins


def advert_of(fleet: Fleet, seat: int, device: str = "") -> Advert:
    identity = fleet.authority.enrol(device) if device else fleet.identities[seat]
    return Client(fleet.terms, seat, Policy()).advertise(identity, os.urandom)[1]


def with_key(fleet: Fleet, seat: int, public: bytes) -> Advert:
    """Any key, with a good signature."""
    advert = replace(advert_of(fleet, seat), public=public)
    return replace(advert, signature=fleet.identities[seat].sign(advert.statement(fleet.terms)))


def test_the_server_leaves_out_devices_with_false_keys_and_goes_on(five: Fleet) -> None:
    first = advert_of(five, 1)
    five.setup.add_advert(first)
    refused = [
        first,
        replace(advert_of(five, 2), signature=b"false"),
        replace(advert_of(five, 2), index=6),
        replace(advert_of(five, 2), index=0),
        replace(advert_of(five, 2), index=3),
        replace(advert_of(five, 2), coin_digest=bytes(32)),
        advert_of(five, 2, "dev-1"),
        with_key(five, 2, first.public),
        with_key(five, 2, bytes(32)),
        with_key(five, 2, b"short"),
        stranger(five, 2),
    ]
    for advert in refused:
        with pytest.raises(PeerError):
            five.setup.add_advert(advert)
    for seat in (2, 3, 4):
        five.setup.add_advert(advert_of(five, seat))
    five.setup.close_keys()
    assert five.setup.present == (1, 2, 3, 4)


def test_a_coin_that_was_not_promised_or_comes_twice_or_from_a_stranger_is_left_out(sparse: Fleet) -> None:
    members = sparse.keys(set(range(1, 30)))
    assert members is not None
    coin = sparse.clients[1].toss(members)[1]
    for false in (
        replace(coin, coin=os.urandom(32)),
        replace(coin, coin=b"short"),
        replace(coin, index=2),
        replace(coin, index=30),
    ):
        with pytest.raises(ProtocolError):
            sparse.setup.add_coin(false)
    sparse.setup.add_coin(coin)
    with pytest.raises(ProtocolError, match="already"):
        sparse.setup.add_coin(coin)


# ---- deals

DEALS: dict[str, Callable[[Deal], Deal]] = {
    "a letter missing": lambda d: replace(d, boxes={seat: box for seat, box in d.boxes.items() if seat != 2}),
    "a letter to a stranger": lambda d: replace(d, boxes={**d.boxes, 9: d.boxes[2]}),
    "a letter to itself": lambda d: replace(d, boxes={1: d.boxes[2], **d.boxes}),
    "letters in another order": lambda d: replace(d, boxes=dict(sorted(d.boxes.items(), reverse=True))),
    "a letter that is too short": lambda d: replace(d, boxes={**d.boxes, 2: d.boxes[2][1:]}),
    "a letter that is too long": lambda d: replace(d, boxes={**d.boxes, 2: d.boxes[2] + b"x"}),
    "another sender": lambda d: replace(d, sender=9),
    "seed digests for a round less": lambda d: replace(d, seed_digests=d.seed_digests[1:]),
    "key digests for a round more": lambda d: replace(d, key_digests=(*d.key_digests, bytes(32))),
    "a short digest": lambda d: replace(d, seed_digests=(b"", *d.seed_digests[1:])),
    "no records": lambda d: replace(d, records=()),
    "a record without end": lambda d: replace(d, records=(bytes(1 << 20), *d.records[1:])),
    "a pair's digest missing": lambda d: replace(d, pair_digests=(d.pair_digests[0][TAG_BYTES:], *d.pair_digests[1:])),
}


@pytest.mark.parametrize("damage", DEALS.values(), ids=DEALS)
def test_a_deal_with(five: Fleet, damage: Callable[[Deal], Deal]) -> None:
    """… is left out."""
    deal = five.deal(1, five.coins(five.keys())[1])
    with pytest.raises(ProtocolError):
        five.setup.add_deal(damage(deal))
    five.setup.add_deal(deal)
    with pytest.raises(ProtocolError, match="already"):
        five.setup.add_deal(deal)


def quarrel(deal: Deal, *places: int) -> Deal:
    """Another word about the masks that it shares with the neighbours in these places, in round 2."""
    row = bytearray(deal.pair_digests[1])
    for place in places:
        row[place * TAG_BYTES] ^= 1
    return replace(deal, pair_digests=(deal.pair_digests[0], bytes(row), *deal.pair_digests[2:]))


def test_one_whose_word_about_its_masks_differs_from_all_others_is_left_out_alone(five: Fleet) -> None:
    near = five.coins(five.keys())
    five.setup.add_deal(quarrel(five.deal(1, near[1]), 0, 1, 2, 3))
    inboxes = five.shares(near, {2, 3, 4, 5})
    assert five.setup.false_dealers == {1: 4}
    assert set(five.group.dealt) == set(inboxes) == {2, 3, 4, 5}
    five.receive(inboxes)
    five.begin()
    assert (five.run() == five.expected()).all()


def test_of_two_whose_words_about_their_mask_differ_neither_can_be_believed_and_neither_is_named() -> None:
    fleet = Fleet(6, Rates(0.34, 0.0))
    near = fleet.coins(fleet.keys())
    fleet.setup.add_deal(quarrel(fleet.deal(1, near[1]), 0))
    fleet.receive(fleet.shares(near, {2, 3, 4, 5, 6}))
    assert (fleet.setup.left_out, fleet.setup.false_dealers) == ({1, 2}, {})
    assert set(fleet.group.dealt) == {3, 4, 5, 6}
    fleet.begin()
    assert (fleet.run() == fleet.expected()).all()


def test_two_that_slander_a_third_have_it_left_out_of_the_group_and_of_no_other() -> None:
    """Nobody is named for the word of fewer than half of its partners."""
    fleet = Fleet(8, Rates(0.34, 0.0))
    near = fleet.coins(fleet.keys())
    for liar in (1, 2):
        place = [other for other in range(1, 9) if other != liar].index(5)
        fleet.setup.add_deal(quarrel(fleet.deal(liar, near[liar]), place))
    fleet.receive(fleet.shares(near, {3, 4, 5, 6, 7, 8}))
    assert (fleet.setup.left_out, fleet.setup.false_dealers) == ({5}, {})
    fleet.begin()
    assert (fleet.run() == fleet.expected()).all()


def test_a_quarrel_that_leaves_too_few_ends_the_group(five: Fleet) -> None:
    near = five.coins(five.keys())
    five.setup.add_deal(quarrel(five.deal(1, near[1]), 0))
    with pytest.raises(RoundAborted, match="only 3 devices dealt shares"):
        five.shares(near, {2, 3, 4, 5})


# ---- vectors and confirmations


@pytest.mark.parametrize("off", [-1, 1, 4])
def test_a_vector_of_another_size_is_left_out_and_its_masks_are_recovered(group: Fleet, off: int) -> None:
    group.begin()
    packed = group.mask(5)
    with pytest.raises(Malformed):
        group.server.add_vector(5, packed[:off] if off < 0 else packed + bytes(off))
    assert 5 not in group.server.counted
    assert (group.run(masked={1, 2, 3, 4}) == group.expected()).all()


def test_a_second_vector_from_one_device_is_not_counted_twice(group: Fleet) -> None:
    group.begin()
    packed = group.mask(1)
    group.server.add_vector(1, packed)
    with pytest.raises(ProtocolError, match="answered already"):
        group.server.add_vector(1, packed)
    for i in range(2, 6):
        group.server.add_vector(i, group.mask(i))
    witnesses = group.confirmed(group.server.close_masked())
    assert (group.recovered(group.unmasked(witnesses)) == group.expected()).all()


def test_a_vector_from_a_seat_that_takes_no_part_is_not_added(group: Fleet) -> None:
    group.begin(present={1, 2, 3, 4})
    for seat in (5, 6, 0, -1):
        with pytest.raises(ProtocolError, match="does not take part"):
            group.server.add_vector(seat, bytes(group.schema.bytes_on_the_wire))
    assert (group.run() == group.expected()).all()


CONFIRMATIONS: dict[str, Callable[[Confirmation], Confirmation]] = {
    "to fewer": lambda c: replace(c, tags={seat: word for seat, word in c.tags.items() if seat != 2}),
    "to nobody, by a witness": lambda c: replace(c, tags={}),
    "to a stranger": lambda c: replace(c, tags={**c.tags, 9: bytes(16)}),
    "to one that is not counted": lambda c: replace(c, tags={**c.tags, 5: bytes(16)}),
    "to itself": lambda c: replace(c, tags={**c.tags, 1: bytes(16)}),
    "from one that is not counted": lambda c: replace(c, sender=5),
    "from a stranger": lambda c: replace(c, sender=9),
}


@pytest.mark.parametrize("damage", CONFIRMATIONS.values(), ids=CONFIRMATIONS)
def test_a_confirmation(group: Fleet, damage: Callable[[Confirmation], Confirmation]) -> None:
    """… is left out."""
    group.begin()
    confirmation = group.confirm(1, group.masked({1, 2, 3, 4}))
    with pytest.raises(ProtocolError):
        group.server.add_confirmation(damage(confirmation))
    group.server.add_confirmation(confirmation)
    with pytest.raises(ProtocolError, match="already"):
        group.server.add_confirmation(confirmation)


def test_one_that_is_no_witness_confirms_to_nobody(large: Fleet) -> None:
    large.begin()
    counted = large.masked()
    plain = min(counted - large.group.graph.witnesses)
    confirmation = large.confirm(plain, counted)
    assert confirmation.tags == {}
    with pytest.raises(ProtocolError, match="no witness"):
        large.server.add_confirmation(replace(confirmation, tags={1: bytes(16)}))
    large.server.add_confirmation(confirmation)


def test_without_a_majority_of_witnesses_the_round_ends_before_anybody_is_asked_to_reveal(large: Fleet) -> None:
    large.begin()
    counted = large.masked()
    gone = sorted(large.group.graph.witnesses)[: large.terms.degrees.witnesses - large.terms.degrees.majority + 1]
    with pytest.raises(RoundAborted, match="witnesses confirmed who is counted"):
        large.confirmed(counted, set(counted) - set(gone))


def test_false_confirmations_cost_only_those_who_hear_too_few_true_ones(group: Fleet) -> None:
    """Device 5 confirms nonsense: three true words are left, and two are enough beside one's own."""
    group.begin()
    counted = group.masked()
    for i in range(1, 6):
        said = group.confirm(i, counted)
        group.server.add_confirmation(
            replace(said, tags={seat: flip(word) for seat, word in said.tags.items()}) if i == 5 else said
        )
    assert (group.recovered(group.unmasked(group.server.close_confirmed())) == group.expected()).all()


# ---- secrets

REVEALS: dict[str, Callable[[Reveal], Reveal]] = {
    "another seed than it dealt shares of": lambda r: replace(r, seed=Secret(flip(r.seed.reveal()))),
    "an empty seed": lambda r: replace(r, seed=Secret(b"")),
    "another mask than it dealt": lambda r: replace(r, pairs={5: Secret(flip(r.pairs[5].reveal()))}),
    "no mask": lambda r: replace(r, pairs={}),
    "a mask with one that is counted": lambda r: replace(r, pairs={**r.pairs, 2: r.pairs[5]}),
    "a mask with a stranger": lambda r: replace(r, pairs={**r.pairs, 9: r.pairs[5]}),
    "what another should reveal": lambda r: replace(r, sender=2),
    "what one that is gone should reveal": lambda r: replace(r, sender=5),
}


@pytest.mark.parametrize("damage", REVEALS.values(), ids=REVEALS)
def test_a_device_that_reveals(group: Fleet, damage: Callable[[Reveal], Reveal]) -> None:
    """… is left out at once, and the sum is still exact."""
    group.begin()
    witnesses = group.confirmed(group.masked({1, 2, 3, 4}))
    reveal = group.reveal(1, witnesses[1])
    with pytest.raises(ProtocolError):
        group.server.add_reveal(damage(reveal))
    assert (group.recovered(group.unmasked(witnesses, {2, 3, 4})) == group.expected()).all()


def test_secrets_that_come_twice_or_from_one_that_did_not_confirm_are_left_out(group: Fleet) -> None:
    group.begin()
    counted = group.masked()
    late = group.clients[5].confirm(counted)[0]
    witnesses = group.confirmed(counted, {1, 2, 3, 4})
    reveal = group.reveal(1, witnesses[1])
    group.server.add_reveal(reveal)
    with pytest.raises(ProtocolError, match="already"):
        group.server.add_reveal(reveal)
    with pytest.raises(ProtocolError, match="did not confirm"):
        group.server.add_reveal(Reveal(5, late.keys[1].seed, {}))


SHARES: dict[str, Callable[[Shares], Shares]] = {
    "no seed shares": lambda s: replace(s, seeds={}),
    "no key shares": lambda s: replace(s, keys={}),
    "shares of a stranger": lambda s: replace(s, seeds={**s.seeds, 9: s.seeds[4]}),
    "both kinds of one": lambda s: replace(s, keys={**s.keys, 4: s.seeds[4]}),
    "the kinds exchanged": lambda s: replace(s, seeds=s.keys, keys=s.seeds),
    "another's shares": lambda s: replace(s, sender=4),
    "a stranger's shares": lambda s: replace(s, sender=9),
}


@pytest.mark.parametrize("damage", SHARES.values(), ids=SHARES)
def test_a_device_that_sends(group: Fleet, damage: Callable[[Shares], Shares]) -> None:
    """… is left out. Of those counted, 4 fell silent; 5 dropped out before."""
    group.begin()
    witnesses = group.confirmed(group.masked({1, 2, 3, 4}))
    requests = group.unmasked(witnesses, {1, 2, 3})
    shares = group.recover(1, requests[1])
    with pytest.raises(ProtocolError):
        group.server.add_shares(damage(shares))
    group.server.add_shares(shares)
    with pytest.raises(ProtocolError, match="already"):
        group.server.add_shares(shares)
    for i in (2, 3):
        group.server.add_shares(group.recover(i, requests[i]))
    assert (group.finish() == group.expected()).all()


def test_a_device_that_masks_something_else_is_found_when_the_sum_is_read(group: Fleet) -> None:
    """No sum of so many devices has this count: see `quantize.decode`, and its tests."""
    group.begin()
    for seat in group.vectors:
        update = Update(1, {}, {"w": np.ones(7, "f4")}, {"w": np.zeros(7, "f4")})
        group.vectors[seat] = encode(group.schema, update, os.urandom, feedback=False)[0]
    group.vectors[3][0] += 1
    total = group.run()
    with pytest.raises(RoundAborted, match="masked something else"):
        decode(group.schema, total, 5)
