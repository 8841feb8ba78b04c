"""What the device remembers of older examples: the replay buffer on disk, and whether newer ones look different. No torch."""

from pathlib import Path

import numpy as np

from edge_agent.storage import DataStore, is_held_out
from shared.errors import Corrupt
from shared.files import write_atomic
from shared.learning.continual import ReplayBuffer
from shared.learning.drift import MINIMUM, drift_score, input_statistics

FILE = "replay.safetensors"
_WINDOW = 512  # newest examples that drift is judged on


def absorb(store: DataStore, folder: Path, capacity: int, rng: np.random.Generator) -> ReplayBuffer | None:
    """The device's buffer after it has seen every stored training example; None while there are none.

    A buffer of another size, or one that cannot be read, is made anew from the store: nothing in it is the only copy.
    """
    path = folder / FILE
    chunks = store.chunks()
    if not chunks:
        return None
    buffer = _load(path, capacity, chunks[0].read()[0].shape[1:])
    before = buffer
    for chunk in chunks:
        if chunk.name not in buffer.sources:
            x, y = chunk.read()
            kept = ~is_held_out(x)
            buffer = buffer.add(x[kept], y[kept], rng, source=chunk.name)
    if buffer is not before:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(path, buffer.to_bytes(), mode=0o600)
    return buffer


def _load(path: Path, capacity: int, shape: tuple[int, ...]) -> ReplayBuffer:
    empty = ReplayBuffer.empty(capacity, shape)
    try:
        buffer = ReplayBuffer.from_bytes(path.read_bytes())
    except (FileNotFoundError, Corrupt):
        return empty
    return buffer if buffer.capacity == capacity and buffer.x.shape[1:] == shape else empty


def drift_of(store: DataStore) -> float:
    """How far the newest examples are from the first chunk's, as `drift_score` says; 0 while there is one chunk."""
    chunks = store.chunks()
    if len(chunks) < 2:
        return 0.0
    reference = input_statistics(chunks[0].read()[0])
    later: list[np.ndarray] = []
    for chunk in reversed(chunks[1:]):
        later.insert(0, input_statistics(chunk.read()[0]))
        if sum(map(len, later)) >= _WINDOW:
            break
    recent = np.concatenate(later)[-_WINDOW:]
    if len(reference) < MINIMUM or len(recent) < MINIMUM:
        return 0.0
    return drift_score(reference, recent)
