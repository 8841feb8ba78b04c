"""What rounds need from the rest of the coordinator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from coordinator.rounds.round import DeviceRef, Event, Job, RoundRow
from coordinator.rounds.states import JobEvent
from shared.ids import DeviceId, JobId
from shared.settings import Scalar


class JobStore(Protocol):
    """Jobs, rounds and their history. Each method is one transaction; what it returned from is durable.

    Transitions are judged by the tables of `states` against what is stored: an illegal one raises `Conflict` and changes nothing.
    A round's events are named for the states that they lead to; several in one call are several transitions, in that order.
    """

    def create(self, job: Job, event: Event) -> Job:
        """Add a job; if one with its key exists, return that one unchanged."""
        ...

    def job(self, id_or_name: str) -> Job:
        """By id, or the newest of that name. Raises `NotFound`."""
        ...

    def by_key(self, key: str) -> Job | None:
        """The job that was submitted with this idempotency key."""
        ...

    def jobs(self) -> list[Job]:
        """Oldest first."""
        ...

    def change(self, job: JobId, trigger: JobEvent, event: Event, *, reason: str = "", release: int = 0) -> Job:
        """Put a job through `trigger`. `release` is kept if it is 0. An end is dated by the event."""
        ...

    def begin(self, row: RoundRow, *events: Event) -> None:
        """A new attempt at a round. The first event is PLANNED."""
        ...

    def advance(self, row: RoundRow, *events: Event) -> None:
        """Write transitions, before the effect of the first of them is visible."""
        ...

    def note(self, event: Event) -> None:
        """A line of history that changes no state."""
        ...

    def commit(self, job: Job, row: RoundRow, *events: Event) -> None:
        """The round counts from now on: the job's global state, the round's row and every device's outcome, at once.

        The last event is COMMITTED; those before it had no effect that anybody saw.
        Of `job`, the round, the digests and the model are written. Raises `Conflict` unless its round follows the last
        committed one and the job still runs.
        """
        ...

    def abandon(self, row: RoundRow, event: Event) -> None:
        """The attempt does not count; what became of its devices, and the reason, are kept."""
        ...

    def abandon_open(self, job: JobId, event: Event) -> int:
        """Abandon every attempt of the job that has not ended, for the reason in the event's detail. Returns how many."""
        ...

    def rounds(self, job: JobId) -> list[RoundRow]:
        """With their devices, in order of round and attempt."""
        ...

    def events(self, job: JobId, after_id: int = 0) -> list[Event]: ...

    def counts(self) -> Mapping[str, int]:
        """How many jobs there are in each state, for metrics."""
        ...


class Directory(Protocol):
    """Who is in a cohort."""

    def members(self, cohort: str) -> Sequence[DeviceRef]:
        """Active devices, connected or not. Raises `ConfigError` for a cohort that cannot be read."""
        ...


class Traffic(Protocol):
    def take(self, device: DeviceId) -> tuple[int, int]:
        """Bytes (down, up) since the last call for this device."""
        ...


class NullTraffic:
    """Counts nothing."""

    def take(self, device: DeviceId) -> tuple[int, int]:
        return 0, 0


@dataclass(frozen=True)
class ModelState:
    """A model between rounds: its description, and its arrays as safetensors."""

    model_json: str
    arrays: bytes = field(repr=False)


class ModelBuilder(Protocol):
    """The torch work that the coordinator leaves to a worker process. Calls may take minutes; job threads make them."""

    def initial(self, factory: str, arguments: Mapping[str, Scalar]) -> ModelState:
        """A fresh model of a registered factory. Raises `ConfigError`."""
        ...

    def prune(self, state: ModelState, ratio: float, public_data: str) -> ModelState:
        """`ratio` of the present channels removed. Raises `ChildFailed`; `InputError`, `PeerError` where another try is no help."""
        ...

    def kill(self) -> None:
        """End for good: what is under way, for a publisher too, and what is asked later fails at once with `ChildFailed`."""
        ...


class Publisher(Protocol):
    """Releases: where jobs start from, and where they end."""

    def start(self, model: str, release: int) -> ModelState:
        """The model in a release (0: the newest). Raises `NotFound`."""
        ...

    def publish(self, model: str, state: ModelState, public_data: str, lineage: Mapping[str, str | int]) -> int:
        """Build a bundle, sign it as the next release and return its number.

        Idempotent by `lineage["job"]`: a coordinator that died before it wrote the number down asks again. Raises like
        `ModelBuilder.prune`.
        """
        ...
