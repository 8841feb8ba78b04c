"""Jobs: submit, run, stop, watch, and go on after a crash. Each job runs in a thread of its own."""

import logging
import threading
from collections.abc import Callable, Iterable

import structlog
from flwr.app import ArrayRecord

from coordinator.rounds import inputs, strategies
from coordinator.rounds.announce import AnnouncingStore, Watcher
from coordinator.rounds.attempt import Bench
from coordinator.rounds.dispatch import Cancellation
from coordinator.rounds.grid import Fleet
from coordinator.rounds.loop import JobLoop, Workshop, reason_of
from coordinator.rounds.plan import JobSpec
from coordinator.rounds.ports import JobStore, ModelState, Traffic
from coordinator.rounds.privacy import forecast, ledger_of
from coordinator.rounds.round import DeviceRef, Event, Job, RoundRow
from coordinator.rounds.shelf import Shelf, starting_arrays
from coordinator.rounds.states import JOB_ENDED, JobEvent, JobState, RoundState, after
from shared.client_apps import app_names
from shared.clock import Clock
from shared.errors import (
    ConfigError,
    Conflict,
    NotFound,
    RoundAborted,
    ShoalError,
    StorageFull,
    Unavailable,
    Unsupported,
)
from shared.flower import assume_identity, record_to_numpy
from shared.ids import Digest, JobId, new_job_id, new_node_id
from shared.learning.spec import ModelSpec
from shared.secagg.graph import derive
from shared.secagg.keys import Verifier
from shared.secagg.terms import MAX_CLIENTS, rotation_of

_log = structlog.get_logger()
STOPPED = "the job was stopped"
CLOSING = "the coordinator is stopping"
STORE_RETRY_S = 5.0
CLOSE_S = 10.0
MAX_KEY = 64
_MAX_NAMED = 20  # apps in one message: it travels as a header, which has little room


