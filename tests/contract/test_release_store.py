"""What every `ReleaseStore` owes: in memory, on SQLite, and on PostgreSQL where SHOAL_TEST_POSTGRES_URL names a server."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, text, update

from coordinator.releases.memory import MemoryReleaseStore
from coordinator.releases.plan import RolloutPlan
from coordinator.releases.ports import ReleaseStore
from coordinator.releases.release import Change, Rollout, RolloutDevice, RolloutRecord
from coordinator.releases.states import UNFINISHED, DeviceState, RolloutState
from coordinator.store.engine import transaction
from coordinator.store.releases import SqlReleaseStore
from coordinator.store.tables import devices, releases
from shared.errors import Conflict, Corrupt, NotFound
from shared.ids import DeviceId, RolloutId
from shared.session import Gate
from tests.unit.releases.factories import NOW, ROLLOUT, a_manifest, a_receipt, a_release, a_rollout, a_row

PLAN = RolloutRecord(NOW, "plan", {"actor": "ann", "devices": 2})


def _sql(engine: Engine) -> SqlReleaseStore:
    with transaction(engine) as connection:
        for number in (1, 2, 3):
            row: dict[str, Any] = {
                "id": f"dev-{number}",
                "node_id": number,
                "name": f"name-{number}",
                "state": "active",
                "labels": {},
                "profile_json": "{}",
                "public_key_sha256": f"{number:064x}",
                "certificate_der": b"",
                "certificate_expires_at": 0.0,
                "csr_der": b"",
                "enrolled_at": NOW,
                "last_seen_at": NOW,
                "agent_version": "1",
                "reason": "",
            }
            connection.execute(devices.insert().values(**row))
    return SqlReleaseStore(engine)


@pytest.fixture
def store(store_kind: Callable[[Any, Any], Any]) -> ReleaseStore:
    built: ReleaseStore = store_kind(MemoryReleaseStore, _sql)
    return built


def _planned(store: ReleaseStore, **changes: Any) -> Rollout:
    """A rollout of release 1 to two devices, as stored."""
    if not store.releases():
        store.add_release(a_release())
    rollout = a_rollout(a_row(), a_row("dev-2", 2), state=RolloutState.PLANNED, stage=0, **changes)
    store.create(rollout, PLAN)
    return rollout


def test_a_release_comes_back_as_it_was_added(store: ReleaseStore) -> None:
    release = a_release(report={"accuracy": 0.97, "notes": ["a", {"b": None}]})
    store.add_release(release)
    assert store.release("digits", 1) == release
    assert store.releases() == [release]


def test_releases_are_listed_by_model_and_number(store: ReleaseStore) -> None:
    for model, number in (("signs", 1), ("digits", 10), ("digits", 2)):
        store.add_release(a_release(number, model))
    assert [str(release) for release in store.releases()] == ["digits:2", "digits:10", "signs:1"]


def test_a_number_is_taken_once(store: ReleaseStore) -> None:
    store.add_release(a_release())
    with pytest.raises(Conflict, match="digits:1 exists already"):
        store.add_release(replace(a_release(), manifest=a_manifest(salt="another")))
    assert store.releases() == [a_release()]


def test_number_zero_is_the_newest_that_was_not_withdrawn(store: ReleaseStore) -> None:
    for number in (1, 2, 3):
        store.add_release(a_release(number))
    store.withdraw("digits", 3)
    store.withdraw("digits", 3)
    assert store.release("digits").number == 2
    assert store.release("digits", 3).withdrawn
    for number in (1, 2):
        store.withdraw("digits", number)
    with pytest.raises(NotFound):
        store.release("digits")


@pytest.mark.parametrize(("model", "number"), [("digits", 2), ("signs", 0), ("signs", 1)])
def test_an_unknown_release_is_not_found(store: ReleaseStore, model: str, number: int) -> None:
    store.add_release(a_release())
    with pytest.raises(NotFound, match="model list"):
        store.release(model, number)
    with pytest.raises(NotFound):
        store.withdraw(model, number or 1)


def test_a_rollout_comes_back_as_it_was_created(store: ReleaseStore) -> None:
    plan = RolloutPlan(stages=(1, 2, 0.5, 1.0), gate=Gate(accuracy_budget=0.05, requantize=False), soak_s=2.5)
    rollout = _planned(store, plan=plan, cohort="site=lab", reason="")
    assert store.rollout(ROLLOUT) == rollout
    assert store.rollouts() == [rollout]
    (record,) = store.records(ROLLOUT)
    assert (record.at, record.kind, record.detail) == (NOW, "plan", PLAN.detail)
    assert record.id > 0


def test_a_rollout_of_an_unknown_release_is_not_created(store: ReleaseStore) -> None:
    with pytest.raises(NotFound, match="model list"):
        store.create(a_rollout(), PLAN)
    assert store.rollouts() == []


@pytest.mark.parametrize("state", sorted(RolloutState))
def test_a_model_has_one_unfinished_rollout(store: ReleaseStore, state: RolloutState) -> None:
    _planned(store)
    store.change(ROLLOUT, lambda before: Change(replace(before, state=state), ()))
    second = a_rollout(id=RolloutId("rol-2"))
    if state in UNFINISHED:
        with pytest.raises(Conflict, match=f"{ROLLOUT} of digits has not ended"):
            store.create(second, PLAN)
        assert [rollout.id for rollout in store.rollouts()] == [ROLLOUT]
    else:
        store.create(second, PLAN)
        assert len(store.rollouts()) == 2


def test_rollouts_of_different_models_do_not_wait_for_each_other(store: ReleaseStore) -> None:
    _planned(store)
    store.add_release(a_release(1, "signs"))
    other = a_rollout(release=a_release(1, "signs"), id=RolloutId("rol-2"), created_at=NOW - 60)
    store.create(other, PLAN)
    assert [rollout.id for rollout in store.rollouts()] == ["rol-2", ROLLOUT]  # oldest first


def test_a_change_writes_rollout_devices_history_and_withdrawal_together(store: ReleaseStore) -> None:
    _planned(store)
    receipt = a_receipt(device="dev-1", latency_after_ms=0.1 + 0.2)

    def decide(before: Rollout) -> Change:
        proven = replace(
            before.devices[0], state=DeviceState.PROVEN, receipt=receipt, signature=b"\x00\xff", updated_at=NOW + 5
        )
        joined = RolloutDevice(DeviceId("dev-3"), 3, reason="late", updated_at=NOW + 5)
        after = replace(
            before,
            state=RolloutState.UNDOING,
            stage=2,
            stage_started_at=NOW + 5,
            ended_at=NOW + 6,
            reason="wrong",
            devices=(proven, before.devices[1], joined),
        )
        return Change(after, (RolloutRecord(NOW + 5, "undo", {"actor": "ann"}), RolloutRecord(NOW + 5, "x")), True)

    changed = store.change(ROLLOUT, decide)
    assert store.rollout(ROLLOUT) == changed
    assert store.rollouts() == [changed]
    assert changed.devices[0].receipt == receipt
    assert [record.kind for record in store.records(ROLLOUT)] == ["plan", "undo", "x"]
    assert store.release("digits", 1).withdrawn


def test_a_change_sees_what_the_one_before_wrote(store: ReleaseStore) -> None:
    _planned(store)
    for stage in (1, 2, 3):
        store.change(ROLLOUT, lambda before: Change(replace(before, stage=before.stage + 1), ()))
        assert store.rollout(ROLLOUT).stage == stage


def test_deciding_on_nothing_writes_nothing(store: ReleaseStore) -> None:
    rollout = _planned(store)
    assert store.change(ROLLOUT, lambda before: None) == rollout
    assert (store.rollout(ROLLOUT), len(store.records(ROLLOUT))) == (rollout, 1)


def test_a_decision_that_refuses_changes_nothing(store: ReleaseStore) -> None:
    rollout = _planned(store)

    def refuse(before: Rollout) -> Change:
        raise Conflict("not now")

    with pytest.raises(Conflict, match="not now"):
        store.change(ROLLOUT, refuse)
    assert (store.rollout(ROLLOUT), len(store.records(ROLLOUT))) == (rollout, 1)


def test_an_unknown_rollout_is_not_found(store: ReleaseStore) -> None:
    with pytest.raises(NotFound, match="rollout list"):
        store.rollout("rol-unknown")
    with pytest.raises(NotFound, match="rollout list"):
        store.change(RolloutId("rol-unknown"), lambda before: None)
    assert store.records(RolloutId("rol-unknown")) == []


def test_history_can_be_read_from_where_one_stopped(store: ReleaseStore) -> None:
    _planned(store)
    for kind in ("begin", "advance"):
        store.change(ROLLOUT, lambda before, kind=kind: Change(before, (RolloutRecord(NOW, kind),)))  # type: ignore[misc]
    everything = store.records(ROLLOUT)
    assert [record.kind for record in everything] == ["plan", "begin", "advance"]
    assert store.records(ROLLOUT, everything[0].id) == everything[1:]
    assert store.records(ROLLOUT, everything[-1].id) == []


def _several(store: ReleaseStore) -> None:
    """Of `digits`: one that ended, one undone with a device that must go back, one that is current. Of `signs`: one undone."""
    rows = {
        "rol-old": (RolloutState.COMPLETED, DeviceState.PROVEN, "digits"),
        "rol-late": (RolloutState.UNDONE, DeviceState.WITHDRAWING, "digits"),
        "rol-now": (RolloutState.COMPLETED, DeviceState.PROVEN, "digits"),
        "rol-gone": (RolloutState.UNDONE, DeviceState.REVERTED, "signs"),
    }
    for place, (name, (state, device, model)) in enumerate(rows.items()):
        if not any(one.model == model for one in store.releases()):
            store.add_release(a_release(1, model))
        rollout = a_rollout(
            a_row(state=device), release=a_release(1, model), id=RolloutId(name), state=state, created_at=NOW + place
        )
        store.create(rollout, PLAN)


def test_what_stands_is_what_may_still_ask_for_something(store: ReleaseStore) -> None:
    _several(store)
    assert {rollout.id for rollout in store.standing()} == {"rol-late", "rol-now"}
    undoing = a_rollout(a_row(), release=a_release(1, "signs"), id=RolloutId("rol-new"), state=RolloutState.UNDOING)
    store.create(undoing, PLAN)
    assert {rollout.id for rollout in store.standing()} == {"rol-late", "rol-now", "rol-new"}


def test_the_wanted_rollout_of_a_model_is_the_newest_that_was_not_turned_down(store: ReleaseStore) -> None:
    _several(store)
    found = store.wanted("digits")
    assert found == store.rollout("rol-now")
    assert store.wanted("signs") is None
    assert store.wanted("unknown") is None


def test_a_device_has_proved_another_release_only_where_that_still_stands(store: ReleaseStore) -> None:
    _several(store)
    one, other = DeviceId("dev-1"), DeviceId("dev-2")
    assert store.proved("digits", one, but=RolloutId("rol-now"))
    assert not store.proved("digits", other, but=RolloutId("rol-now"))
    assert not store.proved("signs", one, but=RolloutId("rol-now"))
    store.change(RolloutId("rol-old"), lambda before: Change(replace(before, state=RolloutState.UNDONE), ()))
    assert not store.proved("digits", one, but=RolloutId("rol-now"))


def test_rollouts_are_counted_by_state(store: ReleaseStore) -> None:
    assert store.counts() == {}
    _several(store)
    assert store.counts() == {"COMPLETED": 2, "UNDONE": 2}


def test_the_old_history_of_what_has_ended_is_forgotten_and_of_what_has_not_is_kept(store: ReleaseStore) -> None:
    _several(store)
    running = a_rollout(a_row(), id=RolloutId("rol-run"), state=RolloutState.STAGING, created_at=NOW + 9)
    store.create(running, PLAN)
    last = RolloutRecord(NOW + 5, "x")
    store.change(RolloutId("rol-now"), lambda before: Change(before, (last,)))

    assert store.forget_records(NOW + 1) == 4

    assert [record.kind for record in store.records(RolloutId("rol-now"))] == ["x"]
    assert [record.kind for record in store.records(RolloutId("rol-run"))] == ["plan"]
    assert store.records(RolloutId("rol-old")) == []
    assert store.rollout("rol-old").state is RolloutState.COMPLETED, "the rollout itself stays"


# ---- on SQL alone


@pytest.fixture
def sql(engine: Engine) -> tuple[Engine, SqlReleaseStore]:
    return engine, _sql(engine)


def test_a_write_that_fails_half_way_leaves_no_trace(sql: tuple[Engine, SqlReleaseStore]) -> None:
    engine, store = sql
    rollout = _planned(store)
    with transaction(engine) as connection:
        connection.execute(
            text("ALTER TABLE rollout_events RENAME TO elsewhere")
        )  # the last table that a change writes
    with pytest.raises(Exception, match="rollout_events"):
        store.change(
            ROLLOUT, lambda before: Change(replace(before, state=RolloutState.UNDOING), (RolloutRecord(NOW, "undo"),))
        )
    with transaction(engine) as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO rollout_events"))
    assert store.rollout(ROLLOUT) == rollout


def test_a_damaged_manifest_is_noticed(sql: tuple[Engine, SqlReleaseStore]) -> None:
    engine, store = sql
    store.add_release(a_release())
    with transaction(engine) as connection:
        connection.execute(update(releases).values(manifest_digest="0" * 64))
    with pytest.raises(Corrupt, match="digest does not match"):
        store.release("digits", 1)
