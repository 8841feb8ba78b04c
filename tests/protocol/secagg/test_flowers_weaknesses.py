"""Flower's secure aggregation, weakness by weakness, and what happens here in its place (flwr 1.41, SecAgg and SecAgg+)."""

import os
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from flwr.app import Message

from shared.errors import ProtocolError, SignatureInvalid, Unsupported, UpdateRejected
from shared.flower import decode_records
from shared.secagg.graph import Rates, derive
from shared.secagg.keys import KEY_BYTES, KeyPair, Secret, mask_keys, mask_secrets, pair_root
from shared.secagg.masks import keystream
from shared.secagg.messages import PACKED_TYPE, RECORD, VECTOR_RECORD, RecoveryRequest
from shared.secagg.policy import Policy
from shared.secagg.schema import ArrayField, Schema, sum_bits
from shared.secagg.server import Round
from shared.secagg.states import ClientState
from shared.secagg.terms import GroupTerms, Settings
from tests.protocol.secagg.appgrid import RUN_ID, START, make_grid
from tests.protocol.secagg.exchanges import TRAIN, messages, secure
from tests.protocol.secagg.kit import Fleet, put
from tests.protocol.secagg.test_split_views import stories
from tests.unit.secagg.vectors import plain

EVERYBODY = frozenset(range(1, 6))


def test_legacy_api_only_here_new_style_messages_and_mods() -> None:
    """`ClientApp.train` with `Message` in and out is all that is used: see `appgrid.make_grid`."""
    (reply,) = secure(*make_grid(3))[0].send_and_receive(messages(3))
    assert isinstance(reply, Message)
    assert (reply.metadata.message_type, reply.metadata.run_id) == (TRAIN, RUN_ID)
    assert set(reply.content) == {"arrays", "metrics"}


# ---- keys


