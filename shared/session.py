"""What agent and coordinator say to each other, as frozen values. `shared.wire` parses protobuf into these once, at the edge.

Commands go down, events come up. Both may be repeated: every command and every durable event carries an id, and acting on the
same id twice changes nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.ids import CommandId, Digest, JobId, RolloutId, TaskId

NODE_UNAVAILABLE = 5  # Flower's ErrorCode of that name, for a task whose device is gone, cut off or stopped


@dataclass(frozen=True)
class Part:
    """One encoded RecordDict (`shared.flower.encode_records`): exactly one of `inline` and `digest` is set."""

    inline: bytes = b""
    digest: Digest | None = None

    def __post_init__(self) -> None:
        if bool(self.inline) == (self.digest is not None):
            raise ValueError("a part is either inline or a digest")


@dataclass(frozen=True)
class Serving:
    """What one model slot of a device really runs."""

    model: str
    release: int
    bundle_digest: Digest
    proven: bool


# ---- events: agent → coordinator


@dataclass(frozen=True)
class Hello:
    agent_version: str
    profile_json: str
    labels: Mapping[str, str] = field(default_factory=dict)
    serving: tuple[Serving, ...] = ()
    running_tasks: tuple[TaskId, ...] = ()


@dataclass(frozen=True)
class Heartbeat:
    serving: tuple[Serving, ...] = ()


@dataclass(frozen=True)
class TaskResult:
    """`error_code` 0 means success; else it is one of Flower's, or one of `shared.client_apps`, and `parts` is empty."""

    task_id: TaskId
    parts: tuple[Part, ...] = ()
    error_code: int = 0
    error_reason: str = ""


@dataclass(frozen=True)
class InstallReport:
    """A signed receipt (`shared.signing.receipts`), repeated until acknowledged.

    `certificate` is the signer's of then, DER: the device may have renewed it since.
    """

    command_id: CommandId
    rollout_id: RolloutId
    receipt_json: bytes
    signature: bytes
    certificate: bytes = b""


Event = Hello | Heartbeat | TaskResult | InstallReport


@dataclass(frozen=True)
class AgentEvent:
    event_id: str
    event: Event


# ---- commands: coordinator → agent


@dataclass(frozen=True)
class Welcome:
    heartbeat_s: float


@dataclass(frozen=True)
class RunTask:
    """One Flower message for one device. `timeout_s` counts from receipt."""

    task_id: TaskId
    job_id: JobId
    run_id: int
    node_id: int
    round: int
    message_id: str
    message_type: str
    client_app: str
    timeout_s: float
    secure: bool
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class CancelTask:
    task_id: TaskId


@dataclass(frozen=True)
class Gate:
    """What a device must show before and after a swap. Shares, not per cent: 0.02 is two points."""

    accuracy_budget: float = 0.02
    max_logit_difference: float = 1.0
    min_top1_agreement: float = 0.97
    min_answers: int = 32
    requantize: bool = True

    def __post_init__(self) -> None:
        if not (0 <= self.accuracy_budget <= 1 and 0 <= self.min_top1_agreement <= 1):
            raise ValueError("accuracy_budget and min_top1_agreement are shares between 0 and 1")
        if self.max_logit_difference <= 0 or self.min_answers < 1:
            raise ValueError("max_logit_difference and min_answers are positive")


@dataclass(frozen=True)
class Install:
    rollout_id: RolloutId
    model: str
    release: int
    metadata: Mapping[str, bytes]
    gate: Gate


@dataclass(frozen=True)
class Withdraw:
    rollout_id: RolloutId
    model: str
    release: int
    metadata: Mapping[str, bytes]


@dataclass(frozen=True)
class Acknowledged:
    event_id: str


@dataclass(frozen=True)
class Renew:
    pass


Order = Welcome | RunTask | CancelTask | Install | Withdraw | Acknowledged | Renew


@dataclass(frozen=True)
class Command:
    command_id: CommandId
    order: Order


# ---- metrics


@dataclass(frozen=True)
class Histogram:
    """`counts` has one more entry than `bounds` (upper bounds, ascending)."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.bounds) + 1 or list(self.bounds) != sorted(self.bounds):
            raise ValueError("a histogram has ascending bounds and one more count than bounds")


@dataclass(frozen=True)
class Sample:
    name: str
    value: float | Histogram
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """As JSON values. JSON knows no NaN and no infinity (RFC 8259), and a loss may be either: they become text."""
        return {"name": self.name, "labels": dict(self.labels), "value": _plain(self.value)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Sample":
        """The inverse of `to_plain`."""
        value = plain["value"]
        if isinstance(value, Mapping):
            histogram = Histogram(tuple(map(float, value["bounds"])), tuple(value["counts"]), float(value["sum"]))
            return cls(plain["name"], histogram, plain["labels"])
        return cls(plain["name"], float(value), plain["labels"])


def _plain(value: float | Histogram) -> Any:
    if isinstance(value, Histogram):
        bounds = [_plain(bound) for bound in value.bounds]
        return {"bounds": bounds, "counts": list(value.counts), "sum": _plain(value.sum)}
    return value if math.isfinite(value) else str(value)


@dataclass(frozen=True)
class MetricBatch:
    """Numbered from 1 within a `spool`. Its name is drawn when it is made: a device that lost its spool begins another."""

    sequence: int
    created_at: float
    samples: tuple[Sample, ...]
    spool: str = ""
