"""Releases and rollouts on SQL. What a method returned from is committed; a rollout's change is decided inside its transaction."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    or_,
    select,
    union,
    update,
)
from sqlalchemy.exc import IntegrityError

from coordinator.releases.plan import RolloutPlan
from coordinator.releases.release import (
    Decide,
    Release,
    Rollout,
    RolloutDevice,
    RolloutRecord,
    no_release,
    no_rollout,
    unfinished_rollout,
)
from coordinator.releases.states import UNFINISHED, UNWANTED, DeviceState, RolloutState
from coordinator.store.engine import reading, transaction
from coordinator.store.tables import releases, rollout_devices, rollout_events, rollouts
from shared.errors import Conflict, Corrupt, ShoalError
from shared.ids import DeviceId, Digest, RolloutId
from shared.signing.manifest import Manifest
from shared.signing.receipts import Receipt


class SqlReleaseStore:
    """Implements `coordinator.releases.ports.ReleaseStore`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add_release(self, release: Release) -> None:
        manifest = json.loads(release.manifest.to_bytes())
        values = {
            "model": release.model,
            "release": release.number,
            "manifest_digest": release.digest,
            "manifest": manifest,
            "lineage": dict(release.manifest.lineage),
            "report": dict(release.report),
            "created_at": release.manifest.created_at,
            "withdrawn": release.withdrawn,
        }
        try:
            with transaction(self._engine) as connection:
                connection.execute(insert(releases).values(**values))
        except IntegrityError as error:
            raise Conflict(f"release {release} exists already") from error

    def release(self, model: str, number: int = 0) -> Release:
        wanted = releases.c.release == number if number else releases.c.withdrawn.is_(False)
        query = select(releases).where(and_(releases.c.model == model, wanted)).order_by(releases.c.release.desc())
        with reading(self._engine) as connection:
            row = connection.execute(query).first()
        if row is None:
            raise no_release(model, number)
        return _release(row)

    def releases(self) -> list[Release]:
        with reading(self._engine) as connection:
            rows = connection.execute(select(releases).order_by(releases.c.model, releases.c.release)).all()
        return [_release(row) for row in rows]

    def withdraw(self, model: str, number: int) -> None:
        with transaction(self._engine) as connection:
            _withdraw(connection, model, number)

    def create(self, rollout: Rollout, record: RolloutRecord) -> None:
        with transaction(self._engine) as connection:
            # The release's row is the lock that orders two starts at once (on SQLite the transaction is).
            locked = connection.execute(
                select(releases.c.release).where(releases.c.model == rollout.model).with_for_update()
            )
            if rollout.release not in locked.scalars().all():
                raise no_release(rollout.model, rollout.release)
            busy = and_(rollouts.c.model == rollout.model, rollouts.c.state.in_(sorted(UNFINISHED)))
            other = connection.execute(select(rollouts.c.id).where(busy)).scalars().first()
            if other is not None:
                raise unfinished_rollout(other, rollout.model)
            connection.execute(insert(rollouts).values(**_rollout_values(rollout)))
            _write_devices(connection, rollout, ())
            _append(connection, rollout.id, (record,))

    def change(self, rollout: RolloutId, decide: Decide) -> Rollout:
        with transaction(self._engine) as connection:
            before = _read(connection, rollout, lock=True)
            change = decide(before)
            if change is None:
                return before
            values = _rollout_values(change.rollout)
            connection.execute(update(rollouts).where(rollouts.c.id == values.pop("id")).values(**values))
            _write_devices(connection, change.rollout, before.devices)
            _append(connection, rollout, change.records)
            if change.withdraws:
                _withdraw(connection, before.model, before.release)
            return change.rollout

    def rollout(self, rollout: str) -> Rollout:
        with reading(self._engine) as connection:
            return _read(connection, rollout, lock=False)

    def rollouts(self) -> list[Rollout]:
        with reading(self._engine) as connection:
            found = connection.execute(_WITH_DIGEST.order_by(rollouts.c.created_at, rollouts.c.id)).all()
            devices: dict[str, list[RolloutDevice]] = {}
            for row in connection.execute(_DEVICES):
                devices.setdefault(row.rollout_id, []).append(_device(row))
        return [_rollout(row, tuple(devices.get(row.id, ()))) for row in found]

    def standing(self) -> list[Rollout]:
        with reading(self._engine) as connection:
            models = [row.model for row in connection.execute(select(rollouts.c.model).distinct())]
            current = {row.id for model in models for row in connection.execute(_newest_wanted(model))}
            standing = {row.id for row in connection.execute(_MAY_STAND)}
            found = [_read(connection, one, lock=False) for one in current | standing]
        kept = [one for one in found if one.stands or one.id in current]
        return sorted(kept, key=lambda one: (one.created_at, one.id))

    def wanted(self, model: str) -> Rollout | None:
        with reading(self._engine) as connection:
            newest = connection.execute(_newest_wanted(model)).first()
            return None if newest is None else _read(connection, newest.id, lock=False)

    def proved(self, model: str, device: DeviceId, *, but: RolloutId) -> bool:
        table = rollout_devices
        query = select(table.c.rollout_id).join(rollouts, rollouts.c.id == table.c.rollout_id)
        query = query.where(table.c.device_id == device, table.c.state == DeviceState.PROVEN.value)
        query = query.where(rollouts.c.model == model, rollouts.c.id != but, _IS_WANTED)
        with reading(self._engine) as connection:
            return connection.execute(query.limit(1)).first() is not None

    def counts(self) -> Mapping[str, int]:
        query = select(rollouts.c.state, func.count()).group_by(rollouts.c.state)
        with reading(self._engine) as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def records(self, rollout: RolloutId, after_id: int = 0) -> list[RolloutRecord]:
        table = rollout_events
        query = select(table).where(and_(table.c.rollout_id == rollout, table.c.id > after_id)).order_by(table.c.id)
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return [RolloutRecord(row.at, row.kind, row.detail, row.id) for row in rows]

    def forget_records(self, before: float) -> int:
        ended = select(rollouts.c.id).where(rollouts.c.state.not_in(sorted(UNFINISHED)))
        old = and_(rollout_events.c.at < before, rollout_events.c.rollout_id.in_(ended))
        with transaction(self._engine) as connection:
            return connection.execute(delete(rollout_events).where(old)).rowcount


