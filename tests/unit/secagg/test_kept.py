"""What a client keeps: sets of seats as bitmaps, and keys of many rounds end to end, are what they would be one by one."""

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Malformed
from shared.secagg.fields import HiddenBytes
from shared.secagg.kept import NOTHING, Keyring, Keys, RoundKeys, Seats, Standing, joined, pieces
from shared.secagg.keys import KEY_BYTES, Secret
from shared.secagg.shamir import SHARE_BYTES

SETS = st.frozensets(st.integers(1, 40), max_size=40)
HOLDERS = Seats.of((2, 5, 7, 11), 12)
ROUNDS = 3


def drawn(count: int, size: int) -> list[Secret]:
    return [Secret(os.urandom(size)) for _ in range(count)]


@given(SETS, SETS)
def test_seats_are_a_set_in_ascending_order(one: frozenset[int], other: frozenset[int]) -> None:
    seats = Seats.of(one, 40)
    assert list(seats) == sorted(one)
    assert (seats.which, len(seats), frozenset(seats)) == (one, len(one), one)
    assert seats.among(Seats.of(other, 40)) == (one <= other)
    assert [seat in seats for seat in range(42)] == [seat in one for seat in range(42)]
    assert Seats.read(seats.bitmap, 40) == seats


def test_no_seats_of_no_group_are_among_all() -> None:
    for empty in (Seats(), Seats.read(b"", 12)):
        assert (list(empty), len(empty), 1 in empty) == ([], 0, False)
        assert empty.among(HOLDERS)
        assert not HOLDERS.among(empty)


@pytest.mark.parametrize("bitmap", [b"\x00", bytes(3), b"\x00\x01"], ids=["short", "long", "a seat too many"])
def test_seats_that_a_group_does_not_have_are_malformed(bitmap: bytes) -> None:
    with pytest.raises(Malformed):
        Seats.read(bitmap, 12)


def test_a_keyring_is_a_table_of_keys_and_says_when_one_is_missing() -> None:
    keys = dict(zip(HOLDERS, drawn(4, KEY_BYTES), strict=True))
    ring = Keyring.of(keys, 12)
    assert (dict(ring), len(ring), 5 in ring, 6 in ring, ring[7]) == (keys, 4, True, False, keys[7])
    with pytest.raises(Malformed):
        Keyring(HOLDERS, joined(list(keys.values())[1:]))


def test_keys_of_rounds_are_found_by_number_as_each_was_dealt_and_received() -> None:
    seeds, pairs = drawn(ROUNDS, KEY_BYTES), drawn(ROUNDS, 4 * KEY_BYTES)
    keys = Keys.of(seeds, pairs)
    assert dict(keys) == {n: RoundKeys(seeds[n - 1], pairs[n - 1]) for n in (1, 2, 3)}
    letters = drawn(2, 2 * SHARE_BYTES * ROUNDS)  # of seats 5 and 11
    received = keys.received(HOLDERS, Seats.of((5, 11), 12), letters)
    assert list(received) == [1, 2, 3]
    for number, key in received.items():
        masks, shares = pieces(pairs[number - 1], KEY_BYTES), [pieces(one, 2 * SHARE_BYTES) for one in letters]
        assert key == RoundKeys(
            seeds[number - 1], joined([masks[1], masks[3]]), joined(one[number - 1] for one in shares)
        )


def test_keys_shrink_round_by_round_and_never_grow() -> None:
    keys = Keys.of(drawn(ROUNDS, KEY_BYTES), drawn(ROUNDS, KEY_BYTES))
    for number in (-1, 0, 4, 2**70):
        with pytest.raises(KeyError):
            keys[number]
    second = keys.begun(2)
    assert (list(second), len(second)) == ([2, 3], 2)
    assert [second[2], second[3]] == [keys[2], keys[3]]
    with pytest.raises(KeyError):
        second.begun(1)
    assert keys[1].seed.reveal() not in second.later.reveal()
    assert keys[2].seed.reveal() not in second.later.reveal()
    over = replace(second.begun(3), now=None)
    assert (list(over), len(over), over.later.reveal()) == ([], 0, b"")


def test_what_is_left_untouched_is_given_back_as_the_object_that_was_read() -> None:
    """So a host need not store it again."""
    keys = Keys.of(drawn(ROUNDS, KEY_BYTES), drawn(ROUNDS, KEY_BYTES)).begun(1)
    stored = keys.to_fields()
    sizes = (KEY_BYTES, KEY_BYTES, 0)
    again = Keys.from_fields(stored, 1, sizes, (2, sizes))
    assert again == keys
    assert replace(again, now=None).to_fields()["later"] is stored["later"]
    assert {type(value) for value in stored.values()} == {HiddenBytes}
    for later in ((1, sizes), (3, sizes), (2, (KEY_BYTES, 0, 0))):
        with pytest.raises(Malformed):
            Keys.from_fields(stored, 1, sizes, later)


def test_what_a_count_leaves_of_a_round_is_masks_with_the_gone_and_one_share_of_each() -> None:
    pairs, shares = drawn(4, KEY_BYTES), drawn(8, SHARE_BYTES)
    key = RoundKeys(Secret(b"s" * KEY_BYTES), joined(pairs), joined(shares))
    standing = Standing(1, b"", Seats.of((1, 2, 5, 11), 12), Seats.of((1, 5), 12))  # of the holders 7 took no part
    left = key.confirmed(HOLDERS, standing)
    assert left == RoundKeys(key.seed, joined([pairs[0], pairs[3]]), joined([shares[1], shares[2], shares[7]]))
    assert NOTHING not in (left.pairs, left.shares)