class JobService:
    """Every method may be called from any thread. Call `resume` once at start-up and `close` at the end."""

    def __init__(
        self,
        store: JobStore,
        fleet: Fleet,
        workshop: Workshop,
        *,
        traffic: Traffic,
        verifier: Verifier,
        clock: Clock,
        pause_s: float = 1.0,
    ) -> None:
        self._store = AnnouncingStore(store)
        self._workshop = workshop
        self._clock = clock
        shelf = Shelf(fleet.lasting, self._store)
        self._bench = Bench(self._store, shelf, fleet, traffic, verifier, clock)
        self._loop = JobLoop(self._bench, workshop, pause_s=pause_s)
        self._lock = threading.Lock()
        self._running: dict[JobId, tuple[threading.Thread, Cancellation]] = {}
        # Strategies build messages under one identity a process; the grid stamps each with its own run.
        assume_identity(run_id=1)
        logging.getLogger("flwr").setLevel(logging.WARNING)

    # ---- commands

    def submit(self, toml: str, key: str = "") -> Job:
        """Check a job whole, store it and start it. The same key again gives the same job.

        Raises `ConfigError`, `Unsupported`, `NotFound`, `Conflict` (the key was used for another job), `Malformed` for a model of
        another version; nothing is stored then.
        """
        if key and (known := self._submitted_before(key, toml)) is not None:
            return known
        spec = JobSpec.parse(toml)
        strategies.build(spec)
        members = self._bench.fleet.directory.members(spec.selection.cohort)
        _check_app(spec.client_app, members)
        start = self._starting_point(spec)
        arrays = starting_arrays(start)
        _check_sum(spec, arrays, len(members))
        now = self._clock.now()
        job = Job(
            id=new_job_id(),
            name=spec.name,
            state=JobState.SUBMITTED,
            toml=toml,
            run_id=int(new_node_id()),
            created_at=now,
            key=key,
            model_json=start.model_json,
        )
        event = Event(job.id, 0, 0, now, f"job.{job.state}", {"rounds": spec.rounds, "strategy": spec.strategy.name})
        stored = self._bench.shelf.create(job, arrays, event)
        if stored.id == job.id:
            self._start(job.id)
        return stored

    def stop(self, id_or_name: str) -> Job:
        """Abandon the present round and end; what is committed stays. Raises `NotFound`, `Conflict` for a job that has ended."""
        job = self._store.job(id_or_name)
        state = after(job.state, JobEvent.STOP)
        if state is job.state:
            return job
        event = Event(job.id, 0, 0, self._clock.now(), f"job.{state}", {"round": job.round})
        job = self._store.change(job.id, JobEvent.STOP, event, reason=STOPPED)
        with self._lock:
            running = self._running.get(job.id)
        if running is None:
            return self._loop.run(job.id, Cancellation(STOPPED))
        self._cancel(running[1], STOPPED)
        return job

    def sweep(self, owned: Iterable[Digest]) -> None:
        """Delete blobs of jobs that no job needs, before `resume`. A store that fails now is swept at the next start."""
        try:
            if swept := self._bench.shelf.sweep(owned):
                _log.info("blobs deleted that a killed process left behind", blobs=swept)
        except (Unavailable, StorageFull) as error:
            _log.warning("blobs of former jobs are not swept", reason=str(error))

    def resume(self) -> None:
        """Go on with every job that had not ended; attempts that were open are abandoned first."""
        for job in self._store.jobs():
            if job.state not in JOB_ENDED:
                self._start(job.id)

    def close(self) -> None:
        """Let go of all jobs; they stay as they are and go on at the next start. Takes `CLOSE_S` at most."""
        with self._lock:
            running = list(self._running.values())
        for _, cancellation in running:
            self._cancel(cancellation, CLOSING)
        self._workshop.builder.kill()
        deadline = self._clock.monotonic() + CLOSE_S
        for thread, _ in running:
            thread.join(max(0.0, deadline - self._clock.monotonic()))
            if thread.is_alive():
                _log.warning("a job's thread is left behind: it is in the middle of something long", job=thread.name)

    def wait(self, id_or_name: str, timeout_s: float | None = None) -> Job:
        """Wait until a job's thread has ended."""
        job = self._store.job(id_or_name)
        with self._lock:
            running = self._running.get(job.id)
        if running is not None:
            running[0].join(timeout_s)
        return self._store.job(job.id)

    # ---- look-ups

    def job(self, id_or_name: str) -> Job:
        """By id, or the newest of that name. Raises `NotFound`."""
        return self._store.job(id_or_name)

    def jobs(self) -> list[Job]:
        return self._store.jobs()

    def spent(self, job: Job) -> float:
        """The epsilon of all rounds so far, attempts that failed included; 0 for a job that is not private. Raises `Corrupt`."""
        spec = JobSpec.accepted(job.toml)
        privacy = spec.privacy.terms(spec.rounds)
        return ledger_of(job.id, privacy, self._store.events(job.id)).spent if privacy else 0.0

    def rounds(self, id_or_name: str) -> list[RoundRow]:
        return self._store.rounds(self._store.job(id_or_name).id)

    def round(self, id_or_name: str, number: int, attempt: int = 0) -> RoundRow:
        """The committed attempt, else the newest, unless `attempt` names one. Raises `NotFound`."""
        rows = [row for row in self.rounds(id_or_name) if row.round == number and attempt in (0, row.attempt)]
        if not rows:
            raise NotFound(f"job {id_or_name} has no round {number}" + (f", attempt {attempt}" if attempt else ""))
        return next((row for row in rows if row.state is RoundState.COMMITTED), rows[-1])

    def events(self, id_or_name: str, after_id: int = 0) -> list[Event]:
        return self._store.events(self._store.job(id_or_name).id, after_id)

    def news(self, job: JobId, after_id: int) -> list[Event]:
        """What a known job's history gained after that event."""
        return self._store.events(job, after_id)

    def subscribe(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` with a job's id whenever its history grew, on the thread that wrote it. Returns what ends this."""
        return self._store.subscribe(watcher)

    # ---- a job's thread

    def _start(self, job: JobId) -> None:
        cancellation = Cancellation()
        thread = threading.Thread(target=self._main, args=(job, cancellation), name=job, daemon=True)
        with self._lock:
            self._running[job] = (thread, cancellation)
        thread.start()

    def _main(self, job: JobId, cancellation: Cancellation) -> None:
        try:
            while not self._run(job, cancellation):
                _log.warning("job waits for the database or the blob store", job=job)
        except ShoalError as error:
            _log.error("job left as it is", job=job, reason=str(error))
        finally:
            with self._lock:
                self._running.pop(job, None)

    def _run(self, job: JobId, cancellation: Cancellation) -> bool:
        """Whether there is nothing more to do."""
        try:
            self._loop.run(job, cancellation)
        except Unavailable as error:
            _log.warning("not available", job=job, reason=str(error))
            try:
                self._bench.fleet.dispatcher.pause(STORE_RETRY_S, cancellation)
            except RoundAborted:
                return True
            return False
        except Exception as error:  # noqa: BLE001  # a fault of ours ends this job, not the coordinator
            if not isinstance(error, ShoalError):
                _log.error("job failed", job=job, exc_info=error)
            self._loop.fail(job, reason_of(error))
        return True

    def _cancel(self, cancellation: Cancellation, reason: str) -> None:
        cancellation.reason = reason
        self._bench.fleet.dispatcher.wake()

    # ---- checking a submission

    def _submitted_before(self, key: str, toml: str) -> Job | None:
        if len(key) > MAX_KEY:
            raise ConfigError(f"an idempotency key has at most {MAX_KEY} characters")
        known = self._store.by_key(key)
        if known is not None and known.toml != toml:
            raise Conflict(f"this key submitted another job, {known.id}: use a new key")
        return known

    def _starting_point(self, spec: JobSpec) -> ModelState:
        public = inputs.check_public(spec.public.data) if spec.public.data else None
        if spec.start.arrays_file:
            return ModelState("", inputs.read_arrays(spec.start.arrays_file))
        if spec.start.factory:
            start = self._workshop.builder.initial(spec.start.factory, spec.start.arguments)
        else:
            start = self._workshop.publisher.start(spec.model, spec.start.release)
        if public is not None:
            schema = ModelSpec.from_json(start.model_json).schema
            inputs.require_fit(public, schema, spec.public.data, where=inputs.PUBLIC_DATA)
        return start


def _check_app(name: str, members: Iterable[DeviceRef]) -> None:
    """Raises `ConfigError` for an app that neither this machine nor any device of the cohort has, as far as they say. Whoever
    joins an empty cohort while the job waits may have any.
    """
    installed, listed = app_names(), [device.client_apps for device in members]
    if name in installed or not listed or None in listed or any(name in apps for apps in listed if apps):
        return
    known = [*installed, *sorted(set().union(*(apps for apps in listed if apps)).difference(installed))]
    more = f" and {len(known) - _MAX_NAMED} more" if len(known) > _MAX_NAMED else ""
    raise ConfigError(
        f"no device says that it has {name!r}; there are {', '.join(known[:_MAX_NAMED])}{more}", path="job.client_app"
    )


def _check_sum(spec: JobSpec, arrays: ArrayRecord, members: int) -> None:
    """Raises `Unsupported` for what cannot be summed in secret: an odd dtype, more devices at once than a group holds or than the
    job's rates bear, a privacy that no noise gives.
    """
    if spec.secure.enabled:
        most = max(spec.selection.how_many(members), spec.selection.min_devices)
        if most > MAX_CLIENTS:
            raise Unsupported(f"a secret sum is over {MAX_CLIENTS:,} devices at most: lower selection.fraction")
        config = strategies.secure_config(spec)
        largest = config.sizes(most)[0]
        derive(largest, config.rates_in(largest))
        values = record_to_numpy(arrays)
        if spec.privacy.enabled:
            forecast(spec, values, spec.selection.min_devices)  # the fewest: each must add the most
            forecast(spec, values, most)
        config.settings("train").schema(largest, values, rotation_of(""))
