"""What every store of devices, admins and the audit log must do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from coordinator.fleet.device import Admin, AuditEntry, Device
from coordinator.fleet.ports import FleetStore
from coordinator.fleet.states import DeviceState
from shared.errors import Conflict, Forbidden, NotFound
from shared.ids import DeviceId, digest_of
from shared.session import Serving
from tests.contract.fleet_rows import ENTRY, device, token


def test_what_a_device_serves_is_replaced_and_survives_updates(fleet: FleetStore) -> None:
    fleet.add_tokens([token("t1")], ENTRY)
    stored = fleet.enrol(device("dev1"), "t1", 2.0, ENTRY)
    serving = (Serving("digits", 2, digest_of(b"bundle"), True), Serving("other", 1, digest_of(b"x"), False))

    fleet.record_serving(stored.id, [Serving("old", 1, digest_of(b"old"), True)], 3.0)
    fleet.record_serving(stored.id, serving, 4.0)
    fleet.change("dev1", lambda found: (replace(found, serving=()), None))

    assert fleet.device(stored.id).serving == serving
    assert fleet.device("dev1").last_seen_at == 4.0


def test_devices_are_found_by_id_and_by_name_or_not_at_all(fleet: FleetStore) -> None:
    fleet.add_tokens([token("t1")], ENTRY)
    fleet.enrol(device("dev1"), "t1", 2.0, ENTRY)

    assert fleet.device("dev-dev1") == fleet.device("dev1")
    with pytest.raises(NotFound):
        fleet.device("dev9")
    with pytest.raises(NotFound):
        fleet.change("dev9", lambda found: (found, ENTRY))
    with pytest.raises(NotFound):
        fleet.record_serving(DeviceId("dev-dev9"), [], 3.0)
    assert len(fleet.audit(10)) == 2


def test_a_revoked_device_gives_its_name_back_but_not_its_key(fleet: FleetStore) -> None:
    fleet.add_tokens([token("t1"), token("t2"), token("t3")], ENTRY)
    old = fleet.enrol(device("dev1"), "t1", 2.0, ENTRY)
    fleet.change(old.id, lambda found: (replace(found, state=DeviceState.REVOKED), ENTRY))

    with pytest.raises(Conflict):
        fleet.enrol(device("dev1"), "t2", 3.0, ENTRY)
    fresh = fleet.enrol(replace(device("dev2"), name="dev1"), "t3", 4.0, ENTRY)

    assert fleet.device("dev1").id == fresh.id
    assert fleet.device(old.id).name == old.id
    assert [entry.action for entry in fleet.audit(2)] == ["device.rename", "test"]


def test_a_device_named_like_the_id_of_another_does_not_answer_for_it(fleet: FleetStore) -> None:
    fleet.add_tokens([token("t1"), token("t2")], ENTRY)
    real = fleet.enrol(device("dev1"), "t1", 2.0, ENTRY)
    fleet.enrol(replace(device("dev2"), name=real.id), "t2", 3.0, ENTRY)

    assert fleet.device(real.id).name == "dev1"


def test_a_refused_change_leaves_the_device_and_the_log_alone(fleet: FleetStore) -> None:
    fleet.add_tokens([token("t1"), token("t2")], ENTRY)
    before = fleet.enrol(device("dev1"), "t1", 2.0, ENTRY)
    other = fleet.enrol(device("dev2"), "t2", 2.0, ENTRY)

    def refuse(_: Device) -> tuple[Device, AuditEntry]:
        raise Forbidden("no")

    with pytest.raises(Forbidden):
        fleet.change("dev1", refuse)
    with pytest.raises(Conflict):
        fleet.change("dev1", lambda found: (replace(found, public_key_sha256=other.public_key_sha256), ENTRY))
    assert fleet.device("dev1") == before
    assert len(fleet.audit(10)) == 3


def test_changes_at_the_same_time_all_count(fleet: FleetStore) -> None:
    fleet.add_tokens([token("t1")], ENTRY)
    fleet.enrol(device("dev1"), "t1", 2.0, ENTRY)

    def note(number: int) -> None:
        fleet.change("dev1", lambda found: (replace(found, labels={**found.labels, f"n{number}": "x"}), ENTRY))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(note, range(12)))

    assert len(fleet.device("dev1").labels) == 13
    assert len(fleet.audit(100)) == 14


def test_the_audit_log_gives_the_newest_oldest_first(fleet: FleetStore) -> None:
    for number in range(5):
        fleet.append_audit(AuditEntry(float(number), "admin", f"act.{number}", "fleet"))

    assert [entry.action for entry in fleet.audit(3)] == ["act.2", "act.3", "act.4"]


def test_old_audit_entries_are_forgotten_and_numbers_go_on(fleet: FleetStore) -> None:
    for number in range(5):
        fleet.append_audit(AuditEntry(float(number), "admin", f"act.{number}", "fleet"))

    assert fleet.forget_audit(3.0) == 3
    fleet.append_audit(AuditEntry(9.0, "admin", "act.9", "fleet"))

    assert [(entry.id, entry.action) for entry in fleet.audit(10)] == [(4, "act.3"), (5, "act.4"), (6, "act.9")]


def an_admin(name: str, key: str = "", **changes: float) -> Admin:
    return replace(Admin(name, digest_of((key or name).encode()), 1.0, 50.0), **changes)  # type: ignore[arg-type]


def test_an_admin_is_added_changed_and_found_and_each_change_is_in_the_log(fleet: FleetStore) -> None:
    assert fleet.admin("ann") is None
    seen: list[Admin | None] = []

    def become(admin: Admin) -> Callable[[Admin | None], tuple[Admin, AuditEntry]]:
        def decide(found: Admin | None) -> tuple[Admin, AuditEntry]:
            seen.append(found)
            return admin, ENTRY

        return decide

    for admin in (an_admin("bob"), an_admin("ann"), an_admin("ann", "fresh"), an_admin("ann", "fresh", revoked_at=9.0)):
        assert fleet.change_admin(admin.name, become(admin)) == admin

    assert seen == [None, None, an_admin("ann"), an_admin("ann", "fresh")]
    assert fleet.admin("ann") == an_admin("ann", "fresh", revoked_at=9.0)
    assert fleet.admins() == [an_admin("ann", "fresh", revoked_at=9.0), an_admin("bob")]
    assert len(fleet.audit(10)) == 4


def test_a_refused_change_of_an_admin_leaves_no_trace(fleet: FleetStore) -> None:
    fleet.change_admin("ann", lambda _: (an_admin("ann"), None))

    def refuse(_: Admin | None) -> tuple[Admin, AuditEntry]:
        raise Forbidden("no")

    with pytest.raises(Forbidden):
        fleet.change_admin("ann", refuse)
    with pytest.raises(Conflict):
        fleet.change_admin("bob", lambda _: (an_admin("bob", "ann"), ENTRY))
    assert fleet.admins() == [an_admin("ann")]
    assert fleet.audit(10) == []
