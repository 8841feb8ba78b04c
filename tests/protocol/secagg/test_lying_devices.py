"""What lying devices and a broken network try, and what the server says to them."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shared.errors import Malformed, PeerError, ProtocolError, RoundAborted
from shared.secagg.client import Client, Policy
from shared.secagg.keys import KeyPair, Secret
from shared.secagg.messages import Advert, Deal
from shared.secagg.states import ServerState
from tests.protocol.secagg.kit import Round, flip, stranger


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
