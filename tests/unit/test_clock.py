"""Time that moves only when told to."""

import pytest

from shared.clock import ManualClock, SystemClock


def test_a_manual_clock_stands_until_it_is_moved() -> None:
    clock = ManualClock(100.0)
    assert (clock.now(), clock.monotonic()) == (100.0, 100.0)

    clock.advance(1.5)

    assert (clock.now(), clock.monotonic()) == (101.5, 101.5)


def test_a_clock_does_not_go_back() -> None:
    clock = ManualClock(100.0)
    with pytest.raises(ValueError, match="go back"):
        clock.advance(-1)
    assert clock.now() == 100.0


def test_the_system_clock_goes_on() -> None:
    clock = SystemClock()
    first = clock.monotonic()
    assert clock.monotonic() >= first
    assert clock.now() > 1_700_000_000
