"""Jobs and rounds on SQL. What a method returned from is committed; a transition is judged inside its transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from coordinator.rounds.round import (
    DeviceRow,
    Event,
    Job,
    Outcome,
    RoundRow,
    check_commit,
    committed_state,
    ended_job,
    first_state,
    no_job,
)
from coordinator.rounds.states import ENDED, JobEvent, JobState, RoundState, advance, after, walk
from coordinator.store.engine import reading, transaction
from coordinator.store.tables import jobs, round_devices, round_events, rounds
from shared.errors import Conflict, NotFound
from shared.ids import DeviceId, Digest, JobId


class SqlJobStore:
    """Implements `coordinator.rounds.ports.JobStore`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, job: Job, event: Event) -> Job:
        try:
            with transaction(self._engine) as connection:
                known = _by_key(connection, job.key)
                if known is not None:
                    return known
                connection.execute(insert(jobs).values(**_job_values(job)))
                _append(connection, event)
        except IntegrityError as error:
            known = self.by_key(job.key)  # another thread was quicker with the same key
            if known is None:
                raise Conflict(f"job {job.id} exists already") from error
            return known
        return job

    def job(self, id_or_name: str) -> Job:
        query = (
            select(jobs)
            .where(or_(jobs.c.id == id_or_name, jobs.c.name == id_or_name))
            .order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).first()
        if row is None:
            raise no_job(id_or_name)
        return _job(row)

    def by_key(self, key: str) -> Job | None:
        with reading(self._engine) as connection:
            return _by_key(connection, key)

    def jobs(self) -> list[Job]:
        with reading(self._engine) as connection:
            found = connection.execute(select(jobs).order_by(jobs.c.created_at, jobs.c.id)).all()
        return [_job(row) for row in found]

    def change(self, job: JobId, trigger: JobEvent, event: Event, *, reason: str = "", release: int = 0) -> Job:
        with transaction(self._engine) as connection:
            old = _locked_job(connection, job)
            changed = ended_job(replace(old, state=after(old.state, trigger)), event.at, reason, release)
            values = {key: _job_values(changed)[key] for key in ("state", "ended_at", "reason", "release")}
            connection.execute(update(jobs).where(jobs.c.id == job).values(**values))
            _append(connection, event)
            return changed

    def begin(self, row: RoundRow, *events: Event) -> None:
        values = {**_round_values(row), "state": first_state(events).value}
        try:
            with transaction(self._engine) as connection:
                connection.execute(insert(rounds), values)
                _append(connection, *events)
        except IntegrityError as error:
            raise Conflict(f"attempt {row.attempt} at round {row.round} was begun already, or has no job") from error

    def advance(self, row: RoundRow, *events: Event) -> None:
        with transaction(self._engine) as connection:
            to = walk(_locked_state(connection, row), (event.kind for event in events))
            connection.execute(update(rounds).where(_is(row)).values(state=to.value))
            _append(connection, *events)

    def note(self, event: Event) -> None:
        with transaction(self._engine) as connection:
            _append(connection, event)

    def commit(self, job: Job, row: RoundRow, *events: Event) -> None:
        with transaction(self._engine) as connection:
            check_commit(_locked_job(connection, job.id), job, row)
            values = {key: _job_values(job)[key] for key in ("round", "arrays_digest", "model_json", "strategy_digest")}
            connection.execute(update(jobs).where(jobs.c.id == job.id).values(**values))
            _end(connection, row, committed_state(_locked_state(connection, row), events))
            _append(connection, *events)

    def abandon(self, row: RoundRow, event: Event) -> None:
        with transaction(self._engine) as connection:
            _end(connection, row, advance(_locked_state(connection, row), RoundState.ABANDONED))
            _append(connection, event)

    def abandon_open(self, job: JobId, event: Event) -> int:
        ended = [state.value for state in ENDED]
        query = select(rounds.c.round, rounds.c.attempt).where(
            and_(rounds.c.job_id == job, rounds.c.state.not_in(ended))
        )
        reason = str(event.detail.get("reason", ""))
        with transaction(self._engine) as connection:
            left = connection.execute(query.order_by(rounds.c.round, rounds.c.attempt).with_for_update()).all()
            for place in left:
                where = and_(rounds.c.job_id == job, rounds.c.round == place.round, rounds.c.attempt == place.attempt)
                values = {"state": RoundState.ABANDONED.value, "ended_at": event.at, "reason": reason}
                connection.execute(update(rounds).where(where).values(**values))
                _append(connection, replace(event, round=place.round, attempt=place.attempt))
            return len(left)

    def rounds(self, job: JobId) -> list[RoundRow]:
        with reading(self._engine) as connection:
            query = select(rounds).where(rounds.c.job_id == job).order_by(rounds.c.round, rounds.c.attempt)
            found = connection.execute(query).all()
            devices: dict[tuple[int, int], list[Row[Any]]] = {}
            query = select(round_devices).where(round_devices.c.job_id == job).order_by(round_devices.c.device_id)
            for device in connection.execute(query):
                devices.setdefault((device.round, device.attempt), []).append(device)
        return [_round(row, devices.get((row.round, row.attempt), [])) for row in found]

    def events(self, job: JobId, after_id: int = 0) -> list[Event]:
        query = select(round_events).where(and_(round_events.c.job_id == job, round_events.c.id > after_id))
        with reading(self._engine) as connection:
            found = connection.execute(query.order_by(round_events.c.id)).all()
        return [Event(JobId(e.job_id), e.round, e.attempt, e.at, e.kind, e.detail, e.id) for e in found]

    def counts(self) -> Mapping[str, int]:
        query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
        with reading(self._engine) as connection:
            return {row[0]: row[1] for row in connection.execute(query)}


