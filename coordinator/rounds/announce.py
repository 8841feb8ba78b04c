"""A job store that tells who listens that a job's history grew: what `job watch` lives on."""

import threading
from collections.abc import Callable

from coordinator.rounds.ports import JobStore
from coordinator.rounds.round import Event, Job, RoundRow
from coordinator.rounds.states import JobEvent
from shared.ids import JobId

Watcher = Callable[[JobId], None]


class AnnouncingStore:
    """Implements `JobStore` over another one. Watchers are called after the commit, on the thread that wrote: return quickly."""

    def __init__(self, inner: JobStore) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._watchers: list[Watcher] = []
        self.job, self.by_key, self.jobs = inner.job, inner.by_key, inner.jobs
        self.rounds, self.events, self.counts = inner.rounds, inner.events, inner.counts

    def subscribe(self, watcher: Watcher) -> Callable[[], None]:
        """Returns what ends it."""
        with self._lock:
            self._watchers = [*self._watchers, watcher]

        def end() -> None:
            with self._lock:
                self._watchers = [other for other in self._watchers if other is not watcher]

        return end

    def create(self, job: Job, event: Event) -> Job:
        created = self._inner.create(job, event)
        self._tell(created.id)
        return created

    def change(self, job: JobId, trigger: JobEvent, event: Event, *, reason: str = "", release: int = 0) -> Job:
        changed = self._inner.change(job, trigger, event, reason=reason, release=release)
        self._tell(job)
        return changed

    def begin(self, row: RoundRow, *events: Event) -> None:
        self._inner.begin(row, *events)
        self._tell(row.job)

    def advance(self, row: RoundRow, *events: Event) -> None:
        self._inner.advance(row, *events)
        self._tell(row.job)

    def note(self, event: Event) -> None:
        self._inner.note(event)
        self._tell(event.job)

    def commit(self, job: Job, row: RoundRow, *events: Event) -> None:
        self._inner.commit(job, row, *events)
        self._tell(job.id)

    def abandon(self, row: RoundRow, event: Event) -> None:
        self._inner.abandon(row, event)
        self._tell(row.job)

    def abandon_open(self, job: JobId, event: Event) -> int:
        found = self._inner.abandon_open(job, event)
        self._tell(job)
        return found

    def _tell(self, job: JobId) -> None:
        for watcher in self._watchers:
            watcher(job)
