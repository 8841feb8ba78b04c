"""Any threshold of shares gives the secret, fewer fit every secret, and false ones are found; beside plain Python integers."""

import hashlib
import os
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Malformed
from shared.secagg.kept import pieces
from shared.secagg.keys import Secret
from shared.secagg.shamir import LIMB_BITS, LIMBS, PRIME, SHARE_BYTES, agreeing, combine, split

SECRETS = st.binary(min_size=32, max_size=32)


def shares_of(raw: bytes, threshold: int, holders: Sequence[int]) -> dict[int, Secret]:
    return dict(zip(holders, split([Secret(raw)], threshold, holders, os.urandom), strict=True))


def plainly_combined(shares: dict[int, Secret]) -> bytes:
    """Lagrange's formula at zero, limb by limb, in Python's integers."""
    number = 0
    for limb in range(LIMBS):
        value = 0
        for x, share in shares.items():
            weight = 1
            for other in shares:
                if other != x:
                    weight = weight * other * pow(other - x, -1, PRIME) % PRIME
            value += weight * int.from_bytes(share.reveal()[4 * limb : 4 * limb + 4], "little")
        number += (value % PRIME) << (LIMB_BITS * limb)
    return number.to_bytes(32, "little")


def changed(share: Secret, by: int = 1) -> Secret:
    """Another share that is still within the field."""
    limbs = (np.frombuffer(share.reveal(), "<u4").astype("u8") + by) % PRIME
    return Secret(limbs.astype("<u4").tobytes())


def test_the_modulus_is_the_mersenne_prime_and_nine_limbs_hold_a_secret() -> None:
    assert PRIME == 2**31 - 1
    assert all(PRIME % divisor for divisor in range(2, 46_341))
    assert LIMBS * LIMB_BITS >= 256
    assert 1 << LIMB_BITS < PRIME


@settings(deadline=None)
@given(SECRETS, st.integers(1, 6), st.data())
def test_any_threshold_of_shares_gives_the_secret(raw: bytes, threshold: int, data: st.DataObject) -> None:
    holders = data.draw(st.lists(st.integers(1, PRIME - 1), min_size=threshold, max_size=8, unique=True))
    shares = shares_of(raw, threshold, holders)
    assert {len(share.reveal()) for share in shares.values()} == {SHARE_BYTES}
    chosen = data.draw(st.permutations(holders))[:threshold]
    some = {holder: shares[holder] for holder in chosen}
    assert combine(some) == Secret(raw)
    assert plainly_combined(some) == raw
    assert combine(shares) == Secret(raw), "more than are needed do as well"


@pytest.mark.parametrize("raw", [bytes(32), b"\xff" * 32], ids=["all zero", "all ones"])
def test_secrets_at_the_ends_of_the_range_come_back(raw: bytes) -> None:
    shares = shares_of(raw, 3, range(1, 6))
    for chosen in combinations(range(1, 6), 3):
        assert combine({holder: shares[holder] for holder in chosen}) == Secret(raw)


def test_many_secrets_are_shared_at_once_and_lie_end_to_end() -> None:
    secrets, holders = [Secret(os.urandom(32)) for _ in range(7)], [3, 1, 60]
    rows = split(secrets, 2, holders, os.urandom)
    for place, secret in enumerate(secrets):
        held = {holder: pieces(row, SHARE_BYTES)[place] for holder, row in zip(holders[1:], rows[1:], strict=True)}
        assert combine(held) == secret


def test_large_groups_are_exact() -> None:
    """The matrix products stay below 2^53: all coefficients and powers near the prime."""
    shares = shares_of(b"\xff" * 32, 400, range(PRIME - 500, PRIME))
    some = dict(list(shares.items())[57:457])
    assert combine(some) == Secret(b"\xff" * 32)


def test_a_known_answer() -> None:
    """Fixed randomness gives fixed shares: what is stored today opens tomorrow."""
    rows = split([Secret(bytes(range(32)))], 3, [1, 2, 5], lambda size: b"e" * size)
    assert hashlib.sha256(b"".join(row.reveal() for row in rows)).hexdigest() == KNOWN
    assert plainly_combined(dict(zip([1, 2, 5], rows, strict=True))) == bytes(range(32))


