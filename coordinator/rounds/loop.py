"""A job from its last committed round to its end, one persisted step at a time. Flower's own `Strategy.start` is not used.

The global model changes only in the transaction that commits a round. Whatever was not committed is abandoned and run again from
the last committed state with fresh keys, be it after a failed attempt or in another process after a crash: never half a sum, never
one counted twice. The strategy's own memory is put back from that state before every attempt, so a resumed job goes on exactly.
"""

import contextlib
from dataclasses import dataclass, field, replace

import structlog
from flwr.serverapp.strategy import FedAvg

from coordinator.rounds import strategies
from coordinator.rounds.attempt import MAX_REASON, Attempt, Bench, Detail
from coordinator.rounds.dispatch import Cancellation
from coordinator.rounds.grid import Ask
from coordinator.rounds.plan import JobSpec
from coordinator.rounds.ports import ModelBuilder, Publisher
from coordinator.rounds.round import Event, Job, Outcome, RoundRow
from coordinator.rounds.secure_grid import Carried
from coordinator.rounds.shelf import GlobalState, arrays_of, as_model
from coordinator.rounds.states import JOB_ENDED, JobEvent, JobState, RoundState, after
from shared.errors import ChildFailed, Conflict, RoundAborted, ShoalError, StorageFull, Unavailable
from shared.ids import DeviceId, JobId, digest_of

_log = structlog.get_logger()
_WORTH_ANOTHER_TRY = (RoundAborted, ChildFailed, StorageFull)
PUBLISH_TRIES = 3  # each may take minutes
INTERRUPTED = "the coordinator stopped before the round was committed"


EXCLUDED = "device.excluded"  # in the history: dealt false shares, takes no part in this job any more


@dataclass(frozen=True)
class Workshop:
    """Who makes smaller models and releases."""

    builder: ModelBuilder
    publisher: Publisher


@dataclass(frozen=True)
class _Running:
    """A job while it runs in this process. `excluded` grows; `carried` lasts until the process ends, and is made again after."""

    spec: JobSpec
    strategy: FedAvg
    cancellation: Cancellation
    excluded: set[DeviceId]
    carried: Carried = field(default_factory=Carried)


