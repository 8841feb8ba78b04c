"""The store of releases in memory: for simulations, tests, and a coordinator that may forget."""

import itertools
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from coordinator.releases.release import (
    Decide,
    Release,
    Rollout,
    RolloutRecord,
    no_release,
    no_rollout,
    unfinished_rollout,
)
from coordinator.releases.states import UNFINISHED, UNWANTED, DeviceState
from shared.errors import Conflict
from shared.ids import DeviceId, RolloutId


class MemoryReleaseStore:
    """Implements `coordinator.releases.ports.ReleaseStore`."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._releases: dict[tuple[str, int], Release] = {}
        self._rollouts: dict[str, Rollout] = {}
        self._records: dict[str, list[RolloutRecord]] = {}
        self._numbers = itertools.count(1)

    def add_release(self, release: Release) -> None:
        with self._lock:
            if (release.model, release.number) in self._releases:
                raise Conflict(f"release {release} exists already")
            self._releases[release.model, release.number] = release

    def release(self, model: str, number: int = 0) -> Release:
        with self._lock:
            for release in reversed(self.releases()):
                if release.model == model and (release.number == number or (number == 0 and not release.withdrawn)):
                    return release
        raise no_release(model, number)

    def releases(self) -> list[Release]:
        with self._lock:
            return [self._releases[key] for key in sorted(self._releases)]

    def withdraw(self, model: str, number: int) -> None:
        with self._lock:
            if (model, number) not in self._releases:
                raise no_release(model, number)
            self._releases[model, number] = replace(self._releases[model, number], withdrawn=True)

    def create(self, rollout: Rollout, record: RolloutRecord) -> None:
        with self._lock:
            self.release(rollout.model, rollout.release)
            for other in self._rollouts.values():
                if other.model == rollout.model and other.state in UNFINISHED:
                    raise unfinished_rollout(other.id, other.model)
            self._rollouts[rollout.id] = rollout
            self._append(rollout.id, record)

    def change(self, rollout: RolloutId, decide: Decide) -> Rollout:
        with self._lock:
            before = self.rollout(rollout)
            change = decide(before)
            if change is None:
                return before
            self._rollouts[rollout] = change.rollout
            for record in change.records:
                self._append(rollout, record)
            if change.withdraws:
                self.withdraw(before.model, before.release)
            return change.rollout

    def rollout(self, rollout: str) -> Rollout:
        with self._lock:
            if rollout not in self._rollouts:
                raise no_rollout(rollout)
            return self._rollouts[rollout]

    def rollouts(self) -> list[Rollout]:
        with self._lock:
            return sorted(self._rollouts.values(), key=lambda rollout: (rollout.created_at, rollout.id))

    def standing(self) -> list[Rollout]:
        with self._lock:
            return [one for one in self.rollouts() if one.stands or one == self.wanted(one.model)]

    def wanted(self, model: str) -> Rollout | None:
        with self._lock:
            found = [one for one in self.rollouts() if one.model == model and one.state not in UNWANTED]
            return found[-1] if found else None

    def proved(self, model: str, device: DeviceId, *, but: RolloutId) -> bool:
        with self._lock:
            others = [one for one in self._rollouts.values() if one.model == model and one.id != but]
            rows = [one.find(device) for one in others if one.state not in UNWANTED]
            return any(row is not None and row.state is DeviceState.PROVEN for row in rows)

    def counts(self) -> Mapping[str, int]:
        with self._lock:
            return Counter(one.state.value for one in self._rollouts.values())

    def records(self, rollout: RolloutId, after_id: int = 0) -> list[RolloutRecord]:
        with self._lock:
            return [record for record in self._records.get(rollout, []) if record.id > after_id]

    def forget_records(self, before: float) -> int:
        with self._lock:
            forgotten = 0
            for rollout, records in self._records.items():
                if self._rollouts[rollout].state not in UNFINISHED:
                    kept = [record for record in records if record.at >= before]
                    forgotten += len(records) - len(kept)
                    self._records[rollout] = kept
            return forgotten

    def _append(self, rollout: str, record: RolloutRecord) -> None:
        self._records.setdefault(rollout, []).append(replace(record, id=next(self._numbers)))
