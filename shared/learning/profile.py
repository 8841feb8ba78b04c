"""What a device can do, and the budget that follows from it. A profile is data; `edge-agent` reads it from TOML."""

from dataclasses import dataclass
from pathlib import Path

from shared.errors import Malformed
from shared.ids import parse_name
from shared.settings import load_toml, parse_toml


@dataclass(frozen=True)
class Profile:
    """`runtimes` in order of preference: among equally fast ones the first is taken. `weight_bits` as in `spec.Recipe`."""

    name: str
    runtimes: tuple[str, ...] = ("openvino", "onnxruntime")
    threads: int = 1
    latency_budget_ms: float = 50.0  # one request
    size_budget_bytes: int = 16 * 1024**2  # the deployed graph
    min_batch: int = 1
    max_batch: int = 32
    weight_bits: int = 7
    memory_mib: int = 512  # what a trainer may take
    tops: float = 0.0  # nominal, 0: unknown
    watts: float = 15.0

    def __post_init__(self) -> None:
        try:
            parse_name(self.name)
        except Malformed as error:
            raise ValueError(error.message) from error
        if not self.runtimes or len(set(self.runtimes)) != len(self.runtimes):
            raise ValueError("runtimes are different names, at least one")
        if self.weight_bits not in (7, 8):
            raise ValueError("weight_bits is 7 or 8")
        if not 1 <= self.min_batch <= self.max_batch <= 4096:
            raise ValueError("batches go from min_batch, at least 1, to max_batch, at most 4096")
        for name in ("threads", "latency_budget_ms", "size_budget_bytes", "memory_mib", "watts"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive")
        if not 0 <= self.tops < float("inf"):
            raise ValueError("tops must not be negative")


GENERIC_X86 = Profile(name="generic-x86")


def parse_profile(text: str) -> Profile:
    """Raises `ConfigError`, which names the key at fault."""
    return parse_toml(Profile, text, where="profile")


def load_profile(path: Path) -> Profile:
    """Raises `ConfigError`."""
    return load_toml(Profile, path)
