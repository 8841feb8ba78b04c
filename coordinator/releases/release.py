"""Releases and rollouts as values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coordinator.releases.plan import RolloutPlan
from coordinator.releases.states import UNFINISHED, UNWANTED, DeviceState, RolloutState
from shared.errors import Conflict, NotFound
from shared.ids import DeviceId, Digest, RolloutId
from shared.signing.manifest import Manifest
from shared.signing.receipts import Receipt


@dataclass(frozen=True)
class Release:
    """A bundle with a number. `report` is the bundle's own `report.json`."""

    manifest: Manifest
    report: Mapping[str, Any] = field(default_factory=dict)
    withdrawn: bool = False

    @property
    def model(self) -> str:
        return self.manifest.model

    @property
    def number(self) -> int:
        return self.manifest.release

    @property
    def digest(self) -> Digest:
        """Of the manifest: what devices mean by a bundle's digest."""
        return self.manifest.digest

    def __str__(self) -> str:
        return f"{self.model}:{self.number}"


@dataclass(frozen=True)
class DeviceRef:
    """A device of the fleet, as far as releases care."""

    id: DeviceId
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RolloutDevice:
    """A device in a rollout. `receipt` is the last that verified, with its `signature`; `updated_at` its last transition."""

    device: DeviceId
    stage: int
    state: DeviceState = DeviceState.PENDING
    reason: str = ""
    receipt: Receipt | None = None
    signature: bytes = field(default=b"", repr=False)
    updated_at: float = 0.0

    @property
    def may_serve(self) -> bool:
        """It was offered the release and has not shown that it went back: it may be serving it."""
        if self.state in (DeviceState.OFFERED, DeviceState.PROVEN, DeviceState.WITHDRAWING):
            return True
        claimed = self.receipt is not None and self.receipt.state == "proven"
        return claimed and self.state in (DeviceState.REFUSED, DeviceState.FAILED, DeviceState.SKIPPED)


@dataclass(frozen=True)
class Rollout:
    """`stage` counts from 1; 0 means not begun. `digest` is the release's manifest. Times: seconds since the epoch, 0: never."""

    id: RolloutId
    model: str
    release: int
    digest: Digest
    state: RolloutState
    plan: RolloutPlan
    cohort: str
    created_at: float
    stage: int = 0
    stage_started_at: float = 0.0
    ended_at: float = 0.0
    reason: str = ""
    devices: tuple[RolloutDevice, ...] = ()

    @property
    def stands(self) -> bool:
        """It is under way, or a device may still have to go back behind it."""
        return self.state in UNFINISHED or (self.state in UNWANTED and any(row.may_serve for row in self.devices))

    def find(self, device: DeviceId) -> RolloutDevice | None:
        return next((row for row in self.devices if row.device == device), None)


@dataclass(frozen=True)
class RolloutRecord:
    """One line of a rollout's history."""

    at: float
    kind: str
    detail: Mapping[str, str | int | float] = field(default_factory=dict)
    id: int = 0

    @property
    def summary(self) -> str:
        """What kind of line it is, and about which kind of receipt."""
        return f"{self.kind} {self.detail.get('receipt', '')}"


@dataclass(frozen=True)
class Change:
    """What a rollout becomes, the lines of history about it, and whether its release is withdrawn with that: one transaction."""

    rollout: Rollout
    records: tuple[RolloutRecord, ...]
    withdraws: bool = False


Decide = Callable[[Rollout], Change | None]  # None: nothing to change


def no_release(model: str, number: int) -> NotFound:
    if number:
        return NotFound(f"no release {number} of model {model[:64]!r}; `coordinator model list` shows them")
    return NotFound(f"no model {model[:64]!r}, or all its releases are withdrawn; `coordinator model list` shows them")


def no_rollout(rollout: str) -> NotFound:
    return NotFound(f"no rollout {rollout[:64]!r}; `coordinator rollout list` shows them")


def unfinished_rollout(other: str, model: str) -> Conflict:
    return Conflict(f"rollout {other} of {model} has not ended; wait for it, or undo it first")
