"""What releases need from the rest of the coordinator."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from coordinator.releases.release import Decide, DeviceRef, Release, Rollout, RolloutRecord
from shared.ids import DeviceId, RolloutId
from shared.signing.manifest import FileEntry

# Checks a bundle folder whole and returns its files. Raises a `PeerError` or `InputError` that says what is wrong.
InspectBundle = Callable[[Path], Mapping[str, FileEntry]]


class ReleaseStore(Protocol):
    """Releases, rollouts and their history. Each method is one transaction."""

    def add_release(self, release: Release) -> None:
        """Raises `Conflict` when its number is taken."""
        ...

    def release(self, model: str, number: int = 0) -> Release:
        """Number 0 is the newest that was not withdrawn. Raises `NotFound`."""
        ...

    def releases(self) -> list[Release]:
        """By model and number."""
        ...

    def withdraw(self, model: str, number: int) -> None:
        """Doing it again changes nothing. Raises `NotFound`."""
        ...

    def create(self, rollout: Rollout, record: RolloutRecord) -> None:
        """Raises `Conflict` when a rollout of the same model has not ended, `NotFound` when there is no such release."""
        ...

    def change(self, rollout: RolloutId, decide: Decide) -> Rollout:
        """Read, decide and write the rollout, its devices, its history and its release's withdrawal at once.

        `decide` may be called again. Returns what the rollout now is. Raises `NotFound` and what `decide` raises."""
        ...

    def rollout(self, rollout: str) -> Rollout:
        """Raises `NotFound`."""
        ...

    def rollouts(self) -> list[Rollout]:
        """With their devices, oldest first."""
        ...

    def standing(self) -> list[Rollout]:
        """Those that stand (`Rollout.stands`) and each model's newest wanted one."""
        ...

    def wanted(self, model: str) -> Rollout | None:
        """The model's newest rollout that was neither refused nor undone."""
        ...

    def proved(self, model: str, device: DeviceId, *, but: RolloutId) -> bool:
        """Whether the device has proven another release of the model that still stands."""
        ...

    def counts(self) -> Mapping[str, int]:
        """How many rollouts there are in each state, for metrics."""
        ...

    def records(self, rollout: RolloutId, after_id: int = 0) -> list[RolloutRecord]:
        """The rollout's history after that line, oldest first."""
        ...

    def forget_records(self, before: float) -> int:
        """Drop the history, from before that time, of rollouts that have ended. Returns how many lines there were."""
        ...


class DeviceDirectory(Protocol):
    """Who is in the fleet."""

    def members(self, cohort: str) -> Sequence[DeviceRef]:
        """Active devices of a cohort, connected or not. Raises `ConfigError` for a cohort that cannot be read."""
        ...