class JobLoop:
    """`pause_s` is the time between two attempts at a round."""

    def __init__(self, bench: Bench, workshop: Workshop, *, pause_s: float = 1.0) -> None:
        self._bench = bench
        self._store = bench.store
        self._workshop = workshop
        self._pause_s = pause_s

    def run(self, job_id: JobId, cancellation: Cancellation) -> Job:
        """Run until the job has ended, or `cancellation` is set: then it is STOPPED if it was STOPPING, else left as it is.

        Raises `RoundAborted` when a round failed too often, and other `ShoalError`s that another attempt would not help.
        """
        job = self._store.job(job_id)
        if job.state in JOB_ENDED:
            return job
        reason = {"reason": INTERRUPTED}
        abandoned = self._store.abandon_open(job_id, self._event(job, RoundState.ABANDONED, reason))
        try:
            job = self._change(job, JobEvent.START)
        except Conflict:  # somebody stopped it
            return self._change(self._store.job(job_id), JobEvent.STOPPED)
        _log.info("job runs", job=job.name, after_round=job.round, abandoned=abandoned)
        try:
            return self._run(job, cancellation)
        except RoundAborted:
            if not cancellation.reason:
                raise
            job = self._store.job(job_id)
            return self._change(job, JobEvent.STOPPED) if job.state is JobState.STOPPING else job

    def fail(self, job_id: JobId, reason: str) -> Job:
        """An attempt that is still open ends with its job."""
        job, reason = self._store.job(job_id), reason[:MAX_REASON]
        self._store.abandon_open(job_id, self._event(job, RoundState.ABANDONED, {"reason": reason}))
        return self._change(job, JobEvent.FAIL, reason=reason)

    def _run(self, job: Job, cancellation: Cancellation) -> Job:
        spec = JobSpec.accepted(job.toml)
        excluded = {DeviceId(str(e.detail["device"])) for e in self._store.events(job.id) if e.kind == EXCLUDED}
        running = _Running(spec, strategies.build(spec), cancellation, excluded)
        state = self._bench.shelf.load(job)
        tried = sum(row.round == job.round + 1 for row in self._store.rounds(job.id))  # by former processes
        while job.round < spec.rounds:
            job, state = self._round(running, job, state, tried=tried)
            tried = 0
        release = self._publish(running, job, state) if spec.publish.enabled else 0
        return self._change(job, JobEvent.COMPLETE, release=release)

    def _round(self, running: _Running, job: Job, state: GlobalState, *, tried: int) -> tuple[Job, GlobalState]:
        """The job's next round, with fresh keys for each attempt.

        Raises `RoundAborted` after the last one, or when the next one would end like it; at once what no other attempt would help.
        """
        number = job.round + 1
        spec, cancellation = running.spec, running.cancellation
        last = tried + spec.selection.max_attempts
        for attempt in range(tried + 1, last + 1):
            row = RoundRow(job.id, number, attempt, RoundState.PLANNED, self._bench.clock.now())
            counted = running.carried.counted
            attempted = Attempt(self._bench, spec, _ask(running, job, number), row, running.carried)
            try:
                done = self._attempt(running, attempted, job, state)
                self._exclude(running, attempted)
                return done
            except Unavailable:
                raise  # perhaps the store: what is open is abandoned when it is back
            except Exception as error:
                running.carried.counted = counted  # a sum that it came to is not used
                reason = self._ended(running, job, attempted, error)
                cancellation.check()
                if not isinstance(error, _WORTH_ANOTHER_TRY):
                    raise
                if attempted.hopeless:
                    raise RoundAborted(f"round {number} would end like this again: {reason}") from error
                if attempt == last:
                    message = f"round {number} was abandoned {spec.selection.max_attempts} times"
                    raise RoundAborted(f"{message}; the last time: {reason}") from error
            self._bench.fleet.dispatcher.pause(self._pause_s, cancellation)
        raise AssertionError("a round has at least one attempt")

    def _ended(self, running: _Running, job: Job, attempted: Attempt, error: Exception) -> str:
        """An attempt that does not count is written down as abandoned. Returns why."""
        attempted.write()
        self._exclude(running, attempted)
        reason = f"{reason_of(error)}{_blame(attempted.row)}"
        self._abandon(job, attempted.row, reason)
        return reason

    def _exclude(self, running: _Running, attempted: Attempt) -> None:
        """Whoever dealt false shares would end the next attempt too."""
        row = attempted.row
        for device in set(attempted.false_dealers) - running.excluded:
            self._store.note(
                Event(row.job, row.round, row.attempt, self._bench.clock.now(), EXCLUDED, {"device": device})
            )
            running.excluded.add(device)

    def _attempt(self, running: _Running, attempted: Attempt, job: Job, old: GlobalState) -> tuple[Job, GlobalState]:
        spec, strategy = running.spec, running.strategy
        arrays = attempted.run(strategy, old)
        row = attempted.row
        assert row.arrays_digest is not None  # noqa: S101  # an attempt that ran puts its arrays on the shelf
        new = GlobalState(arrays, row.arrays_digest, old.model_json, strategies.save_state(strategy))
        counted = sum(device.outcome is Outcome.COUNTED for device in row.devices)
        detail: dict[str, str | int | float] = {"examples": row.total_weight, "counted": counted, **row.metrics}
        detail.update(attempted.spent)
        if (step := spec.prune_after(row.round)) is not None:
            new = self._prune(new, step.ratio, spec.public.data)
            detail["pruned"] = step.ratio
        try:
            return self._commit(job, replace(row, arrays_digest=new.digest), new, detail, attempted.unwritten)
        except ShoalError:
            with contextlib.suppress(
                ShoalError
            ):  # what a job's row names stays, whether the commit was heard of or not
                self._bench.shelf.drop(new.digest, digest_of(new.kept))
            raise

    def _prune(self, state: GlobalState, ratio: float, public_data: str) -> GlobalState:
        """A smaller network has other arrays: the strategy's memory of the old ones means nothing to it and starts afresh."""
        smaller = self._workshop.builder.prune(as_model(state.arrays, state.model_json), ratio, public_data)
        arrays = arrays_of(smaller)
        digest = self._bench.shelf.put(arrays)
        self._bench.shelf.drop(state.digest)
        return GlobalState(arrays, digest, smaller.model_json)

    def _commit(
        self, job: Job, row: RoundRow, new: GlobalState, detail: Detail, unwritten: tuple[Event, ...]
    ) -> tuple[Job, GlobalState]:
        committed = replace(
            job,
            round=row.round,
            arrays_digest=new.digest,
            model_json=new.model_json,
            strategy_digest=self._bench.shelf.put_kept(new.kept),
        )
        row = replace(row, state=RoundState.COMMITTED, ended_at=self._bench.clock.now())
        event = Event(job.id, row.round, row.attempt, row.ended_at, RoundState.COMMITTED, detail)
        self._store.commit(committed, row, *unwritten, event)
        self._bench.shelf.drop(job.arrays_digest, job.strategy_digest)
        _log.info("round committed", job=job.name, round=row.round, attempt=row.attempt, **detail)
        return committed, new

    def _abandon(self, job: Job, row: RoundRow, reason: str) -> None:
        now = self._bench.clock.now()
        ended = replace(row, state=RoundState.ABANDONED, ended_at=now, reason=reason[:MAX_REASON], total_weight=0)
        event = Event(job.id, row.round, row.attempt, now, RoundState.ABANDONED, {"reason": reason[:MAX_REASON]})
        self._store.abandon(ended, event)
        self._bench.shelf.drop(row.arrays_digest)
        _log.warning("round abandoned", job=job.name, round=row.round, attempt=row.attempt, reason=reason)

    def _publish(self, running: _Running, job: Job, state: GlobalState) -> int:
        """The publisher looks first whether it is done already, so it may be asked again."""
        spec, cancellation = running.spec, running.cancellation
        lineage: dict[str, str | int] = {"job": job.id, "rounds": job.round, "strategy": spec.strategy.name}
        lineage["secure"] = int(spec.secure.enabled)
        if spec.publish.notes:
            lineage["notes"] = spec.publish.notes
        model = as_model(state.arrays, state.model_json)
        for attempt in range(1, PUBLISH_TRIES + 1):
            cancellation.check()
            try:
                return self._workshop.publisher.publish(spec.model, model, spec.public.data, lineage)
            except (ChildFailed, StorageFull) as error:
                cancellation.check()
                if attempt == PUBLISH_TRIES:
                    raise
                _log.warning("not published, trying again", job=job.name, reason=str(error))
            self._bench.fleet.dispatcher.pause(self._pause_s, cancellation)
        raise AssertionError("a job publishes at least once")

    def _change(self, job: Job, trigger: JobEvent, *, reason: str = "", release: int = 0) -> Job:
        detail: dict[str, str | int | float] = {"round": job.round}
        if reason:
            detail["reason"] = reason
        if release:
            detail["release"] = release
        kind = f"job.{after(job.state, trigger)}"
        changed = self._store.change(job.id, trigger, self._event(job, kind, detail), reason=reason, release=release)
        _log.info("job changed", job=job.name, state=str(changed.state), reason=reason)
        return changed

    def _event(self, job: Job, kind: str, detail: Detail) -> Event:
        return Event(job.id, 0, 0, self._bench.clock.now(), str(kind), detail)


def reason_of(error: Exception) -> str:
    """As an admin reads it: our own words, or what kind of mistake of ours it was."""
    return str(error) if isinstance(error, ShoalError) else f"internal error: {type(error).__name__}: {error}"


def _ask(running: _Running, job: Job, number: int) -> Ask:
    spec = running.spec
    return Ask(
        job=job.id,
        run_id=job.run_id,
        round=number,
        client_app=spec.client_app,
        secure=spec.secure.enabled,
        selection=spec.selection,
        policy=spec.closing,
        excluded=frozenset(running.excluded),
        cancellation=running.cancellation,
    )


def _blame(row: RoundRow) -> str:
    """What was wrong with the updates that were rejected, if any were: most often the reason why the others were too few."""
    rejected = [device.reason for device in row.devices if device.outcome is Outcome.REJECTED]
    return f"; {len(rejected)} of {len(row.devices)} rejected: {rejected[0]}" if rejected else ""
