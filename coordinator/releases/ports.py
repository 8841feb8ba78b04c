"""What releases need from the rest of the coordinator."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from coordinator.releases.release import Decide, DeviceRef, Release, Rollout, RolloutRecord
from shared.ids import DeviceId, Digest, RolloutId

# Checks a bundle folder whole and returns name → (digest, size). Raises a `PeerError` or `InputError` that says what is wrong.
InspectBundle = Callable[[Path], Mapping[str, tuple[Digest, int]]]


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

    def records(self, rollout: RolloutId, after_id: int = 0) -> list[RolloutRecord]:
        """The rollout's history after that line, oldest first."""
        ...


class DeviceDirectory(Protocol):
    """Who is in the fleet."""

    def members(self, cohort: str) -> Sequence[DeviceRef]:
        """Active devices of a cohort, connected or not. Raises `ConfigError` for a cohort that cannot be read."""
        ...

    def certificate(self, device: DeviceId) -> bytes:
        """The device's present certificate, DER. Raises `NotFound`."""
        ...
