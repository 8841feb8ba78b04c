"""A share of a number of devices."""

import math

_ERROR = 1e-9  # 0.07 * 100 is a little more than 7


def share_of(share: float, total: int) -> int:
    """`share` of `total` rounded up, but not by an error of floating point."""
    return math.ceil(share * total - _ERROR)
