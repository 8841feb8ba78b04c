"""What a group and its rounds leave behind: nothing secret, anywhere."""

import gc
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest

from shared.errors import Malformed, ProtocolError
from shared.secagg.client import Client
from shared.secagg.graph import Rates
from shared.secagg.kept import SEED, joined, pieces
from shared.secagg.keys import KEY_BYTES, Secret
from shared.secagg.masks import Mask
from shared.secagg.messages import Deal, RecoveryRequest
from shared.secagg.policy import Policy
from shared.secagg.shamir import SHARE_BYTES
from shared.secagg.states import ClientState
from tests.protocol.secagg.kit import Fleet


def secrets_in(value: Any) -> set[bytes]:
    """Every secret that a value holds, at any depth, and every 32 bytes of it."""
    if isinstance(value, Secret):
        raw = value.reveal()
        return {raw, *(raw[start : start + KEY_BYTES] for start in range(0, len(raw), KEY_BYTES))} - {b""}
    if isinstance(value, Mapping):
        return secrets_in(list(value.values()))
    if is_dataclass(value):
        return secrets_in([getattr(value, item.name) for item in fields(value)])
    if isinstance(value, list | tuple):
        return {secret for item in value for secret in secrets_in(item)}
    return set()


def shows(text: str, secrets: Iterable[bytes]) -> bool:
    return any(secret.hex() in text or repr(secret)[2:-1] in text for secret in secrets)


def flat(client: Client) -> bytes:
    """All bytes of a client's flat form."""
    parts = [value if isinstance(value, list) else [value] for value in client.to_fields().values()]
    return b"|".join(item if isinstance(item, bytes) else str(item).encode() for part in parts for item in part)


def test_no_secret_shows_in_the_repr_of_any_value_in_any_state(sparse: Fleet) -> None:
    values: list[Any] = [sparse.clients[1]]
    near = sparse.coins(sparse.keys())
    draft = sparse.clients[1].draft
    assert draft is not None
    hidden = {draft.coin} | secrets_in(draft)
    values += [sparse.clients[1], draft]
    deal = sparse.deal(1, near[1])
    values += [sparse.clients[1], deal, sparse.clients[1].neighbours, sparse.clients[1].draft]
    sparse.setup.add_deal(deal)
    inboxes = sparse.shares(near, set(range(2, 31)))
    sparse.receive(inboxes)
    values += [sparse.clients[1], sparse.clients[1].keys[1], inboxes[1], sparse.group]
    hidden |= secrets_in(values)
    sparse.begin()
    counted = sparse.masked(set(range(1, 30)))
    values.append(sparse.clients[1])
    witnesses = sparse.confirmed(counted)
    values.append(sparse.clients[1])
    reveal = sparse.reveal(1, witnesses[1])
    values += [sparse.clients[1], reveal]
    holding = [seat for seat in sparse.clients[1].dealers if seat != 30]
    sparse.clients[1], shares = sparse.clients[1].recover(RecoveryRequest(tuple(holding[:3]), ()))
    values += [sparse.clients[1], shares, sparse.server, Mask(reveal.seed)]
    hidden |= secrets_in([reveal, shares])
    assert len(hidden) > 100
    for value in values:
        for text in (repr(value), str(value), f"{value}", repr([value])):
            assert not shows(text, hidden), type(value)
        if isinstance(value, Client):
            assert not shows(repr(value.to_fields()), hidden)


