"""Shamir secret sharing (CACM 1979) over the integers modulo 2^256 + 297, the smallest prime above 2^256.

So every 32-byte secret is a field element, unfolded. A share is 33 bytes, big-endian. Any `threshold` shares give the
secret; fewer say nothing about it, whatever the adversary's computing power.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from shared.errors import Malformed
from shared.secagg.keys import Secret

PRIME = 2**256 + 297
SHARE_BYTES = 33
Entropy = Callable[[int], bytes]


def split(secret: Secret, threshold: int, holders: Iterable[int], entropy: Entropy) -> dict[int, Secret]:
    """One share a holder; a holder's number is its x coordinate. Raises `ValueError` for impossible arguments."""
    points = tuple(holders)
    if not 1 <= threshold <= len(points) or len(set(points)) != len(points) or min(points) < 1:
        raise ValueError("shares need distinct holders numbered from 1, and a threshold of at most their number")
    # 48 bytes reduced modulo a 257-bit prime: the bias is below 2^-127
    random = [int.from_bytes(entropy(48), "big") % PRIME for _ in range(threshold - 1)]
    coefficients = [*reversed(random), int.from_bytes(secret.reveal(), "big")]
    return {point: Secret(_evaluate(coefficients, point).to_bytes(SHARE_BYTES, "big")) for point in points}


def _evaluate(coefficients: Sequence[int], point: int) -> int:
    """Horner's rule, highest coefficient first."""
    value = 0
    for coefficient in coefficients:
        value = (value * point + coefficient) % PRIME
    return value


def lagrange(holders: Sequence[int]) -> dict[int, int]:
    """The weight of each holder's share in the value at zero: once a share set, not once a secret."""
    weights = {}
    for here in holders:
        above, below = 1, 1
        for other in holders:
            if other != here:
                above = above * other % PRIME
                below = below * (other - here) % PRIME
        weights[here] = above * pow(below, -1, PRIME) % PRIME
    return weights


def combine(weights: Mapping[int, int], shares: Mapping[int, Secret]) -> Secret:
    """The secret. Raises `Malformed` if the shares do not meet in a 32-byte value, which honest ones always do."""
    value = sum(weight * int.from_bytes(shares[holder].reveal(), "big") for holder, weight in weights.items())
    value %= PRIME
    if value >> 256:
        raise Malformed("the shares do not lie on one polynomial")
    return Secret(value.to_bytes(32, "big"))