_IS_WANTED = rollouts.c.state.not_in(sorted(UNWANTED))
_MAY_SERVE = or_(
    rollout_devices.c.state.in_([DeviceState.OFFERED, DeviceState.PROVEN, DeviceState.WITHDRAWING]),
    cast(rollout_devices.c.receipt, Text).contains("proven"),  # it may claim to serve; `Rollout.stands` looks closely
)
_MAY_STAND = union(
    select(rollouts.c.id).where(rollouts.c.state.in_(sorted(UNFINISHED))),
    select(rollouts.c.id).join(rollout_devices).where(rollouts.c.state.in_(sorted(UNWANTED)), _MAY_SERVE),
)


def _newest_wanted(model: str) -> Select[tuple[str]]:
    query = select(rollouts.c.id).where(rollouts.c.model == model, _IS_WANTED)
    return query.order_by(rollouts.c.created_at.desc(), rollouts.c.id.desc()).limit(1)


# Receipts are read as text: each is parsed once, however often its rollout changes.
_DEVICES = select(
    *(column for column in rollout_devices.c if column.name != "receipt"),
    cast(rollout_devices.c.receipt, Text).label("receipt_text"),
).order_by(rollout_devices.c.stage, rollout_devices.c.device_id)
_OF_RELEASE = and_(releases.c.model == rollouts.c.model, releases.c.release == rollouts.c.release)
_WITH_DIGEST = select(rollouts, releases.c.manifest_digest).join(releases, _OF_RELEASE)


def _read(connection: Connection, rollout: str, *, lock: bool) -> Rollout:
    if lock:  # PostgreSQL locks the row; SQLite's transaction holds the only write lock already
        connection.execute(select(rollouts.c.id).where(rollouts.c.id == rollout).with_for_update())
    row = connection.execute(_WITH_DIGEST.where(rollouts.c.id == rollout)).first()
    if row is None:
        raise no_rollout(rollout)
    query = _DEVICES.where(rollout_devices.c.rollout_id == rollout)
    return _rollout(row, tuple(_device(item) for item in connection.execute(query)))


