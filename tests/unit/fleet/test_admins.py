"""Who may command from afar: issued, replaced, revoked, expired."""

import math

import pytest

from coordinator.fleet.admins import MAX_VALID_S
from shared.errors import Conflict, Forbidden, InputError, Malformed, NotFound, SignatureInvalid, Unauthenticated
from shared.signing.certificates import Subject, generate_key, make_csr
from tests.unit.fleet.kit import DAY_S, Fleet


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def issue(fleet: Fleet, name: str = "ann", csr: bytes = b"", valid_for_s: float = DAY_S) -> Subject:
    """As whom they speak from then on."""
    csr = csr or make_csr(generate_key(), name)
    _, certificate = fleet.registry.admins.issue(name, csr, valid_for_s, "local")
    return fleet.registry.authenticate(certificate)


def test_an_issued_admin_may_speak_and_who_issued_them_is_written_down(fleet: Fleet) -> None:
    subject = issue(fleet)

    assert (subject.role, subject.id) == ("admin", "ann")
    assert fleet.registry.admins.admit(subject).expires_at == fleet.clock.now() + DAY_S
    (entry,) = fleet.registry.audit(10)
    assert (entry.actor, entry.action, entry.subject) == ("local", "admin.issue", "ann")


def test_an_admin_is_no_device(fleet: Fleet) -> None:
    with pytest.raises(Unauthenticated):
        fleet.registry.admit(issue(fleet))


def test_revocation_takes_effect_at_once_and_is_written_down_once(fleet: Fleet) -> None:
    subject = issue(fleet)
    for _ in range(2):
        assert fleet.registry.admins.revoke("ann", "local").revoked_at == fleet.clock.now()

    with pytest.raises(Forbidden, match="revoked"):
        fleet.registry.admins.admit(subject)
    assert [entry.action for entry in fleet.registry.audit(10)] == ["admin.issue", "admin.revoke"]


def test_an_expired_certificate_is_refused_and_its_name_is_free(fleet: Fleet) -> None:
    key = generate_key()
    _, certificate = fleet.registry.admins.issue("ann", make_csr(key, "ann"), DAY_S, "local")
    fleet.clock.advance(DAY_S + 1)

    with pytest.raises(SignatureInvalid, match="expired"):
        fleet.registry.authenticate(certificate)
    assert fleet.registry.admins.admit(issue(fleet)).name == "ann"


def test_a_name_that_counts_is_not_issued_to_a_second_key(fleet: Fleet) -> None:
    subject = issue(fleet)
    with pytest.raises(Conflict, match="admin revoke ann"):
        issue(fleet)
    assert fleet.registry.admins.admit(subject).name == "ann"


def test_the_key_of_before_does_not_come_back_when_a_name_is_used_again(fleet: Fleet) -> None:
    old = issue(fleet)
    fleet.registry.admins.revoke("ann", "local")
    new = issue(fleet)

    with pytest.raises(Unauthenticated):
        fleet.registry.admins.admit(old)
    assert fleet.registry.admins.admit(new).revoked_at == 0


def test_a_certificate_that_the_authority_signed_elsewhere_is_not_an_admins(fleet: Fleet) -> None:
    """Whoever got at the authority's key still needs the database."""
    certificate = fleet.authority.issue(
        make_csr(generate_key(), "eve"), "eve", "admin", now=fleet.clock.now(), valid_for_s=DAY_S
    )
    with pytest.raises(Unauthenticated):
        fleet.registry.admins.admit(fleet.registry.authenticate(certificate))


def test_two_admins_do_not_share_a_key(fleet: Fleet) -> None:
    csr = make_csr(generate_key(), "ann")
    issue(fleet, "ann", csr)
    with pytest.raises(Conflict, match="fresh"):
        issue(fleet, "bob", csr)


@pytest.mark.parametrize("valid_for_s", [0.0, -1.0, math.nan, math.inf, MAX_VALID_S + 1])
def test_an_impossible_life_is_refused(fleet: Fleet, valid_for_s: float) -> None:
    with pytest.raises(InputError, match="valid for"):
        issue(fleet, valid_for_s=valid_for_s)
    assert fleet.registry.admins.admins() == []


@pytest.mark.parametrize(("name", "csr"), {"a path": ("../ann", b""), "a request that is none": ("ann", b"x")}.values())
def test_what_cannot_be_certified_leaves_no_admin(fleet: Fleet, name: str, csr: bytes) -> None:
    with pytest.raises(Malformed):
        issue(fleet, name, csr)
    assert fleet.registry.admins.admins() == []


def test_an_unknown_admin_is_not_revoked(fleet: Fleet) -> None:
    with pytest.raises(NotFound, match="admin list"):
        fleet.registry.admins.revoke("nobody", "local")
