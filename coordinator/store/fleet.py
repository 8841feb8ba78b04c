"""The fleet's stores on SQL."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from coordinator.fleet.device import AuditEntry, Device, TokenRecord
from coordinator.fleet.states import DeviceState
from coordinator.store.engine import transaction
from coordinator.store.tables import audit_log, device_models, devices, join_tokens, metric_batches
from shared.errors import Conflict, Forbidden, NotFound, Unauthenticated
from shared.ids import DeviceId, Digest, NodeId
from shared.session import Histogram, MetricBatch, Sample, Serving


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
            }
            for token in tokens
        ]
        with transaction(self._engine) as connection:
            connection.execute(insert(join_tokens), rows)
            _audit(connection, entry)

    def token(self, token_id: str) -> TokenRecord | None:
        with transaction(self._engine) as connection:
            row = connection.execute(select(join_tokens).where(join_tokens.c.id == token_id)).one_or_none()
        return None if row is None else _token(row)

    def enrol(self, device: Device, token_id: str, spent_at: float, entry: AuditEntry) -> Device:
        try:
            with transaction(self._engine) as connection:
                spent_by = connection.execute(
                    select(join_tokens.c.spent_by_key_sha256).where(join_tokens.c.id == token_id).with_for_update()
                ).one_or_none()
                if spent_by is None:
                    raise Unauthenticated("this join token is not known here; ask for a new one")
                if spent_by[0] is not None:
                    return self._enrolled_before(connection, spent_by[0], device)
                connection.execute(
                    update(join_tokens)
                    .where(join_tokens.c.id == token_id)
                    .values(spent_by_key_sha256=device.public_key_sha256, spent_at=spent_at)
                )
                connection.execute(insert(devices).values(**_device_values(device)))
                _audit(connection, entry)
        except IntegrityError as error:
            raise Conflict(f"a device named {device.name} or one with this key is in the fleet already") from error
        return device

    def _enrolled_before(self, connection: Connection, spent_by: str, device: Device) -> Device:
        if spent_by != device.public_key_sha256:
            raise Forbidden("this join token was used by another device; ask for a new one")
        row = connection.execute(select(devices).where(devices.c.public_key_sha256 == spent_by)).one_or_none()
        if row is None:
            raise Forbidden("this join token was used and its device has renewed its key since")
        return _device(row, ())

    def update(self, device: Device, entry: AuditEntry | None) -> None:
        with transaction(self._engine) as connection:
            values = _device_values(device)
            changed = connection.execute(update(devices).where(devices.c.id == values.pop("id")).values(**values))
            if changed.rowcount == 0:
                raise _no_device(device.id)
            if entry is not None:
                _audit(connection, entry)

    def record_serving(self, device: DeviceId, serving: Sequence[Serving], at: float) -> None:
        with transaction(self._engine) as connection:
            connection.execute(update(devices).where(devices.c.id == device).values(last_seen_at=at))
            connection.execute(delete(device_models).where(device_models.c.device_id == device))
            if serving:
                rows = [{"device_id": device, "updated_at": at, **asdict(item)} for item in serving]
                connection.execute(insert(device_models), rows)

    def device(self, id_or_name: str) -> Device:
        with transaction(self._engine) as connection:
            row = connection.execute(
                select(devices).where(or_(devices.c.id == id_or_name, devices.c.name == id_or_name))
            ).first()
            if row is None:
                raise _no_device(id_or_name)
            models = connection.execute(select(device_models).where(device_models.c.device_id == row.id)).all()
        return _device(row, models)

    def devices(self) -> list[Device]:
        with transaction(self._engine) as connection:
            rows = connection.execute(select(devices).order_by(devices.c.name)).all()
            models: dict[str, list[Row[Any]]] = {}
            for model in connection.execute(select(device_models).order_by(device_models.c.model)):
                models.setdefault(model.device_id, []).append(model)
        return [_device(row, models.get(row.id, [])) for row in rows]

    def audit(self, limit: int) -> list[AuditEntry]:
        with transaction(self._engine) as connection:
            rows = connection.execute(select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)).all()
        return [
            AuditEntry(id=row.id, at=row.at, actor=row.actor, action=row.action, subject=row.subject, detail=row.detail)
            for row in reversed(rows)
        ]

    def append_audit(self, entry: AuditEntry) -> None:
        with transaction(self._engine) as connection:
            _audit(connection, entry)


class SqlMetricStore:
    """Implements `coordinator.fleet.ports.MetricStore`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, device: DeviceId, batches: Sequence[MetricBatch], received_at: float) -> int:
        table = metric_batches
        with transaction(self._engine) as connection:
            numbers = [batch.sequence for batch in batches]
            known = set(
                connection.scalars(
                    select(table.c.sequence).where(and_(table.c.device_id == device, table.c.sequence.in_(numbers)))
                )
            )
            fresh = {batch.sequence: batch for batch in batches if batch.sequence not in known}
            if fresh:
                rows = [_batch_values(device, batch, received_at) for batch in fresh.values()]
                connection.execute(insert(table), rows)
            # Devices send in order and resend from the first unacknowledged one, so a gap can only be at the end.
            follows = table.alias()
            gap = (
                select(func.min(table.c.sequence))
                .where(table.c.device_id == device)
                .where(
                    ~select(follows.c.sequence)
                    .where(and_(follows.c.device_id == device, follows.c.sequence == table.c.sequence + 1))
                    .exists()
                )
            )
            return int(connection.scalar(gap) or 0) if self._starts_at_one(connection, device) else 0

    def _starts_at_one(self, connection: Connection, device: DeviceId) -> bool:
        first = select(func.min(metric_batches.c.sequence)).where(metric_batches.c.device_id == device)
        return bool(connection.scalar(first) == 1)

    def latest(self) -> Mapping[DeviceId, MetricBatch]:
        table = metric_batches
        newest = (
            select(table.c.device_id, func.max(table.c.sequence).label("sequence"))
            .group_by(table.c.device_id)
            .subquery()
        )
        query = select(table).join(
            newest, and_(table.c.device_id == newest.c.device_id, table.c.sequence == newest.c.sequence)
        )
        with transaction(self._engine) as connection:
            rows = connection.execute(query).all()
        return {DeviceId(row.device_id): _batch(row) for row in rows}


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


def _no_device(name: str) -> NotFound:
    return NotFound(f"no device {name[:64]!r}; `coordinator device list` shows them")


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
        spent_by=row.spent_by_key_sha256 or "",
        spent_at=row.spent_at or 0.0,
    )


def _batch_values(device: DeviceId, batch: MetricBatch, received_at: float) -> dict[str, Any]:
    samples = [
        {
            "name": sample.name,
            "labels": dict(sample.labels),
            "value": asdict(sample.value) if isinstance(sample.value, Histogram) else sample.value,
        }
        for sample in batch.samples
    ]
    return {
        "device_id": device,
        "sequence": batch.sequence,
        "created_at": batch.created_at,
        "received_at": received_at,
        "samples": samples,
    }


def _batch(row: Row[Any]) -> MetricBatch:
    return MetricBatch(row.sequence, row.created_at, tuple(_sample(item) for item in row.samples))


def _sample(item: Mapping[str, Any]) -> Sample:
    value = item["value"]
    if isinstance(value, Mapping):
        value = Histogram(tuple(value["bounds"]), tuple(value["counts"]), value["sum"])
    return Sample(item["name"], value, item["labels"])
