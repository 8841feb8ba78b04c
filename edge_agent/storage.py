"""The device's labelled examples: a folder of immutable chunks that only grows. No torch here.

A chunk's name is its place in line and the digest of its bytes, so ingesting the same examples twice changes nothing.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from shared.errors import Corrupt, Malformed, NotFound
from shared.files import write_atomic
from shared.ids import digest_of
from shared.learning.examples import Split, X, Y, check_examples, is_held_out, load_file, split_examples

__all__ = ["Chunk", "DataStore", "Split", "is_held_out", "load_file"]

_CHUNK = re.compile(r"(\d{8})-([0-9a-f]{64})\.safetensors\Z")


@dataclass(frozen=True)
class Chunk:
    """One ingested file. `name` stays the same for ever."""

    name: str
    path: Path = field(repr=False)

    @property
    def digest(self) -> str:
        return self.name.partition("-")[2].partition(".")[0]

    def read(self) -> tuple[X, Y]:
        """Raises `Corrupt` when the bytes are not what was ingested."""
        data = self.path.read_bytes()
        if digest_of(data) != self.digest:
            raise Corrupt(f"{self.path} was changed or damaged: remove it and ingest its examples again")
        arrays = load(data)
        return arrays["x"], arrays["y"]


class DataStore:
    """Several processes may read while one ingests."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ingest(self, x: NDArray[Any], y: NDArray[Any]) -> int:
        """Add examples: `x` float32 (n, …), `y` integer labels (n,). Returns how many are new: n, or 0 for a chunk that is
        there already. Raises `Malformed` for examples that do not fit, `StorageFull`; nothing is then changed.
        """
        images, labels = check_examples(x, y)
        chunks = self.chunks()
        if chunks:
            shape = chunks[0].read()[0].shape[1:]
            if images.shape[1:] != shape:
                raise Malformed(f"examples have shape {list(images.shape[1:])}, those stored here have {list(shape)}")
        data = save({"x": images, "y": labels})
        digest = digest_of(data)
        if any(chunk.digest == digest for chunk in chunks):
            return 0
        place = int(chunks[-1].name[:8]) + 1 if chunks else 0
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(self._path / f"{place:08d}-{digest}.safetensors", data, mode=0o600)
        return len(labels)

    def chunks(self) -> list[Chunk]:
        """Oldest first."""
        if not self._path.is_dir():
            return []
        return [Chunk(name, self._path / name) for name in sorted(os.listdir(self._path)) if _CHUNK.match(name)]

    def count(self) -> int:
        """How many examples there are, held out or not."""
        return sum(len(chunk.read()[1]) for chunk in self.chunks())

    def split(self) -> Split:
        """Everything. Raises `NotFound` when nothing has been ingested, `Corrupt`."""
        return split_examples(*self._everything())

    def _everything(self) -> tuple[X, Y]:
        parts = [chunk.read() for chunk in self.chunks()]
        if not parts:
            raise NotFound("this device has no examples yet: add some with `edge-agent ingest FILE`")
        return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
