"""What every store of devices, tokens and metrics must do."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from coordinator.fleet.device import Admin, AuditEntry, Device, TokenRecord
from coordinator.fleet.ports import FleetStore, MetricStore
from coordinator.fleet.states import DeviceState
from coordinator.store.fleet import SqlFleetStore, SqlMetricStore
from coordinator.store.memory_fleet import MemoryFleetStore, MemoryMetricStore
from shared.errors import Conflict, Forbidden, NotFound, Unauthenticated
from shared.ids import DeviceId, NodeId, digest_of
from shared.session import Histogram, MetricBatch, Sample, Serving

ENTRY = AuditEntry(1.0, "admin", "test", "fleet", {"why": "test"})


@pytest.fixture
def fleet(store_kind: Callable[[type, type], object]) -> FleetStore:
    return store_kind(MemoryFleetStore, SqlFleetStore)  # type: ignore[return-value]


@pytest.fixture
def metrics(store_kind: Callable[[type, type], object], fleet: FleetStore) -> MetricStore:
    fleet.add_tokens([token("t1")], ENTRY)
    fleet.enrol(device("dev1"), "t1", 2.0, ENTRY)
    return store_kind(MemoryMetricStore, SqlMetricStore)  # type: ignore[return-value]


def token(token_id: str) -> TokenRecord:
    return TokenRecord(token_id, digest_of(token_id.encode()), {"site": "lab"}, False, 1.0, 100.0)


def revoking(at: float) -> Callable[[TokenRecord], tuple[TokenRecord, AuditEntry]]:
    return lambda found: (replace(found, revoked_at=at), ENTRY)


def device(name: str, key: str = "") -> Device:
    number = int.from_bytes(name.encode(), "big") % (1 << 60)
    return Device(
        id=DeviceId(f"dev-{name}"),
        node_id=NodeId(number),
        name=name,
        state=DeviceState.ACTIVE,
        public_key_sha256=digest_of((key or name).encode()),
        csr_der=b"csr",
        enrolled_at=2.0,
        certificate_der=b"certificate",
        certificate_expires_at=50.0,
        labels={"site": "lab"},
    )


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


def batch(number: int, spool: str = "a") -> MetricBatch:
    histogram = Histogram((1.0, 5.0), (3, 2, 1), 17.5)
    samples = (Sample("loss", 0.5), Sample("latency_ms", histogram, {"model": "digits"}))
    return MetricBatch(number, 10.0 + number, samples, spool)


def test_a_batch_sent_twice_is_counted_once(metrics: MetricStore) -> None:
    one = DeviceId("dev-dev1")

    assert metrics.add(one, [batch(1), batch(2)], 20.0) == 2
    assert metrics.add(one, [batch(2), batch(2), batch(3)], 21.0) == 3
    assert metrics.latest() == {one: batch(3)}


def test_nothing_behind_a_gap_is_acknowledged(metrics: MetricStore) -> None:
    one = DeviceId("dev-dev1")

    assert metrics.add(one, [batch(2)], 20.0) == 0
    assert metrics.add(one, [batch(1), batch(4)], 21.0) == 2
    assert metrics.add(one, [batch(3)], 22.0) == 4
    assert metrics.add(one, [batch(1)], 23.0) == 4


def test_numbers_that_json_lacks_come_back(metrics: MetricStore) -> None:
    one = DeviceId("dev-dev1")
    endless = Histogram((1.0, math.inf), (1, 2, 0), math.inf)
    samples = (Sample("loss", math.nan), Sample("top", math.inf), Sample("latency_ms", endless))

    assert metrics.add(one, [MetricBatch(1, 1.0, samples)], 20.0) == 1

    nan, top, histogram = metrics.latest()[one].samples
    assert isinstance(nan.value, float)
    assert math.isnan(nan.value)
    assert (top.value, histogram.value) == (math.inf, endless)


def test_batches_at_the_same_time_are_stored_once_each(metrics: MetricStore) -> None:
    one = DeviceId("dev-dev1")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: metrics.add(one, [batch(1), batch(2), batch(3)], 20.0), range(8)))

    assert metrics.add(one, [batch(4)], 21.0) == 4


def test_a_device_that_lost_its_spool_is_heard_again(metrics: MetricStore) -> None:
    """Its numbers begin at 1 again: they are another spool's, not batches that were stored before."""
    one = DeviceId("dev-dev1")
    metrics.add(one, [batch(1), batch(2), batch(3)], 20.0)

    assert metrics.add(one, [batch(1, "b")], 30.0) == 1
    assert metrics.latest() == {one: batch(1, "b")}
    assert metrics.add(one, [batch(4)], 31.0) == 4


def test_what_was_acknowledged_stays_so_when_old_batches_are_forgotten(metrics: MetricStore) -> None:
    one = DeviceId("dev-dev1")
    metrics.add(one, [batch(1), batch(2)], 20.0)
    metrics.add(one, [batch(3)], 30.0)

    assert metrics.forget(25.0) == 2
    assert metrics.latest() == {one: batch(3)}
    assert metrics.add(one, [batch(2)], 31.0) == 3, "a late repetition is not stored again"
    assert metrics.forget(40.0) == 1
    assert metrics.latest() == {}
    assert metrics.add(one, [batch(4)], 41.0) == 4


def test_an_old_spool_is_forgotten_once_the_device_has_another(metrics: MetricStore, fleet: FleetStore) -> None:
    fleet.add_tokens([token("t2")], ENTRY)
    fleet.enrol(device("dev2"), "t2", 2.0, ENTRY)
    one, away = DeviceId("dev-dev1"), DeviceId("dev-dev2")
    metrics.add(one, [batch(1), batch(2)], 20.0)
    metrics.add(one, [batch(1, "b")], 30.0)
    metrics.add(away, [batch(1), batch(2)], 20.0)

    metrics.forget(40.0)

    assert metrics.add(away, [batch(3)], 41.0) == 3, "its only spool is remembered however long it was away"
    assert metrics.add(one, [batch(2, "b")], 41.0) == 2, "so is the newest"
    assert metrics.add(one, [batch(1)], 42.0) == 1, "what is left of the older one begins anew"


def test_a_spool_that_was_heard_of_lately_is_remembered_beside_a_newer_one(metrics: MetricStore) -> None:
    one = DeviceId("dev-dev1")
    metrics.add(one, [batch(1), batch(2)], 20.0)
    metrics.add(one, [batch(1, "b")], 30.0)

    metrics.forget(15.0)

    assert metrics.add(one, [batch(3)], 31.0) == 3
