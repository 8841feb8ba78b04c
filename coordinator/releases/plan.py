"""How a release reaches a cohort: a plan is data (TOML), read strictly.

stages = [1, 0.25, 1.0]     # whole numbers count devices, fractions are shares of the cohort; each includes the ones before
max_failures = 0            # a stage with more refusals and failures than this refuses the release
[gate]
accuracy_budget = 0.02
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.errors import Conflict
from shared.ids import DeviceId, RolloutId
from shared.session import Gate
from shared.settings import Scalar, from_mapping, parse_toml
from shared.shares import share_of


@dataclass(frozen=True)
class RolloutPlan:
    """`min_proven` is the share of a stage's devices, less those allowed to fail, that must prove before the next stage.

    A stage that is short of proofs after `stage_timeout_s` pauses: silence is no evidence against a release. `soak_s` passes
    between a stage's last proof and the next stage. A device that could not measure accuracy proves nothing unless
    `require_accuracy` is off.
    """

    stages: tuple[Scalar, ...] = (1, 0.25, 1.0)
    gate: Gate = field(default_factory=Gate)
    max_failures: int = 0
    min_proven: float = 1.0
    stage_timeout_s: float = 900.0
    soak_s: float = 0.0
    require_accuracy: bool = True
    undo_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for stage in self.stages:
            if isinstance(stage, bool) or not isinstance(stage, int | float) or not _sensible(stage):
                raise ValueError(f"a stage is a count such as 1 or a share such as 0.25, not {stage!r}")
        if not self.stages or self.stages[-1] != 1 or not isinstance(self.stages[-1], float):
            raise ValueError("the last stage is 1.0, the whole cohort")
        for kind in (int, float):
            sizes = [stage for stage in self.stages if type(stage) is kind]
            if sizes != sorted(set(sizes)):
                raise ValueError("stages grow: each is larger than the one before")
        if self.max_failures < 0 or not 0 < self.min_proven <= 1:
            raise ValueError("max_failures is 0 or more, min_proven a share above 0 and up to 1")
        if not (self.stage_timeout_s > 0 and self.undo_timeout_s > 0 and 0 <= self.soak_s < math.inf):
            raise ValueError("stage_timeout_s and undo_timeout_s are positive, soak_s is 0 or more")

    @classmethod
    def parse(cls, toml: str, *, where: str = "plan") -> "RolloutPlan":
        """Raises `ConfigError`. An empty text is the default plan."""
        return parse_toml(cls, toml, where=where)

    def to_mapping(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        # Whole floats come back from JSON as floats, so counts and shares stay apart.
        return {**values, "stages": list(self.stages)}

    @classmethod
    def from_mapping(cls, values: Any) -> "RolloutPlan":
        """Raises `ConfigError`."""
        return from_mapping(cls, values, where="plan")

    def size(self, stage: int, cohort: int) -> int:
        """How many devices of a `cohort` of that many have had their turn in stage `stage` (from 1)."""
        wanted = self.stages[stage - 1]
        if isinstance(wanted, int):
            return min(wanted, cohort)
        return min(share_of(float(wanted), cohort), cohort)


def assign(devices: Iterable[DeviceId], plan: RolloutPlan, rollout: RolloutId) -> Mapping[DeviceId, int]:
    """Each device's stage, from 1: an order drawn by hashing, so that the same device is not every rollout's canary.

    Raises `Conflict` for an empty cohort.
    """
    order = sorted(set(devices), key=lambda device: hashlib.sha256(f"{rollout}/{device}".encode()).digest())
    if not order:
        raise Conflict("no active device is in this cohort; see `coordinator device list`")
    stages: dict[DeviceId, int] = {}
    for stage in range(1, len(plan.stages) + 1):
        for device in order[: plan.size(stage, len(order))]:
            stages.setdefault(device, stage)
    return stages


def _sensible(stage: float) -> bool:
    return stage >= 1 if isinstance(stage, int) else 0 < stage <= 1
