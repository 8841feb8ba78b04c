"""What every store of join tokens must do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from coordinator.fleet.device import AuditEntry, TokenRecord
from coordinator.fleet.ports import FleetStore
from shared.errors import Conflict, Forbidden, NotFound, Unauthenticated
from tests.contract.fleet_rows import ENTRY, device, token


def revoking(at: float) -> Callable[[TokenRecord], tuple[TokenRecord, AuditEntry]]:
    return lambda found: (replace(found, revoked_at=at), ENTRY)


def test_a_token_is_spent_once(fleet: FleetStore) -> None:
    fleet.add_tokens([token("t1")], ENTRY)

    assert fleet.enrol(device("dev1"), "t1", 2.0, ENTRY).name == "dev1"
    with pytest.raises(Forbidden):
        fleet.enrol(device("dev2"), "t1", 3.0, ENTRY)
    assert [item.name for item in fleet.devices()] == ["dev1"]
    spent = fleet.token("t1")
    assert spent is not None
    assert (spent.spent_by, spent.spent_at) == (device("dev1").public_key_sha256, 2.0)


def test_the_same_key_again_gives_the_first_device_and_no_second_entry(fleet: FleetStore) -> None:
    fleet.add_tokens([token("t1")], ENTRY)
    first = fleet.enrol(device("dev1"), "t1", 2.0, ENTRY)

    again = fleet.enrol(device("other", key="dev1"), "t1", 3.0, ENTRY)

    assert again.id == first.id
    assert len(fleet.audit(10)) == 2


def test_a_taken_name_leaves_the_token_unspent(fleet: FleetStore) -> None:
    fleet.add_tokens([token("t1"), token("t2")], ENTRY)
    fleet.enrol(device("dev1"), "t1", 2.0, ENTRY)

    with pytest.raises(Conflict):
        fleet.enrol(device("dev1", key="new"), "t2", 3.0, ENTRY)
    unspent = fleet.token("t2")
    assert unspent is not None
    assert unspent.spent_by == ""


def test_an_unknown_token_is_refused(fleet: FleetStore) -> None:
    assert fleet.token("nope") is None
    with pytest.raises(Unauthenticated):
        fleet.enrol(device("dev1"), "nope", 2.0, ENTRY)


def test_who_made_and_who_used_a_token_is_known_and_the_oldest_stands_first(fleet: FleetStore) -> None:
    fleet.add_tokens([replace(token("b"), created_at=2.0), replace(token("a"), created_at=2.0)], ENTRY)
    fleet.add_tokens([replace(token("c"), created_by="admin ann")], ENTRY)
    fleet.enrol(device("dev1"), "a", 3.0, ENTRY)

    found = fleet.tokens()

    assert [(item.id, item.created_by, item.device, item.spent_at) for item in found] == [
        ("c", "admin ann", "", 0.0),
        ("a", "", "dev-dev1", 3.0),
        ("b", "", "", 0.0),
    ]
    assert found[0] == fleet.token("c") == replace(token("c"), created_by="admin ann")


def test_a_revoked_token_lets_no_device_join(fleet: FleetStore) -> None:
    fleet.add_tokens([token("t1"), token("t2")], ENTRY)

    revoked = fleet.change_token("t1", lambda found: (replace(found, revoked_at=5.0), ENTRY))

    assert revoked == fleet.token("t1") == replace(token("t1"), revoked_at=5.0)
    with pytest.raises(Forbidden, match="revoked"):
        fleet.enrol(device("dev1"), "t1", 6.0, ENTRY)
    assert fleet.devices() == []
    assert fleet.token("t1") == revoked
    assert fleet.enrol(device("dev1"), "t2", 6.0, ENTRY).name == "dev1"
    assert len(fleet.audit(10)) == 3


def test_a_refused_change_of_a_token_leaves_no_trace(fleet: FleetStore) -> None:
    fleet.add_tokens([token("t1")], ENTRY)

    def refuse(_: TokenRecord) -> tuple[TokenRecord, AuditEntry]:
        raise Conflict("no")

    with pytest.raises(Conflict):
        fleet.change_token("t1", refuse)
    with pytest.raises(NotFound, match="token list"):
        fleet.change_token("t9", lambda found: (replace(found, revoked_at=5.0), ENTRY))
    assert fleet.tokens() == [token("t1")]
    assert len(fleet.audit(10)) == 1


def test_of_a_revocation_and_a_device_that_joins_at_once_one_comes_first_and_both_know(fleet: FleetStore) -> None:
    fleet.add_tokens([token("t1")], ENTRY)

    def join() -> bool:
        try:
            fleet.enrol(device("dev1"), "t1", 3.0, ENTRY)
        except Forbidden:
            return False
        return True

    def revoke() -> bool:
        def decide(found: TokenRecord) -> tuple[TokenRecord, None]:
            if found.spent_by:
                raise Conflict("used")
            return replace(found, revoked_at=4.0), None

        try:
            fleet.change_token("t1", decide)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        joined, revoked = threads.submit(join), threads.submit(revoke)
        assert joined.result() != revoked.result()
    assert bool(fleet.devices()) == joined.result()


def test_tokens_that_expired_unused_are_forgotten_and_all_others_stay(fleet: FleetStore) -> None:
    made = {"old": 40.0, "used": 40.0, "valid": 60.0, "revoked then": 40.0, "revoked lately": 40.0}
    fleet.add_tokens([replace(token(name), expires_at=at) for name, at in made.items()], ENTRY)
    fleet.enrol(device("dev1"), "used", 2.0, ENTRY)
    for name, at in (("revoked then", 3.0), ("revoked lately", 55.0)):
        fleet.change_token(name, revoking(at))

    assert fleet.forget_tokens(50.0) == 2
    assert {item.id for item in fleet.tokens()} == {"used", "valid", "revoked lately"}
    assert fleet.forget_tokens(50.0) == 0
