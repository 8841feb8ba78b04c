"""Jobs: submit, run step by step, resume after a crash, stop, watch.

The strategy is driven one persisted step at a time. The global model changes only in the transaction that commits a round; what was not
committed is abandoned and run again from the last committed model with fresh keys: never half a sum, never one counted twice.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg

from coordinator.rounds import strategies
from coordinator.rounds.attempt import Attempt, Bench, Result, as_records
from coordinator.rounds.dispatch import Cancellation
from coordinator.rounds.grid import Ask
from coordinator.rounds.plan import JobSpec
from coordinator.rounds.ports import Models, ModelState
from coordinator.rounds.round import Event, Job, Outcome, RoundRow
from coordinator.rounds.states import JOB_ENDED, JobEvent, JobState, RoundState, after
from shared.blobs import Blobs
from shared.errors import NotFound, RoundAborted, ShoalError
from shared.flower import (
    arrays_from_safetensors,
    arrays_to_safetensors,
    assume_identity,
    decode_records,
    encode_records,
)
from shared.ids import Digest, JobId, new_job_id, new_node_id

_log = structlog.get_logger()
Watcher = Callable[[Job], None]


@dataclass(frozen=True)
class _Global:
    """The global state of a job between rounds."""

    arrays: ArrayRecord
    model_json: str


class JobService:
    """Runs each job in a thread of its own. Every method may be called from any thread."""

    def __init__(self, bench: Bench, blobs: Blobs, models: Models) -> None:
        self._bench = bench
        self._store = bench.store
        self._blobs = blobs
        self._models = models
        self._lock = threading.Lock()
        self._running: dict[JobId, tuple[threading.Thread, Cancellation]] = {}
        self._watchers: list[Watcher] = []
        self._closing = False
        logging.getLogger("flwr").setLevel(logging.WARNING)

    # ---- commands

    def submit(self, toml: str, key: str = "") -> Job:
        """Check a job whole, store it and start it. The same key again gives the same job.

        Raises `ConfigError`, `Unsupported`, `NotFound`; nothing is stored then.
        """
        spec = JobSpec.parse(toml)
        strategies.build(spec)
        for path in spec.files():
            if not path.is_file():
                raise NotFound(f"job: no file {path} on the coordinator's machine")
        start = self._starting_point(spec)
        now = self._bench.clock.now()
        job = Job(
            id=new_job_id(),
            name=spec.name,
            state=JobState.RUNNING,
            toml=toml,
            run_id=int(new_node_id()),
            created_at=now,
            key=key,
            arrays_digest=self._blobs.write(encode_records(as_records(start.arrays))),
            model_json=start.model_json,
        )
        stored = self._store.create(job, Event(job.id, 0, 0, now, "job.running", {"rounds": spec.rounds}))
        if stored.id == job.id:
            self._start(stored)
        return stored

    def stop(self, id_or_name: str) -> Job:
        """Stop after the present round; what is committed stays. Raises `NotFound`, `Conflict`."""
        with self._lock:
            job = self._store.job(id_or_name)
            state = after(job.state, JobEvent.STOP)
            if state is not job.state:
                job = replace(job, state=state)
                self._store.update(job, self._event(job, f"job.{state}"))
            thread = self._running.get(job.id)
        self._tell(job)
        if thread is None and job.state is JobState.STOPPING:
            return self._end(job, JobEvent.STOPPED, "")
        return job

    def resume(self) -> None:
        """At start-up: abandon what was open, and go on with every job that had not ended."""
        for job in self._store.jobs():
            if job.state not in JOB_ENDED:
                abandoned = self._store.abandon_open(job.id, self._bench.clock.now())
                _log.info("job goes on", job=job.name, after_round=job.round, abandoned=abandoned)
                self._start(job)

    def close(self) -> None:
        """Let go of all jobs; they stay as they are and go on at the next start."""
        self._closing = True
        with self._lock:
            running = list(self._running.values())
        for _, cancellation in running:
            cancellation.requested = True
        self._bench.fleet.dispatcher.wake()
        for thread, _ in running:
            thread.join()

    # ---- look-ups

    def job(self, id_or_name: str) -> Job:
        return self._store.job(id_or_name)

    def jobs(self) -> list[Job]:
        return self._store.jobs()

    def rounds(self, id_or_name: str) -> list[RoundRow]:
        return self._store.rounds(self._store.job(id_or_name).id)

    def round(self, id_or_name: str, number: int, attempt: int = 0) -> RoundRow:
        """The committed attempt, else the newest, unless `attempt` names one. Raises `NotFound`."""
        rows = [row for row in self.rounds(id_or_name) if row.round == number and attempt in (0, row.attempt)]
        if not rows:
            raise NotFound(f"job {id_or_name} has no round {number}" + (f", attempt {attempt}" if attempt else ""))
        return next((row for row in rows if row.state is RoundState.COMMITTED), rows[-1])

    def events(self, job: JobId, after_id: int = 0) -> list[Event]:
        return self._store.events(job, after_id)

    def subscribe(self, watcher: Watcher) -> None:
        """Called, from a job's thread, whenever a job's history grew."""
        self._watchers.append(watcher)

    # ---- a job's thread

    def _start(self, job: Job) -> None:
        cancellation = Cancellation()
        thread = threading.Thread(target=self._main, args=(job, cancellation), name=job.id, daemon=True)
        with self._lock:
            self._running[job.id] = (thread, cancellation)
        thread.start()

    def _main(self, job: Job, cancellation: Cancellation) -> None:
        try:
            self._run(job, cancellation)
        except ShoalError as error:
            if not self._closing:
                self._end(self._store.job(job.id), JobEvent.FAIL, str(error))
        except Exception as error:
            _log.error("job failed", job=job.name, exc_info=error)
            self._end(self._store.job(job.id), JobEvent.FAIL, f"internal error: {type(error).__name__}")
            raise
        finally:
            with self._lock:
                self._running.pop(job.id, None)

    def _run(self, job: Job, cancellation: Cancellation) -> None:
        # Strategies build messages under one identity a process; the grid stamps each with its own run.
        assume_identity(run_id=job.run_id)
        spec = JobSpec.parse(job.toml)
        state = self._load(job)
        strategy = strategies.build(spec)
        kept = self._blobs.read(job.strategy_digest) if job.strategy_digest else b""
        strategies.load_state(strategy, kept, state.arrays)
        while job.round < spec.rounds:
            if self._store.job(job.id).state is JobState.STOPPING:
                self._end(self._store.job(job.id), JobEvent.STOPPED, f"after round {job.round}")
                return
            job, state = self._round(job, spec, strategy, state, cancellation)
        release = job.release
        if spec.publish.enabled and not release:
            release = self._publish(job, spec, state)
        self._end(replace(self._store.job(job.id), release=release), JobEvent.COMPLETE, "")

    def _round(
        self, job: Job, spec: JobSpec, strategy: FedAvg, state: _Global, cancellation: Cancellation
    ) -> tuple[Job, _Global]:
        """The job's next round, with fresh keys for each attempt. Raises `RoundAborted` after the last one."""
        number = job.round + 1
        done = sum(row.round == number for row in self._store.rounds(job.id))
        for attempt in range(done + 1, done + 1 + spec.selection.max_attempts):
            row = RoundRow(job.id, number, attempt, RoundState.PLANNED, self._bench.clock.now())
            attempted = Attempt(self._bench, spec, _ask(job, spec, number, cancellation), row)
            kept = strategies.save_state(strategy)
            try:
                result = attempted.run(strategy, state.arrays, state.model_json)
            except RoundAborted as error:
                self._abandon(job, attempted.row, str(error))
                strategies.load_state(strategy, kept, state.arrays)
                if cancellation.requested:
                    raise
                _log.warning("round abandoned", job=job.name, round=number, attempt=attempt, reason=str(error))
                continue
            return self._commit(job, spec, strategy, state, result)
        raise RoundAborted(f"round {number} was abandoned {spec.selection.max_attempts} times; see `round list`")

    def _commit(self, job: Job, spec: JobSpec, strategy: FedAvg, state: _Global, result: Result) -> tuple[Job, _Global]:
        state = _Global(result.arrays, state.model_json)
        detail: dict[str, str | int | float] = {"examples": result.row.total_weight, **result.row.metrics}
        detail["counted"] = sum(device.outcome is Outcome.COUNTED for device in result.row.devices)
        if (step := spec.prune_after(result.row.round)) is not None:
            state = self._prune(state, spec, step.ratio)
            detail["pruned"] = step.ratio
            # A smaller network has other arrays: momenta of the old ones mean nothing to it.
            strategies.forget_state(strategy)
        arrays = self._blobs.write(encode_records(as_records(state.arrays)))
        kept = strategies.save_state(strategy)
        changed = replace(
            job,
            round=result.row.round,
            arrays_digest=arrays,
            model_json=state.model_json,
            strategy_digest=self._blobs.write(kept) if kept else None,
            state=self._store.job(job.id).state,
        )
        row = replace(result.row, state=RoundState.COMMITTED, arrays_digest=arrays)
        event = Event(job.id, row.round, row.attempt, self._bench.clock.now(), RoundState.COMMITTED, detail)
        self._store.commit(changed, row, event)
        strategies.load_state(strategy, kept, state.arrays)
        self._forget(job, changed)
        self._tell(changed)
        return changed, state

    def _forget(self, old: Job, new: Job) -> None:
        """Global arrays and momenta that no committed round needs any more."""
        for digest in {old.arrays_digest, old.strategy_digest} - {new.arrays_digest, new.strategy_digest, None}:
            if digest is not None:
                self._blobs.delete(digest)

    def _prune(self, state: _Global, spec: JobSpec, ratio: float) -> _Global:
        smaller = self._models.prune(
            ModelState(state.model_json, arrays_to_safetensors(state.arrays)), ratio, spec.public.data
        )
        return _Global(arrays_from_safetensors(smaller.arrays), smaller.model_json)

    def _publish(self, job: Job, spec: JobSpec, state: _Global) -> int:
        lineage: dict[str, str | int] = {"job": job.id, "rounds": job.round, "strategy": spec.strategy.name}
        if spec.publish.notes:
            lineage["notes"] = spec.publish.notes
        weights = ModelState(state.model_json, arrays_to_safetensors(state.arrays))
        return self._models.publish(spec.model, weights, spec.public.data, lineage)

    # ---- helpers

    def _starting_point(self, spec: JobSpec) -> _Global:
        if spec.start.arrays_file:
            return _Global(arrays_from_safetensors(Path(spec.start.arrays_file).read_bytes()), "")
        found = self._models.start(spec.model, spec.start.release)
        return _Global(arrays_from_safetensors(found.arrays), found.model_json)

    def _load(self, job: Job) -> _Global:
        digest = job.arrays_digest or Digest("")
        (arrays,) = decode_records(self._blobs.read(digest)).array_records.values()
        return _Global(arrays, job.model_json)

    def _abandon(self, job: Job, row: RoundRow, reason: str) -> None:
        ended = replace(row, state=RoundState.ABANDONED, ended_at=self._bench.clock.now(), reason=reason[:500])
        event = Event(job.id, row.round, row.attempt, ended.ended_at, RoundState.ABANDONED, {"reason": reason[:500]})
        self._store.abandon(ended, event)
        self._tell(job)

    def _end(self, job: Job, event: JobEvent, reason: str) -> Job:
        ended = replace(job, state=after(job.state, event), ended_at=self._bench.clock.now(), reason=reason[:500])
        self._store.update(ended, self._event(ended, f"job.{ended.state}"))
        _log.info("job ended", job=job.name, state=str(ended.state), reason=reason)
        self._tell(ended)
        return ended

    def _event(self, job: Job, kind: str) -> Event:
        detail: dict[str, str | int | float] = {"reason": job.reason} if job.reason else {}
        if job.release:
            detail["release"] = job.release
        return Event(job.id, 0, 0, self._bench.clock.now(), kind, detail)

    def _tell(self, job: Job) -> None:
        for watcher in self._watchers:
            watcher(job)


def _ask(job: Job, spec: JobSpec, number: int, cancellation: Cancellation) -> Ask:
    return Ask(
        job=job.id,
        run_id=job.run_id,
        round=number,
        client_app=spec.client_app,
        secure=spec.secure.enabled,
        cohort=spec.selection.cohort,
        min_devices=spec.selection.min_devices,
        wait_for_devices_s=spec.selection.wait_for_devices_s,
        timeout_s=spec.selection.round_timeout_s,
        closing=spec.selection.closing,
        cancellation=cancellation,
    )
