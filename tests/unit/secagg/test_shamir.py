"""Any threshold of shares gives the secret; the field holds every 32-byte secret unfolded."""

import os
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Malformed
from shared.secagg.keys import Secret
from shared.secagg.shamir import PRIME, SHARE_BYTES, combine, lagrange, split


def is_prime(number: int) -> bool:
    """Miller-Rabin with all primes below 180 as bases."""
    bases = [n for n in range(2, 180) if all(n % d for d in range(2, n))]
    if any(number % base == 0 for base in bases):
        return number in bases
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in bases:
        power = pow(base, odd, number)
        if power not in (1, number - 1) and all(
            (power := power * power % number) != number - 1 for _ in range(twos - 1)
        ):
            return False
    return True


def test_the_modulus_is_the_smallest_prime_above_2_to_the_256() -> None:
    assert is_prime(PRIME)
    assert not any(is_prime(number) for number in range(2**256, PRIME))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.data())
def test_any_threshold_of_shares_gives_the_secret(raw: bytes, threshold: int, data: st.DataObject) -> None:
    holders = data.draw(st.lists(st.integers(1, 2**40), min_size=threshold, max_size=8, unique=True))
    shares = split(Secret(raw), threshold, holders, os.urandom)
    assert {len(share.reveal()) for share in shares.values()} == {SHARE_BYTES}
    chosen = data.draw(st.permutations(holders))[:threshold]
    assert combine(lagrange(chosen), shares) == Secret(raw)


@pytest.mark.parametrize("raw", [bytes(32), b"\xff" * 32], ids=["all zero", "all ones"])
def test_secrets_at_the_ends_of_the_range_come_back(raw: bytes) -> None:
    shares = split(Secret(raw), 3, range(1, 6), os.urandom)
    for chosen in combinations(range(1, 6), 3):
        assert combine(lagrange(chosen), shares) == Secret(raw)


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    """For two of three shares there is, for any secret at all, a third share that completes it."""
    shares = split(Secret(os.urandom(32)), 3, range(1, 4), os.urandom)
    for wanted in (0, 1, 2**255):
        weights = lagrange((1, 2, 3))
        known = sum(weights[x] * int.from_bytes(shares[x].reveal(), "big") for x in (1, 2))
        third = (wanted - known) * pow(weights[3], -1, PRIME) % PRIME
        forged = {**shares, 3: Secret(third.to_bytes(SHARE_BYTES, "big"))}
        assert int.from_bytes(combine(weights, forged).reveal(), "big") == wanted


def test_two_splits_of_one_secret_share_nothing() -> None:
    first, second = (split(Secret(bytes(32)), 2, range(1, 9), os.urandom) for _ in range(2))
    assert all(first[x] != second[x] for x in first)


def test_shares_that_meet_above_32_bytes_are_refused() -> None:
    share = {1: Secret((2**256 + 5).to_bytes(SHARE_BYTES, "big"))}
    with pytest.raises(Malformed):
        combine(lagrange((1,)), share)


@pytest.mark.parametrize(
    ("threshold", "holders"),
    [(0, [1, 2]), (3, [1, 2]), (2, [1, 1]), (2, [0, 1])],
    ids=["threshold zero", "threshold above the holders", "a holder twice", "a holder at zero, which is the secret"],
)
def test_impossible_splits_are_refused(threshold: int, holders: list[int]) -> None:
    with pytest.raises(ValueError):
        split(Secret(bytes(32)), threshold, holders, os.urandom)
