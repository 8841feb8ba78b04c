"""What really serves on this device: a model for its profile, the runtime to load it with, and what was measured."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from edge_agent.runtimes.port import Artifact, file_name
from shared.bundle import write_folder
from shared.errors import ConfigError, Corrupt
from shared.ids import Digest, digest_of
from shared.learning.graph import MAX_GRAPH_BYTES
from shared.settings import from_mapping

VARIANT = "variant.json"


@dataclass(frozen=True)
class Measured:
    """One runtime, medians in ms. `refused` says why it was not considered; empty: it was."""

    runtime: str
    one_ms: float = 0.0
    one_p99_ms: float = 0.0
    batch_ms: float = 0.0  # a whole batch of the profile's largest size
    max_logit_difference: float | None = None
    top1_agreement: float | None = None
    refused: str = ""


@dataclass(frozen=True)
class Variant:
    """`origin`: requantized here, or the bundle's own graph. `accuracy` is of the device's held-out examples, with the chosen
    runtime; None where the device has none. `artifact`: what the runtime loads; variants from before there were several have ONNX.
    """

    runtime: str
    origin: Literal["local", "shipped"]
    digest: Digest  # of `file`
    size_bytes: int
    profile: str
    weight_bits: int
    batch: int
    measured: tuple[Measured, ...]
    accuracy: float | None = None
    max_logit_difference: float | None = None
    top1_agreement: float | None = None
    recovery_batches: int = 0
    within_latency_budget: bool = True
    artifact: Artifact = "onnx"
    fallback: str = ""  # why the shipped graph was taken although a local one was wanted

    def __post_init__(self) -> None:
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise ValueError("accuracy is a share between 0 and 1")
        if not all(math.isfinite(one.one_ms) and math.isfinite(one.batch_ms) for one in self.measured):
            raise ValueError("a latency is not finite")
        if self.runtime not in [one.runtime for one in self.measured]:
            raise ValueError("the chosen runtime was not measured")

    @property
    def file(self) -> str:
        """The artifact's name in the variant's folder."""
        return file_name(self.artifact)

    @property
    def latency_ms(self) -> float:
        """Median for one request with the chosen runtime."""
        return next(one.one_ms for one in self.measured if one.runtime == self.runtime)


def write_variant(path: Path, variant: Variant, model: bytes) -> Variant:
    """A folder with variant.json and the artifact, whole or absent. Raises `Conflict` if it exists, `StorageFull`."""
    value = asdict(variant)
    if (
        variant.artifact == "onnx"
    ):  # as before there were others: an agent that is set back to an older version reads it, too
        del value["artifact"]
    text = json.dumps(value, sort_keys=True, indent=1, allow_nan=False)
    write_folder(path, {variant.file: model, VARIANT: text.encode()})
    return variant


def read_variant(path: Path) -> Variant:
    """Raises `Corrupt` when the folder is not what `write_variant` left, down to the artifact's digest."""
    try:
        value = json.loads((path / VARIANT).read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"{VARIANT} is not an object")
        variant = from_mapping(Variant, value, where=VARIANT)
        model = path / variant.file
        if model.stat().st_size > MAX_GRAPH_BYTES or digest_of(model.read_bytes()) != variant.digest:
            raise ValueError(f"{variant.file} is not the one that was measured")
    except (OSError, ValueError, ConfigError) as error:
        raise Corrupt(f"{path} is damaged: install the release again", detail=str(error)[:200]) from error
    return variant