def _withdraw(connection: Connection, model: str, number: int) -> None:
    row = and_(releases.c.model == model, releases.c.release == number)
    if connection.execute(update(releases).where(row).values(withdrawn=True)).rowcount == 0:
        raise no_release(model, number)


def _append(connection: Connection, rollout: RolloutId, records: tuple[RolloutRecord, ...]) -> None:
    rows = [{"rollout_id": rollout, "at": item.at, "kind": item.kind, "detail": dict(item.detail)} for item in records]
    if rows:
        connection.execute(insert(rollout_events), rows)


def _write_devices(connection: Connection, rollout: Rollout, before: tuple[RolloutDevice, ...]) -> None:
    known = {row.device: row for row in before}
    fresh = [_device_values(rollout.id, row) for row in rollout.devices if row.device not in known]
    if fresh:
        connection.execute(insert(rollout_devices), fresh)
    changed = [row for row in rollout.devices if row.device in known and known[row.device] != row]
    if changed:
        table = rollout_devices
        place = and_(table.c.rollout_id == bindparam("at_rollout"), table.c.device_id == bindparam("at_device"))
        rows = [_device_values(rollout.id, row) for row in changed]
        keyed = [{**row, "at_rollout": row.pop("rollout_id"), "at_device": row.pop("device_id")} for row in rows]
        columns = [name for name in keyed[0] if not name.startswith("at_")]
        connection.execute(update(table).where(place).values({name: bindparam(name) for name in columns}), keyed)


def _device_values(rollout: RolloutId, row: RolloutDevice) -> dict[str, Any]:
    return {
        "rollout_id": rollout,
        "device_id": row.device,
        "stage": row.stage,
        "state": row.state.value,
        "reason": row.reason,
        "receipt": None if row.receipt is None else json.loads(row.receipt.to_bytes()),
        "signature": row.signature,
        "updated_at": row.updated_at,
    }


def _rollout_values(rollout: Rollout) -> dict[str, Any]:
    return {
        "id": rollout.id,
        "model": rollout.model,
        "release": rollout.release,
        "state": rollout.state.value,
        "stage": rollout.stage,
        "stage_started_at": rollout.stage_started_at,
        "plan": rollout.plan.to_mapping(),
        "cohort": rollout.cohort,
        "created_at": rollout.created_at,
        "ended_at": rollout.ended_at or None,
        "reason": rollout.reason,
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _release(row: Row[Any]) -> Release:
    try:
        manifest = Manifest.from_bytes(_canonical(row.manifest))
    except ShoalError as error:
        raise Corrupt(f"release {row.model}:{row.release} is damaged in the database", detail=str(error)) from error
    if manifest.digest != row.manifest_digest:
        raise Corrupt(f"release {row.model}:{row.release} is damaged in the database: its digest does not match")
    return Release(manifest, row.report, row.withdrawn)


def _rollout(row: Row[Any], devices: tuple[RolloutDevice, ...]) -> Rollout:
    return Rollout(
        id=RolloutId(row.id),
        model=row.model,
        release=row.release,
        digest=Digest(row.manifest_digest),
        state=RolloutState(row.state),
        plan=RolloutPlan.from_mapping(row.plan),
        cohort=row.cohort,
        created_at=row.created_at,
        stage=row.stage,
        stage_started_at=row.stage_started_at,
        ended_at=row.ended_at or 0.0,
        reason=row.reason,
        devices=devices,
    )


@functools.lru_cache(maxsize=16_384)
def _receipt(text: str) -> Receipt | None:
    value = json.loads(text)
    return None if value is None else Receipt.from_bytes(_canonical(value))


def _device(row: Any) -> RolloutDevice:
    return RolloutDevice(
        device=DeviceId(row.device_id),
        stage=row.stage,
        state=DeviceState(row.state),
        reason=row.reason,
        receipt=_receipt(row.receipt_text or "null"),
        signature=row.signature or b"",
        updated_at=row.updated_at,
    )
