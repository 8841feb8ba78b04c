"""What rounds need from the rest of the coordinator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from coordinator.rounds.round import DeviceRef, Event, Job, RoundRow
from coordinator.rounds.states import RoundState
from shared.ids import DeviceId, JobId


class JobStore(Protocol):
    """Jobs, rounds and their history. Each method is one transaction."""

    def create(self, job: Job, event: Event) -> Job:
        """Add a job; if one with its key exists, return that one unchanged."""
        ...

    def job(self, id_or_name: str) -> Job:
        """By id, or the newest of that name. Raises `NotFound`."""
        ...

    def jobs(self) -> list[Job]:
        """Oldest first."""
        ...

    def update(self, job: Job, event: Event) -> None: ...

    def begin(self, row: RoundRow, event: Event) -> None:
        """A new attempt at a round."""
        ...

    def advance(self, row: RoundRow, state: RoundState, event: Event) -> None:
        """Write a transition before its effect is visible."""
        ...

    def commit(self, job: Job, row: RoundRow, event: Event) -> None:
        """The round counts from now on: the job's new global state, the round's row and every device's outcome, at once.

        Raises `Conflict` unless `row.round` follows the job's last committed round.
        """
        ...

    def abandon(self, row: RoundRow, event: Event) -> None: ...

    def abandon_open(self, job: JobId, at: float) -> int:
        """After a crash: abandon every round of the job that has not ended. Returns how many there were."""
        ...

    def rounds(self, job: JobId) -> list[RoundRow]:
        """With their devices, in order of round and attempt."""
        ...

    def events(self, job: JobId, after_id: int = 0) -> list[Event]: ...


class Directory(Protocol):
    """Who is in a cohort."""

    def members(self, cohort: str) -> Sequence[DeviceRef]:
        """Active devices, connected or not. Raises `ConfigError` for a cohort that cannot be read."""
        ...


class Traffic(Protocol):
    def take(self, device: DeviceId) -> tuple[int, int]:
        """Bytes (down, up) since the last call for this device."""
        ...


@dataclass(frozen=True)
class ModelState:
    """A model between rounds: its description, and its float arrays as safetensors."""

    model_json: str
    arrays: bytes


class Models(Protocol):
    """Releases to start from, and the torch work that the coordinator leaves to a worker process. May take minutes."""

    def start(self, model: str, release: int) -> ModelState:
        """Raises `NotFound`."""
        ...

    def prune(self, state: ModelState, ratio: float, public_data: str) -> ModelState:
        """Raises `ChildFailed`."""
        ...

    def publish(self, model: str, state: ModelState, public_data: str, lineage: Mapping[str, str | int]) -> int:
        """Build a bundle, sign it as the next release and return its number. Raises `ChildFailed`."""
        ...
