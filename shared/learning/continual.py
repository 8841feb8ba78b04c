"""Replay: a fixed-size sample of everything seen, mixed into later batches so that new data does not displace old skill.

Reservoir sampling (Vitter 1985, "Random Sampling with a Reservoir", algorithm R): after n examples each is held with
probability capacity / n, whatever order they came in. No torch here.
"""

import json
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.errors import Corrupt

_HEADER_BYTES = 8


@dataclass(frozen=True)
class ReplayBuffer:
    """`seen` counts every example offered; `sources` names what was absorbed, so that nothing is counted twice."""

    capacity: int
    x: NDArray[np.float32] = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)
    seen: int = 0
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.capacity < 1 or len(self.x) != len(self.y) or len(self.y) != min(self.capacity, self.seen):
            raise ValueError("a replay buffer holds the smaller of its capacity and what it has seen")

    @classmethod
    def empty(cls, capacity: int, shape: tuple[int, ...]) -> "ReplayBuffer":
        return cls(capacity, np.zeros((0, *shape), np.float32), np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.y)

    def add(
        self, x: NDArray[np.float32], y: NDArray[np.int64], rng: np.random.Generator, *, source: str = ""
    ) -> "ReplayBuffer":
        """A new buffer that has also seen these examples; this one, if it has seen `source` before."""
        if source and source in self.sources:
            return self
        sources = (*self.sources, source) if source else self.sources
        free = min(self.capacity - len(self), len(y))
        kept_x, kept_y = np.concatenate([self.x, x[:free]]), np.concatenate([self.y, y[:free]])
        for offset in range(free, len(y)):
            place = int(rng.integers(self.seen + offset + 1))
            if place < self.capacity:
                kept_x[place], kept_y[place] = x[offset], y[offset]
        return ReplayBuffer(self.capacity, kept_x, kept_y, self.seen + len(y), sources)

    def below(self, classes: int) -> "ReplayBuffer":
        """Without the examples whose label is none of so many classes: a model of fewer cannot be asked them. To sample from."""
        known = self.y < classes
        return ReplayBuffer(self.capacity, self.x[known], self.y[known], int(known.sum()), self.sources)

    def sample(self, count: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """`count` examples, different ones as far as the buffer goes."""
        chosen = rng.choice(len(self), size=min(count, len(self)), replace=False)
        return self.x[chosen], self.y[chosen]

    def to_bytes(self) -> bytes:
        header = {"capacity": self.capacity, "seen": self.seen, "sources": list(self.sources)}
        return save({"x": self.x, "y": self.y}, metadata={"replay": json.dumps(header)})

    @classmethod
    def from_bytes(cls, data: bytes) -> "ReplayBuffer":
        """Raises `Corrupt` for anything that `to_bytes` did not write."""
        try:
            size = int.from_bytes(data[:_HEADER_BYTES], "little")
            header = json.loads(json.loads(data[_HEADER_BYTES : _HEADER_BYTES + size])["__metadata__"]["replay"])
            arrays = load(data)
            x, y = arrays["x"], arrays["y"]
            if x.dtype != np.float32 or y.dtype != np.int64:
                raise ValueError("wrong types")
            return cls(int(header["capacity"]), x, y, int(header["seen"]), tuple(map(str, header["sources"])))
        except (SafetensorError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise Corrupt("the replay buffer cannot be read", detail=str(error)[:200]) from error
