"""What the supervisor needs from the inference service, as a port and frozen values.

Two implementations: `process.InferenceProcess` (a child process, what an agent runs) and `inline.InlineInference`
(the same engine and server inside this process, for hosting many agents in one).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edge_agent.inference.batching import BatchPolicy
from shared.errors import ConfigError
from shared.ids import Digest, parse_digest, parse_name


@dataclass(frozen=True)
class ModelSpec:
    """One version of a model to load. `digest` is of the file at `path`, `version` the release number."""

    model: str
    version: int
    digest: Digest
    path: Path
    runtime: str
    threads: int = 1
    policy: BatchPolicy = field(default_factory=BatchPolicy)

    def __post_init__(self) -> None:
        parse_name(self.model)
        parse_digest(self.digest)
        if self.version < 1:
            raise ConfigError("a release number starts at 1", path="version")
        if not 1 <= self.threads <= 256:
            raise ConfigError("must be between 1 and 256", path="threads")


@dataclass(frozen=True)
class SlotStatus:
    """`since`: seconds since the epoch, when the version entered `state`. `reason`: why it failed."""

    version: int
    digest: str
    runtime: str
    state: str
    since: float
    requests: int = 0
    errors: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Loaded:
    """`warm_up_ms`: one answer at batch 1, once warm."""

    slot: SlotStatus
    load_s: float
    warm_up_ms: float


@dataclass(frozen=True)
class ShadowReport:
    """A candidate beside the live version on the same requests.

    `requests`: compared, fewer than asked for if the time ran out. `agreement`: share of `rows` with the same largest
    output, 0 when nothing was compared. The latencies are of the runs that held the compared requests. `errors`: not
    answered, or with another shape, or with values that are no numbers where the live version's are.
    """

    live_version: int
    version: int
    requests: int
    rows: int
    agreement: float
    max_abs_diff: float
    live_p50_ms: float
    candidate_p50_ms: float
    errors: int


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` observations were at most `bounds[i]`; the last count is of those above every bound."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True)
class ModelStatus:
    """Counts run from `since` (seconds since the epoch). `errors` failed in the runtime, `rejected` met a full queue,
    `expired` passed their deadline or lost their caller before they ran. Histograms are of live answers."""

    model: str
    live: SlotStatus | None
    slots: tuple[SlotStatus, ...]
    requests: int
    errors: int
    rejected: int
    expired: int
    queued: int
    batch_limit: int
    latency_ms: Histogram
    batch_rows: Histogram
    since: float


@dataclass(frozen=True)
class ServiceStatus:
    models: tuple[ModelStatus, ...]
    pid: int
    started: float

    def model(self, name: str) -> ModelStatus | None:
        return next((status for status in self.models if status.model == name), None)


class Slots(Protocol):
    """Control of the loaded models. Every method raises `shared.errors` classes and changes nothing when it does."""

    async def load(self, spec: ModelSpec) -> Loaded:
        """Loads and warms; the same version and digest again returns the slot as it is. Raises `NotFound`,
        `DigestMismatch`, `Malformed`, `Unsupported` (the runtime is not here, or does not load such files), `Conflict`
        (both slots taken)."""
        ...

    async def swap(self, model: str, version: int) -> SlotStatus:
        """Makes a warm version live between two batches. Raises `NotFound`, `Conflict`."""
        ...

    async def revert(self, model: str) -> SlotStatus:
        """Back to the version before the last swap. Raises `NotFound`, `Conflict` when none is standing by."""
        ...

    async def release(self, model: str, version: int) -> None:
        """Closes a version that is not live, after its last answer. Raises `NotFound`, `Conflict`."""
        ...

    async def remove(self, model: str) -> None:
        """Closes every version of a model. Raises `NotFound`."""
        ...

    async def shadow(self, model: str, version: int, *, requests: int, timeout_s: float) -> ShadowReport:
        """Compares a warm version with the live one on copies of live requests. Raises `NotFound`, `Conflict`."""
        ...

    async def status(self) -> ServiceStatus: ...


class InferencePort(Protocol):
    @property
    def slots(self) -> Slots: ...

    @property
    def address(self) -> str:
        """`host:port` of the Open Inference Protocol. Raises `Unavailable` before `start`."""
        ...

    async def start(self) -> None: ...

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Answers what is queued, then ends; whatever is left at the timeout is cut off."""
        ...
