"""Shamir secret sharing (CACM 1979) of 32-byte secrets, many at once, over the integers modulo the Mersenne prime 2^31 - 1.

A secret is nine field elements of 29 bits, each shared by a polynomial of its own; a share is nine elements, 36 bytes,
little-endian. Any `threshold` shares give the secret; fewer say nothing about it, so long as AES-256-CTR, which the
coefficients are drawn from, looks random. The field is this small so that all polynomials are evaluated at once, as products
of matrices of exact float64 numbers.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shared.errors import Malformed
from shared.secagg.keys import KEY_BYTES, Secret
from shared.secagg.masks import keystream

PRIME = (1 << 31) - 1
LIMBS, LIMB_BITS = 9, 29
SHARE_BYTES = 4 * LIMBS
Entropy = Callable[[int], bytes]
Elements = NDArray[np.uint64]

_LOW = np.uint64(0xFFFF)
_SHIFT = np.uint64(16)
_P = np.uint64(PRIME)


def split(secrets: Sequence[Secret], threshold: int, holders: Sequence[int], entropy: Entropy) -> list[Secret]:
    """For each holder in order, its shares of all `secrets`, end to end; its number is its x coordinate. Raises `ValueError`."""
    if not 1 <= threshold <= len(holders) or len(set(holders)) != len(holders) or min(holders) < 1:
        raise ValueError("shares need distinct holders numbered from 1, and a threshold of at most their number")
    constants = np.array([_limbs(secret) for secret in secrets], dtype=np.uint64).reshape(1, -1)
    random = _uniform((threshold - 1) * constants.size, entropy).reshape(threshold - 1, constants.size)
    values = _multiply(_powers(holders, threshold), np.concatenate([constants, random]))
    return [Secret(row.tobytes()) for row in values.astype("<u4")]


def combine(shares: Mapping[int, Secret]) -> Secret:
    """The secret that exactly these shares meet in, by holder. Raises `Malformed` where they cannot be shares of one."""
    if any(len(share.reveal()) != SHARE_BYTES for share in shares.values()):
        raise Malformed(f"a share has {SHARE_BYTES} bytes")
    raw = b"".join(share.reveal() for share in shares.values())
    values = np.frombuffer(raw, dtype="<u4").reshape(-1, LIMBS).astype(np.uint64)
    if (values >= _P).any():
        raise Malformed("a share holds a number outside the field")
    limbs = [int(limb) for limb in (_lagrange(tuple(shares))[:, None] * values % _P).sum(axis=0) % _P]
    number = sum(limb << (LIMB_BITS * place) for place, limb in enumerate(limbs))
    if any(limb >> LIMB_BITS for limb in limbs) or number >> (8 * KEY_BYTES):
        raise Malformed("the shares do not lie on one polynomial")
    return Secret(number.to_bytes(KEY_BYTES, "little"))


def agreeing(shares: Mapping[int, Secret], threshold: int) -> tuple[int, ...]:
    """The holders whose shares of one secret lie on one polynomial, where at most (n - threshold) / 2 of n do not: Berlekamp
    and Welch's decoder of Reed-Solomon codes, on one random combination of the limbs. With more false ones, any holders.
    """
    shares = {holder: share for holder, share in shares.items() if _is_share(share)}
    spare = (len(shares) - threshold) // 2
    if spare < 1:
        return tuple(shares)
    raw = b"".join(share.reveal() for share in shares.values())
    mix = keystream(Secret(hashlib.sha256(raw).digest()), 8 * LIMBS).view("<u8") % _P
    values = (np.frombuffer(raw, dtype="<u4").reshape(-1, LIMBS) * mix % _P).sum(axis=1) % _P
    powers = _powers(tuple(shares), threshold + spare)
    located = powers[:, : spare + 1]  # of the locator, a polynomial that is zero where a share is false
    system = np.concatenate([powers, (_P - values)[:, None] * located % _P], axis=1)
    locator = _null_vector(system)[threshold + spare :]
    zeros = (located * locator % _P).sum(axis=1) % _P == 0
    return tuple(holder for holder, false in zip(shares, zeros, strict=True) if not false)


def _is_share(share: Secret) -> bool:
    raw = share.reveal()
    return len(raw) == SHARE_BYTES and bool((np.frombuffer(raw, dtype="<u4") < PRIME).all())


def _null_vector(matrix: Elements) -> Elements:
    """Some x with matrix x = 0, by Gauss and Jordan; not zero where there is one."""
    rows = matrix.copy()
    pivots: list[int] = []
    free = rows.shape[1] - 1
    for column in range(rows.shape[1]):
        done = len(pivots)
        found = np.flatnonzero(rows[done:, column])
        if not found.size:
            free = column
            break
        rows[[done, done + found[0]]] = rows[[done + found[0], done]]
        rows[done] = rows[done] * np.uint64(pow(int(rows[done, column]), -1, PRIME)) % _P
        factors = (_P - rows[:, column]) % _P
        factors[done] = 0
        rows[:, column:] = (rows[:, column:] + factors[:, None] * rows[done, column:]) % _P
        pivots.append(column)
    solution = np.zeros(rows.shape[1], dtype=np.uint64)
    solution[free] = 1
    solution[pivots] = (_P - rows[: len(pivots), free]) % _P
    return solution


@lru_cache(maxsize=256)
def _lagrange(holders: tuple[int, ...]) -> Elements:
    """The weight of each holder's share in the value at zero."""
    points = np.array(holders, dtype=np.uint64)
    below = points.copy()  # x times the product of the differences
    above = 1
    for place, point in enumerate(holders):
        above = above * point % PRIME
        differences = (np.uint64(PRIME + point) - points) % _P
        differences[place] = 1
        below = below * differences % _P
    return np.array([above * pow(value, -1, PRIME) % PRIME for value in below.tolist()], dtype=np.uint64)


def _limbs(secret: Secret) -> list[int]:
    number = int.from_bytes(secret.reveal(), "little")
    return [(number >> (LIMB_BITS * place)) & ((1 << LIMB_BITS) - 1) for place in range(LIMBS)]


def _uniform(count: int, entropy: Entropy) -> Elements:
    """Field elements from 128 bits each: the bias is below 2^-96. Modulo the prime, 2^64 is 4."""
    raw = keystream(Secret(entropy(KEY_BYTES)), 16 * count).view("<u8").reshape(2, count)
    low, high = raw % _P
    elements: Elements = (low + np.uint64(4) * high) % _P
    return elements


def _powers(holders: Sequence[int], count: int) -> Elements:
    """Vandermonde's matrix, shape (holders, count): x^0, x^1, …"""
    points = np.array(holders, dtype=np.uint64)
    powers = np.ones((count, len(points)), dtype=np.uint64)
    for place in range(1, count):
        powers[place] = powers[place - 1] * points % _P
    return powers.T


def _multiply(left: Elements, right: Elements) -> Elements:
    """The product modulo the prime. Halves of 16 bits keep every sum of up to 2^19 products below 2^53, exact in float64."""
    (one_low, one_high), (two_low, two_high) = _halves(left), _halves(right)
    low, high = one_low @ two_low, one_high @ two_high
    middle = (one_low + one_high) @ (two_low + two_high) - low - high
    parts = [part.astype(np.uint64) % _P for part in (low, middle, high)]
    product: Elements = (parts[0] + (parts[1] << _SHIFT) + ((parts[2] << _SHIFT) % _P << _SHIFT)) % _P
    return product


def _halves(values: Elements) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (values & _LOW).astype(np.float64), (values >> _SHIFT).astype(np.float64)
