"""What one device may have in the inbox."""

import pytest

from coordinator.rpc.inbox import Ledger
from shared.errors import Overloaded
from shared.ids import DeviceId, Digest

ONE, TWO = DeviceId("dev-1"), DeviceId("dev-2")


def digest(number: int) -> Digest:
    return Digest(f"{number:064x}")


def kept(device: DeviceId, found: Digest) -> bool:
    return True


def read(device: DeviceId, found: Digest) -> bool:
    return False


def test_a_device_may_not_fill_the_inbox_and_the_others_do_not_notice() -> None:
    ledger = Ledger(max_bytes=100)
    ledger.admit(ONE, digest(1), 60, 0.0, kept)
    with pytest.raises(Overloaded, match="60 bytes"):
        ledger.admit(ONE, digest(2), 41, 0.0, kept)
    ledger.admit(ONE, digest(2), 40, 0.0, kept)
    ledger.admit(TWO, digest(3), 100, 0.0, kept)


def test_many_empty_announcements_are_refused_too() -> None:
    ledger = Ledger(max_bytes=100, max_blobs=3)
    for number in range(3):
        ledger.admit(ONE, digest(number), 0, 0.0, kept)
    with pytest.raises(Overloaded):
        ledger.admit(ONE, digest(3), 0, 0.0, kept)


def test_what_was_read_and_deleted_counts_no_more() -> None:
    ledger = Ledger(max_bytes=100)
    for number in range(50):
        ledger.admit(ONE, digest(number), 100, 0.0, read)


def test_going_on_with_an_upload_does_not_count_twice() -> None:
    ledger = Ledger(max_bytes=100)
    for _ in range(5):
        ledger.admit(ONE, digest(1), 100, 0.0, kept)


def test_what_nobody_reads_is_stale_an_hour_after_its_last_byte() -> None:
    ledger = Ledger(max_bytes=100, kept_s=3600.0)
    ledger.admit(ONE, digest(1), 10, 1000.0, kept)
    ledger.admit(ONE, digest(2), 10, 1000.0, kept)
    ledger.grew(ONE, digest(2), 2000.0)
    assert ledger.stale(4599.0) == ([], set())
    assert ledger.stale(5000.0) == ([(ONE, digest(1))], {digest(1)})
    assert ledger.stale(5600.0) == ([(ONE, digest(2))], {digest(2)})


def test_a_stale_blob_that_another_device_sent_since_stays() -> None:
    ledger = Ledger(max_bytes=100, kept_s=3600.0)
    ledger.admit(ONE, digest(1), 10, 1000.0, kept)
    ledger.admit(TWO, digest(1), 10, 4000.0, kept)
    assert ledger.stale(5000.0) == ([(ONE, digest(1))], set())


def test_looking_for_what_is_stale_is_not_done_at_every_upload() -> None:
    ledger = Ledger(max_bytes=100, kept_s=3600.0)
    ledger.admit(ONE, digest(1), 10, 1000.0, kept)
    ledger.stale(4599.0)
    assert ledger.stale(4700.0) == ([], set())