KNOWN = "e489aa514ca5bc3d0ecf84451526d044dfcf869c7886f9ca817281b6dbd3380d"


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    """For two of three shares there is, for any secret at all, a third share that completes it."""
    shares = shares_of(os.urandom(32), 3, range(1, 4))
    for wanted in (bytes(32), b"\x01" + bytes(31), b"\xff" * 32):
        number, third = int.from_bytes(wanted, "little"), b""
        for limb in range(LIMBS):
            known = [int.from_bytes(shares[x].reveal()[4 * limb : 4 * limb + 4], "little") for x in (1, 2)]
            goal = (number >> (LIMB_BITS * limb)) & ((1 << LIMB_BITS) - 1)
            third += ((goal - 3 * known[0] + 3 * known[1]) % PRIME).to_bytes(4, "little")  # weights at zero: 3, -3, 1
        assert combine({**shares, 3: Secret(third)}) == Secret(wanted)


def test_two_splits_of_one_secret_share_nothing() -> None:
    first, second = (shares_of(bytes(32), 2, range(1, 9)) for _ in range(2))
    assert all(first[x] != second[x] for x in first)


def test_every_coefficient_is_drawn_anew() -> None:
    """Were one polynomial's used for another secret, the shares of the two would differ by the same everywhere."""
    rows = split([Secret(bytes(32)), Secret(bytes(32))], 3, range(1, 6), os.urandom)
    words = np.array([np.frombuffer(row.reveal(), "<u4") for row in rows])
    assert len(np.unique(words)) == words.size


BAD = {
    "short": Secret(bytes(SHARE_BYTES - 1)),
    "long": Secret(bytes(SHARE_BYTES + 4)),
    "empty": Secret(b""),
    "a number of the prime": Secret(PRIME.to_bytes(4, "little") * LIMBS),
    "a number above the field": Secret(b"\xff" * SHARE_BYTES),
}


@pytest.mark.parametrize("share", BAD.values(), ids=BAD)
def test_what_is_no_share_is_malformed(share: Secret) -> None:
    shares = shares_of(bytes(32), 2, (1, 2, 3))
    with pytest.raises(Malformed):
        combine({1: shares[1], 2: share})
    assert agreeing({**shares, 2: share}, 2) == (1, 3)


def test_shares_that_meet_above_32_bytes_are_malformed() -> None:
    for limbs in ([1 << LIMB_BITS] + [0] * 8, [0] * 8 + [1 << 24]):
        with pytest.raises(Malformed):
            combine({1: Secret(b"".join(limb.to_bytes(4, "little") for limb in limbs))})


@pytest.mark.parametrize(
    ("threshold", "holders"),
    [(0, [1, 2]), (3, [1, 2]), (2, [1, 1]), (2, [0, 1])],
    ids=["threshold zero", "threshold above the holders", "a holder twice", "a holder at zero, which is the secret"],
)
def test_impossible_splits_are_refused(threshold: int, holders: list[int]) -> None:
    with pytest.raises(ValueError):
        split([Secret(bytes(32))], threshold, holders, os.urandom)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.data())
def test_false_shares_are_found_up_to_half_of_those_to_spare(threshold: int, spare: int, data: st.DataObject) -> None:
    holders = data.draw(st.permutations(range(1, threshold + spare + 1)))
    shares = shares_of(b"secret" + bytes(26), threshold, holders)
    liars = data.draw(st.sets(st.sampled_from(holders), max_size=spare // 2))
    told = {
        x: changed(share, data.draw(st.integers(1, PRIME - 1))) if x in liars else share for x, share in shares.items()
    }
    honest = agreeing(told, threshold)
    assert set(honest) == set(holders) - liars
    assert combine({x: told[x] for x in honest[:threshold]}) == Secret(b"secret" + bytes(26))


def test_liars_who_agree_on_another_secret_are_found_as_well() -> None:
    """Shares of one other polynomial, from fewer than could make it the likelier one."""
    shares, others = (shares_of(os.urandom(32), 4, range(1, 13)) for _ in range(2))
    assert agreeing({**shares, **{x: others[x] for x in (1, 5, 6, 12)}}, 4) == (2, 3, 4, 7, 8, 9, 10, 11)


def test_a_share_with_one_limb_changed_is_found() -> None:
    shares = shares_of(bytes(32), 3, range(1, 8))
    for limb in range(LIMBS):
        raw = bytearray(shares[4].reveal())
        raw[4 * limb] ^= 1
        assert 4 not in agreeing({**shares, 4: Secret(bytes(raw))}, 3)


def test_with_more_liars_than_that_some_holders_come_back_and_nothing_breaks() -> None:
    shares = {x: Secret(bytes([x]) * 4 * LIMBS) for x in range(1, 12)}
    assert set(agreeing(shares, 8)) <= set(shares)