def _by_key(connection: Connection, key: str) -> Job | None:
    if not key:
        return None
    row = connection.execute(select(jobs).where(jobs.c.idempotency_key == key)).one_or_none()
    return None if row is None else _job(row)


def _locked_job(connection: Connection, job: JobId) -> Job:
    row = connection.execute(select(jobs).where(jobs.c.id == job).with_for_update()).one_or_none()
    if row is None:
        raise no_job(job)
    return _job(row)


def _locked_state(connection: Connection, row: RoundRow) -> RoundState:
    state = connection.scalar(select(rounds.c.state).where(_is(row)).with_for_update())
    if state is None:
        raise NotFound(f"no attempt {row.attempt} at round {row.round} of job {row.job}")
    return RoundState(state)


def _is(row: RoundRow) -> Any:
    return and_(rounds.c.job_id == row.job, rounds.c.round == row.round, rounds.c.attempt == row.attempt)


def _end(connection: Connection, row: RoundRow, state: RoundState) -> None:
    """The attempt's last transition, with everything that is known about it by then."""
    values = {**_round_values(row), "state": state.value}
    connection.execute(update(rounds).where(_is(row)).values(**values))
    if row.devices:
        connection.execute(insert(round_devices), [_device_values(row, device) for device in row.devices])


def _append(connection: Connection, *events: Event) -> None:
    values = [
        {
            "job_id": event.job,
            "round": event.round,
            "attempt": event.attempt,
            "at": event.at,
            "kind": event.kind,
            "detail": dict(event.detail),
        }
        for event in events
    ]
    connection.execute(insert(round_events), values)


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
        run_id=row.run_id,
        created_at=row.created_at,
        key=row.idempotency_key or "",
        ended_at=row.ended_at or 0.0,
        reason=row.reason,
        round=row.round,
        arrays_digest=_digest(row.arrays_digest),
        model_json=row.model_json or "",
        strategy_digest=_digest(row.strategy_digest),
        release=row.release,
    )


def _digest(text: str | None) -> Digest | None:
    return Digest(text) if text else None


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
        "group_number": device.group,
    }


def _round(row: Row[Any], devices: Sequence[Row[Any]]) -> RoundRow:
    return RoundRow(
        job=JobId(row.job_id),
        round=row.round,
        attempt=row.attempt,
        state=RoundState(row.state),
        started_at=row.started_at,
        ended_at=row.ended_at or 0.0,
        total_weight=row.total_weight,
        arrays_digest=_digest(row.arrays_digest),
        metrics=row.metrics,
        bytes_down=row.bytes_down,
        bytes_up=row.bytes_up,
        reason=row.reason,
        devices=tuple(_device(device) for device in devices),
    )


def _device(row: Row[Any]) -> DeviceRow:
    return DeviceRow(
        DeviceId(row.device_id),
        Outcome(row.outcome),
        row.reason,
        row.weight,
        row.bytes_down,
        row.bytes_up,
        row.seconds,
        row.group_number,
    )
