"""The fleet's stores on SQL."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Engine, Exists, Row, Select, and_, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from coordinator.fleet.device import (
    Admin,
    AuditEntry,
    Device,
    TokenRecord,
    key_taken,
    no_device,
    no_token,
    renewed_since,
    revoked_token,
    taken,
    unknown_token,
    used_token,
)
from coordinator.fleet.ports import Decide, DecideAdmin, DecideToken
from coordinator.fleet.states import DeviceState
from coordinator.store.engine import reading, transaction
from coordinator.store.tables import (
    admins,
    audit_log,
    device_models,
    devices,
    join_tokens,
    metric_batches,
    metric_spools,
)
from shared.ids import DeviceId, Digest, NodeId
from shared.session import MetricBatch, Sample, Serving


class SqlFleetStore:
    """Implements `coordinator.fleet.ports.FleetStore`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add_tokens(self, tokens: Sequence[TokenRecord], entry: AuditEntry) -> None:
        rows = [
            {
                "id": token.id,
                "secret_sha256": token.secret_sha256,
                "labels": dict(token.labels),
                "require_approval": token.require_approval,
                "created_at": token.created_at,
                "expires_at": token.expires_at,
                "created_by": token.created_by,
            }
            for token in tokens
        ]
        with transaction(self._engine) as connection:
            connection.execute(insert(join_tokens), rows)
            _audit(connection, entry)

    def token(self, token_id: str) -> TokenRecord | None:
        with reading(self._engine) as connection:
            row = connection.execute(select(join_tokens).where(join_tokens.c.id == token_id)).one_or_none()
        return None if row is None else _token(row)

    def tokens(self) -> list[TokenRecord]:
        query = select(join_tokens).order_by(join_tokens.c.created_at, join_tokens.c.id)
        with reading(self._engine) as connection:
            return [_token(row) for row in connection.execute(query)]

    def change_token(self, token_id: str, decide: DecideToken) -> TokenRecord:
        with transaction(self._engine) as connection:
            token = _find_token(connection, token_id)
            if token is None:
                raise no_token(token_id)
            changed, entry = decide(token)
            place, revoked_at = join_tokens.c.id == token_id, changed.revoked_at or None
            connection.execute(update(join_tokens).where(place).values(revoked_at=revoked_at))
            if entry is not None:
                _audit(connection, entry)
        return changed

    def forget_tokens(self, before: float) -> int:
        unused = join_tokens.c.spent_by_key_sha256.is_(None)
        revoked = func.coalesce(join_tokens.c.revoked_at, 0.0)
        old = and_(unused, join_tokens.c.expires_at < before, revoked < before)
        with transaction(self._engine) as connection:
            return connection.execute(delete(join_tokens).where(old)).rowcount

    def enrol(self, device: Device, token_id: str, spent_at: float, entry: AuditEntry) -> Device:
        try:
            with transaction(self._engine) as connection:
                token = _find_token(connection, token_id)
                if token is None:
                    raise unknown_token()
                if token.spent_by:
                    return self._enrolled_before(connection, token.spent_by, device)
                if token.revoked_at:
                    raise revoked_token()
                spent = {"spent_by_key_sha256": device.public_key_sha256, "spent_at": spent_at, "device_id": device.id}
                connection.execute(update(join_tokens).where(join_tokens.c.id == token_id).values(**spent))
                self._free_name(connection, device.name, entry)
                connection.execute(insert(devices).values(**_device_values(device)))
                _audit(connection, entry)
        except IntegrityError as error:
            raise taken(device) from error
        return device

    def _free_name(self, connection: Connection, name: str, entry: AuditEntry) -> None:
        """A machine that is set up afresh after its revocation keeps its name."""
        revoked = and_(devices.c.name == name, devices.c.state == DeviceState.REVOKED.value)
        former = connection.scalar(select(devices.c.id).where(revoked))
        if former is not None:
            connection.execute(update(devices).where(devices.c.id == former).values(name=former))
            _audit(connection, AuditEntry(entry.at, entry.actor, "device.rename", former, {"former_name": name}))

    def _enrolled_before(self, connection: Connection, spent_by: str, device: Device) -> Device:
        if spent_by != device.public_key_sha256:
            raise used_token()
        row = connection.execute(select(devices).where(devices.c.public_key_sha256 == spent_by)).one_or_none()
        if row is None:
            raise renewed_since()
        return _device(row, ())

    def change(self, id_or_name: str, decide: Decide) -> Device:
        with transaction(self._engine) as connection:
            device = _find(connection, id_or_name, lock=True)
            changed, entry = decide(device)
            values = _device_values(changed)
            try:
                connection.execute(update(devices).where(devices.c.id == values.pop("id")).values(**values))
            except IntegrityError as error:
                raise taken(changed) from error
            if entry is not None:
                _audit(connection, entry)
        return changed

    def record_serving(self, device: DeviceId, serving: Sequence[Serving], at: float) -> None:
        with transaction(self._engine) as connection:
            seen = connection.execute(update(devices).where(devices.c.id == device).values(last_seen_at=at))
            if seen.rowcount == 0:
                raise no_device(device)
            connection.execute(delete(device_models).where(device_models.c.device_id == device))
            if serving:
                rows = [{"device_id": device, "updated_at": at, **asdict(item)} for item in serving]
                connection.execute(insert(device_models), rows)

    def device(self, id_or_name: str) -> Device:
        with reading(self._engine) as connection:
            return _find(connection, id_or_name, lock=False)

    def devices(self) -> list[Device]:
        with reading(self._engine) as connection:
            rows = connection.execute(select(devices).order_by(devices.c.name)).all()
            models: dict[str, list[Row[Any]]] = {}
            for model in connection.execute(select(device_models).order_by(device_models.c.model)):
                models.setdefault(model.device_id, []).append(model)
        return [_device(row, models.get(row.id, [])) for row in rows]

    def audit(self, limit: int) -> list[AuditEntry]:
        with reading(self._engine) as connection:
            rows = connection.execute(select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)).all()
        return [
            AuditEntry(id=row.id, at=row.at, actor=row.actor, action=row.action, subject=row.subject, detail=row.detail)
            for row in reversed(rows)
        ]

    def append_audit(self, entry: AuditEntry) -> None:
        with transaction(self._engine) as connection:
            _audit(connection, entry)

    def forget_audit(self, before: float) -> int:
        with transaction(self._engine) as connection:
            return connection.execute(delete(audit_log).where(audit_log.c.at < before)).rowcount

    def change_admin(self, name: str, decide: DecideAdmin) -> Admin:
        place = admins.c.name == name
        try:
            with transaction(self._engine) as connection:
                row = connection.execute(select(admins).where(place).with_for_update()).one_or_none()
                found = None if row is None else _admin(row)
                changed, entry = decide(found)
                values = {**asdict(changed), "revoked_at": changed.revoked_at or None}
                connection.execute(insert(admins) if found is None else update(admins).where(place), values)
                if entry is not None:
                    _audit(connection, entry)
        except IntegrityError as error:
            raise key_taken() from error
        return changed

    def admin(self, name: str) -> Admin | None:
        with reading(self._engine) as connection:
            row = connection.execute(select(admins).where(admins.c.name == name)).one_or_none()
        return None if row is None else _admin(row)

    def admins(self) -> list[Admin]:
        with reading(self._engine) as connection:
            return [_admin(row) for row in connection.execute(select(admins).order_by(admins.c.name))]


