"""Jobs and rounds on SQL."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from coordinator.rounds.round import DeviceRow, Event, Job, Outcome, RoundRow
from coordinator.rounds.states import ENDED, JobState, RoundState
from coordinator.store.engine import transaction
from coordinator.store.tables import jobs, round_devices, round_events, rounds
from shared.errors import Conflict, NotFound
from shared.ids import DeviceId, Digest, JobId

_OPEN = [state.value for state in RoundState if state not in ENDED]


class SqlJobStore:
    """Implements `coordinator.rounds.ports.JobStore`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, job: Job, event: Event) -> Job:
        try:
            with transaction(self._engine) as connection:
                known = (
                    job.key and connection.execute(select(jobs).where(jobs.c.idempotency_key == job.key)).one_or_none()
                )
                if known:
                    return _job(known)
                connection.execute(insert(jobs).values(**_job_values(job)))
                _add_event(connection, event)
        except IntegrityError:
            with transaction(self._engine) as connection:  # another submission with this key came first
                return _job(connection.execute(select(jobs).where(jobs.c.idempotency_key == job.key)).one())
        return job

    def job(self, id_or_name: str) -> Job:
        with transaction(self._engine) as connection:
            query = select(jobs).where((jobs.c.id == id_or_name) | (jobs.c.name == id_or_name))
            row = connection.execute(query.order_by(jobs.c.created_at.desc()).limit(1)).one_or_none()
        if row is None:
            raise NotFound(f"no job {id_or_name[:64]!r}; `coordinator job list` shows them")
        return _job(row)

    def jobs(self) -> list[Job]:
        with transaction(self._engine) as connection:
            return [_job(row) for row in connection.execute(select(jobs).order_by(jobs.c.created_at))]

    def update(self, job: Job, event: Event) -> None:
        with transaction(self._engine) as connection:
            _update_job(connection, job)
            _add_event(connection, event)

    def begin(self, row: RoundRow, event: Event) -> None:
        with transaction(self._engine) as connection:
            connection.execute(insert(rounds).values(**_round_values(row)))
            _add_event(connection, event)

    def advance(self, row: RoundRow, state: RoundState, event: Event) -> None:
        with transaction(self._engine) as connection:
            connection.execute(update(rounds).where(_is(row)).values(state=state.value))
            _add_event(connection, event)

    def commit(self, job: Job, row: RoundRow, event: Event) -> None:
        with transaction(self._engine) as connection:
            last = connection.scalar(select(jobs.c.round).where(jobs.c.id == job.id).with_for_update())
            if last != row.round - 1 or job.round != row.round:
                raise Conflict(f"round {row.round} does not follow the last committed round {last}")
            self._end(connection, row)
            _update_job(connection, job)
            _add_event(connection, event)

    def abandon(self, row: RoundRow, event: Event) -> None:
        with transaction(self._engine) as connection:
            self._end(connection, row)
            _add_event(connection, event)

    def _end(self, connection: Connection, row: RoundRow) -> None:
        connection.execute(update(rounds).where(_is(row)).values(**_round_values(row)))
        if row.devices:
            connection.execute(insert(round_devices), [_device_values(row, device) for device in row.devices])

    def abandon_open(self, job: JobId, at: float) -> int:
        with transaction(self._engine) as connection:
            query = select(rounds.c.round, rounds.c.attempt).where(
                and_(rounds.c.job_id == job, rounds.c.state.in_(_OPEN))
            )
            found = connection.execute(query).all()
            reason = "the coordinator stopped before it was committed"
            for number, attempt in found:
                connection.execute(
                    update(rounds)
                    .where(and_(rounds.c.job_id == job, rounds.c.round == number, rounds.c.attempt == attempt))
                    .values(state=RoundState.ABANDONED.value, ended_at=at, reason=reason)
                )
                _add_event(connection, Event(job, number, attempt, at, RoundState.ABANDONED, {"reason": reason}))
        return len(found)

    def rounds(self, job: JobId) -> list[RoundRow]:
        with transaction(self._engine) as connection:
            devices: dict[tuple[int, int], list[DeviceRow]] = {}
            for row in connection.execute(select(round_devices).where(round_devices.c.job_id == job)):
                devices.setdefault((row.round, row.attempt), []).append(_device(row))
            query = select(rounds).where(rounds.c.job_id == job).order_by(rounds.c.round, rounds.c.attempt)
            found = connection.execute(query).all()
        return [_round(row, devices.get((row.round, row.attempt), [])) for row in found]

    def events(self, job: JobId, after_id: int = 0) -> list[Event]:
        with transaction(self._engine) as connection:
            query = select(round_events).where(and_(round_events.c.job_id == job, round_events.c.id > after_id))
            return [_event(row) for row in connection.execute(query.order_by(round_events.c.id))]

    def counts(self) -> Mapping[str, int]:
        """How many jobs there are in each state, for metrics."""
        with transaction(self._engine) as connection:
            query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
            return {state: number for state, number in connection.execute(query)}


