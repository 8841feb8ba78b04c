"""The store of jobs in memory: for simulations, tests, and a coordinator that may forget."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from coordinator.rounds.round import (
    Event,
    Job,
    RoundRow,
    check_commit,
    committed_state,
    ended_job,
    first_state,
    no_job,
)
from coordinator.rounds.states import ENDED, JobEvent, RoundState, advance, after, walk
from shared.errors import Conflict, NotFound
from shared.ids import JobId

_Place = tuple[JobId, int, int]


class MemoryJobStore:
    """Implements `coordinator.rounds.ports.JobStore`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[JobId, Job] = {}
        self._rounds: dict[_Place, RoundRow] = {}
        self._events: list[Event] = []

    def create(self, job: Job, event: Event) -> Job:
        with self._lock:
            if (known := self._by_key(job.key)) is not None:
                return known
            if job.id in self._jobs:
                raise Conflict(f"job {job.id} exists already")
            self._jobs[job.id] = job
            self._append(event)
            return job

    def job(self, id_or_name: str) -> Job:
        with self._lock:
            for job in reversed(self._jobs.values()):
                if id_or_name in (job.id, job.name):
                    return job
        raise no_job(id_or_name)

    def by_key(self, key: str) -> Job | None:
        with self._lock:
            return self._by_key(key)

    def jobs(self) -> list[Job]:
        with self._lock:
            return list(self._jobs.values())

    def change(self, job: JobId, trigger: JobEvent, event: Event, *, reason: str = "", release: int = 0) -> Job:
        with self._lock:
            old = self._get(job)
            changed = ended_job(replace(old, state=after(old.state, trigger)), event.at, reason, release)
            self._jobs[job] = changed
            self._append(event)
            return changed

    def begin(self, row: RoundRow, *events: Event) -> None:
        with self._lock:
            if _place(row) in self._rounds:
                raise Conflict(f"attempt {row.attempt} at round {row.round} was begun already")
            self._rounds[_place(row)] = replace(row, state=first_state(events))
            self._append(*events)

    def advance(self, row: RoundRow, *events: Event) -> None:
        with self._lock:
            old = self._row(row)
            self._rounds[_place(row)] = replace(old, state=walk(old.state, (event.kind for event in events)))
            self._append(*events)

    def note(self, event: Event) -> None:
        with self._lock:
            self._append(event)

    def commit(self, job: Job, row: RoundRow, *events: Event) -> None:
        with self._lock:
            old = self._get(job.id)
            check_commit(old, job, row)
            state = committed_state(self._row(row).state, events)
            self._jobs[job.id] = replace(
                old,
                round=job.round,
                arrays_digest=job.arrays_digest,
                model_json=job.model_json,
                strategy_digest=job.strategy_digest,
            )
            self._rounds[_place(row)] = _sealed(row, state)
            self._append(*events)

    def abandon(self, row: RoundRow, event: Event) -> None:
        with self._lock:
            state = advance(self._row(row).state, RoundState.ABANDONED)
            self._rounds[_place(row)] = _sealed(row, state)
            self._append(event)

    def abandon_open(self, job: JobId, event: Event) -> int:
        with self._lock:
            left = [row for row in self._rounds.values() if row.job == job and row.state not in ENDED]
            for row in left:
                reason = str(event.detail.get("reason", ""))
                self._rounds[_place(row)] = replace(row, state=RoundState.ABANDONED, ended_at=event.at, reason=reason)
                self._append(replace(event, round=row.round, attempt=row.attempt))
            return len(left)

    def rounds(self, job: JobId) -> list[RoundRow]:
        with self._lock:
            found = [row for row in self._rounds.values() if row.job == job]
        return sorted(found, key=lambda row: (row.round, row.attempt))

    def events(self, job: JobId, after_id: int = 0) -> list[Event]:
        with self._lock:
            return [event for event in self._events if event.job == job and event.id > after_id]

    def counts(self) -> Mapping[str, int]:
        with self._lock:
            return Counter(job.state.value for job in self._jobs.values())

    # ---- inside, with the lock held

    def _by_key(self, key: str) -> Job | None:
        return next((job for job in self._jobs.values() if key and job.key == key), None)

    def _get(self, job: JobId) -> Job:
        if job not in self._jobs:
            raise no_job(job)
        return self._jobs[job]

    def _row(self, row: RoundRow) -> RoundRow:
        if _place(row) not in self._rounds:
            raise NotFound(f"no attempt {row.attempt} at round {row.round} of job {row.job}")
        return self._rounds[_place(row)]

    def _append(self, *events: Event) -> None:
        for event in events:
            self._events.append(replace(event, id=len(self._events) + 1))


def _sealed(row: RoundRow, state: RoundState) -> RoundRow:
    return replace(row, state=state, devices=tuple(sorted(row.devices, key=lambda item: item.device)))


def _place(row: RoundRow) -> _Place:
    return (row.job, row.round, row.attempt)
