"""What the supervisor needs from a trainer, as a port and frozen values.

Two implementations: `process.ProcessTrainer` (a child process, what an agent runs) and `inline.InlineTrainer` (in this process, for
hosting many agents in one). `tests/contract/test_trainer.py` runs one suite on both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edge_agent.trainer.variant import Variant
from shared.ids import Digest, TaskId
from shared.session import Gate

# Flower's error codes (flwr.common.constant.ErrorCode), as is `shared.session.NODE_UNAVAILABLE`; a test compares them. flwr itself
# is loaded in the trainer only.
APP_NOT_LOADED = 1
APP_RAISED = 2
REFUSED = 6
APP_CRASHED = 8


@dataclass(frozen=True)
class Piece:
    """One encoded RecordDict: `inline`, or a file at `path`. `digest` is set for files whose bytes this device hashed itself."""

    inline: bytes = b""
    path: Path | None = None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        if bool(self.inline) == (self.path is not None):
            raise ValueError("a piece is either inline or a file")


@dataclass(frozen=True)
class LocalTask:
    """A task whose parts are on this device. Its content is the union of the records of its pieces, in order."""

    task_id: TaskId
    run_id: int
    node_id: int
    message_id: str
    message_type: str
    client_app: str
    secure: bool
    timeout_s: float
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class TaskOutcome:
    """`error_code` 0 means success; else `pieces` is empty. `metrics`: what the app measured, before masking."""

    pieces: tuple[Piece, ...] = ()
    error_code: int = 0
    error_reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SignedFile:
    digest: Digest
    size: int


@dataclass(frozen=True)
class SpecialiseRequest:
    """`files`: what the signed manifest says of the bundle. `out_dir` must not exist."""

    bundle_dir: Path
    out_dir: Path
    gate: Gate
    recovery_batches: int
    seed: int
    timeout_s: float
    files: Mapping[str, SignedFile]


class TrainerPort(Protocol):
    """One thing at a time; what is asked meanwhile waits."""

    async def run(self, task: LocalTask) -> TaskOutcome:
        """Whatever goes wrong comes back as an error code; a trainer that died or was killed costs this task only. Cancel the call
        to stop the task, or to take it back before its turn."""
        ...

    async def specialise(self, request: SpecialiseRequest) -> Variant:
        """Raises what `edge_agent.trainer.specialise` raises, `ChildFailed`, `DeadlineExceeded`."""
        ...

    async def release(self) -> None:
        """Let go of memory until the next request. Keys of unfinished secure rounds are lost with it."""
        ...