def _is(row: RoundRow) -> Any:
    return and_(rounds.c.job_id == row.job, rounds.c.round == row.round, rounds.c.attempt == row.attempt)


def _add_event(connection: Connection, event: Event) -> None:
    connection.execute(
        insert(round_events).values(
            job_id=event.job,
            round=event.round,
            attempt=event.attempt,
            at=event.at,
            kind=str(event.kind),
            detail=dict(event.detail),
        )
    )


def _update_job(connection: Connection, job: Job) -> None:
    values = _job_values(job)
    changed = connection.execute(update(jobs).where(jobs.c.id == values.pop("id")).values(**values))
    if changed.rowcount == 0:
        raise NotFound(f"no job {job.id}")


def _job_values(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state.value,
        "toml": job.toml,
        "idempotency_key": job.key or None,
        "run_id": job.run_id,
        "created_at": job.created_at,
        "ended_at": job.ended_at or None,
        "reason": job.reason,
        "round": job.round,
        "arrays_digest": job.arrays_digest,
        "model_json": job.model_json or None,
        "strategy_digest": job.strategy_digest,
        "release": job.release,
    }


def _job(row: Row[Any]) -> Job:
    return Job(
        id=JobId(row.id),
        name=row.name,
        state=JobState(row.state),
        toml=row.toml,
        key=row.idempotency_key or "",
        run_id=row.run_id,
        created_at=row.created_at,
        ended_at=row.ended_at or 0.0,
        reason=row.reason,
        round=row.round,
        arrays_digest=Digest(row.arrays_digest) if row.arrays_digest else None,
        model_json=row.model_json or "",
        strategy_digest=Digest(row.strategy_digest) if row.strategy_digest else None,
        release=row.release,
    )


def _round_values(row: RoundRow) -> dict[str, Any]:
    return {
        "job_id": row.job,
        "round": row.round,
        "attempt": row.attempt,
        "state": row.state.value,
        "started_at": row.started_at,
        "ended_at": row.ended_at or None,
        "total_weight": row.total_weight,
        "arrays_digest": row.arrays_digest,
        "metrics": dict(row.metrics),
        "bytes_down": row.bytes_down,
        "bytes_up": row.bytes_up,
        "reason": row.reason,
    }


def _round(row: Row[Any], devices: list[DeviceRow]) -> RoundRow:
    return RoundRow(
        job=JobId(row.job_id),
        round=row.round,
        attempt=row.attempt,
        state=RoundState(row.state),
        started_at=row.started_at,
        ended_at=row.ended_at or 0.0,
        total_weight=row.total_weight,
        arrays_digest=Digest(row.arrays_digest) if row.arrays_digest else None,
        metrics=row.metrics,
        bytes_down=row.bytes_down,
        bytes_up=row.bytes_up,
        reason=row.reason,
        devices=tuple(sorted(devices, key=lambda device: device.device)),
    )


def _device_values(row: RoundRow, device: DeviceRow) -> dict[str, Any]:
    return {
        "job_id": row.job,
        "round": row.round,
        "attempt": row.attempt,
        "device_id": device.device,
        "outcome": device.outcome.value,
        "reason": device.reason,
        "weight": device.weight,
        "bytes_down": device.bytes_down,
        "bytes_up": device.bytes_up,
        "seconds": device.seconds,
    }


def _device(row: Row[Any]) -> DeviceRow:
    return DeviceRow(
        device=DeviceId(row.device_id),
        outcome=Outcome(row.outcome),
        reason=row.reason,
        weight=row.weight,
        bytes_down=row.bytes_down,
        bytes_up=row.bytes_up,
        seconds=row.seconds,
    )


def _event(row: Row[Any]) -> Event:
    return Event(
        id=row.id,
        job=JobId(row.job_id),
        round=row.round,
        attempt=row.attempt,
        at=row.at,
        kind=row.kind,
        detail=row.detail,
    )
