"""Shares of a fleet, rounded up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.shares import share_of


@pytest.mark.parametrize(
    ("share", "total", "expected"),
    {
        "seven per cent of a hundred, which is a little more than seven to a computer": (0.07, 100, 7),
        "two thirds of three": (2 / 3, 3, 2),
        "a part of one is one": (0.01, 1, 1),
        "nothing": (0.0, 50, 0),
        "everybody": (1.0, 50, 50),
    }.values(),
)
def test_a_share_is_rounded_up_and_not_by_an_error_of_floating_point(share: float, total: int, expected: int) -> None:
    assert share_of(share, total) == expected


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_a_share_that_is_a_whole_number_is_that_number(part: int, total: int) -> None:
    assert share_of(part / total, total) == part
