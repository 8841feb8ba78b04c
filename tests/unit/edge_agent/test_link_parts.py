"""Back-off, the blob cache, the identity folder."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.link.backoff import Backoff
from edge_agent.link.credentials import Credentials, Membership, store_membership, store_pair
from edge_agent.link.transfer import Cache
from shared.clock import ManualClock
from shared.errors import Corrupt, Malformed, NotFound, SignatureInvalid
from shared.ids import digest_of
from shared.signing.certificates import Authority, check_csr, generate_key, make_csr
from shared.signing.identity import DeviceIdentity

DAY_S = 86_400.0


@given(st.integers(0, 60))
def test_waiting_grows_to_its_ceiling_and_is_drawn_from_the_whole_range(tries: int) -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    backoff = Backoff(0.5, 30.0, draw, tries)
    assert backoff.next() == min(30.0, 0.5 * 2**tries)
    assert drawn[0][0] == 0.0
    backoff.reset()
    assert backoff.next() == 0.5


def test_the_cache_forgets_the_least_recently_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 25)
    digests = [cache.blobs.write(bytes([number]) * 10) for number in range(3)]
    for age, digest in enumerate(digests):
        os.utime(cache.blobs.path(digest), (1000 + age, 1000 + age))
    cache.use(digests[0])
    cache.prune(now=2000.0)
    assert [cache.blobs.has(digest) for digest in digests] == [True, False, True]
    assert cache.use(digests[1]) is None


def test_a_blob_that_a_former_process_left_damaged_is_not_used(tmp_path: Path) -> None:
    digest = Cache(tmp_path, 1000).blobs.write(b"what was meant")
    path = Cache(tmp_path, 1000).use(digest)
    assert path is not None
    path.write_bytes(b"what a crash left")
    cache = Cache(tmp_path, 1000)
    assert cache.use(digest) is None
    assert not cache.blobs.has(digest)
    cache.blobs.append(digest, 0, b"what was meant")
    cache.finish(digest)
    assert cache.use(digest) == path


def test_a_download_that_nobody_went_on_with_is_forgotten(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    old, young = digest_of(b"old"), digest_of(b"young")
    for digest, at in ((old, 1000.0), (young, 80_000.0)):
        cache.blobs.append(digest, 0, b"x")
        os.utime(tmp_path / "arriving" / digest, (at, at))
    cache.prune(now=100_000.0)
    assert (cache.blobs.received(old), cache.blobs.received(young)) == (0, 1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def authority(clock: ManualClock) -> Authority:
    return Authority.create("test", clock.now())


def member(folder: Path, authority: Authority, clock: ManualClock) -> Credentials:
    key = generate_key()
    certificate = authority.issue(make_csr(key, "dev-1"), "dev-1", "device", now=clock.now(), valid_for_s=90 * DAY_S)
    folder.mkdir()
    store_pair(folder, DeviceIdentity("dev-1", key, certificate), authority.certificate_der)
    membership = Membership("dev-1", "cam-1", "localhost:1", {"site": "lab"})
    store_membership(folder, membership, authority.certificate_der, b"{}")
    return Credentials(folder, clock)


def test_before_enrolment_it_says_how_to_enrol(tmp_path: Path, clock: ManualClock) -> None:
    with pytest.raises(NotFound, match="edge-agent enroll"):
        Credentials(tmp_path, clock)


def test_renewal_is_due_at_two_thirds_of_a_life(tmp_path: Path, authority: Authority, clock: ManualClock) -> None:
    credentials = member(tmp_path / "identity", authority, clock)
    assert credentials.renew_at() == pytest.approx(clock.now() + 60 * DAY_S, abs=600)
    assert credentials.membership.labels == {"site": "lab"}


def test_a_renewed_pair_is_used_at_once_and_found_again(
    tmp_path: Path, authority: Authority, clock: ManualClock
) -> None:
    credentials = member(tmp_path / "identity", authority, clock)
    before = credentials.identity.key_pem
    renewal = credentials.renewal()
    check_csr(renewal.csr_der)
    renewal.adopt(authority.issue(renewal.csr_der, "dev-1", "device", now=clock.now(), valid_for_s=90 * DAY_S))
    assert credentials.identity.key_pem != before
    again = Credentials(tmp_path / "identity", clock)
    assert again.identity.key_pem == credentials.identity.key_pem
    assert len(list((tmp_path / "identity").glob("pair-*"))) == 1


@pytest.mark.parametrize("kind", ["of another fleet", "for another key", "no certificate"])
def test_a_certificate_is_not_adopted_when_it_is(
    kind: str, tmp_path: Path, authority: Authority, clock: ManualClock
) -> None:
    credentials = member(tmp_path / "identity", authority, clock)
    before = credentials.identity.key_pem
    renewal = credentials.renewal()
    other_key, other_fleet = make_csr(generate_key(), "x"), Authority.create("other", clock.now())
    offered = {
        "of another fleet": other_fleet.issue(renewal.csr_der, "dev-1", "device", now=clock.now(), valid_for_s=DAY_S),
        "for another key": authority.issue(other_key, "dev-1", "device", now=clock.now(), valid_for_s=DAY_S),
        "no certificate": b"junk",
    }[kind]
    with pytest.raises((SignatureInvalid, Corrupt, Malformed)):
        renewal.adopt(offered)
    assert credentials.identity.key_pem == before
    assert Credentials(tmp_path / "identity", clock).identity.key_pem == before
    assert len(list((tmp_path / "identity").glob("pair-*"))) == 1


def test_no_key_shows_in_repr(tmp_path: Path, authority: Authority, clock: ManualClock) -> None:
    credentials = member(tmp_path / "identity", authority, clock)
    shown = repr(credentials) + repr(credentials.renewal()) + repr(credentials.identity)
    assert "PRIVATE" not in shown