class SqlMetricStore:
    """Implements `coordinator.fleet.ports.MetricStore`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert

    def add(self, device: DeviceId, batches: Sequence[MetricBatch], received_at: float) -> int:
        spool = batches[0].spool
        place = and_(metric_spools.c.device_id == device, metric_spools.c.spool == spool)
        with transaction(self._engine) as connection:
            fresh = {"device_id": device, "spool": spool, "acknowledged": 0, "updated_at": received_at}
            connection.execute(self._insert(metric_spools).values(**fresh).on_conflict_do_nothing())
            known = int(connection.scalar(select(metric_spools.c.acknowledged).where(place).with_for_update()) or 0)
            rows = [_batch_values(device, one, received_at) for one in batches if one.sequence > known]
            if rows:
                connection.execute(self._insert(metric_batches).on_conflict_do_nothing(), rows)
            number = int(connection.scalar(_last_before_gap(device, spool, known)) or known)
            connection.execute(update(metric_spools).where(place).values(acknowledged=number, updated_at=received_at))
        return number

    def latest(self) -> Mapping[DeviceId, MetricBatch]:
        table, last, spools, other = metric_batches, metric_batches.alias(), metric_spools, metric_spools.alias()
        newest = select(func.max(other.c.updated_at)).where(other.c.device_id == spools.c.device_id)
        highest = select(func.max(last.c.sequence)).where(
            last.c.device_id == spools.c.device_id, last.c.spool == spools.c.spool
        )
        of_spool = and_(table.c.device_id == spools.c.device_id, table.c.spool == spools.c.spool)
        query = select(table).join(spools, of_spool)
        query = query.where(spools.c.updated_at == newest.scalar_subquery())
        query = query.where(table.c.sequence == highest.scalar_subquery())
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return {DeviceId(row.device_id): _batch(row) for row in rows}

    def forget(self, before: float) -> int:
        spools, other = metric_spools, metric_spools.alias()
        newer = select(other.c.spool).where(
            other.c.device_id == spools.c.device_id, other.c.updated_at > spools.c.updated_at
        )
        with transaction(self._engine) as connection:
            dropped = connection.execute(delete(metric_batches).where(metric_batches.c.received_at < before)).rowcount
            connection.execute(delete(spools).where(spools.c.updated_at < before, newer.exists()))
        return dropped


def _last_before_gap(device: DeviceId, spool: str, acknowledged: int) -> Select[Any]:
    """The first number after `acknowledged` that no other follows; nothing if the very next one is missing."""
    table, next_, first = metric_batches, metric_batches.alias(), metric_batches.alias()

    def numbered(other: Any, number: Any) -> Exists:
        mine = and_(other.c.device_id == device, other.c.spool == spool)
        return select(other.c.sequence).where(mine, other.c.sequence == number).exists()

    return select(func.min(table.c.sequence)).where(
        table.c.device_id == device,
        table.c.spool == spool,
        table.c.sequence > acknowledged,
        ~numbered(next_, table.c.sequence + 1),
        numbered(first, acknowledged + 1),
    )


def _find_token(connection: Connection, token_id: str) -> TokenRecord | None:
    """Nobody else changes it until this transaction ends."""
    row = connection.execute(select(join_tokens).where(join_tokens.c.id == token_id).with_for_update()).one_or_none()
    return None if row is None else _token(row)


def _find(connection: Connection, id_or_name: str, *, lock: bool) -> Device:
    """An id goes before a name, so that no name stands for another device."""
    for column in (devices.c.id, devices.c.name):
        query = select(devices).where(column == id_or_name)
        row = connection.execute(query.with_for_update() if lock else query).one_or_none()
        if row is not None:
            models = select(device_models).where(device_models.c.device_id == row.id).order_by(device_models.c.model)
            return _device(row, connection.execute(models).all())
    raise no_device(id_or_name)


def _audit(connection: Connection, entry: AuditEntry) -> None:
    connection.execute(
        insert(audit_log).values(
            at=entry.at,
            actor=entry.actor[:128],
            action=entry.action,
            subject=entry.subject[:128],
            detail=dict(entry.detail),
        )
    )


def _device_values(device: Device) -> dict[str, Any]:
    return {
        "id": device.id,
        "node_id": device.node_id,
        "name": device.name,
        "state": device.state.value,
        "labels": dict(device.labels),
        "profile_json": device.profile_json,
        "public_key_sha256": device.public_key_sha256,
        "certificate_der": device.certificate_der,
        "certificate_expires_at": device.certificate_expires_at,
        "csr_der": device.csr_der,
        "enrolled_at": device.enrolled_at,
        "last_seen_at": device.last_seen_at,
        "agent_version": device.agent_version,
        "reason": device.reason,
    }


def _device(row: Row[Any], models: Sequence[Row[Any]]) -> Device:
    return Device(
        id=DeviceId(row.id),
        node_id=NodeId(row.node_id),
        name=row.name,
        state=DeviceState(row.state),
        labels=row.labels,
        profile_json=row.profile_json,
        public_key_sha256=row.public_key_sha256,
        certificate_der=bytes(row.certificate_der),
        certificate_expires_at=row.certificate_expires_at,
        csr_der=bytes(row.csr_der),
        enrolled_at=row.enrolled_at,
        last_seen_at=row.last_seen_at,
        agent_version=row.agent_version,
        reason=row.reason,
        serving=tuple(
            Serving(item.model, item.release, Digest(item.bundle_digest), bool(item.proven)) for item in models
        ),
    )


def _token(row: Row[Any]) -> TokenRecord:
    return TokenRecord(
        id=row.id,
        secret_sha256=row.secret_sha256,
        labels=row.labels,
        require_approval=bool(row.require_approval),
        created_at=row.created_at,
        expires_at=row.expires_at,
        created_by=row.created_by,
        spent_by=row.spent_by_key_sha256 or "",
        spent_at=row.spent_at or 0.0,
        device=row.device_id or "",
        revoked_at=row.revoked_at or 0.0,
    )


def _admin(row: Row[Any]) -> Admin:
    return Admin(row.name, row.public_key_sha256, row.issued_at, row.expires_at, row.revoked_at or 0.0)


def _batch_values(device: DeviceId, batch: MetricBatch, received_at: float) -> dict[str, Any]:
    return {
        "device_id": device,
        "spool": batch.spool,
        "sequence": batch.sequence,
        "created_at": batch.created_at,
        "received_at": received_at,
        "samples": [sample.to_plain() for sample in batch.samples],
    }


def _batch(row: Row[Any]) -> MetricBatch:
    return MetricBatch(row.sequence, row.created_at, tuple(map(Sample.from_plain, row.samples)), row.spool)