@pytest.mark.parametrize("bit", range(0, 256, 15))
def test_seeds_of_28_bits_here_every_bit_of_32_bytes_counts(bit: int) -> None:
    """Of the key that two devices agree on, and of a device's own seed: each goes whole into HKDF, and what comes out whole into
    AES-256.
    """
    one, other = bytes(range(KEY_BYTES)), bytearray(range(KEY_BYTES))
    other[bit // 8] ^= 1 << bit % 8
    of_seed, of_pair = mask_keys(b"terms")
    for key in (
        of_seed,
        lambda agreed: of_pair(mask_secrets([pair_root(agreed, b"group", "a", "b")], [1])[0]),
        lambda key: key,
    ):
        streams = [keystream(key(Secret(bytes(seed))), 4096) for seed in (one, other)]
        assert (streams[0] != streams[1]).mean() > 0.98
    assert len(of_seed(Secret(one)).reveal()) == KEY_BYTES


def test_seeds_of_a_round_are_32_fresh_bytes_each(group: Fleet) -> None:
    seeds = {key.seed.reveal() for client in group.clients.values() for key in client.keys.values()}
    assert len(seeds) == 5 * group.rounds
    assert {len(seed) for seed in seeds} == {KEY_BYTES}


def test_public_keys_are_unauthenticated_here_a_key_of_the_servers_own_is_found_by_its_signature(five: Fleet) -> None:
    near = five.coins(five.keys())[1]
    (advert,) = (item for item in near.roster.adverts if item.index == 2)
    forged = replace(advert, public=KeyPair.generate(os.urandom).public)
    with pytest.raises(SignatureInvalid):
        five.clients[1].share(put(near, 2, forged), five.verifier, os.urandom)


# ---- who is counted, and shares


def test_both_share_kinds_of_one_peer_are_handed_out_here_the_request_is_refused(group: Fleet) -> None:
    group.begin()
    witnesses = group.confirmed(group.masked({1, 2, 3, 4}))
    group.reveal(1, witnesses[1])
    for request in (RecoveryRequest((2, 5), (5,)), RecoveryRequest((2,), (2,))):
        with pytest.raises(ProtocolError, match="both share kinds"):
            group.clients[1].recover(request)


def test_no_consistency_round_a_split_view_of_who_is_counted_is_believed_by_one_side_at_most(
    group: Fleet,
) -> None:
    """Every way to tell five devices two stories: all are counted, or all but device 5. Who confirmed one is not won over."""
    group.begin()
    group.masked()
    before = dict(group.clients)
    for shown in product((EVERYBODY, EVERYBODY - {5}), repeat=4):
        group.clients = dict(before)
        view = {**dict(zip(range(1, 5), shown, strict=True)), 5: EVERYBODY}
        believed = {view[seat] for seat in stories(group, view)}
        assert len(believed) == 1, "three of five always agree"
        for seat, client in group.clients.items():
            assert client.state is (ClientState.REVEALED if view[seat] in believed else ClientState.CONFIRMED)
            with pytest.raises(ProtocolError, match="refuses to confirm"):
                client.confirm(next(iter(believed)))


def test_a_threshold_of_one_is_accepted_here_none_can_be_asked_for() -> None:
    """It follows from the rates. Whatever rates a device accepts: a share alone opens nothing, nor do those of all who may be
    corrupt, nor can two stories about who is counted both have a majority of witnesses.
    """
    policy, accepted = Policy(), 0
    for clients, dropout, corrupt in product(
        (2, 3, 4, 5, 8, 13, 50, 120), (0.0, 0.1, 0.34, 0.5), (0.0, 0.05, 0.2, 0.49)
    ):
        terms = GroupTerms("g", clients, 1, Rates(dropout, corrupt))
        try:
            policy.check(terms)
        except ProtocolError:
            continue
        degrees, bad = terms.degrees, terms.rates.corrupted(clients)
        assert degrees.threshold >= 2
        assert 2 * degrees.majority > degrees.witnesses + (bad if degrees.complete else 0)
        assert not degrees.complete or 2 * degrees.threshold > degrees.neighbours + bad
        accepted += 1
    assert accepted > 40


# ---- what travels

SAID = {  # all that a reply may hold beside its phase, by phase
    "keys": {"indices", "devices", "publics", "coin_digests", "certificates", "signatures"},
    "shares": {"sender", "seed_digests", "key_digests", "records", "pair_digests", "peers", "boxes"},
    "masked": set(),
    "confirmed": {"sender", "tag_seats", "tags"},
    "unmasked": {"sender", "seed", "pairs_with", "pairs"},
}
SEATS = {"indices", "sender", "peers", "tag_seats", "pairs_with"}


def test_metrics_and_counts_travel_in_clear_here_every_byte_is_a_key_a_tag_a_seat_or_masked() -> None:
    """Nothing else in any reply of two exchanges: no number but seats, no text but the device's name, one vector. And no reply
    holds the same bytes twice.
    """
    inner, authority = make_grid()
    grid, _ = secure(inner, authority)
    sizes = [grid.settings(TRAIN).schema(5, START, bytes(32)).bytes_on_the_wire]
    grid.send_and_receive(messages(), timeout=60)
    sizes.append(grid.settings(TRAIN).schema(5, START, bytes(32)).bytes_on_the_wire)
    grid.send_and_receive(messages(), timeout=60)
    assert [phase for _, phase, _ in inner.sent].count("masked") == 10
    hidden: list[bytes] = []
    for place, (node, phase, blob) in enumerate(inner.sent):
        content = decode_records(blob)
        record = dict(content.config_records[RECORD])
        assert record.pop("phase") == phase
        assert set(record) == SAID[phase]
        assert set(content) == {RECORD, *([VECTOR_RECORD] if phase == "masked" else [])}
        for name, value in record.items():
            items = value if isinstance(value, list) else [value]
            kind = int if name in SEATS else str if name == "devices" else bytes
            assert all(type(item) is kind for item in items), name
            assert name not in SEATS or set(items) <= EVERYBODY
            assert name != "devices" or items == [f"dev-{node}"]
            hidden += [item for item in items if isinstance(item, bytes) and name != "certificates" and item]
        for vector in content.array_records[VECTOR_RECORD].values() if phase == "masked" else ():
            assert (vector.dtype, vector.stype) == ("uint8", PACKED_TYPE)
            assert len(vector.data) == sizes[place >= 25]
            hidden.append(vector.data)
    assert len(set(hidden)) == len(hidden)


@pytest.mark.parametrize(("clients", "bits"), [(16, 8), (100, 8), (500, 4), (1000, 16)])
def test_eight_bytes_a_parameter_here_bits_and_the_logarithm_of_the_clients(clients: int, bits: int) -> None:
    arrays, settings = {"w": np.zeros(100_000, "f4")}, Settings(bits=bits, unit_weight=1.0, scales={"w": 1.0})
    schema = settings.schema(clients, arrays, bytes(32))
    per_parameter = (bits + sum_bits(clients)) / 8
    assert per_parameter <= schema.bytes_on_the_wire / 100_000 < 1.01 * per_parameter
    assert per_parameter < 3.3


# ---- right or not at all


def test_more_examples_than_max_weight_give_a_wrong_sum_here_they_are_an_error() -> None:
    """Flower answers 1.6 where it should say 12."""
    schema = Schema(3, 8, 10, arrays=(ArrayField("w", (1,), "float32", 20.0),))
    with pytest.raises(UpdateRejected, match="max_weight 10"):
        plain(schema, {"w": np.array([12], "f4")}, 11)


@pytest.mark.parametrize("size", [3, 4, 5, 6, 7, 8])
def test_an_even_number_of_shares_fails_here_any_size_works(size: int) -> None:
    """Every set of devices that may be missing, missing after they sent their vectors."""
    rates = Rates(0.34 if size > 3 else 0.0, 0.0)
    try:
        derive(size, rates)
    except Unsupported:
        rates = Rates(1.01 / size, 0.0)
    fleet = Fleet(size, rates, rounds=1).make()
    fleet.begin()
    before = dict(fleet.clients)
    for gone in combinations(range(1, size + 1), rates.dropped(size)):
        fleet.clients = dict(before)
        fleet.server = Round(fleet.group, fleet.server.terms, fleet.schema)
        assert (fleet.run(unmasked=set(before) - set(gone)) == fleet.expected()).all()


@pytest.fixture(scope="module")
def hundred() -> Fleet:
    """A sparse group that may lose 35 of its hundred."""
    return Fleet(100, Rates(0.35, 0.01), rounds=8, length=3).make()


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_sparse_graph_aborts_at_random_dropout_here_it_does_not(hundred: Fleet, share: float) -> None:
    """Of Flower's ring of neighbours, losing any few next to each other ends the round. Whoever drops out is back in the next."""
    assert not hundred.terms.degrees.complete
    for number in range(1, 5):
        gone = np.random.default_rng(number).permutation(np.arange(1, 101))[: round(share * 100)]
        hundred.begin(number + (4 if share > 0.2 else 0))
        assert (hundred.run(masked=set(range(1, 101)) - set(gone.tolist())) == hundred.expected()).all()
        assert len(hundred.server.counted) == 100 - len(gone)


def test_a_sparse_graph_aborts_when_neighbours_drop_out_here_it_does_not(large: Fleet) -> None:
    large.begin()
    assert (large.run(masked=set(range(1, 121)) - set(large.group.holders(1)[:15])) == large.expected()).all()