def test_no_secret_shows_in_an_error_or_a_log(group: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    group.begin()
    hidden, said = secrets_in(list(group.clients.values())), []
    with caplog.at_level(logging.DEBUG):
        counted = group.masked({1, 2, 3, 4})
        witnesses = group.confirmed(counted)
        steps: list[Any] = [
            lambda: group.clients[1].recover(RecoveryRequest((2,), (2,))),
            lambda: group.server.add_reveal(group.clients[1].reveal(witnesses[1])[1].__class__(1, Secret(b"x"), {})),
            lambda: group.clients[5].confirm(counted),
        ]
        for step in steps:
            with pytest.raises(ProtocolError) as caught:
                step()
            said.append(str(caught.value) + repr(caught.value))
        assert (group.recovered(group.unmasked(witnesses)) == group.expected()).all()
    assert not shows(" ".join(said) + caplog.text, hidden)


def test_the_group_key_its_coin_and_the_keys_of_letters_are_gone_once_they_were_used(sparse: Fleet) -> None:
    near = sparse.coins(sparse.keys())
    draft = sparse.clients[1].draft
    assert draft is not None
    private, coin = draft.pair.private.reveal(), draft.coin
    assert private in flat(sparse.clients[1])
    inboxes = sparse.shares(near)
    assert private not in flat(sparse.clients[1])
    assert coin not in flat(sparse.clients[1])
    letters = secrets_in(sparse.clients[1].draft)
    assert all(letter in flat(sparse.clients[1]) for letter in letters)
    sparse.receive(inboxes)
    assert sparse.clients[1].draft is None
    assert not any(letter in flat(sparse.clients[1]) for letter in letters)


def test_forward_secrecy_once_a_round_is_revealed_nothing_of_it_is_left_that_would_unmask_it(group: Fleet) -> None:
    """Whoever takes the device afterwards, and holds all that the server ever saw, cannot take out its masks."""
    group.begin(1)
    before = {seat: client.keys[1] for seat, client in group.clients.items()}
    witnesses = group.confirmed(group.masked())
    group.reveal(5, witnesses[5])  # and its answer is lost
    group.recovered(group.unmasked(witnesses, {1, 2, 3, 4}))
    for seat in (1, 2, 3, 4):
        kept, old = flat(group.clients[seat]), before[seat]
        assert set(group.clients[seat].keys) == {2, 3}
        for secret in secrets_in(old):
            assert secret not in kept
    kept = flat(group.clients[5])
    assert not any(secret in kept for secret in secrets_in([before[5].seed, before[5].pairs])), (
        "gone with what it revealed"
    )


def test_the_seed_and_masks_of_a_round_are_gone_as_soon_as_they_are_revealed_and_the_shares_with_the_next_round(
    group: Fleet,
) -> None:
    """At the last: when nobody asked for shares, the device does not know whether it will be asked."""
    group.begin(1)
    old = group.clients[1].keys[1]
    group.unmasked(group.confirmed(group.masked()))
    left = group.clients[1].keys[1]
    assert (left.seed.reveal(), left.pairs.reveal()) == (b"", b"")
    assert left.shares == joined(pieces(old.shares, SHARE_BYTES)[SEED::2]), "of those who are counted, nobody's key"
    group.begin(2)
    group.mask(1)
    assert not any(secret in flat(group.clients[1]) for secret in secrets_in(old))


@pytest.mark.parametrize("until", ["masked", "confirmed"])
def test_a_round_that_broke_off_leaves_nothing_once_the_next_is_masked_for(group: Fleet, until: str) -> None:
    group.begin(1)
    old = group.clients[1].keys[1]
    counted = group.masked()
    if until == "confirmed":
        group.confirmed(counted)
    left = secrets_in([old.seed, *([old.pairs] if until == "masked" else [])])
    assert all(secret in flat(group.clients[1]) for secret in left)
    group.begin(3)
    group.mask(1)
    assert set(group.clients[1].keys) == {3}, "nor of the round that was skipped"
    assert not any(secret in flat(group.clients[1]) for secret in secrets_in(old))


def test_a_rounds_secrets_say_nothing_about_another_rounds(group: Fleet) -> None:
    """All are drawn or derived apart, and from what is gone."""
    found = [secrets_in(group.clients[1].keys[number]) for number in (1, 2, 3)]
    assert sum(map(len, found)) == len(set.union(*found))


def test_a_client_that_abandons_a_group_keeps_nothing_in_any_state(sparse: Fleet) -> None:
    states = [sparse.clients[1]]
    near = sparse.coins(sparse.keys())
    states.append(sparse.clients[1])
    sparse.receive(sparse.shares(near))
    states.append(sparse.clients[1])
    sparse.begin()
    counted = sparse.masked()
    states.append(sparse.clients[1])
    sparse.reveal(1, sparse.confirmed(counted)[1])
    states.append(sparse.clients[1])
    for client in states:
        done = client.abandon()
        assert done.state is ClientState.DONE
        assert not secrets_in(done)
        assert (done.draft, done.neighbours, dict(done.keys)) == (None, None, {})
        assert not any(secret in flat(done) for secret in secrets_in(client))


def test_a_group_whose_rounds_are_used_up_is_spent(group: Fleet) -> None:
    for number in (1, 2, 3):
        assert not group.clients[1].spent
        group.begin(number)
        group.run(unmasked={1, 2, 3, 4})
    assert group.clients[1].spent
    assert not group.clients[5].spent, "it still holds shares of others that it may be asked for"
    assert group.clients[5].abandon().spent


@pytest.mark.parametrize("way", ["finish", "abort"])
def test_the_server_keeps_no_secret_after_the_sum(group: Fleet, way: str) -> None:
    group.begin()
    witnesses = group.confirmed(group.masked({1, 2, 3, 4}))
    requests = group.unmasked(witnesses, {1, 2, 3})
    for i in sorted(requests):
        group.server.add_shares(group.recover(i, requests[i]))
    assert secrets_in(list(vars(group.server).values()))
    if way == "finish":
        group.finish()
    else:
        group.server.abort()
        assert not group.server._sum.size, "nor a masked vector"
    assert not secrets_in(list(vars(group.server).values()))


def test_the_server_keeps_no_letters_of_a_group_that_is_made(group: Fleet) -> None:
    assert (group.setup._deals, group.setup._coins) == ({}, {})
    assert not secrets_in(list(vars(group.setup).values()))


def test_a_client_comes_back_from_storage_in_every_state(sparse: Fleet) -> None:
    def all_again() -> None:
        for seat, client in sparse.clients.items():
            restored = Client.from_fields(client.to_fields(), client.policy)
            assert restored == client
            sparse.clients[seat] = restored

    everybody = set(range(1, 31))
    all_again()
    members = sparse.keys()
    all_again()
    near = sparse.coins(members)
    all_again()
    inboxes = sparse.shares(near)
    all_again()
    sparse.receive(inboxes)
    all_again()
    for number in (1, 2):
        sparse.begin(number)
        counted = sparse.masked(everybody - {3})
        all_again()
        witnesses = sparse.confirmed(counted)
        all_again()
        requests = sparse.unmasked(witnesses, everybody - {3, 4})
        all_again()
        assert (sparse.recovered(requests) == sparse.expected()).all()
        all_again()


@pytest.mark.parametrize(
    "change",
    [
        {"state": "dancing"},
        {"index": 9},
        {"later": b"x"},
        {"letters": b"x"},
        {"names": ["dev-2", "dev-3", "dev-4"]},
        {"present": b"\xff"},
        {"later": bytes(4 * 160)},
        {"later": bytes(2 * 160)},
        {"version": 1},
        {"dealers": ["1"]},
        {"number": 1},
        {"number": -1},
        {"state": "ready"},
        {"state": "advertised"},
        {"state": "masked"},
        {"state": "new"},
        {"dealers": [9]},
        {"holders": [2, 3, 4, 4]},
        {"holders": b"\x38"},
        {"told": b"\x38"},
        {"private": bytes(32)},
        {"now": bytes(32)},
        {"later": bytes(3 * (160 + 4 * 72))},
        {"counted": b"\xf8"},
    ],
    ids=str,
)
def test_damaged_stored_state_is_malformed(five: Fleet, change: dict[str, Any]) -> None:
    five.shares(five.coins(five.keys()))
    with pytest.raises(Malformed):
        Client.from_fields({**five.clients[1].to_fields(), **change}, Policy())


@pytest.mark.parametrize(
    "change",
    [
        {"now": b""},
        {"now": bytes(32 + 4 * 32 + 4 * 72 - 1)},
        {"later": b""},
        {"later": bytes(3 * (32 + 4 * 32 + 4 * 72))},
        {"number": 0},
        {"number": 2},
        {"number": 4},
        {"number": -1},
        {"state": "ready"},
        {"state": "shared"},
        {"state": "confirmed"},
        {"state": "revealed"},
        {"dealers": b"\x70"},
        {"dealers": b"\xf8"},
        {"dealers": b""},
        {"counted": b"\x04"},
    ],
    ids=str,
)
def test_damaged_stored_state_of_a_round_is_malformed(group: Fleet, change: dict[str, Any]) -> None:
    group.begin(1)
    group.mask(1)
    with pytest.raises(Malformed):
        Client.from_fields({**group.clients[1].to_fields(), **change}, Policy())


def test_keys_of_the_last_round_are_of_no_later_one(group: Fleet) -> None:
    """What is stored then has as many later rounds as if the number were beyond the last: none."""
    group.begin(3)
    group.mask(1)
    fields = group.clients[1].to_fields()
    assert Client.from_fields(fields, Policy()) == group.clients[1]
    with pytest.raises(Malformed):
        Client.from_fields({**fields, "number": 4}, Policy())


def test_masked_vectors_of_equal_inputs_differ_in_every_round_and_look_uniform() -> None:
    fleet, sent = Fleet(3, rounds=2, length=1 << 16).make(), []
    for number in (1, 2):
        fleet.begin(number)
        fleet.vectors = {i: np.zeros_like(vector) for i, vector in fleet.vectors.items()}
        layout = fleet.schema.layout
        sent += [layout.split(layout.unpack(fleet.mask(i))) + 2 ** (layout.bits - 1) for i in (1, 2, 3)]
    for vector in sent:
        assert abs(vector.astype(np.float64).mean() / 2**layout.bits - 0.5) < 6.5 / np.sqrt(12 * vector.size)
    for place, one in enumerate(sent):
        assert all((one == other).mean() < 4 / 2**layout.bits + 1e-3 for other in sent[place + 1 :])


def test_two_groups_of_the_same_devices_share_no_secret() -> None:
    one = Fleet(3, rounds=1).make()
    other = Fleet(3, rounds=1, authority=one.authority).make()
    assert not secrets_in(list(one.clients.values())) & secrets_in(list(other.clients.values()))
    assert one.clients[1].binding != other.clients[1].binding


def test_randomness_is_asked_for_and_never_made_up(five: Fleet) -> None:
    """The same randomness twice gives the same deal: there is no other source."""
    near = five.coins(five.keys())[1]
    stream = [os.urandom(KEY_BYTES) for _ in range(20)]

    def dealt() -> Deal:
        left = iter(stream)
        return five.clients[1].share(near, five.verifier, lambda _: next(left))[1]

    assert dealt() == dealt()


def test_masks_with_a_neighbour_that_dealt_nothing_are_forgotten_when_the_others_shares_come(five: Fleet) -> None:
    """It can take part in no round, so that nobody may ask for them."""
    inboxes = five.shares(five.coins(five.keys()), {1, 2, 3, 4})
    near, before = five.clients[1].neighbours, five.clients[1].keys
    assert near is not None
    assert list(near.holders) == [2, 3, 4, 5]
    five.receive(inboxes)
    assert list(five.clients[1].dealers) == [2, 3, 4]
    for number, key in before.items():
        pairs = pieces(key.pairs, KEY_BYTES)
        assert pieces(five.clients[1].keys[number].pairs, KEY_BYTES) == pairs[:3]
        assert pairs[3].reveal() not in flat(five.clients[1])


def test_of_a_round_that_is_over_no_secret_is_alive_in_memory_or_stored() -> None:
    """Neither with the devices nor with the server, though one device dropped out and one fell silent. Of the latter, which does
    not know how it ended, all is gone but its seed and the masks with who is gone.
    """
    five = Fleet(7, Rates(0.3, 0.0), rounds=2).make()
    five.begin()
    before = {seat: secrets_in(client.keys[1]) for seat, client in five.clients.items()}
    own = {seat: client.keys[1].seed.reveal() for seat, client in five.clients.items()}
    witnesses = five.confirmed(five.masked({1, 2, 3, 4, 5, 6}))
    assert (five.recovered(five.unmasked(witnesses, {1, 2, 3, 4, 5})) == five.expected()).all()
    over = {seat: found for seat, found in before.items() if seat <= 5}
    gc.collect()
    alive = [item.reveal() for item in gc.get_objects() if issubclass(type(item), Secret)]
    assert len(alive) > 20, "those of the next round, and of the two that do not know"
    finished = set().union(*over.values()) - before[6] - before[7]
    assert len(finished) > 20
    assert not any(secret in raw for raw in alive for secret in finished)
    stored = {seat: flat(client) for seat, client in five.clients.items()}
    assert not any(secret in raw for raw in stored.values() for secret in finished)
    for seat in (1, 2, 3, 4, 5):
        assert not any(secret in stored[seat] for secret in before[seat])
    assert own[6] in stored[6]
    kept = pieces(five.clients[6].keys[1].pairs, KEY_BYTES)
    assert len(kept) == 1, "with device 7"
